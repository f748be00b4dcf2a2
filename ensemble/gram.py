"""What weightings that look at the teachers' gradients have in common: what they report, and how they solve.

All of it works on the Gram matrix ``[..., K, K]`` in float64, on the device that it is on, and never looks at a value
there: only on the host, where that costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ensemble import min_norm
from ensemble.base import EnsembleMethod, TeacherLosses
from helper.replay import Replayed

SHORTEST = 1e-12
"""Gradients shorter than this part of the longest count as that long, so that those without any have no direction."""
ALL_SUPPORTS = 8
"""Up to so many gradients all 2^K supports are tried at once; of more, those along a path."""
NO_EIGENVALUE = 1e-12
"""Eigenvalues below this part of the largest count as 0: rounding of the Gram matrix alone leaves 1e-16."""
SWEEPS = 10
"""Of Jacobi's method, at most: for all digits of up to 8 gradients, and for 10 digits of 16."""


class GradientMethod(EnsembleMethod):
    """Weights ``[K]`` that follow from the gradients' Gram matrix alone."""

    constant = True
    symmetric = True
    differentiable = False

    def diagnostics(self, teachers: TeacherLosses, weights: Tensor) -> dict[str, Tensor]:
        """The length of the combined gradient, the mean cosine between two gradients, and whether any two conflict.

        The last is 1 where an inner product is below 0, else 0: its mean is the share of steps with a conflict.
        """
        combined, cosine, conflict = described(teachers.gram, weights)
        return {"combined_gradient": combined, "gradient_cosine": cosine, "conflict": conflict}


def combined_length(weights: Tensor, gram: Tensor) -> Tensor:
    """``‖Σ_k w_k g_k‖`` from weights ``[K]`` and the gradients' Gram matrix ``[K, K]``."""
    return (weights @ gram @ weights).clamp_min(0).sqrt()


@Replayed
def described(gram: Tensor, weights: Tensor) -> Tensor:
    """The combined gradient's length, the mean cosine between two gradients, whether two conflict: ``[3]``."""
    length = gram.diagonal().sqrt()
    cosine = gram / (length[:, None] * length).clamp_min(torch.finfo(gram.dtype).tiny)
    pairs = len(gram) * (len(gram) - 1)
    mean = (cosine.sum() - cosine.trace()) / pairs
    return torch.stack([combined_length(weights, gram), mean, (gram < 0).any().to(gram.dtype)])


