"""Distilling Knowledge via Knowledge Review (Chen, Liu, Zhao, Jia; CVPR 2021)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.base import Pair, distill_dict
from distiller_zoo.maps import StagesDistiller
from helper.batch import Batch, When
from helper.errors import require_not_negative
from helper.kl import full_precision
from helper.seen import Reads, Seen

WIDEST = 512
"""The most channels that residuals have (released code)."""
PYRAMID = (4, 2, 1)
"""Maps are compared at full size and pooled to these, each with half of the weight of the one before."""


@distill_dict.register("reviewkd")
class ReviewKD(StagesDistiller):
    """Each stage of the teacher teaches the student's same and later ones: ``Σ_l HCL(fused(s_l, s_l+1, …), t_l)``.

    From the pooled vector down to the first stage, attention mixes the student's map with what came from the stages
    after it (ABF, fig. 3); the hierarchical context loss (HCL) is a weighted mean of squared errors at full size and
    of maps pooled to 4², 2² and 1. The teacher's maps are those before their ReLU. Published with ``-r 1 -a 0 -b 5``
    on CIFAR-100 and with ``-b 1`` on ImageNet (there the student's maps are those before their ReLU, too).

    Args:
        pair: the networks' shapes.
        distill_warmup: as released 20 epochs, 1 for ImageNet.
    """

    student = Reads(maps="stages", vector=True)
    teacher = Reads(before_relu="stages", vector=True)

    def __init__(
        self,
        pair: Pair,
        *,
        distill_warmup: Annotated[int, "epochs over which the weight of the loss rises to what it is"] = 20,
    ) -> None:
        super().__init__(pair)
        require_not_negative(distill_warmup=distill_warmup)
        self.warmup = distill_warmup
        (width,), (teacher_width,) = pair.student[-1], pair.teacher[-1]
        shapes = [*self.shapes, ((width, 1, 1), (teacher_width, 1, 1))]
        self.levels = nn.ModuleList(
            Fusion(mine[0], min(WIDEST, width), theirs[0], fuses=bool(level))
            for level, (mine, theirs) in enumerate(reversed(shapes))
        )

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        residual: Tensor | None = None
        losses = []
        for fuse, mine, theirs in zip(self.levels, from_the_vector(prepared), from_the_vector(teacher), strict=False):
            fused, residual = fuse(mine, residual, theirs.shape[2:])
            losses.append(context_loss(full_precision(fused) - full_precision(theirs)))
        return torch.stack(losses).sum(0)


def from_the_vector(seen: Seen) -> list[Tensor]:
    """The pooled vector as a map of one pixel, then the maps from the last one on."""
    assert seen.vector is not None
    return [seen.vector[..., None, None], *reversed(seen.maps or seen.before_relu)]


def context_loss(gaps: Tensor) -> Tensor:
    """Differences of two maps ``[B, C, H, W]`` → the weighted mean of their squares at each size ``[B]``."""
    sides = [side for side in PYRAMID if side < min(gaps.shape[2:])]
    sizes = [gaps, *(F.adaptive_avg_pool2d(gaps, side) for side in sides)]
    weights = [0.5**halvings for halvings in range(len(sizes))]
    errors = [weight * each.square().flatten(1).mean(1) for weight, each in zip(weights, sizes, strict=True)]
    return torch.stack(errors).sum(0) / sum(weights)


class Fusion(nn.Module):
    """Mixes a student's map with the residual of the later levels, pixel by pixel.

    Args:
        inputs, width, outputs: channels of the student's map, of the residuals and of the teacher's map.
        fuses: whether there is a residual.
    """

    def __init__(self, inputs: int, width: int, outputs: int, fuses: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        if fuses:
            self.att = nn.Conv2d(2 * width, 2, 1)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, maps: Tensor, residual: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Maps ``[B, C_s, H, W]`` → what is compared ``[B, C_t, *size]`` and the next level's residual."""
        mixed = self.bn1(self.conv1(maps))
        if residual is not None:
            later = F.interpolate(residual, mixed.shape[2:])
            shares = self.att(torch.cat([mixed, later], 1)).sigmoid()  # [B, 2, H, W]
            mixed = mixed * shares[:, :1] + later * shares[:, 1:]
        if mixed.shape[2:] != size:
            mixed = F.interpolate(mixed, size)
        return self.bn2(self.conv2(mixed)), mixed
