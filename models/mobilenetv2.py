"""MobileNetV2, half as wide as the paper's, for 32×32 images.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import StagedModel, checked_widths, init_weights, model_dict

WIDTHS = (16, 12, 16, 48, 160)
LAST_WIDTH = 1280


class Bottlenecks(NamedTuple):
    """A row of table 2 of the paper: ``depth`` blocks of ``width`` channels; it belongs to the stage ``stage``."""

    expansion: int
    width: int
    depth: int
    stride: int
    stage: int


ROWS = (
    Bottlenecks(1, 8, 1, 1, stage=1),
    Bottlenecks(6, 12, 2, 1, stage=1),
    Bottlenecks(6, 16, 3, 2, stage=2),
    Bottlenecks(6, 32, 4, 2, stage=3),
    Bottlenecks(6, 48, 3, 1, stage=3),
    Bottlenecks(6, 80, 3, 2, stage=4),
    Bottlenecks(6, 160, 1, 1, stage=4),
)


class InvertedResidual(nn.Module):
    """Expand, depthwise 3×3, project without activation; a skip connection where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.has_skip = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_skip else self.conv(x)


@model_dict.register("MobileNetV2")
class MobileNetV2(StagedModel):
    """A stem and four stages of inverted residuals; [B, 3, 32, 32] → maps of 16², 16², 8², 4² and 2² pixels.

    Stages after the stem end in a linear bottleneck, so ``preact`` changes the stem's map only. The last 1×1
    convolution, to ``LAST_WIDTH`` channels, belongs to the classifier.

    Args:
        num_classes: number of logits.
        widths: channels that the stem and each stage return; rows inside a stage shrink in proportion.
    """

    learning_rate = 0.01  # what the published commands start with, instead of 0.05

    def __init__(self, num_classes: int, widths: Sequence[int] = WIDTHS) -> None:
        parts = {"conv1": ("conv1",), "blocks.0": ("blocks.0", "blocks.1"), "blocks.2": ("blocks.2",)}
        parts |= {"blocks.3": ("blocks.3", "blocks.4"), "blocks.5": ("blocks.5", "blocks.6")}
        norms = {"conv1": "conv1.1", "blocks.0": "blocks.1.1.conv.7", "blocks.2": "blocks.2.2.conv.7"}
        norms |= {"blocks.3": "blocks.4.2.conv.7", "blocks.5": "blocks.6.0.conv.7"}
        super().__init__(num_classes, parts, head="classifier", relu_after=("conv1",), norms=norms)
        self.widths = widths = checked_widths(widths, 5)
        # the ReLU in ``conv1`` and ``conv2`` is applied by the stage and by ``embed``
        self.conv1 = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, padding=1, bias=False), nn.BatchNorm2d(widths[0]))
        self.blocks = nn.ModuleList()
        inputs = widths[0]
        for row in ROWS:
            outputs = max(1, round(row.width * widths[row.stage] / WIDTHS[row.stage]))
            first = InvertedResidual(inputs, outputs, row.stride, row.expansion)
            others = (InvertedResidual(outputs, outputs, 1, row.expansion) for _ in range(row.depth - 1))
            self.blocks.append(nn.Sequential(first, *others))
            inputs = outputs
        self.conv2 = nn.Sequential(nn.Conv2d(inputs, LAST_WIDTH, 1, bias=False), nn.BatchNorm2d(LAST_WIDTH))
        linear = nn.Linear(LAST_WIDTH, num_classes)
        self.classifier = nn.Sequential(linear)
        init_weights(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def embed(self, x: Tensor) -> Tensor:
        """The last map [B, 160, H, W] → the pooled vector [B, 1280]."""
        return super().embed(F.relu(self.conv2(x), inplace=True))
