"""What a network costs: parameters and multiply-accumulate operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def parameter_count(module: nn.Module) -> int:
    """Number of trained weights; those that several children share count once."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def mac_count(network: nn.Module, images: torch.Tensor) -> int:
    """Multiply-accumulates of all convolutions and linear layers for one image, biases left out.

    Args:
        network: anything that takes ``images``; its mode is kept.
        images: ``[B, 3, H, W]``.
    """
    total = 0

    def count(layer: Any, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        per_output = layer.weight[0].numel()  # of a convolution: C_in / groups · k²
        total += output.numel() // len(images) * per_output

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    training = network.training
    try:
        network.eval()(images)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return total
