"""Training steps of every distillation loss with every ensemble method, and where their time goes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from distiller_zoo import distill_dict
from helper.cost import mac_count
from helper.loop import Fit
from scripts.bench.subjects import AVERAGE, SOLVED, Offline, Pair, Step, pairs, step_of
from scripts.bench.timing import Times, alternate, excess, median, ratio, seconds_of, synchronise

Figures = dict[str, Any]

ALONE, TEACHERS = "student alone", "teachers' forward alone"
RELEASED, CACHED = "as released", "cached"
PARTS = ("teachers", "student", "weighting", "input")
WATCHED = 4
"""Steps whose parts are timed."""
PATIENT = 10
"""How many times as long the closest comparison may take: it is of a few hundredths."""


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """The figures of each setting."""
    figures = {}
    for setting in opt.settings:
        with Offline(setting, opt) as bench:
            figures[str(setting)] = measure_setting(bench, opt, say)
    return figures


def measure_setting(bench: Offline, opt: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """Four groups of alternating steps, and the parts of each step."""
    fits = {str(pair): bench.fit(pair) for pair in pairs()}
    variants = {ALONE: bench.alone(), TEACHERS: bench.teachers_forward()}
    variants |= {name: step_of(fit) for name, fit in fits.items()}

    def take_turns(what: str, group: dict[str, Step], seconds: float) -> Times:
        say(f"{bench.setting}: {what}")
        return alternate(group, opt.steps, seconds, bench.device)

    times = take_turns(f"the student alone, {len(fits)} pairs", variants, opt.seconds)
    group = {name: variants[name] for name in of_logits()}
    close = take_turns(f"{SOLVED} against {AVERAGE}, kd", group, PATIENT * opt.seconds)
    cached_fits = {f"{pair} {CACHED}": bench.fit(pair, cached=True) for pair in pairs() if needs_logits_only(pair)}
    cached_steps = {name: step_of(fit) for name, fit in cached_fits.items()}
    cached = take_turns("on cached views", {ALONE: variants[ALONE], **cached_steps}, opt.seconds / 2)
    old = take_turns("as released", released_group(bench, variants | cached_steps), opt.seconds)

    rows = {name: row(times, name, opt.batch_size) for name in variants}
    for name, fit in fits.items():
        rows[name] |= compared(times, name) | {"shares": shares(fit, bench.device)}
    for name, fit in cached_fits.items():
        rows[name] = row(cached, name, opt.batch_size) | {"against_alone": ratio(cached, name, ALONE)}
        rows[name]["shares"] = shares(fit, bench.device)
    return {
        "batch_size": opt.batch_size,
        "precision": bench.session.precision,
        "rounds": {"pairs": len(times[ALONE]), "cached": len(cached[ALONE]), "released": len(old[of_logits()[0]])},
        "rows": rows,
        "close": close_figures(close),
        "released": released_figures(old, opt.batch_size),
        "macs": macs(bench),
    }


def close_figures(times: Times) -> Figures:
    """How much more a step of AEKD costs than the average."""
    solved, average = of_logits()
    return {
        "rounds": len(times[solved]),
        "ratio": ratio(times, solved, average),
        "excess_ms": excess(times, solved, average),
    }


def needs_logits_only(pair: Pair) -> bool:
    """Whether a teacher's logits are all that is asked of it."""
    return not distill_dict[pair.distill].feature_level


def of_logits() -> tuple[str, str]:
    """AEKD and its yardstick, without feature maps."""
    distill = next(name for name, kind in distill_dict.items() if not kind.feature_level)
    return str(Pair(distill, SOLVED)), str(Pair(distill, AVERAGE))


def released_group(bench: Offline, ours: dict[str, Step]) -> dict[str, Step]:
    """AEKD and AVERAGE_LOSS as released, each after our own."""
    group: dict[str, Step] = {}
    for pair in released_pairs():
        group |= {name: ours[name] for name in (str(pair), f"{pair} {CACHED}") if name in ours}
        group[f"{pair} {RELEASED}"] = bench.released(pair)
    return group


def released_pairs() -> list[Pair]:
    """What is compared with its released form."""
    return [Pair(distill, ensemble) for distill in distill_dict for ensemble in (AVERAGE, SOLVED)]


def released_figures(times: Times, batch_size: int) -> Figures:
    """Of each released pair: how much faster ours is, and what AEKD cost more than the average there."""
    figures = {}
    for pair in released_pairs():
        old, average = (f"{each} {RELEASED}" for each in (pair, Pair(pair.distill, AVERAGE)))
        cached = f"{pair} {CACHED}"
        figures[str(pair)] = {
            **row(times, old, batch_size),
            "speed_up": ratio(times, old, str(pair)),
            "speed_up_cached": ratio(times, old, cached) if cached in times else None,
            "against_average": ratio(times, old, average),
        }
    return figures


def row(times: Times, name: str, batch_size: int) -> Figures:
    """Milliseconds and images per second of one variant."""
    seconds = median(times[name])
    return {"ms": 1e3 * seconds, "images_per_second": batch_size / seconds}


