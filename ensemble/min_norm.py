"""The min-norm problem of AEKD: which convex combination of K gradients is shortest.

Paper: Du et al., Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space, NeurIPS 2020, eq. 8.
Its released solver stops at absolute tolerances that ordinary gradients never reach; `solve_min_norm` is exact at any
scale. With `C = 1` the problem is that of MGDA (Désidéri 2012), with `C = 1/K` its only solution is the average.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ensemble.active_set import solve_active_set
from helper.replay import Replayed

# The smallest ridge added to a Gram matrix whose largest diagonal entry is 1. It makes the optimum unique, with equal
# weights for equal gradients, and costs at most half as much in the objective.
RIDGE = 1e-10
# Ridges tried: RIDGE·2^0 … RIDGE·2^31 = 0.2, more than bfloat16 ever needs.
RIDGES = 32
# Up to here, solving all 3^K faces at once on a device is quicker than the interior-point method.
MAX_ENUMERATED = 6
# Interior-point steps. Of thousands of singular and badly scaled problems, none was left with a gap above 1e-9.
STEPS = 18

Solver = Callable[[Tensor, float], Tensor]


def solve_min_norm(gram: Tensor, C: float = 1.0) -> Tensor:
    """Weights of the shortest convex combination of K gradients, none above ``C``.

    ``min_τ ½ τᵀ G τ   subject to   Σ_k τ_k = 1,   0 ≤ τ_k ≤ C``  (Du et al., NeurIPS 2020, eq. 8)

    Whatever the scale of ``gram``, the objective is within 1e-9·max_k G_kk of its optimum (in float32 within the
    rounding of ``gram`` itself, at most 1e-6). ``gram`` may be singular: of several optima the one with (nearly) the
    smallest Σ τ² is returned, so equal gradients have equal weights, and if all are zero the weights are 1/K.
    The maths runs in float64; the weights carry no gradient. On the host an active-set method looks at the values and
    needs few steps; on any other device nothing does, so that the host never waits for it, and all rows run at once.

    Args:
        gram: ``[..., K, K]``, G_kj = g_k·g_j, symmetric positive semi-definite, any device and float type.
        C: the largest weight allowed. Below 1/K nothing is feasible: it is taken as 1/K, the average.

    Returns:
        weights ``[..., K]`` in the dtype of ``gram``; NaN where ``gram`` is not finite.

    Raises:
        ValueError: ``gram`` is not a stack of square, non-empty float matrices.
    """
    _check(gram)
    with torch.no_grad():
        matrices = gram.detach().double()[None].flatten(0, -3)  # [N, K, K], N = 1 without batch axes
        solve = _solve_on_host if on_host(gram) else _solve_on_device
        return solve(matrices, C).to(gram.dtype).reshape(gram.shape[:-1])


def on_host(gram: Tensor) -> bool:
    """Whether looking at its values costs nothing."""
    return gram.device.type == "cpu"


def solve_normalised(gram: Tensor, C: float = 1.0, solver: Solver = solve_min_norm) -> Tensor:
    """AE-KD's ``is_norm``: solve on g_k/‖g_k‖, divide the solution by ‖g_k‖ and renormalise it to sum 1.

    The bound ``C`` holds for the solution of the normalised problem, not for what is returned. A zero gradient has no
    direction: it stays zero, and where the solver gives it weight it takes (nearly) all, the formula's limit.

    Args:
        gram: ``[..., K, K]`` of the gradients as they are.
        C: as in `solve_min_norm`.
        solver: ``(gram, C) → weights``: `solve_min_norm` or one of `ensemble.qp_solvers.qp_solver_dict`.

    Returns:
        weights ``[..., K]`` in the dtype of ``gram``.

    Raises:
        ValueError: as in `solve_min_norm`.
    """
    _check(gram)
    normalised = _normalised if on_host(gram) or solver is not solve_min_norm else _normalised_on_device
    return normalised(gram, C, solver)


def _normalised(gram: Tensor, C: float, solver: Solver) -> Tensor:
    """`solve_normalised` of a ``gram`` that has been looked at."""
    exact = gram.detach().double()
    norms = exact.diagonal(dim1=-2, dim2=-1).sqrt()  # [..., K]
    largest = norms.amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == 0, 1)
    norms = torch.maximum(norms, 1e-12 * largest)  # zero gradients: 0/0 becomes 0, and the last quotient stays finite
    unit = exact / norms.unsqueeze(-1) / norms.unsqueeze(-2)
    weights = solver(unit.to(gram.dtype), C).double() * (largest / norms)
    return (weights / weights.sum(-1, keepdim=True)).to(gram.dtype)


def project_capped_simplex(v: Tensor, C: float = 1.0) -> Tensor:
    """The nearest point to ``v`` with Σ = 1 and 0 ≤ · ≤ C: ``clamp(v − θ, 0, C)`` with the θ that makes it sum to 1.

    Args:
        v: ``[..., K]`` of a float type.
        C: the largest entry allowed; below 1/K it is taken as 1/K.

    Returns:
        ``[..., K]``. No host synchronisation; memory K² per row.
    """
    cap = max(C, 1 / v.shape[-1])
    knots = torch.cat((v, v - cap), -1)  # [..., 2K]: the sum is linear in θ between two of these
    sums = (v.unsqueeze(-2) - knots.unsqueeze(-1)).clamp(0, cap).sum(-1)  # [..., 2K], falls as θ rises
    early = (sums >= 1) | (knots <= knots.amin(-1, keepdim=True))  # K·C may round to less than 1
    low = knots.masked_fill(~early, -torch.inf).amax(-1, keepdim=True)
    high = knots.masked_fill(early, torch.inf).amin(-1, keepdim=True)
    most = sums.masked_fill(~early, torch.inf).amin(-1, keepdim=True)
    least = sums.masked_fill(early, -torch.inf).amax(-1, keepdim=True)
    theta = low + (high - low) * ((most - 1) / (most - least)).clamp(0, 1)
    return (v - theta).clamp(0, cap)


def _check(gram: Tensor) -> None:
    if gram.dim() < 2 or gram.shape[-1] != gram.shape[-2] or gram.shape[-1] == 0:
        raise ValueError(f"gram: expected shape [..., K, K] with K ≥ 1, got {list(gram.shape)}")
    if not gram.is_floating_point():
        raise ValueError(f"gram: expected a float tensor, got {gram.dtype}")


def _solve(gram: Tensor, C: float) -> Tensor:
    """`solve_min_norm` of ``[N, K, K]`` in float64: ``[N, K]``."""
    K = gram.shape[-1]
    uniform = torch.full_like(gram[:, 0], 1 / K)
    if C * K <= 1 + 1e-12:  # a single point is feasible
        return uniform
    scale = gram.diagonal(dim1=1, dim2=2).amax(1).view(-1, 1, 1)
    gram = _definite(gram / scale.masked_fill(scale == 0, 1))
    # From C = 1 on the bound follows from the other constraints; moved away from the corners it does no harm.
    cap = C if C < 1 else 2.0
    weights = _best_face(gram, cap) if K <= MAX_ENUMERATED else _interior_point(gram, uniform, cap)
    return project_capped_simplex(weights, cap)


_solve_on_device, _normalised_on_device = Replayed(_solve), Replayed(_normalised)


def _solve_on_host(gram: Tensor, C: float) -> Tensor:
    """`_solve` row by row; what the active-set method does not solve, the methods for devices do."""
    K = gram.shape[-1]
    weights = torch.full_like(gram[:, 0], 1 / K)
    if C * K <= 1 + 1e-12:
        return weights
    for row, matrix in enumerate(gram.numpy()):
        definite = _definite_on_host(matrix)
        solved = None if definite is None else solve_active_set(definite, C if C < 1 else 2.0)
        weights[row] = _solve(gram[row : row + 1], C)[0] if solved is None else torch.from_numpy(solved)
    return weights


def _definite_on_host(matrix: np.ndarray) -> np.ndarray | None:
    """`_definite` of ``[K, K]`` divided by its largest diagonal entry; None where it is not finite."""
    if not np.isfinite(matrix).all():
        return None
    scaled = matrix / (matrix.diagonal().max() or 1)
    identity = np.eye(len(scaled))
    for ridge in RIDGE * 2.0 ** np.arange(RIDGES):
        try:
            np.linalg.cholesky(scaled + 0.8 * ridge * identity)
        except np.linalg.LinAlgError:
            continue
        return scaled + ridge * identity
    return None


def _definite(gram: Tensor) -> Tensor:
    """``gram`` ``[N, K, K]`` with the smallest ridge of a geometric series that makes it safely positive definite.

    The first one does unless rounding has left negative eigenvalues that are larger, as in float32 (√K·1e-7).
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    ridges = RIDGE * torch.pow(2, torch.arange(RIDGES, dtype=gram.dtype, device=gram.device))  # [R]
    lower = gram.unsqueeze(1) + 0.8 * ridges.view(-1, 1, 1) * identity  # [N, R, K, K]
    _, failed = torch.linalg.cholesky_ex(lower)  # [N, R]
    ridge = torch.where(failed == 0, ridges, ridges[-1]).amin(1)  # [N]
    return gram + ridge.view(-1, 1, 1) * identity


