"""What every distillation loss has in common: one student, one teacher, one value per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from helper.errors import UsageError
from helper.kl import full_precision
from helper.registry import Registry

Shape = tuple[int, ...]
"""One feature without its batch axis: ``(C, H, W)`` of a map, ``(D,)`` of the pooled vector."""


class Distiller(nn.Module):
    """A loss between one student and one teacher.

    Keyword-only arguments of a subclass's constructor are its hyperparameters: the command line offers them as flags.
    """

    feature_level: ClassVar[bool] = False
    """Whether it compares feature maps (weighted by ``-b``) beside the logits (weighted by ``-a``)."""


class FeatureDistiller(Distiller):
    """A loss on feature maps: an adapter brings the student's map into the teacher's shape, then both are compared.

    Args:
        student_shapes: of the list that ``student(x, is_feat=True)`` returns first.
        teacher_shapes: the same of the teacher.
        layer: index into both lists.

    Raises:
        UsageError: the layer is out of range or no map on either side.
    """

    feature_level = True
    feeds_head: ClassVar[bool] = False
    """Whether the adapted map stands where the teacher's own classifier reads, so that it can be classified."""

    def __init__(self, student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape], layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.student_shape = _map_shape(student_shapes, layer, "student")
        self.teacher_shape = _map_shape(teacher_shapes, layer, "teacher")

    def adapt(self, student_map: torch.Tensor) -> torch.Tensor:
        """Student map ``[B, C, H, W]`` → what is compared; the teacher's shape where it ``feeds_head``."""
        raise NotImplementedError

    def distance(self, adapted: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
        """Mean squared error over C, H and W of each sample: two maps ``[B, C_t, H_t, W_t]`` → ``[B]``."""
        return (full_precision(adapted) - full_precision(teacher_map)).square().flatten(1).mean(1)

    def forward(self, student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
        """Maps ``[B, C, H, W]`` and ``[B, C_t, H_t, W_t]`` → ``[B]``."""
        return self.distance(self.adapt(student_map), teacher_map)


def _map_shape(shapes: Sequence[Shape], layer: int, whose: str) -> tuple[int, int, int]:
    maps = {index: shape for index, shape in enumerate(shapes) if len(shape) == 3}
    position = layer + len(shapes) if layer < 0 else layer
    if not maps:
        raise UsageError(f"--distill: the {whose} has no feature maps to compare; choose kd")
    if position not in maps:
        last = max(maps)
        raise UsageError(
            f"--hint_layer: {layer} is no feature map of the {whose}; choose from 0 to {last} (-2 is the last map)"
        )
    channels, height, width = maps[position]
    return channels, height, width


distill_dict: Registry[type[Distiller]] = Registry("--distill")