def unit_lengths(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients' lengths ``d`` ``[..., K]``, the longest 1, and the Gram matrix of ``g_k/d_k``.

    A small ridge makes that positive definite, with equal solutions for equal gradients. Of gradients of very different
    lengths none is lost in the rounding of another one.
    """
    length = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    longest = length.amax(-1, keepdim=True)
    length = length / longest.masked_fill(longest == 0, 1)
    length = torch.where(longest == 0, 1.0, length.clamp_min(SHORTEST))
    unit = gram / longest.masked_fill(longest == 0, 1).unsqueeze(-1).square()
    unit = unit / length.unsqueeze(-1) / length.unsqueeze(-2)
    return length, unit + min_norm.RIDGE * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def rise_above(gram: Tensor, lower: Tensor) -> Tensor:
    """``v − l`` for ``v = argmin vᵀ G v, v ≥ l``: the gradient ``Jᵀv`` is ``Jᵀl`` projected to conflict with none.

    It is the dual of ``min_d ‖d − Jᵀl‖² subject to J d ≥ 0`` (Lopez-Paz, Ranzato 2017), and ``d = Jᵀv``.

    Args:
        gram: ``[..., 1, K, K]``, positive definite, its diagonal about 1.
        lower: ``[..., R, K]``, R bounds, at least 0.

    Returns:
        ``[..., R, K]``, at least 0; exactly 0 where ``G l ≥ 0``.
    """
    q = (lower.unsqueeze(-2) @ gram).squeeze(-2)
    return complementary(gram, q, torch.ones_like(q), lambda a, b: torch.zeros_like(b[..., :1]))


def complementary(gram: Tensor, q: Tensor, e: Tensor, level: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``x ≥ 0`` with ``s = G x + q + θe ≥ 0`` and ``x·s = 0``, at the θ that is asked for.

    Of the supports of x it takes the one whose solution comes closest: the first, which is the smallest, if several do.

    Args:
        gram: ``[..., 1, K, K]``, positive definite.
        q, e: ``[..., R, K]``; e is positive.
        level: θ ``[F, ..., R, 1]`` from the solution ``x = b + θa`` on F supports, ``a`` and ``b`` ``[F, ..., R, K]``;
            NaN where there is none.

    Returns:
        ``[..., R, K]``.
    """
    K = gram.shape[-1]
    free = all_supports(K, q) if K <= ALL_SUPPORTS else torch.stack(list(_along_path(gram, q, e)))
    a, b = _on_supports(gram, q, e, free)
    theta = level(a, b)
    x = b + theta * a
    s = (x.unsqueeze(-2) @ gram).squeeze(-2) + q + theta * e
    wrong = torch.where(free, -x, -s).amax(-1).nan_to_num(torch.inf).clamp_min(0)  # [F, ..., R]
    best = wrong.argmin(0, keepdim=True).unsqueeze(-1).expand(1, *q.shape)
    return x.gather(0, best).squeeze(0).clamp_min(0)


def all_supports(K: int, like: Tensor) -> Tensor:
    """Every set of K, the empty one first: bool ``[2^K, 1, …, K]`` with the axes of ``like`` ``[..., K]``."""
    index = torch.arange(2**K, device=like.device).unsqueeze(1)
    sets = index // torch.pow(2, torch.arange(K, device=like.device)) % 2 == 1
    return sets.view(-1, *[1] * (like.dim() - 1), K)


def _along_path(gram: Tensor, q: Tensor, e: Tensor) -> Iterator[Tensor]:
    """The supports that the solution passes as θ falls from where it is ``x = 0``, bool ``[..., R, K]`` each."""
    free = torch.zeros_like(q, dtype=torch.bool)
    theta = (-q / e).amax(-1, keepdim=True)
    for _ in range(4 * q.shape[-1]):
        yield free
        a, b = _on_supports(gram, q, e, free)
        s_a, s_b = ((each.unsqueeze(-2) @ gram).squeeze(-2) for each in (a, b))
        now, change = torch.where(free, b, s_b + q), torch.where(free, a, s_a + e)
        # each of x and s is now + θ·change, and the one that comes to 0 next changes sides
        reached = torch.where(change > 0, -now / change, -torch.inf).minimum(theta)
        theta, first = reached.max(-1, keepdim=True)
        free = free ^ (torch.arange(q.shape[-1], device=q.device) == first)


def _on_supports(gram: Tensor, q: Tensor, e: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """``a`` and ``b`` of the solution ``x = b + θa`` of ``(G x + q + θe)_i = 0`` on the free i, and 0 elsewhere."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    system = torch.where(free.unsqueeze(-1) & free.unsqueeze(-2), gram, identity)
    right = -torch.stack((e, q), -1) * free.unsqueeze(-1)
    solved, _ = torch.linalg.solve_ex(system, right)  # the unchecked form: no host synchronisation
    a, b = solved.unbind(-1)
    return a, b


def eigen(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``[..., K, K]``: eigenvalues ``[..., K]``, eigenvectors in columns, and which of the values are not 0."""
    values, vectors = torch.linalg.eigh(gram) if min_norm.on_host(gram) else jacobi(gram)
    return values, vectors, values > NO_EIGENVALUE * values.amax(-1, keepdim=True)


def jacobi(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[..., n]`` and vectors ``[..., K, n]`` of symmetric ``[..., K, K]`` without looking at a value.

    Jacobi's method, n/2 rotations at once. n is K, or K + 1 if that is even: then there is one more value 0, whose
    vector is 0. ``torch.linalg.eigh`` makes the host wait for the device.
    """
    K = matrix.shape[-1]
    n, half = K + K % 2, (K + 1) // 2
    matrix = F.pad(matrix, (0, n - K, 0, n - K))
    vectors = torch.eye(n, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    tiny = torch.finfo(matrix.dtype).tiny
    for _ in range(min(n + 1, SWEEPS) * (n - 1)):
        # row i is rotated with row n − 1 − i such that their common entry becomes 0
        diagonal, across = (each.diagonal(dim1=-2, dim2=-1) for each in (matrix, matrix.flip(-1)))
        gap, twice = (diagonal.flip(-1) - diagonal)[..., :half], 2 * across[..., :half]
        tangent = torch.where(gap < 0, -twice, twice) / (gap.abs() + gap.hypot(twice)).clamp_min(tiny)
        cosine = (1 + tangent.square()).rsqrt()
        sine = tangent * cosine
        rotation = torch.diag_embed(torch.cat((cosine, cosine.flip(-1)), -1))
        rotation = rotation + torch.diag_embed(torch.cat((sine, -sine.flip(-1)), -1)).flip(-1)
        matrix = _next_pairs(_next_pairs(rotation.mT @ matrix @ rotation).mT).mT
        vectors = _next_pairs(vectors @ rotation)
    return matrix.diagonal(dim1=-2, dim2=-1), vectors[..., :K, :]


def _next_pairs(matrix: Tensor) -> Tensor:
    """The columns in another order: after n − 1 times each has met each at the opposite end."""
    return torch.cat((matrix[..., :1], matrix[..., 1:].roll(1, -1)), -1)
