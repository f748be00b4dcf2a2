"""ShuffleNet (three groups) for 32×32 images.

Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ReluBetween, StagedModel, checked_widths, model_dict

WIDTHS = (24, 240, 480, 960)
DEPTHS = (4, 8, 4)
GROUPS = 3


class ShuffleBlock(nn.Module):
    """Grouped 1×1, depthwise 3×3 and grouped 1×1 convolutions; returns the result before its ReLU.

    With stride 1 the input is added; with stride 2 the average-pooled input is concatenated, which leaves
    ``outputs − inputs`` channels to the convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups_in: int = GROUPS) -> None:
        super().__init__()
        self.stride = stride
        self.groups_in = groups_in
        branch = outputs if stride == 1 else outputs - inputs
        inner = max(branch // 4 // GROUPS, 1) * GROUPS
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=groups_in, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(F.channel_shuffle(out, self.groups_in))), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return out + x
        return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)


@model_dict.register("ShuffleV1")
class ShuffleNetV1(StagedModel):
    """A stem and three stages; [B, 3, 32, 32] → maps of 32², 16², 8² and 4² pixels.

    Args:
        num_classes: number of logits.
        widths: channels of the stem and of the three stages, multiples of three that grow from stage to stage.
    """

    learning_rate = 0.01  # what the published commands start with, instead of 0.05

    def __init__(self, num_classes: int, widths: Sequence[int] = WIDTHS) -> None:
        layers = ("layer1", "layer2", "layer3")
        parts = {"conv1": ("conv1", "bn1"), **{layer: (layer,) for layer in layers}}
        super().__init__(num_classes, parts, head="linear")
        self.width_unit = GROUPS
        self.widths = widths = checked_widths(widths, 4, multiple=GROUPS, growing=True)
        self.conv1 = nn.Conv2d(3, widths[0], 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for index, (layer, depth) in enumerate(zip(layers, DEPTHS, strict=True)):
            inputs, outputs = widths[index], widths[index + 1]
            # the paper: no groups on the first pointwise layer, its input has too few channels
            first = ShuffleBlock(inputs, outputs, stride=2, groups_in=1 if index == 0 else GROUPS)
            others = (ShuffleBlock(outputs, outputs, stride=1) for _ in range(depth - 1))
            self.add_module(layer, ReluBetween(first, *others))
        self.linear = nn.Linear(widths[-1], num_classes)
