"""A Gift from Knowledge Distillation (Yim, Joo, Bae, Kim; CVPR 2017): the flow of solution procedure."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from distiller_zoo.base import Pair, distill_dict
from distiller_zoo.maps import StagesDistiller, product, smaller
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.seen import Reads, Seen


@distill_dict.register("fsp")
class FSP(StagesDistiller):
    """Squared error between the products of neighbouring stages: ``Σ ⟨(M_s − M_t)²⟩`` over stem and stages (eq. 2).

    ``M = ⟨top_c · bottom_d⟩_HW`` ``[C, D]``; the larger map of a neighbourhood is average-pooled first. The paper and
    the released code train with it alone at first, here it stands beside the other terms. Published with ``-b 50``.

    Args:
        pair: the networks' shapes.

    Raises:
        UsageError: student and teacher have stages of different width, or only one.
    """

    student = teacher = Reads(maps="all")

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        mine, theirs = ([each[side][0] for each in self.shapes] for side in (0, 1))
        if mine != theirs or len(mine) < 2:
            widths = " and ".join(",".join(map(str, each)) for each in (mine, theirs))
            raise UsageError(
                f"--distill: fsp compares stages of equal width, and student and teacher have {widths} channels; "
                "choose at, or networks of equal widths"
            )

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        flows = [[flow(*each) for each in pairwise(self.paired(seen))] for seen in (prepared, teacher)]
        gaps = [(s - t).square().mean((1, 2)) for s, t in zip(*flows, strict=True)]
        return torch.stack(gaps).sum(0)


def flow(bottom: Tensor, top: Tensor) -> Tensor:
    """Maps ``[B, D, H, W]`` and ``[B, C, H', W']`` of neighbouring stages → ``[B, C, D]``."""
    lower, upper = (maps.flatten(2) for maps in smaller(bottom, top))
    return product(upper, lower.mT) / lower.shape[2]
