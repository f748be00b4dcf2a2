"""Time calls that share a machine with others: each round times every variant once, in changing order."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

FEWEST, PATIENCE = 3, 3
"""So many rounds are timed though the time is over, unless it is over so many times."""

SLOW = 0.5
"""Seconds that a step takes whose kernels are chosen in a small part of them."""

Times = dict[str, list[float]]
"""Seconds of every call of each variant; calls of the same index belong to one round."""


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes until the device has done what it asks for."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int, seconds: float, device: torch.device) -> Times:
    """Time the variants in turn, so that whatever else the machine does slows all of them.

    Each round starts with another variant, and every other round runs backwards.

    Args:
        variants: names → what is timed.
        rounds: how many, unless ``seconds`` are over and there were ``FEWEST``.
    """
    names = list(variants)
    for name in names:
        warm_up(variants[name], device)
    times: Times = {name: [] for name in names}
    started = time.monotonic()
    for number in range(rounds):
        allowed = seconds if number >= FEWEST else PATIENCE * seconds
        if number and time.monotonic() - started > allowed:
            break
        for name in ordered(names, number):
            times[name].append(seconds_of(variants[name], device))
    return times


def warm_up(call: Callable[[], object], device: torch.device) -> None:
    """The first calls are slow (kernels are chosen, memory is fetched): three, but of a slow step only one."""
    for _ in range(3):
        if seconds_of(call, device) > SLOW:
            return


def ordered(names: Sequence[str], number: int) -> list[str]:
    """The order of a round."""
    start = number // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if number % 2 else order


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def ratio(times: Times, name: str, *others: str) -> float:
    """Median over the rounds of a variant's time over the summed times of others."""
    together = zip(*(times[other] for other in others), strict=True)
    return median([mine / sum(theirs) for mine, theirs in zip(times[name], together, strict=True)])


def excess(times: Times, name: str, other: str) -> float:
    """Median over the rounds of a variant's time less another's, in milliseconds."""
    return 1e3 * median([mine - theirs for mine, theirs in zip(times[name], times[other], strict=True)])
