"""ShuffleNetV2 (1× and 0.5×) for 32×32 images.

Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ReluBetween, StagedModel, checked_widths, model_dict

DEPTHS = (4, 8, 4)


class SplitBlock(nn.Module):
    """Half of the channels pass, half go through 1×1, depthwise 3×3 and 1×1 convolutions; then they are shuffled.

    Returns the map before its ReLU: the half that passes has been activated before, so that one more ReLU over all
    channels is the ReLU of the other half. [B, C, H, W] → same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passed, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return F.channel_shuffle(torch.cat([passed, out], dim=1), 2)


class DownBlock(nn.Module):
    """Both halves of the output come from strided convolutions of the whole input; returns the map before its ReLU.

    [B, C, H, W] → [B, C', H/2, W/2].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return F.channel_shuffle(torch.cat([left, right], dim=1), 2)


def stage(inputs: int, outputs: int, depth: int) -> ReluBetween:
    """``depth`` blocks, the first of which halves the map and widens it to ``outputs``."""
    return ReluBetween(DownBlock(inputs, outputs), *(SplitBlock(outputs) for _ in range(depth - 1)))


class ShuffleNetV2(StagedModel):
    """A stem and three stages, the last with a 1×1 convolution; [B, 3, 32, 32] → maps of 32², 16², 8² and 4² pixels.

    Args:
        num_classes: number of logits.
        widths: channels that the stem and the three stages return. As in the paper the third stage works on twice the
            channels of the second, before its 1×1 convolution.
    """

    learning_rate = 0.01  # what the published commands start with, instead of 0.05

    def __init__(self, num_classes: int, widths: Sequence[int]) -> None:
        parts = {"conv1": ("conv1", "bn1"), "layer1": ("layer1",), "layer2": ("layer2",)}
        parts |= {"layer3": ("layer3", "relu3", "conv2", "bn2")}
        super().__init__(num_classes, parts, head="linear")
        self.width_unit = 2
        self.widths = widths = checked_widths(widths, 4, multiple=self.width_unit)
        self.conv1 = nn.Conv2d(3, widths[0], 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = stage(widths[0], widths[1], DEPTHS[0])
        self.layer2 = stage(widths[1], widths[2], DEPTHS[1])
        self.layer3 = stage(widths[2], 2 * widths[2], DEPTHS[2])
        self.relu3 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2 * widths[2], widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], num_classes)


model_dict.register("ShuffleV2")(partial(ShuffleNetV2, widths=(24, 116, 232, 1024)))
model_dict.register("ShuffleV2_0_5")(partial(ShuffleNetV2, widths=(24, 48, 96, 1024)))
