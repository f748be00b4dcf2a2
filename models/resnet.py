"""ResNets for 32×32 images (resnet8 … resnet110, four times wider ones, and three of bottleneck blocks).

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2. resnet110_bottleneck and
wide_resnet20_8 are OKDDip's, resnet164_bottleneck is ONE's (released code). Both papers say resnet110: OKDDip's has 12
bottleneck blocks in a stage, ONE's the 18 of a resnet110 of basic blocks, which makes it 164 layers deep.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ReluBetween, StagedModel, checked_widths, init_weights, model_dict

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)
DOUBLE = (64, 128, 256, 512)
EXPANDED = (16, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a skip connection; returns the sum before its ReLU. [B, C, H, W] → [B, C', H', W']."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        skip = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(out)) + skip


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a skip connection; returns the sum before its ReLU.

    [B, C, H, W] → [B, C', H', W']; the inner layers have ``inner`` channels.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        skip = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(out)) + skip


class CifarResNet(StagedModel):
    """A stem and three stages of equal depth; [B, 3, 32, 32] → maps of 32², 32², 16² and 8² pixels.

    Args:
        num_classes: number of logits.
        depth: number of layers with weights, 6n + 2; 9n + 2 with bottleneck blocks.
        widths: channels of the stem and of the three stages.
        bottleneck: None makes basic blocks; else the blocks have inner layers of ``bottleneck`` · outputs / 4 channels
            (1 is He et al.'s block).
    """

    def __init__(
        self, num_classes: int, depth: int, widths: Sequence[int] = NARROW, bottleneck: int | None = None
    ) -> None:
        layers = ("layer1", "layer2", "layer3")
        blocks = (depth - 2) // (9 if bottleneck else 6)
        last = f"{blocks - 1}.bn3" if bottleneck else f"{blocks - 1}.bn2"
        norms = {"conv1": "bn1", **{layer: f"{layer}.{last}" for layer in layers}}
        parts = {"conv1": ("conv1", "bn1"), **{layer: (layer,) for layer in layers}}
        super().__init__(num_classes, parts, head="fc", norms=norms)
        self.width_unit = 4 if bottleneck else 1
        self.widths = widths = checked_widths(widths, 4, multiple=self.width_unit)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for layer, inputs, outputs, stride in zip(layers, widths[:-1], widths[1:], (1, 2, 2), strict=True):
            first = _block(inputs, outputs, stride, bottleneck)
            rest = (_block(outputs, outputs, 1, bottleneck) for _ in range(blocks - 1))
            self.add_module(layer, ReluBetween(first, *rest))
        self.fc = nn.Linear(widths[-1], num_classes)
        init_weights(self)


def _block(inputs: int, outputs: int, stride: int, bottleneck: int | None) -> nn.Module:
    if bottleneck is None:
        return BasicBlock(inputs, outputs, stride)
    return Bottleneck(inputs, outputs // 4 * bottleneck, outputs, stride)


for _name, _depth, _widths in (
    ("resnet8", 8, NARROW),
    ("resnet14", 14, NARROW),
    ("resnet20", 20, NARROW),
    ("resnet32", 32, NARROW),
    ("resnet44", 44, NARROW),
    ("resnet56", 56, NARROW),
    ("resnet110", 110, NARROW),
    ("resnet8x4", 8, WIDE),
    ("resnet20x4", 20, WIDE),
    ("resnet32x4", 32, WIDE),
    ("resnet8x4_double", 8, DOUBLE),
):
    model_dict.register(_name)(partial(CifarResNet, depth=_depth, widths=_widths))

model_dict.register("resnet164_bottleneck")(partial(CifarResNet, depth=164, widths=EXPANDED, bottleneck=1))
model_dict.register("resnet110_bottleneck")(partial(CifarResNet, depth=110, widths=EXPANDED, bottleneck=1))
model_dict.register("wide_resnet20_8")(partial(CifarResNet, depth=20, widths=EXPANDED, bottleneck=8))
