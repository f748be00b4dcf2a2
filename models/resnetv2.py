"""ResNet18, 34, 50 and 101 with a stem for small images: a 3×3 convolution, no max pooling.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.1. The children are named otherwise than
in ``models/resnet.py``, as in the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ReluBetween, StagedModel, checked_widths, init_weights, model_dict

BASIC_WIDTHS = (64, 64, 128, 256, 512)
BOTTLENECK_WIDTHS = (64, 256, 512, 1024, 2048)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The skip connection: a 1×1 convolution where the shape changes, else the identity."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a skip connection; returns the sum before its ReLU. [B, C, H, W] → [B, C', H', W']."""

    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(out)) + self.shortcut(x)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, the inner ones four times thinner; returns the sum before its ReLU."""

    expansion = 4

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        inner = outputs // self.expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return self.bn3(self.conv3(out)) + self.shortcut(x)


class ResNet(StagedModel):
    """A stem and four stages of residual blocks; [B, 3, 32, 32] → maps of 32², 32², 16², 8² and 4² pixels.

    Args:
        num_classes: number of logits.
        block: the kind of block.
        depths: blocks per stage.
        widths: channels that the stem and each of the four stages return.
    """

    def __init__(
        self,
        num_classes: int,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
    ) -> None:
        layers = ("layer1", "layer2", "layer3", "layer4")
        parts = {"conv1": ("conv1", "bn1"), **{layer: (layer,) for layer in layers}}
        last = "bn2" if block is BasicBlock else "bn3"
        ends = {layer: f"{layer}.{depth - 1}.{last}" for layer, depth in zip(layers, depths, strict=True)}
        super().__init__(num_classes, parts, head="linear", norms={"conv1": "bn1", **ends})
        self.width_unit = block.expansion
        self.widths = widths = checked_widths(widths, 5, multiple=self.width_unit)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for index, (layer, depth, stride) in enumerate(zip(layers, depths, (1, 2, 2, 2), strict=True)):
            inputs, outputs = widths[index], widths[index + 1]
            first = block(inputs, outputs, stride)
            self.add_module(layer, ReluBetween(first, *(block(outputs, outputs) for _ in range(depth - 1))))
        self.linear = nn.Linear(widths[-1], num_classes)
        init_weights(self)


for _name, _block, _depths, _widths in (
    ("ResNet18", BasicBlock, (2, 2, 2, 2), BASIC_WIDTHS),
    ("ResNet34", BasicBlock, (3, 4, 6, 3), BASIC_WIDTHS),
    ("ResNet50", Bottleneck, (3, 4, 6, 3), BOTTLENECK_WIDTHS),
    ("ResNet101", Bottleneck, (3, 4, 23, 3), BOTTLENECK_WIDTHS),
):
    model_dict.register(_name)(partial(ResNet, block=_block, depths=_depths, widths=_widths))
