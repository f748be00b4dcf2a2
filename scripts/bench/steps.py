"""Training steps of the distillation losses under the weightings, with and without cached teachers, and as released."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from distiller_zoo import distill_dict
from scripts.bench.as_released import has_released_form
from scripts.bench.subjects import AVERAGE, METHODS, Offline, Pair, step_of
from scripts.bench.timing import Rows, alternate, ratio, rows_of

TITLE = "training steps, K teachers → one student"
ALONE, TEACHERS, IMAGES = "student", "teachers' forward", "teachers' own images"


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Rows]:
    """The figures of each setting."""
    tables = {}
    for setting in opt.settings:
        with Offline(setting, opt) as bench:
            tables[str(setting)] = rows_of_setting(bench, opt, say)
    return tables


def rows_of_setting(bench: Offline, opt: argparse.Namespace, say: Callable[[str], None]) -> Rows:
    """All of ours in turn, then what there is of the released form, each beside our own."""
    pairs = bench.pairs()
    live = {str(pair): step_of(bench.fit(pair)) for pair in pairs}
    on_logits = [pair for pair in pairs if distill_dict[pair.distill].on_logits()]
    cached = {f"{pair}, cached": step_of(bench.fit(pair, cached=True)) for pair in on_logits}
    ours = {ALONE: bench.alone(), TEACHERS: bench.teachers_forward(), IMAGES: bench.own_images(), **live, **cached}
    say(f"{bench.setting}: {len(ours)} of ours")
    times = alternate(ours, opt.steps, opt.seconds, bench.device)
    rows = rows_of(times, opt.batch_size, list(ours), ALONE)
    rows[IMAGES]["vs_teachers_and_student"] = ratio(times, IMAGES, TEACHERS, ALONE)
    for pair in pairs:
        rows[str(pair)]["vs_average"] = ratio(times, str(pair), str(Pair(pair.distill, AVERAGE)))
        rows[str(pair)]["vs_teachers_and_student"] = ratio(times, str(pair), TEACHERS, ALONE)

    known = [pair for pair in pairs if pair.ensemble in METHODS and has_released_form(distill_dict[pair.distill])]
    then = {f"{pair}, as released": bench.released(pair) for pair in known}
    say(f"{bench.setting}: {len(then)} as released")
    beside = {ALONE: ours[ALONE], **{str(pair): live[str(pair)] for pair in known}, **then}
    times = alternate(beside, opt.steps, opt.seconds, bench.device)
    rows |= rows_of(times, opt.batch_size, list(then), ALONE)
    for pair, name in zip(known, then, strict=True):
        rows[name]["vs_average"] = ratio(times, name, f"{Pair(pair.distill, AVERAGE)}, as released")
        rows[name]["vs_ours"] = ratio(times, name, str(pair))
    return rows
