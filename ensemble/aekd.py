"""Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space (Du et al., NeurIPS 2020)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from ensemble.base import TeacherLosses, ensemble_dict
from ensemble.gram import GradientMethod, combined_length
from ensemble.min_norm import Solver, solve_min_norm, solve_normalised
from ensemble.qp_solvers import qp_solver_dict, svm_start
from helper.errors import UsageError

START = 1e-6
"""Weights closer than this to the released solver's start point count as that."""


@ensemble_dict.register("AEKD")
class AEKD(GradientMethod):
    """The weights whose combined gradient is shortest: ``min_τ ½‖Σ τ_k g_k‖²``, ``Σ τ_k = 1``, ``0 ≤ τ_k ≤ C`` (eq. 8).

    Args:
        C: how far a teacher may stand out; ``1/K`` is the average, ``1`` the multi-objective optimum.
        svm_norm: solve on ``g_k/‖g_k‖``, then divide by ``‖g_k‖`` and renormalise; the released code does so at the
            feature level only, which is the default.
        qp_solver: ``exact``; ``cvxpy`` and ``scipy`` are references; ``svm`` is the released one-class SVM, whose
            absolute tolerance makes it return its start point ``[C, 1−C, 0, …]`` on gradients of usual size.
    """

    nonnegative = True

    def __init__(
        self,
        *,
        C: Annotated[float, "largest weight of a teacher (before --svm_norm), from 1/K, the average, to 1"] = 0.6,
        svm_norm: Annotated[bool | None, "solve on normalised gradients (default: at the feature level only)"] = None,
        qp_solver: Annotated[Literal["exact", "cvxpy", "scipy", "svm"], "what solves for the weights"] = "exact",
    ) -> None:
        self.C = C
        self.svm_norm = svm_norm
        self.solve = qp_solver_dict[qp_solver]

    def require_valid(self, teacher_num: int) -> None:
        # 1/3 typed as 0.3333 means the average.
        if teacher_num > 1 and not 1 / teacher_num - 1e-3 <= self.C <= 1:
            raise UsageError(
                f"-C: {self.C:g} leaves no weights that sum to 1 for {teacher_num} teachers; "
                f"choose from {1 / teacher_num:.4f} (1/K, the average) to 1"
            )

    def total(self, teacher_num: int) -> float:
        return 1

    def weights(self, teachers: TeacherLosses) -> torch.Tensor:
        return self._solved(teachers, self.solve)

    def _solved(self, teachers: TeacherLosses, solve: Solver) -> torch.Tensor:
        normalise = teachers.level == "feature" if self.svm_norm is None else self.svm_norm
        return solve_normalised(teachers.gram, self.C, solve) if normalise else solve(teachers.gram, self.C)

    def diagnostics(self, teachers: TeacherLosses, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of solvers other than ours also the combined gradient's length with the exact weights, and whether (1 or 0)
        the weights are those that the released solver starts from.
        """
        gram, report = teachers.gram, super().diagnostics(teachers, weights)
        if self.solve is not solve_min_norm:
            exact, start = (self._solved(teachers, solve) for solve in (solve_min_norm, svm_start))
            report["exact_combined_gradient"] = combined_length(exact, gram)
            report["at_start"] = ((weights - start).abs().amax() < START).to(gram.dtype)
        return report
