"""Multi-Task Learning as a Bargaining Game (Navon et al., ICML 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble import min_norm
from ensemble.base import TeacherLosses, ensemble_dict, unit_sum
from ensemble.gram import GradientMethod, unit_lengths
from helper.replay import Replayed

STEPS = 40
"""Newton steps on a device; solutions of which no weight exceeds the others a thousandfold need about 25."""
DECREMENT = 1e-24
"""Squared Newton decrement below which the host is done."""


@ensemble_dict.register("NASHMTL")
class NashMTL(GradientMethod):
    """``G w = 1/w``, ``w > 0``, over its sum: what K teachers would agree on who bargain for the step.

    As it is the solution makes the combined gradient ``√K`` long whatever the loss, with weights of some hundreds on
    CIFAR-100, so that a student's steps would never become smaller; here the weights sum to 1. How long a gradient is
    has no influence on its part of the step. There is no solution where gradients cancel out; the weights are then
    (nearly) those that they do with.
    """

    nonnegative = True

    def total(self, teacher_num: int) -> float:
        return 1

    def weights(self, teachers: TeacherLosses) -> Tensor:
        return unit_sum(solve_nash(teachers.gram))


@Replayed
def solve_nash(gram: Tensor) -> Tensor:
    """``w`` ``[K]`` with ``G w = 1/w`` for a Gram matrix ``[K, K]``, but for a factor: gradients 1 long at most.

    The minimum of the self-concordant ``½aᵀCa − Σ log a``, C the Gram matrix of the gradients over their lengths and
    ``w = a/length``, by damped Newton steps, which keep a positive.
    """
    length, unit = unit_lengths(gram)
    a = torch.ones_like(length)
    for _ in range(STEPS):
        system = a.unsqueeze(-1) * unit * a
        rest = 1 - system.sum(-1)
        system.diagonal().add_(1)
        factor, _ = torch.linalg.cholesky_ex(system)  # the unchecked form: no host synchronisation
        step = torch.cholesky_solve(rest.unsqueeze(-1), factor).squeeze(-1)
        decrement = (rest * step).sum()
        if min_norm.on_host(gram) and decrement <= DECREMENT:
            break
        a = a * (1 + step / (1 + decrement.sqrt()))
    return a / length
