"""Paying More Attention to Attention (Zagoruyko, Komodakis; ICLR 2017)."""

from __future__ import annotations

from torch import Tensor

from distiller_zoo.base import distill_dict
from distiller_zoo.maps import StagesDistiller, energy, smaller


@distill_dict.register("at")
class AT(StagesDistiller):
    """Squared error of normalised attention maps: ``Σ_l ⟨(A(s_l) − A(t_l))²⟩_HW`` with ``A(f) = unit(⟨f²⟩_C)`` (eq. 2).

    The larger map is average-pooled to the smaller one's size first, as released. Published with ``-r 1 -a 0 -b 1000``.
    """

    def distance(self, level: int, mine: Tensor, theirs: Tensor) -> Tensor:
        attention = [energy(maps) for maps in smaller(mine, theirs)]
        return (attention[0] - attention[1]).square().mean(1)