def _best_face(gram: Tensor, cap: float) -> Tensor:
    """Every set of free weights, the others at 0 or ``cap``: the best of the feasible solutions, ``[N, K]``.

    Needs a positive definite ``gram`` ``[N, K, K]``. Sets without a free weight give NaN and drop out: their points are
    solutions of larger sets too.
    """
    K = gram.shape[-1]
    index = torch.arange(3**K, device=gram.device).unsqueeze(1)
    face = index // torch.pow(3, torch.arange(K, device=gram.device)) % 3  # [F, K]: 0 free, 1 at cap, 2 at zero
    fixed = cap * (face == 1).to(gram.dtype)  # [F, K]
    # Stationary and summing to 1:  G_ff x_f + y = −(G fixed)_f,  Σ x_f = 1 − Σ fixed;  x = 0 off the free set.
    bordered = torch.nn.functional.pad(gram, (0, 1, 0, 1), value=1.0)  # [N, K + 1, K + 1]
    bordered[:, K, K].zero_()
    free = torch.nn.functional.pad(face == 0, (0, 1), value=True)  # [F, K + 1]
    inside = free.unsqueeze(1) & free.unsqueeze(2)
    identity = torch.eye(K + 1, dtype=gram.dtype, device=gram.device)
    system = torch.where(inside, bordered.unsqueeze(1), identity)  # [N, F, K + 1, K + 1]
    right = torch.cat((-(fixed @ gram), (1 - fixed.sum(1, keepdim=True)).expand(len(gram), -1, 1)), 2) * free
    solved, _ = torch.linalg.solve_ex(system, right.unsqueeze(-1))  # the unchecked form: no host synchronisation
    x = fixed + solved[..., :K, 0]  # [N, F, K]
    feasible = torch.maximum(-x, x - cap).amax(2) <= 1e-10
    value = ((x @ gram) * x).sum(2).masked_fill(~feasible, torch.inf)  # [N, F]
    best = value.argmin(1).view(-1, 1, 1).expand(-1, 1, K)
    return x.gather(1, best).squeeze(1)


