"""EfficientNets of other widths, built by torchvision's own constructor.

Tan and Le, EfficientNet, ICML 2019, and EfficientNetV2, ICML 2021. The published sizes differ in depth and width at
once; here the depth stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn
from torchvision.models import EfficientNet
from torchvision.models.efficientnet import MBConvConfig


class Row(MBConvConfig):
    """A row of the papers' tables whose channels are taken as they are; torchvision's are multiples of 8.

    So a block expands to exactly ``expand_ratio`` times its input, and a network has the share of channels that it is
    asked for.
    """

    @staticmethod
    def adjust_channels(channels: int, width_mult: float, min_value: int | None = None) -> int:
        return round(channels * width_mult)


def with_channels(net: nn.Module, channels: Sequence[int], num_classes: int) -> EfficientNet:
    """An EfficientNet of the depth of ``net`` and other channels; its state has the same names.

    Args:
        net: a published EfficientNet; only its shapes are read, so that it may lie on the meta device.
        channels: what each child of ``features`` returns: the stem's convolution, the rows, the last convolution.
        num_classes: number of logits.
    """
    stem, *rows, _ = net.get_submodule("features").children()
    settings = [row_of(row, *pair) for row, pair in zip(rows, pairwise(channels[:-1]), strict=True)]
    norm: Any = stem.get_submodule("1")
    dropout: Any = net.get_submodule("classifier.0")
    return EfficientNet(
        settings,
        dropout.p,
        num_classes=num_classes,
        norm_layer=partial(nn.BatchNorm2d, eps=norm.eps, momentum=norm.momentum),
        last_channel=channels[-1],
    )


def row_of(blocks: nn.Module, inputs: int, outputs: int) -> Row:
    """The row that ``blocks`` were built from, with other channels."""
    first: Any = blocks.get_submodule("0")
    convolutions = [layer for layer in first.modules() if isinstance(layer, nn.Conv2d)]
    spatial = max(convolutions, key=lambda layer: layer.kernel_size)  # the others are 1×1
    ratio = convolutions[-1].in_channels / convolutions[0].in_channels
    depth = len(list(blocks.children()))
    kernel, stride = spatial.kernel_size[0], spatial.stride[0]
    return Row(ratio, kernel, stride, inputs, outputs, depth, block=type(first))
