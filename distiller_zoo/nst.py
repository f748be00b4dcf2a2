"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang, Wang; 2017)."""

from __future__ import annotations

from torch import Tensor

from distiller_zoo.base import distill_dict
from distiller_zoo.maps import StagesDistiller, product, smaller

SILENT = 1e-24
"""The squared length below which a channel counts as inactive."""


@distill_dict.register("nst")
class NST(StagesDistiller):
    """The squared maximum mean discrepancy between the channels, ``Σ_l K(t, t) + K(s, s) − 2 K(s, t)``.

    ``K(x, y) = ⟨(x_i · y_j)²⟩`` over pairs of channels, each a map of length 1; the larger maps are average-pooled
    first, as released. Published with ``-r 1 -a 0 -b 50``.
    """

    def distance(self, level: int, mine: Tensor, theirs: Tensor) -> Tensor:
        s, t = (maps.flatten(2) for maps in smaller(mine, theirs))
        ss, tt, st = product(s, s.mT), product(t, t.mT), product(s, t.mT)
        s_squared, t_squared = squared_lengths(ss), squared_lengths(tt)
        return (
            kernel(tt, t_squared, t_squared) + kernel(ss, s_squared, s_squared) - 2 * kernel(st, s_squared, t_squared)
        )


def squared_lengths(products: Tensor) -> Tensor:
    """Inner products of channels ``[B, C, C]`` → those with themselves ``[B, C]``; 1 for an inactive one."""
    squares = products.diagonal(dim1=1, dim2=2)
    return squares.masked_fill(squares < SILENT, 1.0)


def kernel(products: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The mean squared cosine of each pair of channels, from products ``[B, C, C']`` and squared lengths → ``[B]``."""
    return (products / first[:, :, None] * (products / second[:, None])).mean((1, 2))