def compared(times: Times, name: str) -> Figures:
    """A pair against the student alone, the average of the teachers, and the least that it can take."""
    average = str(Pair(name.split()[0], AVERAGE))
    return {
        "against_alone": ratio(times, name, ALONE),
        "against_average": ratio(times, name, average),
        "excess_ms": excess(times, name, average),
        "against_sum": ratio(times, name, TEACHERS, ALONE),
    }


def shares(fit: Fit, device: torch.device) -> dict[str, float]:
    """Which part of the time goes where, the making of the batches included; the parts add up to 1.

    The student's is what is left: forward and backward pass, losses, update.
    """
    step = step_of(fit)
    with watched(fit.task, device) as spent:
        total = sum(seconds_of(step, device) for _ in range(WATCHED))
    spent["input"] = WATCHED * seconds_of(lambda: list(fit.train), device) / len(fit.train)
    total += spent["input"]
    spent["student"] = total - sum(spent.values())
    return {part: spent[part] / total for part in PARTS}


@contextmanager
def watched(task: Any, device: torch.device) -> Iterator[dict[str, float]]:
    """Add up the seconds that a :class:`train_student.Distillation` spends in teachers and in weighting."""
    spent = {"teachers": 0.0, "weighting": 0.0}
    places = [
        (task.teachers, "logits", "teachers"),
        (task.teachers, "maps", "teachers"),
        (task, "weighted", "weighting"),
    ]
    for owner, name, part in places:
        setattr(owner, name, stopwatch(getattr(owner, name), spent, part, device))
    try:
        yield spent
    finally:
        for owner, name, _ in places:
            delattr(owner, name)  # the class's own method again


def stopwatch(call: Callable[..., Any], spent: dict[str, float], part: str, device: torch.device) -> Callable[..., Any]:
    """The same function, its seconds added to ``spent[part]``."""

    def timed(*arguments: Any, **named: Any) -> Any:
        synchronise(device)
        started = time.perf_counter()
        result = call(*arguments, **named)
        synchronise(device)
        spent[part] += time.perf_counter() - started
        return result

    return timed


def macs(bench: Offline) -> Figures:
    """Multiply-accumulates per image of all teachers' forward pass, and of the student's forward and backward pass."""
    image = bench.images[:1]
    student, teacher = (bench.session.build(arch) for arch in (bench.setting.student, bench.setting.teacher))
    return {
        "teachers": bench.setting.teacher_num * mac_count(teacher, image),
        "student": 3 * mac_count(student, image),  # the backward pass is two products as large as the forward's
    }


def fraction_of_peak(figures: Figures, name: str, peak: float) -> float:
    """The share of the machine's matrix peak (GFLOPS) that a variant reaches."""
    counts = figures["macs"]
    of_student = name == ALONE or name.endswith(CACHED)
    per_image = counts["student"] if of_student else counts["teachers"] if name == TEACHERS else sum(counts.values())
    return 2e-9 * per_image * figures["rows"][name]["images_per_second"] / peak


def text(figures: Figures, machine: Figures) -> list[str]:
    """For people."""
    return [line for name, setting in figures.items() for line in setting_text(name, setting, machine)]


def setting_text(name: str, figures: Figures, machine: Figures) -> list[str]:
    """One setting."""
    peak = machine["peak"][figures["precision"]]
    heads = ("ms", "images/s", "/alone", "/average", "/(t+s)", "of peak", *PARTS)
    lines = [
        f"{name}, batch {figures['batch_size']}, {figures['precision']}, {figures['rounds']['pairs']} rounds; "
        "t+s: teachers' forward alone and student's step alone",
        f"{'':28}" + "".join(f"{head:>10}" for head in heads),
    ]
    for variant, values in figures["rows"].items():
        cells = [f"{values['ms']:.2f}", f"{values['images_per_second']:,.0f}"]
        keys = ("against_alone", "against_average", "against_sum")
        cells += [f"{values[key]:.3f}" if key in values else "" for key in keys]
        cells.append(f"{100 * fraction_of_peak(figures, variant, peak):.0f} %")
        cells += [f"{100 * values['shares'][part]:.1f} %" for part in PARTS] if "shares" in values else []
        lines.append(table_line(variant, cells))
    close = figures["close"]
    lines.append(
        f"{SOLVED} / {AVERAGE}, kd, {close['rounds']} alternating steps: {close['ratio']:.3f}, "
        f"{close['excess_ms']:+.2f} ms"
    )
    lines.append(f"as released (fp32, NCHW), {figures['rounds']['released']} rounds")
    lines.append(f"{'':28}" + "".join(f"{head:>10}" for head in ("ms", "images/s", "/average", "ours", "cached")))
    for variant, values in figures["released"].items():
        cells = [f"{values['ms']:.2f}", f"{values['images_per_second']:,.0f}", f"{values['against_average']:.2f}"]
        cells += [f"{values[key]:.2f}×" if values[key] else "" for key in ("speed_up", "speed_up_cached")]
        lines.append(table_line(variant, cells))
    return [*lines, ""]


def table_line(name: str, cells: Sequence[str]) -> str:
    """A row of a table in plain text."""
    return f"{name:28}" + "".join(f"{cell:>10}" for cell in cells)
