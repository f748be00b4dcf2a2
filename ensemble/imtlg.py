"""Towards Impartial Multi-task Learning (Liu et al., ICLR 2021): the balance of gradients, IMTL-G."""

from __future__ import annotations

from torch import Tensor

from ensemble.base import TeacherLosses, ensemble_dict, unit_sum
from ensemble.gram import GradientMethod, eigen
from helper.replay import Replayed


@ensemble_dict.register("IMTLG")
class IMTLG(GradientMethod):
    """``w = G⁺d / Σ(G⁺d)``, ``d_k = ‖g_k‖``: the combined gradient reaches equally far along every teacher's.

    A weight may be below 0. Where those of opposite signs (nearly) cancel out they are 1/K.
    """

    def total(self, teacher_num: int) -> float:
        return 1

    def weights(self, teachers: TeacherLosses) -> Tensor:
        return solve_imtlg(teachers.gram)


@Replayed
def solve_imtlg(gram: Tensor) -> Tensor:
    """Weights ``[K]`` of K gradients with the Gram matrix ``[K, K]``."""
    gram = gram / gram.trace().clamp_min(1e-300)
    values, vectors, inside = eigen(gram)
    projections = gram.diagonal().sqrt() @ vectors
    return unit_sum(vectors @ (projections / values).where(inside, 0.0))
