"""Paying More Attention to Attention (Zagoruyko, Komodakis; ICLR 2017), over all stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distiller_zoo.base import Distiller, distill_dict
from helper.batch import Batch, When
from helper.kl import full_precision
from helper.seen import Reads, Seen


@distill_dict.register("attention_everywhere")
class AttentionEverywhere(Distiller):
    """Squared error of normalised spatial energies, pooled to the smaller size; stages are paired from the last one."""

    student = teacher = Reads(maps="all")

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        pairs = zip(reversed(prepared.maps), reversed(teacher.maps), strict=False)
        return torch.stack([self.distance(mine, theirs) for mine, theirs in pairs]).sum(0)

    def distance(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` of either network → ``[B]``."""
        height, width = (min(sides) for sides in zip(mine.shape[2:], theirs.shape[2:], strict=True))
        maps = (F.adaptive_avg_pool2d(each, (height, width)) for each in (mine, theirs))
        energies = [F.normalize(full_precision(each).square().mean(1).flatten(1)) for each in maps]
        return (energies[0] - energies[1]).square().mean(1)
