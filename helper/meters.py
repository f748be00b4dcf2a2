"""Sums that stay on the device, so that a step never waits for it."""

from __future__ import annotations

import torch


class Means:
    """Running means of named scalars, weighted by the number of samples."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None
        self._count = 0

    def add(self, values: dict[str, torch.Tensor], count: int) -> None:
        """Take in means over ``count`` samples, under the same names each time."""
        addend = torch.stack([value.detach().double() for value in values.values()]) * count
        self._names = tuple(values)
        self._sums = addend if self._sums is None else self._sums + addend
        self._count += count

    def read(self) -> dict[str, float]:
        """The means so far; waits for the device once."""
        sums = [] if self._sums is None else self._sums.tolist()
        return {name: total / self._count for name, total in zip(self._names, sums, strict=True)}


def accuracy(logits: torch.Tensor, target: torch.Tensor, top: int = 1) -> torch.Tensor:
    """Percentage of samples whose label is among the ``top`` largest logits.

    Args:
        logits: ``[B, C]``; where C < ``top``, all classes are looked at.
        target: ``[B]``.

    Returns:
        a scalar on the logits' device.
    """
    best = logits.topk(min(top, logits.shape[1]), dim=1).indices  # [B, top]
    return (best == target[:, None]).any(1).double().mean() * 100
