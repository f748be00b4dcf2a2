"""Time calls that share a machine with others: each round times every variant once, in changing order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

FEWEST, PATIENCE = 3, 3
"""So many rounds are timed though the time is over, unless it is over so many times."""
SLOW = 0.5
"""Seconds that a step takes whose kernels are chosen in a small part of them."""

Times = dict[str, list[float]]
"""Seconds of every call of each variant; calls of the same index belong to one round."""
Rows = dict[str, dict[str, float]]
"""A table: a line's name → a column's → a figure. ``vs_…`` is a ratio, below 1 where the line is the faster one."""


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes until the device has done what it asks for.

    Of one thread on a CPU it is the processor's time, which does not mind what else the machine does.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    synchronise(device)
    started = clock()
    call()
    synchronise(device)
    return clock() - started


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int, seconds: float, device: torch.device) -> Times:
    """Time the variants in turn, so that whatever else the machine does slows all of them.

    Each round starts with another variant, and every other round runs backwards.

    Args:
        variants: names → what is timed.
        rounds: how many, unless ``seconds`` are over and there were ``FEWEST``.
    """
    names = list(variants)
    for (
        name
    ) in names:  # the first calls are slow (kernels are chosen, memory is fetched): three, but of a slow step one
        for _ in range(3):
            if seconds_of(variants[name], device) > SLOW:
                break
    times: Times = {name: [] for name in names}
    started = time.monotonic()
    for number in range(rounds):
        allowed = seconds if number >= FEWEST else PATIENCE * seconds
        if number and time.monotonic() - started > allowed:
            break
        for name in ordered(names, number):
            times[name].append(seconds_of(variants[name], device))
    return times


def ordered(names: Sequence[str], number: int) -> list[str]:
    """The order of a round."""
    start = number // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if number % 2 else order


def ratio(times: Times, name: str, *others: str) -> float:
    """Median over the rounds of a variant's time over the summed times of others."""
    together = zip(*(times[other] for other in others), strict=True)
    return median([mine / sum(theirs) for mine, theirs in zip(times[name], together, strict=True)])


def rows_of(times: Times, batch_size: int, names: Sequence[str], yardstick: str) -> Rows:
    """Milliseconds, images per second and the ratio to one of the variants, for some of them."""
    rows: Rows = {}
    for name in names:
        seconds = median(times[name])
        rows[name] = {"ms": 1e3 * seconds, "images_per_s": batch_size / seconds}
        rows[name] |= {f"vs_{yardstick}": ratio(times, name, yardstick), "rounds": len(times[name])}
    return rows


def text_of(rows: Rows) -> list[str]:
    """The table for people."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    widths = [max(10, len(column) + 2) for column in columns]
    lines = [" " * 32 + "".join(column.rjust(width) for column, width in zip(columns, widths, strict=True))]
    for name, row in rows.items():
        cells = [figure(row[column]) if column in row else "" for column in columns]
        lines.append(f"{name:32}" + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    return lines


def figure(value: float) -> str:
    """Three digits; all of a large or whole number."""
    return f"{value:,.0f}" if value >= 1000 or isinstance(value, int) else f"{value:.3g}"
