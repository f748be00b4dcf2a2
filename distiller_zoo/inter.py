"""Confidence-Aware Multi-Teacher Knowledge Distillation (Zhang, Chen, Wang; ICASSP 2022): the intermediate loss."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F

from distiller_zoo.base import FeatureDistiller, Pair, distill_dict
from distiller_zoo.maps import bottleneck, conv_bn_relu, narrower
from helper.registry import Unread


@distill_dict.register("inter")
class Inter(FeatureDistiller):
    """Mean squared error between the last maps; the student's is embedded in the teacher's space (eq. 6).

    The embedded map can be read by the teacher's own classifier, which tells how well the teacher's knowledge suits
    the student's features (eq. 5).

    Args:
        pair: the networks' shapes.
        convs: a 1×1 → 3×3 → 1×1 bottleneck instead of one 1×1 convolution.
        factor: how much narrower than the student's map the bottleneck is (released code).
    """

    unread: ClassVar[Unread] = {"factor": ("convs", lambda convs: not convs)}

    def __init__(
        self,
        pair: Pair,
        *,
        convs: Annotated[bool, "embed with a 1x1-3x3-1x1 bottleneck instead of one 1x1 convolution"] = False,
        factor: Annotated[
            int,
            "the bottleneck is so many times narrower than the student's map (simkd: the teacher's)",
        ] = 2,
    ) -> None:
        super().__init__(pair)
        width, teacher_width = self.student_shape[0], self.teacher_shape[0]
        narrow = narrower(width, factor)
        self.embed = bottleneck(width, narrow, teacher_width) if convs else conv_bn_relu(width, teacher_width, 1)

    def adapt(self, student_map: torch.Tensor) -> torch.Tensor:
        return self.embed(_resize(student_map, self.teacher_shape[1:]))

    def as_teacher_reads(self, prepared: torch.Tensor) -> torch.Tensor:
        return prepared


def _resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps ``[B, C, H, W]`` pooled down or interpolated up to ``size``."""
    if maps.shape[2] >= size[0] and maps.shape[3] >= size[1]:
        return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
