"""Sums that stay on the device, so that a step never waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from helper import distributed

Scalars = dict[str, torch.Tensor]


class Means:
    """Running means of named scalars, weighted by the number of samples."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None
        self._count = 0

    def add(self, values: Scalars, count: int) -> None:
        """Take in means over ``count`` samples, under the same names each time."""
        self.add_sums({name: value.detach().double() * count for name, value in values.items()}, count)

    def add_sums(self, sums: Scalars, count: int) -> None:
        """Take in sums over ``count`` samples, under the same names each time."""
        addend = torch.stack([value.detach().double() for value in sums.values()])
        self._names = tuple(sums)
        self._sums = addend if self._sums is None else self._sums + addend
        self._count += count

    def read(self) -> dict[str, float]:
        """The means so far, of this process; waits for the device once."""
        names, sums, count = self.state()
        return {name: total / count for name, total in zip(names, sums, strict=True)}

    def state(self) -> tuple[list[str], list[float], int]:
        """Names, sums and count of this process: all that :meth:`restore` needs."""
        return list(self._names), [] if self._sums is None else self._sums.tolist(), self._count

    def restore(self, state: Any, device: torch.device) -> None:
        """Go on from what :meth:`state` returned."""
        names, sums, self._count = state
        self._names = tuple(names)
        self._sums = torch.tensor(sums, dtype=torch.float64, device=device) if names else None

    @staticmethod
    def read_together(means: Mapping[str, Means]) -> dict[str, dict[str, float]]:
        """The means of several, over the samples of all processes, some of which may have none."""
        merged: dict[str, tuple[dict[str, float], int]] = {}
        for part in distributed.gather({key: each.state() for key, each in means.items()}):
            for key, (names, sums, count) in part.items():
                so_far, number = merged.get(key, ({}, 0))
                total = {name: so_far.get(name, 0.0) + value for name, value in zip(names, sums, strict=True)}
                merged[key] = total, number + count
        return {key: {name: total / count for name, total in sums.items()} for key, (sums, count) in merged.items()}


class FirstBad:
    """Remembers on the device in which step a part of the loss was first not finite."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._found: torch.Tensor | None = None

    def look(self, values: Scalars, step: int) -> None:
        """Take in the parts of the loss of one step, counted from 1, under the same names each time."""
        bad = ~torch.stack([value.detach().float() for value in values.values()]).isfinite()
        found = torch.cat([bad.any().view(1) * step, bad])  # [1 + parts]: the step, or 0, and which parts
        self._names = tuple(values)
        self._found = found if self._found is None else torch.where(self._found[0] > 0, self._found, found)

    def read(self) -> tuple[int, list[str]] | None:
        """The first bad step and its bad parts in any process, or None; waits for the device."""
        mine = (0, []) if self._found is None else self._read()
        every = [each for each in distributed.gather(mine) if each[0]]
        return min(every) if every else None

    def _read(self) -> tuple[int, list[str]]:
        assert self._found is not None
        step, *bad = self._found.tolist()
        return step, [name for name, is_bad in zip(self._names, bad, strict=True) if is_bad]


def correct(logits: torch.Tensor, target: torch.Tensor, top: int = 1) -> torch.Tensor:
    """Whether each label is among the ``top`` largest logits.

    Args:
        logits: ``[B, C]``; where C < ``top``, all classes are looked at.
        target: ``[B]``.

    Returns:
        bool ``[B]``.
    """
    best = logits.topk(min(top, logits.shape[1]), dim=1).indices  # [B, top]
    return (best == target[:, None]).any(1)


def accuracy(logits: torch.Tensor, target: torch.Tensor, top: int = 1) -> torch.Tensor:
    """Percentage of samples for which :func:`correct` holds: a scalar on the logits' device."""
    return correct(logits, target, top).double().mean() * 100
