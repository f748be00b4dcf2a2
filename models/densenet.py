"""DenseNet-BC for 32×32 images: bottleneck layers, and transitions that halve the channels.

Huang et al., Densely Connected Convolutional Networks, CVPR 2017; depth 40 and 100 with growth 12 as OKDDip uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.errors import UsageError
from models.base import StagedModel, checked_widths, init_weights, model_dict


class DenseLayer(nn.Module):
    """Batch norm, ReLU and convolution, 1×1 then 3×3, whose output joins the input. [B, C, H, W] → [B, C + k, H, W]."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        return torch.cat([x, out], dim=1)


class Transition(nn.Module):
    """Half of the channels and half of the side. [B, C, H, W] → [B, C/2, H/2, W/2], rounded down."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x), inplace=True)), 2)


class DenseNet(StagedModel):
    """A stem and three dense stages; [B, 3, 32, 32] → maps of 32², 32², 16² and 8² pixels.

    A transition is the first child of the stage that it leads to. Only the last map has passed a ReLU.

    Args:
        num_classes: number of logits.
        depth: number of layers with weights, 6n + 4.
        widths: channels that the stem and the three stages return. Each of a stage's n layers adds as many, so a
            stage's width is what it gets (half of the one before, from the second stage on) plus a multiple of n.
    """

    def __init__(self, num_classes: int, depth: int, widths: Sequence[int]) -> None:
        parts: dict[str, tuple[str, ...]] = {"conv1": ("conv1",), "dense1": ("dense1",)}
        parts |= {"trans1": ("trans1", "dense2"), "trans2": ("trans2", "dense3", "bn")}
        norms = {"dense1": "trans1.bn1", "trans1": "trans2.bn1", "trans2": "bn"}
        super().__init__(num_classes, parts, head="fc", relu_after=("trans2",), norms=norms)
        self.layers = (depth - 4) // 6
        self.widths = widths = checked_widths(widths, 4)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        inputs = widths[0]
        for index, (growth, outputs) in enumerate(zip(growths(widths, self.layers), widths[1:], strict=True)):
            if index:
                self.add_module(f"trans{index}", Transition(inputs))
                inputs //= 2
            layers = (DenseLayer(inputs + layer * growth, growth) for layer in range(self.layers))
            self.add_module(f"dense{index + 1}", nn.Sequential(*layers))
            inputs = outputs
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, num_classes)
        init_weights(self)

    def thinner_widths(self, kept: int, of: int, stages: int) -> tuple[int, ...]:
        """A stage keeps the share of its growth, since most of its channels are what it was given."""
        full = growths(self.widths, self.layers)
        narrow = [growth * kept // of if 3 - index <= stages else growth for index, growth in enumerate(full)]
        return stage_widths(self.widths[0], narrow, self.layers)


def growths(widths: Sequence[int], layers: int) -> list[int]:
    """Channels that each layer of the three dense stages adds.

    Raises:
        UsageError: a stage's channels are not what it gets plus a positive multiple of its ``layers``.
    """
    given = (widths[0], widths[1] // 2, widths[2] // 2)
    added = [outputs - inputs for inputs, outputs in zip(given, widths[1:], strict=True)]
    if any(more <= 0 or more % layers for more in added):
        raise UsageError(
            f"widths: a dense stage of {layers} layers adds a positive multiple of {layers} channels to the stem's "
            f"or to half of those before, got {tuple(widths)}"
        )
    return [more // layers for more in added]


def stage_widths(stem: int, growth: Sequence[int], layers: int) -> tuple[int, ...]:
    """Channels of the stem and of the three stages, from what each layer adds."""
    first = stem + layers * growth[0]
    second = first // 2 + layers * growth[1]
    return stem, first, second, second // 2 + layers * growth[2]


for _depth in (40, 100):
    model_dict.register(f"densenetd{_depth}k12")(
        partial(DenseNet, depth=_depth, widths=stage_widths(24, (12, 12, 12), (_depth - 4) // 6))
    )
