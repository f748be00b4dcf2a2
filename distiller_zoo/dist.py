"""Knowledge Distillation from A Stronger Teacher (Huang, You, Wang, Qian, Xu; NeurIPS 2022)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from distiller_zoo.base import Distiller, Pair, distill_dict, logits_of
from helper.batch import Batch, When
from helper.distributed import gathered
from helper.errors import require_not_negative
from helper.seen import Reads, Seen

FLAT = 0.01
"""Probabilities that vary less than those of logits which spread by this count as varying so much: the correlation with
constant ones is 0, and its gradient would be 1e6."""


@distill_dict.register("dist")
class DIST(Distiller):
    """``τ²·(β·inter + γ·intra)``: what Pearson correlation of the softened probabilities lacks to 1.

    ``inter`` is between the classes of a sample, ``intra`` between the samples of a class; the latter are those of all
    processes. A sample's part of ``intra``, ``1 − N·mean_c(â_bc·b̂_bc)`` with centred columns of length 1, can be
    negative; a batch of one sample has ``intra = 1`` without a gradient.

    Args:
        pair: nothing of it is needed.
        kd_T: τ; 1 on ImageNet.
        dist_beta, dist_gamma: weights of the two parts.
    """

    student = teacher = Reads(logits=True)
    broadcasts = True

    def __init__(
        self,
        pair: Pair = Pair(),  # noqa: B008 a tuple
        *,
        kd_T: float = 4.0,
        dist_beta: Annotated[float, "weight of the correlation between the classes of a sample"] = 1.0,
        dist_gamma: Annotated[float, "weight of the correlation between the samples of a class"] = 1.0,
    ) -> None:
        super().__init__(pair)
        require_not_negative(dist_beta=dist_beta, dist_gamma=dist_gamma)
        self.T, self.beta, self.gamma = kd_T, dist_beta, dist_gamma

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        parts = [(each / self.T).softmax(-1) for each in logits_of(prepared, teacher)]  # [..., B, C]
        wholes = [gathered(each.movedim(-2, 0), gradient=True).movedim(0, -2) for each in parts]  # [..., N, C]
        inter = 1 - self._products(parts, parts, -1).sum(-1)
        intra = 1 - wholes[0].shape[-2] * self._products(parts, wholes, -2).mean(-1)
        return self.T**2 * (self.beta * inter + self.gamma * intra)

    def _products(self, parts: list[Tensor], wholes: list[Tensor], axis: int) -> Tensor:
        """What each entry of ``parts`` adds to the correlations of ``wholes`` along an axis."""
        (x, x_length), (y, y_length) = (self._centred(*each, axis) for each in zip(parts, wholes, strict=True))
        return x * y / (x_length * y_length + 1e-8)

    def _centred(self, part: Tensor, whole: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        mean = whole.mean(axis, keepdim=True)
        length = torch.linalg.vector_norm(whole - mean, dim=axis, keepdim=True)
        least = FLAT / self.T * mean.detach() * whole.shape[axis] ** 0.5
        return part - mean, torch.maximum(length, least)
