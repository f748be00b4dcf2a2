"""Differences between rows, over the seeds that they share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from scripts.reporting.runs import WEIGHTS, Group, alike, parser_of

LEVEL = 0.95
EQUAL = 1e-9
"""Points of accuracy that rounding leaves between equal values."""
MISSING = "–"
"""In place of an interval or p that there is none of."""


@dataclass
class Difference:
    """Mean of paired differences, half the width of its interval and p of its t-test.

    None for a single pair, and where all differ by the same, which tells nothing of how they would vary.
    """

    mean: float
    half: float | None
    pairs: int
    p: float | None = None

    def __str__(self) -> str:
        if self.half is None:
            return f"{self.mean:+.2f} {'(1 seed)' if self.pairs == 1 else f'[{MISSING}]'}"
        return f"{self.mean:+.2f} [{self.mean - self.half:+.2f}, {self.mean + self.half:+.2f}]"


def half_width(values: Sequence[float]) -> float | None:
    """Half of Student's 95 % interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    quantile = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)
    return float(quantile * statistics.stdev(values) / math.sqrt(len(values)))


def p_value(values: Sequence[float]) -> float | None:
    """Of the t-test that the mean is 0, two-sided; None for a single value, and for equal ones unless they are 0."""
    if len(values) < 2:
        return None
    deviation = statistics.stdev(values)
    if deviation <= EQUAL:
        return 1.0 if abs(statistics.mean(values)) <= EQUAL else None
    t = statistics.mean(values) / deviation * math.sqrt(len(values))
    return float(2 * stats.t.sf(abs(t), len(values) - 1))


def holm(values: Sequence[float]) -> list[float]:
    """p of several tests → p corrected for how many they are (Holm, 1979), in their order."""
    corrected, largest = [0.0] * len(values), 0.0
    for done, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, values[index] * (len(values) - done)))
        corrected[index] = largest
    return corrected


def baseline_name() -> str:
    """The weighting that the others are compared with: the script's default."""
    return str(parser_of("student").get_default("ensemble_method"))


def baseline_of(each: Group, groups: Sequence[Group]) -> Group | None:
    """The default weighting and loss of the same student, teachers, images and number of epochs.

    Where several have that, the one with the fewest other differences; None for what is no such row.
    """
    if each.first.kind != "student":
        return None
    parser, mine = parser_of("student"), each.first.setting
    wanted = {
        **{name: mine[name] for name in ("model_s", "dataset", "teachers", "epochs", "batch_size")},
        **{name: parser.get_default(name) for name in ("distill", "ensemble_method", "beta")},
    }
    students = [other for other in groups if other.first.kind == "student"]
    fitting = [other for other in students if wanted.items() <= other.first.setting.items()]
    fitting = [other for other in fitting if alike(mine, other.first.setting, ["images", WEIGHTS])]
    return None if each in fitting or not fitting else min(fitting, key=lambda other: distance(each, other))


def distance(one: Group, other: Group) -> int:
    """In how many of their common options two groups differ."""
    mine, theirs = one.first.setting, other.first.setting
    return sum(mine[name] != theirs[name] for name in mine.keys() & theirs.keys())


def paired(each: Group, other: Group, which: str = "last") -> Difference | None:
    """``each`` minus ``other`` in accuracy over the seeds that both have; None where they share none."""
    mine, theirs = ({run.seed: run.accuracy(which) for run in one.runs} for one in (each, other))
    gaps = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
    if not gaps:
        return None
    p = p_value(gaps)
    return Difference(statistics.mean(gaps), None if p is None else half_width(gaps), len(gaps), p)
