"""What the benchmark runs on, and how fast it multiplies matrices."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import torch

from helper.loop import device_name
from helper.recipe import device_of
from scripts.bench.timing import median, seconds_of

Figures = dict[str, Any]

SIDES = {"cpu": 1536, "cuda": 8192}
"""Of the square matrices: large enough for the peak, small enough for a few milliseconds."""
BF16_HELPS = 1.5
"""A machine whose bf16 peak is so many times its fp32 peak has instructions for it."""


def measure(opt: argparse.Namespace) -> Figures:
    """Names, versions, and the matrix peak in GFLOPS."""
    device = device_of(opt)
    side = SIDES[device.type] // (8 if opt.quick else 1)
    peaks = {name: peak(side, kind, device) for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    return {
        "device": device_name(device),
        "kind": device.type,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "peak": peaks,
        "has_bf16": peaks["bf16"] > BF16_HELPS * peaks["fp32"],
    }


def peak(side: int, kind: torch.dtype, device: torch.device, repeats: int = 7) -> float:
    """GFLOPS of a matrix product, the median of ``repeats``."""
    a, b = (torch.rand(side, side, device=device).to(kind) for _ in range(2))
    a @ b  # the first is slow
    return 2e-9 * side**3 / median([seconds_of(lambda: a @ b, device) for _ in range(repeats)])


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def text(figures: Figures) -> list[str]:
    """For people."""
    load = "" if figures["load"] is None else f", load {figures['load']:.1f}"
    peaks = ", ".join(f"{name} {value:,.0f} GFLOPS" for name, value in figures["peak"].items())
    return [
        f"{figures['device']}; {figures['cpu']}; {figures['threads']} threads on {figures['cores']} cores{load}",
        f"PyTorch {figures['torch']}; matrix product: {peaks}",
    ]
