"""Sums that stay on the device, so that a step never waits for it."""

from __future__ import annotations

import torch


class Means:
    """Running means of named scalars, weighted by the number of samples."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, torch.Tensor], count: int) -> None:
        """Take in means over ``count`` samples."""
        for name, value in values.items():
            addend = value.detach().double() * count
            self._sums[name] = self._sums[name] + addend if name in self._sums else addend
            self._counts[name] = self._counts.get(name, 0) + count

    def read(self) -> dict[str, float]:
        """The means so far; waits for the device once."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values())).tolist()
        return {name: total / self._counts[name] for name, total in zip(self._sums, sums, strict=True)}


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
