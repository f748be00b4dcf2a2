"""Gradient Episodic Memory for Continual Learning (Lopez-Paz, Ranzato; NeurIPS 2017)."""

from __future__ import annotations

from torch import Tensor

from ensemble.base import TeacherLosses, ensemble_dict
from ensemble.gram import GradientMethod, rise_above, unit_lengths
from helper.replay import Replayed


@ensemble_dict.register("DUALPROJ")
class DualProj(GradientMethod):
    """``w = argmin_v vᵀ G v, v ≥ 1/K``: the mean gradient projected such that it conflicts with none.

    Where it does not conflict with any the weights are 1/K; else each is at least that, and they sum to more than 1.
    """

    nonnegative = True

    def weights(self, teachers: TeacherLosses) -> Tensor:
        return solve_dualproj(teachers.gram)


@Replayed
def solve_dualproj(gram: Tensor) -> Tensor:
    """Weights ``[..., K]`` of K gradients with the Gram matrix ``[..., K, K]``."""
    K = gram.shape[-1]
    length, unit = unit_lengths(gram)
    return 1 / K + rise_above(unit.unsqueeze(-3), length.unsqueeze(-2) / K).squeeze(-2) / length
