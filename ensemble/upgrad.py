"""Jacobian Descent for Multi-Objective Optimization (Quinton, Rey; 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble.base import TeacherLosses, ensemble_dict
from ensemble.gram import GradientMethod, rise_above, unit_lengths
from helper.replay import Replayed


@ensemble_dict.register("UPGRAD")
class UPGrad(GradientMethod):
    """``w = Σ_i argmin_v vᵀ G v, v ≥ e_i/K``: each gradient projected such that it conflicts with none, then averaged.

    The combined gradient conflicts with none either. Where no two gradients conflict the weights are 1/K; else each is
    at least that, and they sum to more than 1.
    """

    nonnegative = True

    def weights(self, teachers: TeacherLosses) -> Tensor:
        return solve_upgrad(teachers.gram)


@Replayed
def solve_upgrad(gram: Tensor) -> Tensor:
    """Weights ``[..., K]`` of K gradients with the Gram matrix ``[..., K, K]``."""
    K = gram.shape[-1]
    length, unit = unit_lengths(gram)
    identity = torch.eye(K, dtype=gram.dtype, device=gram.device).expand_as(gram)
    # Row i, of a gradient of length 1, counts as much as that one is long.
    return (1 + (length.unsqueeze(-2) @ rise_above(unit.unsqueeze(-3), identity)).squeeze(-2) / length) / K
