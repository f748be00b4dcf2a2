"""Cross-Layer Distillation with Semantic Calibration (Chen, Mei, Zhang, Wang, Wang, Feng, Chen; AAAI 2021)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.base import Pair, distill_dict
from distiller_zoo.maps import StagesDistiller, smaller, unit
from distiller_zoo.sp import gram
from helper.batch import Batch, When
from helper.distributed import size
from helper.errors import UsageError, require_positive
from helper.kl import full_precision
from helper.seen import Seen

NARROWER = 4
"""By how much queries and keys are narrower than the batch (released code)."""


@distill_dict.register("semckd")
class SemCKD(StagesDistiller):
    """Every stage of the student learns from all stages of the teacher: ``Σ_ij α_bij MSE_bij / n_s``.

    ``α_bij = softmax_j(q_bi · k_bj / soft)`` is attention between how sample b relates to the others of the batch in
    stage i of the student and in stage j of the teacher; ``MSE_bij`` compares the teacher's map with a projection of
    the student's, the larger one average-pooled first. The others are those of all processes, and the networks that
    read their similarities fit one batch size only. Published with ``-r 1 -a 1 -b 400``.

    Args:
        pair: the networks' shapes, and the batch size.
        soft: the temperature of the attention.

    Raises:
        UsageError: less than 8 samples at once, or another number than was announced.
    """

    def __init__(self, pair: Pair, *, soft: Annotated[float, "temperature of the attention over stages"] = 1.0) -> None:
        super().__init__(pair)
        self.soft, self.batch_size = soft, pair.batch_size * size()
        require_positive(soft=soft)
        if self.batch_size < 2 * NARROWER:  # a direction in one dimension has no gradient
            raise UsageError(
                f"--batch_size: {self.batch_size} samples are too few for --distill semckd; "
                f"choose {2 * NARROWER} or more"
            )
        mine, theirs = self.student_shapes, self.teacher_shapes
        self.query = nn.ModuleList(Embedding(self.batch_size) for _ in mine)
        self.key = nn.ModuleList(Embedding(self.batch_size) for _ in theirs)
        self.projections = nn.ModuleList(nn.ModuleList(Projection(s[0], t[0]) for t in theirs) for s in mine)

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        theirs = teacher.maps
        keys = torch.stack([key(self._similarities(maps)) for key, maps in zip(self.key, theirs, strict=True)])
        losses = []
        for query, projections, maps in zip(self.query, self.projections, prepared.maps, strict=True):
            attention = ((query(self._similarities(maps)) * keys).sum(2) / self.soft).softmax(0)  # [n_t, B]
            assert isinstance(projections, nn.ModuleList)
            errors = [error(project, maps, each) for project, each in zip(projections, theirs, strict=True)]
            losses.append((attention * torch.stack(errors)).sum(0))
        return torch.stack(losses).mean(0)

    def _similarities(self, maps: Tensor) -> Tensor:
        rows = gram(maps)  # [b, B]
        if rows.shape[1] != self.batch_size:
            raise UsageError(
                f"--distill: semckd was built for {self.batch_size} samples at once and got {rows.shape[1]}"
            )
        return rows


def error(project: nn.Module, mine: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared error of a projection of the student's map ``[B, C_s, H, W]`` to the teacher's ``[B]``."""
    mine, theirs = smaller(mine, theirs)
    return (full_precision(project(mine)) - theirs).square().flatten(1).mean(1)


class Embedding(nn.Module):
    """A sample's similarities with the batch ``[b, B]`` → a query or key of length 1, ``[b, B // 4]``."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        width = batch_size // NARROWER
        self.linear1, self.linear2 = nn.Linear(batch_size, 2 * width), nn.Linear(2 * width, width)

    def forward(self, rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):  # what tells the rows apart is small
            return unit(self.linear2(F.relu(self.linear1(rows))))


class Projection(nn.Module):
    """A bottleneck the other way round: maps ``[B, C_s, H, W]`` → ``[B, C_t, H, W]``, twice as wide within."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = 2 * outputs
        self.conv0, self.bn0 = nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv1, self.bn1 = nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, outputs, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        hidden = F.relu(self.bn0(self.conv0(maps)))
        return self.conv2(F.relu(self.bn1(self.conv1(hidden))))
