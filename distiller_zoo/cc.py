"""Correlation Congruence for Knowledge Distillation (Peng et al., ICCV 2019), as RepDistiller has it."""

from __future__ import annotations

from functools import cache
from typing import Annotated

import torch
from torch import Tensor, nn

from distiller_zoo.base import Distiller, Pair, distill_dict
from distiller_zoo.maps import product
from helper import distributed
from helper.batch import Batch, When
from helper.errors import require_positive
from helper.kl import full_precision
from helper.seen import Reads, Seen


@distill_dict.register("cc")
class CC(Distiller):
    """``mean_i ⟨δ_i, δ_{i+1}⟩`` over neighbours in the batch, ``δ = |e_s − e_t|`` of embedded pooled vectors.

    That is RepDistiller's CC, whose published figures are of it; the paper compares the correlations between samples,
    ``‖K_s − K_t‖²/B²`` of kernel matrices. Both linear layers are trained, so that embeddings which ignore their images
    have loss 0. A pair counts half for each of its two samples; the batch is that of all processes. A batch of one
    sample has no pair and loss 0.

    Args:
        pair: the widths of both vectors.
        feat_dim: the width that both are embedded in.
    """

    student = teacher = Reads(vector=True)

    def __init__(
        self, pair: Pair, *, feat_dim: Annotated[int, "width that both pooled vectors are embedded in"] = 128
    ) -> None:
        super().__init__(pair)
        require_positive(feat_dim=feat_dim)
        self.embed_student, self.embed_teacher = (
            nn.Linear(each[-1][0], feat_dim) for each in (pair.student, pair.teacher)
        )

    def prepare(self, student: Seen) -> Tensor:
        return self.embed_student(student.vector)

    def compare(self, prepared: Tensor, teacher: Seen, batch: Batch, when: When) -> Tensor:
        gap = (full_precision(prepared) - full_precision(self.embed_teacher(teacher.vector))).abs()
        everyone = distributed.gathered(gap, gradient=True)  # [N, feat_dim]
        mine = beside(len(everyone), gap.device, gap.dtype).unflatten(0, (distributed.size(), -1))[distributed.rank()]
        return (gap * product(mine, everyone)).sum(1)


@cache
def beside(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``[N, N]``: of two neighbours half of their pair, so that a mean over N samples is one over N − 1 pairs."""
    with torch.inference_mode(False):
        pairs = torch.ones(count - 1, device=device, dtype=dtype).diag(1)
        return (pairs + pairs.T) * (count / (2 * max(1, count - 1)))
