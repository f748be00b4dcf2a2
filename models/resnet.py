"""ResNets for 32×32 images (resnet8 … resnet110, and four times wider ones).

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2.
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


class CifarResNet(StagedModel):
    """A stem and three stages of (depth − 2) / 6 blocks; [B, 3, 32, 32] → maps of 32², 32², 16² and 8² pixels.

    Args:
        num_classes: number of logits.
        depth: number of layers with weights, 6n + 2.
        widths: channels of the stem and of the three stages.
    """

    def __init__(self, num_classes: int, depth: int, widths: Sequence[int] = NARROW) -> None:
        layers = ("layer1", "layer2", "layer3")
        super().__init__(num_classes, {"conv1": ("conv1", "bn1"), **{layer: (layer,) for layer in layers}}, head="fc")
        widths = checked_widths(widths, 4)
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for layer, inputs, outputs, stride in zip(layers, widths[:-1], widths[1:], (1, 2, 2), strict=True):
            first = BasicBlock(inputs, outputs, stride)
            self.add_module(layer, ReluBetween(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1))))
        self.fc = nn.Linear(widths[-1], num_classes)
        init_weights(self)


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
