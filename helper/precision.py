"""The arithmetic that ``--precision`` asks for."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Where networks run: bfloat16 for ``bf16``; losses and weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
