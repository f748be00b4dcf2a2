"""Conflict-Averse Gradient Descent for Multi-task Learning (Liu et al., NeurIPS 2021)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ensemble import min_norm
from ensemble.base import TeacherLosses, ensemble_dict
from ensemble.gram import GradientMethod, complementary, unit_lengths
from helper.errors import UsageError
from helper.replay import Replayed


@ensemble_dict.register("CAGRAD")
class CAGrad(GradientMethod):
    """The step that helps the worst-off teacher most, no farther from the mean gradient than c times its length.

    ``max_d min_k g_k·d`` subject to ``‖d − g_0‖ ≤ c‖g_0‖``, ``g_0`` the mean. The weights, ``1/K`` and more,
    sum to more than 1. Where gradients cancel out, so that no step helps all, they are ``1/K``.

    Args:
        cagrad_c: 0 is the average; below 1 the step still lowers the mean loss. The default is LibMTL's (``calpha``);
            the paper chooses it for each data set.
    """

    nonnegative = True

    def __init__(
        self, *, cagrad_c: Annotated[float, "how far the step may be from the mean gradient, in its lengths"] = 0.5
    ) -> None:
        self.c = cagrad_c

    def require_valid(self, teacher_num: int) -> None:
        if not 0 <= self.c < float("inf"):
            raise UsageError(f"--cagrad_c: {self.c:g} is no length; choose 0, the average, or more, such as 0.5")

    def weights(self, teachers: TeacherLosses) -> Tensor:
        return solve_cagrad(teachers.gram, self.c)


@Replayed
def solve_cagrad(gram: Tensor, c: float) -> Tensor:
    """Weights ``[..., K]`` of the step d, from the Gram matrix ``[..., K, K]``.

    With ``d = Jᵀ(u + x)``, ``u = 1/K``, the conditions for the optimum are ``x ≥ 0``, ``G(u + x) ≥ μ`` with equality
    where ``x > 0``, and ``‖Jᵀx‖ = c‖Jᵀu‖``. On a support this is a quadratic equation for μ, the larger root counts.
    """
    K = gram.shape[-1]
    length, unit = unit_lengths(gram)
    mean = length.unsqueeze(-2) / K  # [..., 1, K]: all of this is in terms of gradients of length 1
    q = mean @ unit
    reach = (q * mean).sum(-1, keepdim=True) * c**2  # [..., 1, 1]: ‖Jᵀx‖²
    e = length.amin(-1, keepdim=True).unsqueeze(-1) / length.unsqueeze(-2)

    def level(a: Tensor, b: Tensor) -> Tensor:
        # xᵀGx = αθ² + 2βθ + γ for x = b + θa, and μ = −θ
        alpha, beta, gamma = (-(each * other).sum(-1, keepdim=True) for each, other in ((a, e), (b, e), (b, q)))
        return -(beta + (beta.square() - alpha * (gamma - reach)).sqrt()) / alpha

    x = complementary(unit.unsqueeze(-3), q, e, level)
    # Where gradients cancel out, nothing but the ridge tells how far the step is; and there is none for c = 0.
    there = min_norm.RIDGE * x.square().sum(-1, keepdim=True) < reach / 2
    return 1 / K + torch.where(there, x, 0.0).squeeze(-2) / length
