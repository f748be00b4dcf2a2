"""Batch normalisations that would see one value of each channel, which has no variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


def lone_values(modules: nn.Module, step: Callable[[], Any]) -> list[str]:
    """Names of the batch normalisations in ``modules`` that get a single value per channel in ``step``.

    The step runs in evaluation mode, so that it changes no statistics; random numbers drawn in it count for nothing.

    Args:
        modules: whatever is trained.
        step: runs what a training step runs, on as many images as are normalised together.
    """
    found = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel() == inputs[0].shape[1]:
                found.append(name)

        return look

    norms = ((name, module) for name, module in modules.named_modules() if isinstance(module, BatchNorm))
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in norms]
    training = [module for module in modules.modules() if module.training]
    try:
        modules.eval()
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            step()
    finally:
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(found))
