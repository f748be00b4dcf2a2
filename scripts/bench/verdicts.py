"""What the benchmark must show: each measure with its target, met or missed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from scripts.bench import steps
from scripts.bench.solver import SHARED
from scripts.bench.steps import of_logits
from scripts.bench.subjects import AVERAGE, SOLVED, Pair

Figures = dict[str, Any]

INPUT = 10.0
CLOSE, CLOSE_MS = 1.02, 0.5
FEATURES = 1.10
SUM = 1.10
CACHED = 1.10
RELEASED: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "resnet20x3:resnet8": {"cpu": (3.5, 10.0), "cuda": (None, None)},
    "resnet32x4x3:vgg8": {"cpu": (2.4, 17.0), "cuda": (5.0, None)},
}
"""Times as fast as released, without cache and on cached views; None where it is only reported.

Of CPUs those with bf16 instructions are meant.
"""
PEERS = ("ONE", "OKDDip")
PEERS_CPU, PEERS_GPU = 1.8, 3.0
ERROR, SHARE = 1e-6, 0.05
MEMORY, MEMORY_TEACHERS = 1.05, 1.10


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        measure: what it is.
        value: as measured.
        target: the bound; None where the figure is only reported.
        least: whether the bound is the least, not the most.
        met_anyway: whether another bound of the same line is kept.
        note: what a reader should know besides.
    """

    measure: str
    value: float
    target: float | None
    least: bool = False
    met_anyway: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """``ok``, ``missed`` or ``reported``."""
        if self.target is None:
            return "reported"
        value = float(figure(self.value))  # what the line shows
        met = value >= self.target if self.least else value <= self.target
        return "ok" if met or self.met_anyway else "missed"


def rows(figures: Figures) -> list[Row]:
    """The lines whose sections were measured."""
    made: list[Row] = []
    if "input" in figures:
        made += input_rows(figures["input"])
    for name, setting in figures.get("steps", {}).items():
        made += step_rows(name, setting, figures["machine"])
    if "online" in figures:
        made += online_rows(figures["online"], figures["machine"])
    if "solver" in figures:
        made += solver_rows(figures["solver"])
    if "processes" in figures:
        made += process_rows(figures["processes"])
    for name, setting in figures.get("memory", {}).items():
        made += memory_rows(name, setting)
    return made


def input_rows(figures: Figures) -> Iterator[Row]:
    """Speed, and what the resident images take."""
    yield Row("input pipeline / torchvision per sample, 2 workers", figures["ratio"], INPUT, least=True)
    yield Row("resident images, bytes per channel and pixel", figures["bytes_per_value"], 1.0)


def step_rows(name: str, figures: Figures, machine: Figures) -> Iterator[Row]:
    """One setting."""
    close, rounds = figures["close"], f"{figures['rounds']['pairs']} rounds"
    yield Row(
        f"{name}: {SOLVED} / {AVERAGE}, kd",
        close["ratio"],
        CLOSE,
        met_anyway=close["excess_ms"] <= CLOSE_MS,
        note=f"{close['excess_ms']:+.2f} ms, of which {CLOSE_MS} may be; {close['rounds']} rounds",
    )
    for distill, kind in distill_dict.items():
        released = figures["released"][str(Pair(distill, SOLVED))]
        note = f"as released {released['against_average']:.2f}; {rounds}"
        if kind.feature_level:
            value = figures["rows"][str(Pair(distill, SOLVED))]["against_average"]
            yield Row(f"{name}: {SOLVED} / {AVERAGE}, {distill}", value, FEATURES, note=note)
    for distill, kind in distill_dict.items():
        value, worst = the_worst(figures, distill, "against_sum")
        target = None if kind.feature_level else SUM  # adapters are neither teacher nor student
        yield Row(
            f"{name}: step / (teachers + student), {distill}", value, target, note=f"the worst, {worst}; {rounds}"
        )
        if not kind.feature_level:
            value, worst = the_worst(figures, distill, "against_alone", f" {steps.CACHED}")
            note = f"the worst, {worst}; {figures['rounds']['cached']} rounds"
            yield Row(f"{name}: cached step / student alone, {distill}", value, CACHED, note=note)
    yield from released_rows(name, figures, machine)


def the_worst(figures: Figures, distill: str, key: str, suffix: str = "") -> tuple[float, str]:
    """The largest figure among the ensemble methods, and whose it is."""
    return max((figures["rows"][f"{Pair(distill, method)}{suffix}"][key], method) for method in ensemble_dict)


def released_rows(name: str, figures: Figures, machine: Figures) -> Iterator[Row]:
    """AEKD against what it was."""
    known = machine["kind"] != "cpu" or machine["has_bf16"]
    targets = RELEASED.get(name, {}).get(machine["kind"], (None, None)) if known else (None, None)
    values = figures["released"][of_logits()[0]]
    note = f"{figures['rounds']['released']} rounds"
    measure = f"{name}: {SOLVED}, kd, times as fast as released"
    yield Row(measure, values["speed_up"], targets[0], least=True, note=note)
    yield Row(f"{measure}, cached", values["speed_up_cached"], targets[1], least=True, note=note)


def online_rows(figures: Figures, machine: Figures) -> Iterator[Row]:
    """The methods that have a target."""
    target = (PEERS_CPU if machine["has_bf16"] else None) if machine["kind"] == "cpu" else PEERS_GPU
    for method in PEERS:
        values = figures["rows"][method]
        note = f"{figures['model']}, {values['rounds']} rounds"
        yield Row(f"{method}, times as fast as in fp32, NCHW, one by one", values["speed_up"], target, True, note=note)


def solver_rows(figures: Figures) -> Iterator[Row]:
    """Error and share."""
    wrong = max(values["exact"]["error"] for values in figures["solvers"].values())
    yield Row(f"exact solver above the optimum / max‖g‖², K ≤ {max(figures['solvers'])}", wrong, ERROR)
    for K, value in figures["shares"].items():
        target = SHARE if K <= SHARED else None
        yield Row(f"exact solver's share of a step, K = {K}", value, target, note=figures["setting"])


def process_rows(figures: Figures) -> Iterator[Row]:
    """How many images each number of processes takes in a second."""
    for count, value in figures["images_per_second"].items():
        note = f"{figures['setting']}, kd, one batch of {figures['batch_size']}, one thread or GPU each"
        yield Row(f"images/s, {count} process{'es' if count > 1 else ''}, {figures['backend']}", value, None, note=note)


def memory_rows(name: str, figures: Figures) -> Iterator[Row]:
    """One setting."""
    for distill in distill_dict:
        value = figures["against_average"][str(Pair(distill, SOLVED))]
        yield Row(f"{name}: peak memory, {SOLVED} / {AVERAGE}, {distill}", value, MEMORY)
    value = figures["against_needed"]
    yield Row(f"{name}: peak memory / (student + weights + one teacher)", value, MEMORY_TEACHERS, note="kd")


def text(rows: Sequence[Row]) -> list[str]:
    """For people."""
    lines = [f"{'measure':66}{'measured':>10}{'target':>10}  verdict"]
    for row in rows:
        sign = "≥" if row.least else "≤"
        target = "" if row.target is None else f"{sign} {row.target:g}"
        note = f"   ({row.note})" if row.note else ""
        lines.append(f"{row.measure:66}{figure(row.value):>10}{target:>10}  {row.verdict}{note}")
    missed = [row for row in rows if row.verdict == "missed"]
    return [*lines, f"{len(missed)} of {sum(row.target is not None for row in rows)} targets missed"]


def figure(value: float) -> str:
    """Three or four digits."""
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}" if value < 10 else f"{value:.1f}"
