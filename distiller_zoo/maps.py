"""What losses on feature maps share: which stages they compare, at which size, and arithmetic that rounds little."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.base import Distiller, Pair
from helper.batch import Batch, When
from helper.errors import UsageError, require_positive
from helper.kl import full_precision
from helper.seen import Reads, Seen, Shape, chosen

TINY = 1e-12


class StagesDistiller(Distiller):
    """A loss on the stages of both networks, summed over pairs of maps.

    Networks of unequal depth are paired from the last stage on, so that the first stages of the deeper one are left
    out. (The released codes pair from the first one on and leave out the last ones.)

    Args:
        pair: the networks' shapes.

    Attributes:
        student_shapes, teacher_shapes: of all stages that are read.
        shapes: of the student's and the teacher's map of each pair, the last stages last.

    Raises:
        UsageError: a network has no stages.
    """

    student = teacher = Reads(maps="stages")

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.student_shapes = chosen(self.student.maps or self.student.before_relu, pair.student)
        self.teacher_shapes = chosen(self.teacher.maps or self.teacher.before_relu, pair.teacher)
        levels = min(len(self.student_shapes), len(self.teacher_shapes))
        if not levels:
            raise UsageError("--distill: a network without stages; choose kd")
        self.shapes = list(zip(self.student_shapes[-levels:], self.teacher_shapes[-levels:], strict=True))

    def paired(self, seen: Seen) -> tuple[Tensor, ...]:
        """The maps of one network that are compared, as many as :attr:`shapes` has pairs."""
        return (seen.maps or seen.before_relu)[-len(self.shapes) :]

    def distance(self, level: int, mine: Tensor, theirs: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` of student and teacher, whose shapes are ``shapes[level]`` → ``[B]``."""
        raise NotImplementedError

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        pairs = zip(self.paired(prepared), self.paired(teacher), strict=True)
        return torch.stack([self.distance(level, *maps) for level, maps in enumerate(pairs)]).sum(0)


def smaller(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps ``[B, C, H, W]``, both average-pooled to the smaller height and width; float32 or better."""
    size = min(mine.shape[2], theirs.shape[2]), min(mine.shape[3], theirs.shape[3])
    return pooled(full_precision(mine), size), pooled(full_precision(theirs), size)


def pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps ``[B, C, H, W]`` average-pooled to a size that is no larger."""
    height, width = maps.shape[2:]
    if (height, width) == size:
        return maps
    if height % size[0] or width % size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.avg_pool2d(maps, (height // size[0], width // size[1]))  # its gradient lies in memory as the maps do


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """``v / ‖v‖``, and 0 where v is. There the gradient is finite: the released codes divide it by 1e-12."""
    norm = vectors.norm(dim=dim, keepdim=True)
    return vectors / norm.masked_fill(norm < TINY, 1.0)


def energy(maps: Tensor) -> Tensor:
    """Maps ``[B, C, H, W]`` → where their energy is, ``[B, H·W]`` of length 1: an attention map."""
    return unit(maps.square().mean(1).flatten(1))


def product(first: Tensor, second: Tensor) -> Tensor:
    """The (batched) matrix product in float32 or better, under autocast too."""
    if not torch.is_autocast_enabled(first.device.type):
        return full_precision(first) @ full_precision(second)
    with torch.autocast(first.device.type, enabled=False):
        return full_precision(first) @ full_precision(second)


def regressor(student_shape: Shape, teacher_shape: Shape) -> tuple[tuple[int, int] | None, nn.Module]:
    """FitNets' convolution between two maps (released code), and the size to resize to first, or None.

    A stride-2 3×3 convolution where the student's map is twice as large, a 4×4 transposed one where it is half as
    large, else an unpadded one of size ``1 + s_H − t_H``; maps that none of these fit are resized to the teacher's.
    """
    (s_c, s_h, s_w), (t_c, t_h, t_w) = student_shape, teacher_shape
    if (s_h, s_w) == (2 * t_h, 2 * t_w):
        return None, nn.Conv2d(s_c, t_c, 3, stride=2, padding=1)
    if (2 * s_h, 2 * s_w) == (t_h, t_w):
        return None, nn.ConvTranspose2d(s_c, t_c, 4, stride=2, padding=1)
    if s_h >= t_h and s_w >= t_w:
        return None, nn.Conv2d(s_c, t_c, (1 + s_h - t_h, 1 + s_w - t_w))
    return (t_h, t_w), nn.Conv2d(s_c, t_c, 3, padding=1)


def resized(maps: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Maps ``[B, C, H, W]`` interpolated to a size, if any."""
    return maps if size is None else F.interpolate(maps, size, mode="bilinear", align_corners=False)


def narrower(width: int, factor: int) -> int:
    """``width / factor`` channels; UsageError where the factor is below 1."""
    require_positive(factor=factor)
    return max(1, width // factor)


def bottleneck(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    """1×1, 3×3 and 1×1 convolutions, each with BN and ReLU."""
    return nn.Sequential(conv_bn_relu(inputs, inner, 1), conv_bn_relu(inner, inner, 3), conv_bn_relu(inner, outputs, 1))


def conv_bn_relu(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """A size×size convolution that keeps height and width, with BN and ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
