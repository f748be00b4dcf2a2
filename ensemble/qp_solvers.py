"""Solvers of AEKD's min-norm problem by name (``--qp_solver``): ours, two references, and the released one.

All but ``exact`` copy the Gram matrix to the host at every call and need a package of their own (cvxpy, scipy,
scikit-learn), imported on first use. Each takes ``(gram [K, K], C)`` and returns weights ``[K]`` on the device and in
the dtype of ``gram``, NaN where that is not finite; the problem is stated in `ensemble.min_norm.solve_min_norm`.
"""

from __future__ import annotations

from functools import wraps

import numpy as np
import torch
from torch import Tensor

from ensemble.min_norm import Solver, project_capped_simplex, solve_min_norm
from helper.registry import Registry

qp_solver_dict: Registry[Solver] = Registry("--qp_solver")
qp_solver_dict.register("exact")(solve_min_norm)


def of_finite(solve: Solver) -> Solver:
    """Let a solver that fails on what is not finite answer with NaN, as ours does."""

    @wraps(solve)
    def solved(gram: Tensor, C: float = 1.0) -> Tensor:
        return solve(gram, C) if gram.isfinite().all() else torch.full_like(gram[0], torch.nan)

    return solved


@qp_solver_dict.register("cvxpy")
@of_finite
def solve_cvxpy(gram: Tensor, C: float = 1.0) -> Tensor:
    """Clarabel, an interior-point method, through cvxpy. Raises ``cvxpy.SolverError`` where it does not converge."""
    import cvxpy

    matrix = _normalised(gram)
    values, vectors = np.linalg.eigh(matrix)
    factor = vectors * np.sqrt(values.clip(min=0))  # a square root drops the negative eigenvalues that rounding leaves
    weights = cvxpy.Variable(len(matrix))
    constraints = [cvxpy.sum(weights) == 1, weights >= 0, weights <= max(C, 1 / len(matrix))]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(factor.T @ weights)), constraints)
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return _returned(np.asarray(weights.value), gram, C)


@qp_solver_dict.register("scipy")
@of_finite
def solve_scipy(gram: Tensor, C: float = 1.0) -> Tensor:
    """Sequential least squares (SLSQP) of scipy. Raises ``RuntimeError`` where it does not converge."""
    from scipy import optimize

    matrix = _normalised(gram)
    K = len(matrix)
    solution = optimize.minimize(
        fun=lambda x: 0.5 * x @ matrix @ x,
        jac=lambda x: matrix @ x,
        x0=np.full(K, 1 / K),
        bounds=[(0, max(C, 1 / K))] * K,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones(K)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    if not solution.success:
        raise RuntimeError(f"scipy's SLSQP: {solution.message}")
    return _returned(solution.x, gram, C)


@qp_solver_dict.register("svm")
@of_finite
def solve_svm(gram: Tensor, C: float = 1.0) -> Tensor:
    """The released AE-KD solver: a one-class SVM (libsvm) whose kernel is the raw Gram matrix. For comparison only.

    Its tolerance 1e-6 is absolute. Where the entries of ``gram`` are no larger, as on CIFAR-100, libsvm stops at its
    starting point and the weights are ``[C, 1 − C, 0, …]`` (for C ≥ 1/2), whatever the gradients. The released code
    fails for C·K ≤ 1; here that gives the average.
    """
    from sklearn.svm import OneClassSVM

    K = gram.shape[-1]
    if C * K <= 1:
        return torch.full_like(gram[0], 1 / K)
    svm = OneClassSVM(kernel="precomputed", nu=1 / (K * C), tol=1e-6).fit(gram.detach().double().cpu().numpy())
    weights = np.zeros(K)
    weights[svm.support_] = svm.dual_coef_[0]  # they sum to nu·K = 1/C
    return torch.from_numpy(weights / weights.sum()).to(gram)


def svm_start(gram: Tensor, C: float = 1.0) -> Tensor:
    """The weights ``[C, C, …, rest, 0, …]`` of sum 1 that libsvm starts from, whatever ``gram`` ``[K, K]`` holds."""
    before = torch.arange(len(gram), dtype=gram.dtype, device=gram.device) * max(C, 1 / len(gram))
    return (1 - before).clamp(0, max(C, 1 / len(gram)))


def _normalised(gram: Tensor) -> np.ndarray:
    """``gram`` in float64 on the host, its largest diagonal entry 1 (or all zero)."""
    matrix = gram.detach().double().cpu().numpy()
    scale = matrix.diagonal().max()
    return matrix / scale if scale > 0 else matrix


def _returned(weights: np.ndarray, gram: Tensor, C: float) -> Tensor:
    """The solver's answer, made exactly feasible, as a tensor like ``gram``."""
    return project_capped_simplex(torch.from_numpy(weights), C).to(gram)
