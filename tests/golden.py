"""Weights that depend on their names alone: what the authors' networks were given, ours get without a file."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def drawn(name: str, old: Tensor, seed: int = 0) -> Tensor:
    """The state entry ``name`` from a generator that is seeded with its name, in ``old``'s shape and type."""
    values = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(tuple(old.shape))
    if name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif name.endswith("running_mean"):
        values = 0.1 * values
    elif old.ndim >= 2:
        values = values * np.sqrt(2 / np.prod(old.shape[1:]))
    else:
        values = 0.1 * values + (1 if name.endswith("weight") else 0)
    return torch.from_numpy(values).to(old.dtype)


def golden_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with every entry drawn."""
    return {name: old if name.endswith("num_batches_tracked") else drawn(name, old) for name, old in state.items()}


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> None:
    """Draw all weights and statistics; what several children share, by its first name."""
    for name, old in (*module.named_parameters(), *module.named_buffers()):
        if not name.endswith("num_batches_tracked"):
            old.copy_(drawn(name, old, seed))
