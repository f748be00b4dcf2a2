"""Scores of named predictions over a loader, exact in any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from helper.meters import Means, correct
from helper.precision import autocast

Predict = Callable[[torch.Tensor], dict[str, torch.Tensor]]
Sums = dict[str, torch.Tensor]


def evaluate(predict: Predict, loader: Any, device: torch.device, precision: str) -> dict[str, dict[str, float]]:
    """Named predictions' mean scores over a loader, of which each process has a part.

    Args:
        predict: images ``[B, 3, H, W]`` → for each name logits ``[B, C]``; or those of m networks ``[m, B, C]``, which
            are scored as ``name_0``, ``name_1``, … and, as their mean, ``name``; or a measure of each image ``[B]``.

    Returns:
        for each name ``accuracy`` and ``accuracy5`` in percent, and ``loss`` (cross-entropy in nats); the mean of a
        measure under the empty name.
    """
    means: dict[str, Means] = {}
    with torch.no_grad():
        for batch in loader:
            with autocast(device, precision):
                predictions = predict(batch.images)
            for name, prediction in predictions.items():
                for which, sums, count in _named_sums(name, prediction, batch.target):
                    means.setdefault(which, Means()).add_sums(sums, count)
    return Means.read_together(means)


def _named_sums(name: str, prediction: torch.Tensor, target: torch.Tensor) -> Iterator[tuple[str, Sums, int]]:
    """Names, sums of scores, and how many predictions they are sums over."""
    if prediction.ndim == 1:
        yield name, {"": prediction.double().sum()}, len(target)
    elif prediction.ndim == 2:
        yield name, _sums_of(prediction.float(), target), len(target)
    else:
        each = [_sums_of(logits.float(), target) for logits in prediction]
        together = {score: torch.stack([sums[score] for sums in each]).sum() for score in each[0]}
        yield name, together, len(target) * len(each)
        for j, sums in enumerate(each):
            yield f"{name}_{j}", sums, len(target)


def _sums_of(logits: torch.Tensor, target: torch.Tensor) -> Sums:
    return {
        "accuracy": correct(logits, target).sum() * 100.0,
        "accuracy5": correct(logits, target, top=5).sum() * 100.0,
        "loss": F.cross_entropy(logits, target, reduction="sum"),
    }
