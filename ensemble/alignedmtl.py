"""Independent Component Alignment for Multi-Task Learning (Senushkin et al., CVPR 2023)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from ensemble.base import TeacherLosses, ensemble_dict
from ensemble.gram import GradientMethod, eigen
from helper.replay import Replayed


@ensemble_dict.register("ALIGNEDMTL")
class AlignedMTL(GradientMethod):
    """``w = √s·V Λ^-½ Vᵀ·1/K`` on the range of ``G = V Λ Vᵀ``: the gradients made orthogonal and equally long.

    They are as long as the principal component s, so that alike teachers, whose smallest one is short, distil weakly:
    the weights sum to a tenth, say. Compare with other weightings under ``--kd_scale unit``.

    Args:
        scale_mode: s is the smallest eigenvalue of G that is not 0, or the mean of those.
    """

    def __init__(
        self,
        *,
        scale_mode: Annotated[Literal["min", "rmse"], "length of the aligned gradients: smallest, or mean"] = "min",
    ) -> None:
        self.scale_mode = scale_mode

    def weights(self, teachers: TeacherLosses) -> Tensor:
        return solve_alignedmtl(teachers.gram, self.scale_mode)


@Replayed
def solve_alignedmtl(gram: Tensor, scale_mode: str) -> Tensor:
    """Weights ``[K]`` of K gradients with the Gram matrix ``[K, K]``; 1/K where all are 0."""
    K, size = len(gram), gram.trace()
    values, vectors, inside = eigen(gram / size.clamp_min(1e-300))
    smallest, mean = values.where(inside, torch.inf).amin(), values.where(inside, 0.0).sum() / inside.sum()
    scale = smallest if scale_mode == "min" else mean
    shrunk = (scale / values).sqrt().where(inside, 0.0)
    return torch.where(size > 0, vectors @ (shrunk * vectors.sum(0)) / K, 1 / K)
