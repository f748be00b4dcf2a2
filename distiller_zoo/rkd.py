"""Relational Knowledge Distillation (Park, Kim, Lu, Cho; CVPR 2019)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from distiller_zoo.base import Distiller, Pair, distill_dict, vectors_of
from helper import distributed
from helper.batch import Batch, When
from helper.distributed import differentiable_stack, gathered
from helper.errors import require_not_negative
from helper.seen import Reads, Seen

SAME = 1e-6
"""Vectors closer than this part of their length are taken to be equal; equal ones are seen under no angle. The released
code's gradient there is 5e10."""


@distill_dict.register("rkd")
class RKD(Distiller):
    """``25·mean_ij h(d_ij^s − d_ij^t) + 50·mean_ijk h(cos∠_ijk^s − cos∠_ijk^t)`` with h: smooth L1.

    ``d_ij`` are the distances between pooled vectors over their mean, ``∠_ijk`` the angle at sample i between j and k.
    Sample i's loss is what is seen from it; j and k are the samples of all processes. It takes three samples to have
    a gradient.

    Args:
        pair: nothing of it is needed.
        rkd_distance, rkd_angle: weights of the two parts.
    """

    student = teacher = Reads(vector=True)
    sums_to_zero = True

    def __init__(
        self,
        pair: Pair,
        *,
        rkd_distance: Annotated[float, "weight of the distances between samples"] = 25.0,
        rkd_angle: Annotated[float, "weight of the angles between samples"] = 50.0,
    ) -> None:
        super().__init__(pair)
        require_not_negative(rkd_distance=rkd_distance, rkd_angle=rkd_angle)
        self.distance, self.angle = rkd_distance, rkd_angle

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        mine, theirs = (_relations(each) for each in vectors_of(prepared, teacher))
        distance, angle = (F.smooth_l1_loss(*each, reduction="none") for each in zip(mine, theirs, strict=True))
        return self.distance * distance.mean(1) + self.angle * angle.mean((1, 2))


def _relations(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors ``[B, D]`` → relative distances to all ``[B, N]``, cosines between any two of all ``[B, N, N]``.

    Both follow from the inner products, in float64, where their differences keep the digits of close vectors: the
    released code's ``[N, N, D]`` differences take many times longer.
    """
    everyone = gathered(vector.double(), gradient=True)  # [N, D]
    inner = everyone @ everyone.T  # [N, N]
    mine = distributed.own(inner)  # [B, N]
    squares, own = inner.diagonal(), vector.double().square().sum(1, keepdim=True)  # [N], [B, 1]
    distance = own + squares - 2 * mine
    inverse = torch.where(distance > SAME**2 * squares.mean(), distance, torch.inf).rsqrt()  # [B, N]
    length = distance * inverse
    pairs = max(1, len(everyone) * (len(everyone) - 1))
    mean = differentiable_stack(length.sum()).sum(0) / pairs
    product = inner - mine[:, None] + (own - mine)[..., None]  # [B, N, N], of differences to sample i
    inverse, dtype = inverse.to(vector.dtype), vector.dtype
    cosine = product.to(dtype) * inverse[:, :, None] * inverse[:, None]
    return (length / mean.clamp_min(torch.finfo(mean.dtype).tiny)).to(dtype), cosine
