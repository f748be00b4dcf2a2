"""Sums that stay on the device, so that a step never waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        self._add(tuple(values), stacked(values) * count, count)

    def add_sums(self, sums: Scalars, count: int) -> None:
        """Take in sums over ``count`` samples, under the same names each time."""
        self._add(tuple(sums), stacked(sums), count)

    def _add(self, names: tuple[str, ...], addend: torch.Tensor, count: int) -> None:
        self._names = names
        self._sums = addend if self._sums is None else self._sums + addend
        self._count += count

    def read(self) -> dict[str, float]:
        """The means so far, of this process; waits for the device once."""
        names, sums, count = self.state()
        return {name: total / count for name, total in zip(names, sums, strict=True)}

    def state(self) -> tuple[list[str], list[float], int]:
        """Names, sums and count of this process: all that :meth:`restore` needs."""
        return list(self._names), [] if self._sums is None else self._sums.tolist(), self._count

    def restore(self, states: Sequence[Any], device: torch.device) -> None:
        """Go on from what :meth:`state` returned in one process or several."""
        for names, sums, count in states:
            values = torch.tensor(sums, dtype=torch.float64, device=device)
            if names:
                self.add_sums(dict(zip(names, values, strict=True)), count)

    @staticmethod
    def read_together(means: Mapping[str, Means]) -> dict[str, dict[str, float]]:
        """The means of several, over the samples of all processes, some of which may have none."""
        merged: dict[str, tuple[dict[str, float], int]] = {}
        for part in distributed.gather({key: each.state() for key, each in means.items()}):
            for key, (names, sums, count) in part.items():
                so_far, number = merged.get(key, ({}, 0))
                total = {name: so_far.get(name, 0.0) + value for name, value in zip(names, sums, strict=True)}
                merged[key] = so_far | total, number + count
        return {
            key: {name: total / max(count, 1) for name, total in sums.items()} for key, (sums, count) in merged.items()
        }


class PerClass:
    """How many images of each class there were, and of how many the class was found."""

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None  # int64 [2, C]

    def add(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Take in predictions ``[B, C]``, or ``[m, B, C]`` of m networks, and labels ``[B]``."""
        logits, target = logits.flatten(0, -2), target.repeat(len(logits) if logits.ndim == 3 else 1)
        right = torch.stack([torch.ones_like(target), correct(logits, target).long()])
        sums = torch.zeros(2, logits.shape[1], dtype=torch.int64, device=logits.device)
        sums.scatter_add_(1, target.expand(2, -1), right)
        self._sums = sums if self._sums is None else self._sums + sums

    def read(self) -> tuple[float, dict[str, list[Any]]]:
        """The mean of the classes' accuracies in percent, over all processes; and what goes on record of each class.

        That is ``class_images``, how many there are, and ``class_accuracy``: None for a class without images.
        """
        parts = distributed.gather(None if self._sums is None else self._sums.tolist())
        counts, right = torch.tensor([part for part in parts if part is not None]).sum(0).tolist()
        each = [100 * found / count if count else None for count, found in zip(counts, right, strict=True)]
        known = [accuracy for accuracy in each if accuracy is not None]
        told = [accuracy if accuracy is None else round(accuracy, 4) for accuracy in each]
        return sum(known) / len(known), {"class_images": counts, "class_accuracy": told}


def stacked(values: Scalars) -> torch.Tensor:
    """All values in float64, ``[len(values)]``, in few operations."""
    return torch.stack([value.detach() for value in values.values()]).double()


class FirstBad:
    """Finds the step in which a part of the loss was first not finite; until it is asked, it only keeps the values."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._steps: list[int] = []
        self._values: list[torch.Tensor] = []

    def look(self, values: Scalars, step: int) -> None:
        """Take in the parts of the loss of one step, counted from 1, under the same names each time."""
        self._names = tuple(values)
        self._steps.append(step)
        self._values.append(torch.stack([value.detach() for value in values.values()]))

    def read(self) -> tuple[int, list[str]] | None:
        """The first bad step since the last call and its bad parts in any process, or None; waits for the device."""
        every = [each for each in distributed.gather(self._read()) if each[0]]
        return min(every) if every else None

    def _read(self) -> tuple[int, list[str]]:
        """The first bad step, or 0, and the names of its bad parts in this process."""
        steps, values = self._steps, self._values
        self._steps, self._values = [], []
        finite = torch.stack(values).isfinite().tolist() if values else []  # [steps, parts]
        for step, row in zip(steps, finite, strict=True):
            if not all(row):
                return step, [name for name, fine in zip(self._names, row, strict=True) if not fine]
        return 0, []


def correct(logits: torch.Tensor, target: torch.Tensor, top: int = 1) -> torch.Tensor:
    """Whether each label is among the ``top`` largest logits.

    Args:
        logits: ``[B, C]``; where C < ``top``, all classes are looked at.
        target: ``[B]``.

    Returns:
        bool ``[B]``.
    """
    if top == 1:
        return logits.argmax(1) == target
    best = logits.topk(min(top, logits.shape[1]), dim=1).indices  # [B, top]
    return (best == target[:, None]).any(1)


def accuracy(logits: torch.Tensor, target: torch.Tensor, top: int = 1) -> torch.Tensor:
    """Percentage of samples for which :func:`correct` holds: a scalar on the logits' device."""
    return correct(logits, target, top).double().mean() * 100
