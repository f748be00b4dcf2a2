"""Knowledge Transfer via Distillation of Activation Boundaries (Heo, Lee, Yun, Choi; AAAI 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.base import Pair, distill_dict
from distiller_zoo.maps import StagesDistiller, regressor, resized
from helper.kl import full_precision
from helper.seen import Reads, Shape

MARGIN = 1.0
SCALE = 3 / 1000
"""Of the summed errors, in the released code."""


@distill_dict.register("ab")
class AB(StagesDistiller):
    """Which neurons of the teacher are active, with a margin of 1, for maps before their ReLU.

    ``Σ_l 2^(l−n) Σ_CHW max(1 − s, 0)²`` where the teacher's ``t > 0``, ``max(1 + s, 0)²`` elsewhere, times 3/1000, n
    being the last stage. The student's map goes through a convolution and BN unless it has the teacher's shape. In the
    paper and the released code it initialises the student for 30 epochs, here it stands beside the other terms.

    Args:
        pair: the networks' shapes.
    """

    student = teacher = Reads(before_relu="stages")

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.stages = nn.ModuleList(
            nn.Identity() if mine == theirs else Connector(mine, theirs) for mine, theirs in self.shapes
        )

    def distance(self, level: int, mine: Tensor, theirs: Tensor) -> Tensor:
        here = full_precision(self.stages[level](mine))
        signs = 2 * (theirs > 0).to(here.dtype) - 1
        missing = F.relu(MARGIN - signs * here)
        return missing.square().flatten(1).sum(1) * (SCALE * 2.0 ** (level + 1 - len(self.stages)))


class Connector(nn.Module):
    """The regressor of FitNets with BN and without ReLU: a student's map in the teacher's shape.

    Args:
        student_shape, teacher_shape: of the maps.
    """

    def __init__(self, student_shape: Shape, teacher_shape: Shape) -> None:
        super().__init__()
        self.resize, self.conv = regressor(student_shape, teacher_shape)
        self.bn = nn.BatchNorm2d(teacher_shape[0])

    def forward(self, maps: Tensor) -> Tensor:
        return self.bn(self.conv(resized(maps, self.resize)))
