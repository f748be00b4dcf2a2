"""Wide residual networks WRN-d-k for 32×32 images.

Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import StagedModel, checked_widths, init_weights, model_dict


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU and convolution, twice, and a skip connection. [B, C, H, W] → [B, C', H', W']."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        # the convolution on the skip connection reads the activated input, the identity the raw one
        return self.conv2(out) + (x if self.convShortcut is None else self.convShortcut(activated))


class Block(nn.Module):
    """A stage: ``depth`` residual blocks; their list is named ``layer`` in the checkpoints."""

    def __init__(self, inputs: int, outputs: int, stride: int, depth: int) -> None:
        super().__init__()
        first = PreActivationBlock(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(PreActivationBlock(outputs, outputs) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(StagedModel):
    """A stem and three stages of (depth − 4) / 6 blocks; [B, 3, 32, 32] → maps of 32², 32², 16² and 8² pixels.

    Only the last map, after the final batch norm, has passed a ReLU; the others are the raw sums, and with ``preact``
    what the next block's first batch norm makes of them.

    Args:
        num_classes: number of logits.
        depth: number of layers with weights, 6n + 4.
        widths: channels of the stem and of the three stages; WRN-d-k has (16, 16k, 32k, 64k).
    """

    def __init__(self, num_classes: int, depth: int, widths: Sequence[int]) -> None:
        parts = {"conv1": ("conv1",), "block1": ("block1",), "block2": ("block2",), "block3": ("block3", "bn1")}
        norms = {"block1": "block2.layer.0.bn1", "block2": "block3.layer.0.bn1", "block3": "bn1"}
        super().__init__(num_classes, parts, head="fc", relu_after=("block3",), norms=norms)
        self.widths = widths = checked_widths(widths, 4)
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.block1 = Block(widths[0], widths[1], 1, blocks)
        self.block2 = Block(widths[1], widths[2], 2, blocks)
        self.block3 = Block(widths[2], widths[3], 2, blocks)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        init_weights(self)
        nn.init.zeros_(self.fc.bias)


for _depth, _factor in ((16, 1), (16, 2), (40, 1), (40, 2)):
    model_dict.register(f"wrn_{_depth}_{_factor}")(
        partial(WideResNet, depth=_depth, widths=(16, 16 * _factor, 32 * _factor, 64 * _factor))
    )
