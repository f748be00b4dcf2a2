"""The min-norm problem of AEKD where values may be looked at: an active-set method for Gram matrices on the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Slopes, of a matrix whose largest diagonal entry is 1, that count as level: rounding leaves 1e-16, and the least that
# keeps the weights of equal gradients equal is a ridge of 1e-10.
LEVEL = 1e-13
# Steps per weight after which the method must be running in a circle. Thousands of awkward problems took at most 2.
STEPS_PER_WEIGHT = 5


def solve_active_set(gram: Array, cap: float) -> Array | None:
    """``min ½ xᵀ G x   subject to   Σ x = 1,   0 ≤ x ≤ cap``, exact.

    The primal active-set method (Nocedal & Wright, Numerical Optimization, algorithm 16.3): some weights are free, the
    others stay at a bound. The start, the optimum without bounds moved into them, mostly leaves few steps to do.

    Args:
        gram: ``[K, K]``, symmetric positive definite, its largest diagonal entry about 1.
        cap: above 1/K.

    Returns:
        ``[K]``; None where rounding lets the steps run in a circle.
    """
    K = len(gram)
    x = _into_bounds(_best_with(gram, np.zeros(K), np.ones(K, dtype=bool))[0], cap)
    free = (x > 0) & (x < cap)
    free[x.argmax()] |= not free.any()
    for _ in range(10 + STEPS_PER_WEIGHT * K):
        aim, multiplier = _best_with(gram, x, free)
        share, first = _way_to(aim, x, free, cap)
        if share < 1:
            bound = 0 if aim[first] < x[first] else cap
            x = (x + share * (aim - x)).clip(0, cap)
            x[first] = bound
            free[first] = False
            continue
        x = aim
        slope = gram @ x - multiplier  # 0 where free
        gain = np.where(free, 0, np.where(x == 0, -slope, slope))
        release = gain.argmax()
        if gain[release] <= LEVEL:
            return x.clip(0, cap)
        free[release] = True
    return None


def _best_with(gram: Array, x: Array, free: NDArray[np.bool_]) -> tuple[Array, float]:
    """The optimum without bounds when only the free weights move, and the slope ``G x`` that these share there."""
    fixed = np.where(free, 0, x)
    index = free.nonzero()[0]
    # G_ff x_f − y = −(G fixed)_f,  Σ x_f = 1 − Σ fixed
    system = np.ones((len(index) + 1, len(index) + 1))
    system[:-1, :-1] = gram[index[:, None], index]
    system[-1, -1] = 0
    right = np.append(-(gram @ fixed)[index], 1 - fixed.sum())
    solved = np.linalg.solve(system, right)
    fixed[index] = solved[:-1]
    return fixed, -solved[-1]


def _way_to(aim: Array, x: Array, free: NDArray[np.bool_], cap: float) -> tuple[float, int]:
    """What share of the way from ``x`` to ``aim`` stays within the bounds, and which weight meets one first."""
    if free.sum() == 1:  # it makes the sum 1 and has nowhere to go, but for rounding
        return 1.0, 0
    step = aim - x
    room = np.where(step < 0, x, cap - x)
    share = np.divide(room, abs(step), out=np.full_like(x, np.inf), where=free & (step != 0))
    first = int(share.argmin())
    return float(share[first]), first


def _into_bounds(x: Array, cap: float) -> Array:
    """A feasible point near ``x``."""
    x = x.clip(0, cap)
    total = x.sum()
    return x / total if total >= 1 else x + (cap - x) * ((1 - total) / (len(x) * cap - total))
