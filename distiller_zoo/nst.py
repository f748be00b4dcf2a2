"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang, Wang; 2017)."""

from __future__ import annotations

from torch import Tensor

from distiller_zoo.base import distill_dict
from distiller_zoo.maps import StagesDistiller, product, smaller, unit


@distill_dict.register("nst")
class NST(StagesDistiller):
    """The squared maximum mean discrepancy between the channels, ``Σ_l K(t, t) + K(s, s) − 2 K(s, t)``.

    ``K(x, y) = ⟨(x_i · y_j)²⟩`` over pairs of channels, each a map of length 1; the larger maps are average-pooled
    first, as released. Published with ``-r 1 -a 0 -b 50``.
    """

    def distance(self, level: int, mine: Tensor, theirs: Tensor) -> Tensor:
        s, t = (unit(maps.flatten(2)) for maps in smaller(mine, theirs))
        return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def kernel(first: Tensor, second: Tensor) -> Tensor:
    """The mean squared product of each pair of channels: ``[B, C, N]`` and ``[B, C', N]`` → ``[B]``."""
    return product(first, second.mT).square().mean((1, 2))
