"""A Comprehensive Overhaul of Feature Distillation (Heo et al., ICCV 2019)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.base import Distiller, Pair, distill_dict
from helper import distributed
from helper.batch import Batch, When
from helper.kl import full_precision
from helper.seen import Reads, Seen, chosen

RARE = 1e-3
"""Probability of a negative response below which the released code takes −3σ for the margin."""


@distill_dict.register("ofd")
class OFD(Distiller):
    """``Σ_l 2^(l−n)·Σ_{C,H,W} d(s_l, max(t_l, m_l))`` of the stages' maps before their ReLU.

    s_l is a 1×1 convolution and BN of the student's map, t_l the teacher's in the student's size, m_l [C] the mean of
    the teacher's negative responses; d is the squared difference, and 0 where ``t ≤ 0`` and ``s ≤ max(t, m)``. Stages
    are paired from the last one. The published weight, ``-b 0.001``, belongs to the sum over a map, not to its mean.

    Args:
        pair: the networks' shapes, and the teacher's normalisations. A margin is that of the normal distribution whose
            mean and deviation are a normalisation's shift and scale, as released; where a teacher's map comes from none
            alone, that of the responses in training so far, of all processes (section 3.2 of the paper has both).
    """

    student = teacher = Reads(before_relu="stages")

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        mine, theirs = chosen("stages", pair.student), chosen("stages", pair.teacher)
        norms = chosen("stages", pair.teacher_norms or [None] * len(pair.teacher))
        matched = list(zip(reversed(mine), reversed(theirs), reversed(norms), strict=False))[::-1]
        self.connectors = nn.ModuleList(_connector(s[0], t[0]) for s, t, _ in matched)
        self.margins = nn.ModuleList(Margin(norm, t[0]) for _, t, norm in matched)

    def prepare(self, student: Seen) -> list[Tensor]:
        last = student.before_relu[-len(self.connectors) :]
        return [connect(each) for connect, each in zip(self.connectors, last, strict=True)]

    def compare(self, prepared: list[Tensor], teacher: Seen, batch: Batch, when: When) -> Tensor:
        total = torch.zeros((), device=batch.target.device)
        for mine, theirs, margin in zip(prepared, teacher.before_relu[-len(prepared) :], self.margins, strict=True):
            total = total / 2 + distance(full_precision(mine), full_precision(theirs), margin)
        return total


def distance(mine: Tensor, theirs: Tensor, margin: nn.Module) -> Tensor:
    """Maps ``[B, C, H, W]``, the teacher's of any height and width → ``[B]``."""
    theirs = F.adaptive_avg_pool2d(theirs, (mine.shape[2], mine.shape[3]))
    target = torch.maximum(theirs, margin(theirs).view(-1, 1, 1).to(theirs.dtype))
    counts = (theirs > 0) | (mine > target)
    return torch.where(counts, mine - target, 0.0).square().flatten(1).sum(1)


def _connector(width: int, teacher_width: int) -> nn.Sequential:
    conv = nn.Conv2d(width, teacher_width, 1, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / teacher_width))
    block = nn.Sequential()
    block.add_module("conv", conv)
    block.add_module("bn", nn.BatchNorm2d(teacher_width))
    return block


class Margin(nn.Module):
    """The mean ``[C]`` of a channel's negative responses: expected from ``norm`` (scale, shift), or else counted."""

    mean: Tensor
    batches: Tensor

    def __init__(self, norm: tuple[Tensor, Tensor] | None, channels: int) -> None:
        super().__init__()
        self.counted = norm is None
        self.register_buffer("mean", torch.zeros(channels) if norm is None else expected_negative(*norm))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        if self.counted and self.training:
            negative = maps.clamp_max(0)
            here = torch.stack([negative.sum((0, 2, 3)), (negative < 0).sum((0, 2, 3)).to(maps.dtype)])
            total, number = distributed.total(here)
            self.batches += 1
            self.mean.lerp_((total / number.clamp_min(1)).to(self.mean.dtype), 1 / self.batches)
        return self.mean


def expected_negative(scale: Tensor, shift: Tensor) -> Tensor:
    """``E[x | x < 0]`` of normal x with deviations ``|scale|`` and means ``shift``, ``[C]``; −3σ where that is rare."""
    sigma, mu = scale.double().abs().clamp_min(torch.finfo(torch.float32).tiny), shift.double()
    density = (-(mu / sigma).square() / 2).exp() / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(-mu / sigma)
    return torch.where(below > RARE, mu - sigma * density / below.clamp_min(RARE), -3 * sigma).to(scale.dtype)
