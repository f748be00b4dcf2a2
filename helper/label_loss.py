"""The part of every loss that looks at the labels."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from helper.batch import Batch


def label_loss(
    logits: Tensor, batch: Batch, reduction: Literal["mean", "none"] = "mean", smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of logits ``[B, C]`` with the labels: the batch mean, or ``[B]`` with ``none``.

    Of mixed images, that with both labels, each by its share: ``s·CE(target) + (1 − s)·CE(other)``.

    Args:
        smoothing: share of each label that goes to all C classes alike (Szegedy et al. 2016).
    """
    if batch.other is None or batch.share is None:
        return F.cross_entropy(logits, batch.target, reduction=reduction, label_smoothing=smoothing)
    first, second = (
        F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        for labels in (batch.target, batch.other)
    )
    each = second.lerp(first, batch.share.to(first.dtype))
    return each.mean() if reduction == "mean" else each
