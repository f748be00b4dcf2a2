"""FitNets: Hints for Thin Deep Nets (Romero et al., ICLR 2015)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from distiller_zoo.base import FeatureDistiller, Pair, distill_dict


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
        self.resize, conv = _regressor(self.student_shape, self.teacher_shape)
        self.regressor = nn.Sequential(conv, nn.BatchNorm2d(self.teacher_shape[0]), nn.ReLU())

    def adapt(self, student_map: torch.Tensor) -> torch.Tensor:
        if self.resize is not None:
            student_map = F.interpolate(student_map, self.resize, mode="bilinear", align_corners=False)
        return self.regressor(student_map)


def _regressor(
    student_shape: tuple[int, int, int], teacher_shape: tuple[int, int, int]
) -> tuple[tuple[int, int] | None, nn.Module]:
    """The size to resize to first (or None) and the convolution between two maps ``(C, H, W)``."""
    (s_c, s_h, s_w), (t_c, t_h, t_w) = student_shape, teacher_shape
    if (s_h, s_w) == (2 * t_h, 2 * t_w):
        return None, nn.Conv2d(s_c, t_c, 3, stride=2, padding=1)
    if (2 * s_h, 2 * s_w) == (t_h, t_w):
        return None, nn.ConvTranspose2d(s_c, t_c, 4, stride=2, padding=1)
    if s_h >= t_h and s_w >= t_w:
        return None, nn.Conv2d(s_c, t_c, (1 + s_h - t_h, 1 + s_w - t_w))
    return (t_h, t_w), nn.Conv2d(s_c, t_c, 3, padding=1)
