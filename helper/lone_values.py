"""Batch normalisations that would see one value of each channel, which has no variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

BatchNorm = nn.modules.batchnorm._BatchNorm


def lone_values(modules: nn.Module, step: Callable[[], Any]) -> list[str]:
    """Names of the batch normalisations in ``modules`` that get a single value per channel in ``step``.

    The step runs in evaluation mode, so that it changes no statistics; random numbers drawn in it count for nothing.

    Args:
        modules: whatever is trained.
        step: runs what a training step runs, on as many images as are normalised together.
    """
    names = {module: name for name, module in modules.named_modules() if isinstance(module, BatchNorm)}
    found: dict[str, None] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module in names and inputs[0].numel() == inputs[0].shape[1]:
            found[names[module]] = None

    training = [module for module in modules.modules() if module.training]
    handle = register_module_forward_pre_hook(look)
    try:
        modules.eval()
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            step()
    finally:
        handle.remove()
        for module in training:
            module.training = True
    return list(found)
