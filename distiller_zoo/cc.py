"""Correlation Congruence for Knowledge Distillation (Peng et al., ICCV 2019), as RepDistiller has it."""

from __future__ import annotations

import functools
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
        gap = distributed.gathered(gap, gradient=True)  # [N, feat_dim]
        pairs = (gap[1:] * gap[:-1]).sum(1)
        return distributed.own(product(halves(len(gap), pairs.dtype, pairs.device), pairs))


@functools.cache
def halves(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[N, N − 1]``: what each sample has of each pair of neighbours, so that the means of both are the same."""
    between = torch.zeros(count, count - 1, dtype=dtype, device=device)
    between.fill_diagonal_(1)[1:].fill_diagonal_(1)
    return between * (count / max(1, 2 * (count - 1)))
