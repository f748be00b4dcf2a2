"""Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, Tefas; ECCV 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distiller_zoo.base import Distiller, distill_dict, vectors_of
from distiller_zoo.maps import product
from helper.batch import Batch, When
from helper.distributed import gathered
from helper.seen import Reads, Seen

EPS = 1e-7
"""Of the released code: added to lengths and to probabilities."""


@distill_dict.register("pkt")
class PKT(Distiller):
    """``mean_j P_bj·log(P_bj/Q_bj)``: P, Q are (1 + cosine)/2 between pooled vectors, over each sample's sum.

    Sample b's loss is its row; j are the samples of all processes. As released it is a mean over j, so that it falls as
    1/N: the published weight of 30000 belongs to batches of 64. A zero vector has the cosine 0 to all, and no gradient
    (the released code's is NaN).
    """

    student = teacher = Reads(vector=True)

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        mine, theirs = (_neighbours(each) for each in vectors_of(prepared, teacher))
        return (theirs * ((theirs + EPS) / (mine + EPS)).log()).mean(1)


def _neighbours(vector: Tensor) -> Tensor:
    """Vectors ``[B, D]`` → how likely each of all is to be a sample's neighbour ``[B, N]``."""
    length = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    unit = vector / (length.masked_fill(length == 0, torch.inf) + EPS)
    likeness = F.relu(1 + product(unit, gathered(unit, gradient=True).T))
    return likeness / likeness.sum(1, keepdim=True)
