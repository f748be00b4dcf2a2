"""Strided 1×1 convolutions whose weight gradient is right on every CPU.

In channels_last oneDNN's weight gradient of a strided 1×1 convolution over few input channels writes past its workspace
(uxlfoundation/oneDNN#6035): below 16 channels with AVX-512, below 8 with AVX2. To leave the pixels out first and to
convolve what remains is the same function, takes as long, and runs no such gradient.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled, nn

Module = TypeVar("Module", bound=nn.Module)


class Subsampling:
    """What comes before ``nn.Conv2d``, or a class derived from it, among the bases of such a convolution."""

    stride: tuple[int, ...]
    weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        learns = self.weight.requires_grad and is_grad_enabled()
        # without a gradient of the weights, as in evaluation and for exporters, it stays one operation
        if input.device.type != "cpu" or not learns or torch.jit.is_tracing():
            return super().forward(input)  # type: ignore[misc]
        stride, self.stride = self.stride, (1, 1)
        try:
            # a mean over one pixel: indexing with a step, and its gradient, take several times as long
            return super().forward(F.avg_pool2d(input, 1, stride))  # type: ignore[misc]
        finally:
            self.stride = stride


class SubsamplingConv2d(Subsampling, nn.Conv2d):
    """A strided 1×1 ``nn.Conv2d`` that subsamples first."""


PLAIN_CONVOLUTIONS = (nn.Conv2d, SubsamplingConv2d)
"""The types that compute ``W∗x + b`` and nothing else; a class derived from these may do more."""


def subsample_first(network: Module) -> Module:
    """Let every strided 1×1 convolution inside ``network`` leave pixels out first; in place.

    Weights and state names stay. Convolutions that a network computes without a ``nn.Conv2d`` cannot be found.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or isinstance(module, Subsampling):
            continue
        kind = type(module)
        # grouped and padded ones are computed by other kernels
        whole = module.groups == 1 and module.padding in ((0, 0), "valid")
        if whole and module.kernel_size == (1, 1) and max(module.stride) > 1:
            plain = kind is nn.Conv2d
            module.__class__ = SubsamplingConv2d if plain else type(kind.__name__, (Subsampling, kind), {})
    return network
