"""Variational Information Distillation for Knowledge Transfer (Ahn, Hu, Damianou, Lawrence, Dai; CVPR 2019)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.base import Pair, distill_dict
from distiller_zoo.maps import StagesDistiller, smaller
from helper.kl import full_precision

VARIANCE, EPS = 5.0, 1e-5
"""Where the variance starts, and what it stays above (released code)."""


@distill_dict.register("vid")
class VID(StagesDistiller):
    """The negative log-likelihood of the teacher's maps, ``Σ_l ½⟨(μ(s_l) − t_l)²/σ_l² + log σ_l²⟩``.

    The larger map is average-pooled first, as released. Values below 0 are as good as any: the variances are learnt.
    Published with ``-r 1 -a 0 -b 1``.

    Args:
        pair: the networks' shapes.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.stages = nn.ModuleList(Gaussian(mine[0], theirs[0]) for mine, theirs in self.shapes)

    def distance(self, level: int, mine: Tensor, theirs: Tensor) -> Tensor:
        mine, theirs = smaller(mine, theirs)
        mean, variance = self.stages[level](mine)
        errors = (mean - theirs).square().mean((2, 3))  # [B, C_t]
        return (errors / variance + variance.log()).mean(1) / 2


class Gaussian(nn.Module):
    """The distribution of a teacher's map given the student's: its mean at each pixel, one variance per channel.

    Args:
        inputs, outputs: channels of student and teacher.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.conv1 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.log_scale = nn.Parameter(torch.full((outputs,), math.log(math.expm1(VARIANCE - EPS))))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``[B, C_s, H, W]`` → means ``[B, C_t, H, W]`` and variances ``[C_t]``."""
        hidden = F.relu(self.conv1(F.relu(self.conv0(maps))))
        return full_precision(self.conv2(hidden)), F.softplus(self.log_scale) + EPS
