"""What a network costs: parameters and multiply-accumulate operations."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(module: nn.Module) -> int:
    """Number of trained weights; those that several children share count once."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def mac_count(network: nn.Module, images: torch.Tensor) -> int:
    """Multiply-accumulates of all convolutions and matrix products for one image, biases left out.

    Args:
        network: anything that takes ``images``; its mode is kept.
        images: ``[B, 3, H, W]``.
    """
    training = network.training
    try:
        with FlopCounterMode(display=False) as counter:
            network.eval()(images)
    finally:
        network.train(training)
    return counter.get_total_flops() // 2 // len(images)