def _interior_point(gram: Tensor, uniform: Tensor, cap: float) -> Tensor:
    """Mehrotra's predictor–corrector method with a fixed number of steps, ``[N, K]``.

    ``s`` holds the slacks (x, cap − x) and ``z`` their multipliers, both ``[N, 2, K]``. The start x = 1/K obeys the
    constraints, and ``z`` is chosen such that it obeys the dual ones (G x − z_low + z_up constant over k), so that s·z
    is the duality gap and all that a step has to do is shrink it.
    """
    K = gram.shape[-1]
    sign = torch.arange(1, -2, -2, device=gram.device, dtype=gram.dtype).view(2, 1)
    ones = torch.ones_like(uniform).unsqueeze(2)
    identity = torch.eye(K, device=gram.device, dtype=gram.dtype)
    slope = (gram @ uniform.unsqueeze(-1)).squeeze(-1)
    slope = (sign * (slope - slope.mean(1, keepdim=True)).unsqueeze(1)).clamp(min=0)  # [N, 2, K]
    s = torch.stack((uniform, cap - uniform), 1)
    z = slope + (slope.amax((1, 2), keepdim=True) + 1e-3) / (K * s)
    state = torch.cat((s, z), 1)  # [N, 4, K]
    for _ in range(STEPS):
        s, z = state[:, :2], state[:, 2:]
        low, up = z.unbind(1)  # [N, K]
        curvature = z / s
        hessian = torch.addcmul(gram, curvature.sum(1, keepdim=True), identity)
        factor, _ = torch.linalg.cholesky_ex(hessian)  # the unchecked form: no host synchronisation
        # Predictor: towards s·z = 0. The second right-hand side keeps Σ x = 1.
        solved = torch.cholesky_solve(torch.cat(((up - low).unsqueeze(2), ones), 2), factor)
        aim, along = solved[..., :1], solved[..., 1:]  # [N, K, 1]
        along = along / along.sum(1, keepdim=True)
        predictor = torch.addcmul(aim, along, aim.sum(1, keepdim=True), value=-1)
        change = sign * predictor.mT / s  # Δs/s, and Δz/z = −1 − Δs/s
        error = torch.addcmul(change, change, change) * z  # −Δs·Δz/s
        length = ((change + 0.5).abs().amax((1, 2), keepdim=True) + 0.5).clamp(min=1).reciprocal()
        # Corrector: centres s·z, at a value the lower, the more of the gap the predictor closes, and undoes that error,
        # but only its share of the length: undoing all of it after a short step can make the steps cycle.
        gap = (s * z).sum((1, 2), keepdim=True)  # [N, 1, 1]
        left = gap - length * torch.addcmul(gap, length, (s * error).sum((1, 2), keepdim=True))
        target = torch.addcdiv(length * error, left * left / gap, s, value=0.5 / K)
        low, up = target.unbind(1)
        aim = torch.cholesky_solve((low - up).unsqueeze(2), factor)
        corrector = torch.addcmul(aim, along, aim.sum(1, keepdim=True), value=-1)
        delta_s = sign * (predictor + corrector).mT
        delta = torch.cat((delta_s, torch.addcmul(target - z, curvature, delta_s, value=-1)), 1)
        length = -0.995 / (delta / state).amin((1, 2), keepdim=True).clamp(max=-0.995)
        state = torch.addcmul(state, length, delta)
    return state[:, 0]
