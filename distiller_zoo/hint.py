"""FitNets: Hints for Thin Deep Nets (Romero et al., ICLR 2015)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from distiller_zoo.base import FeatureDistiller, Pair, distill_dict
from distiller_zoo.maps import regressor, resized


@distill_dict.register("hint")
class Hint(FeatureDistiller):
    """Mean squared error between a regression of the student's map and the teacher's map.

    The regressor as in the released code: a stride-2 3×3 convolution where the student's map is twice as large, a
    4×4 transposed one where it is half as large, else an unpadded one of size ``1 + s_H − t_H``; then BN and ReLU.
    Maps that none of these fit are resized to the teacher's first.

    Args:
        pair: the networks' shapes.
        hint_layer: which map, see :class:`FeatureDistiller`.
    """

    def __init__(
        self,
        pair: Pair,
        *,
        hint_layer: Annotated[
            int | str,
            "stage output that is compared, -2 is the last map, or a child's name; STUDENT:TEACHER where they differ, "
            "A,B for the first that a network has",
        ] = 2,
    ) -> None:
        super().__init__(pair, hint_layer)
        self.resize, conv = regressor(self.student_shape, self.teacher_shape)
        self.regressor = nn.Sequential(conv, nn.BatchNorm2d(self.teacher_shape[0]), nn.ReLU())

    def adapt(self, student_map: torch.Tensor) -> torch.Tensor:
        return self.regressor(resized(student_map, self.resize))
