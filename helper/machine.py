"""The machine that a run is on: device, arithmetic, and ``--compile``, which changes networks in place."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from helper import distributed
from helper.errors import UsageError

VERSIONS = 64
"""Compiled versions of one piece of code, of which all networks share some; torch gives up after 8."""


MALLOC = {"MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30), "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 25)}
"""Of glibc's malloc: the variable that sets it from outside, its number for mallopt, and bytes; no more are taken."""


def device_of(opt: argparse.Namespace) -> torch.device:
    """The device that ``--device`` and ``--gpu_id`` ask for.

    Raises:
        UsageError: no such device, or one for several processes. A ``--gpu_id`` on a machine without a GPU means the
            CPU, so that the published commands run anywhere.
    """
    gpus = torch.cuda.device_count()
    if opt.gpu_id is not None and opt.device == "auto" and gpus:
        return _gpu("--gpu_id", opt.gpu_id, gpus)
    if opt.device in ("auto", "cuda") and gpus:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if here > gpus:
            raise UsageError(f"torchrun: {here} processes need {here} GPUs, this machine has {gpus}; or --device cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if opt.device in ("auto", "cpu"):
        return torch.device("cpu")
    prefix, _, index = opt.device.partition(":")
    if prefix == "cuda" and (index.isdecimal() or not index):
        return _gpu("--device", int(index or 0), gpus)
    raise UsageError(f"--device: unknown value {opt.device!r}; choose from auto, cpu, cuda, cuda:N")


def precision_of(opt: argparse.Namespace, device: torch.device) -> str:
    """``fp32`` or ``bf16``: what ``--precision`` says, or for ``auto`` what ``device`` is fast with."""
    if opt.precision != "auto":
        return opt.precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # older versions of torch cannot tell
        has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = (has.get("avx512_bf16", False) or has.get("amx_bf16", False)) and not held_back()
    return "bf16" if fast else "fp32"


def held_back() -> bool:
    """Whether ``ATEN_CPU_CAPABILITY`` or ``ONEDNN_MAX_CPU_ISA`` tells PyTorch to use less than there is."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    without_bf16 = most not in ("", "DEFAULT", "ALL") and not re.search("BF16|FP16|AMX|AVX10", most)
    return without_bf16 or "AVX512" not in torch.backends.cpu.get_cpu_capability()


def _gpu(option: str, index: int, gpus: int) -> torch.device:
    if index >= gpus:
        raise UsageError(f"{option}: there is no GPU {index}; this machine has {gpus or 'none'}")
    if distributed.launched() > 1:
        raise UsageError(f"{option}: each process takes a GPU of its own; choose them with CUDA_VISIBLE_DEVICES")
    return torch.device("cuda", index)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def keep_memory(device: torch.device) -> None:
    """Let what tensors free on a CPU serve the next ones.

    glibc gives blocks of a few MB back to the system at once, which hands them out again page by page, zeroed: in a
    step of resnet8 that is a sixth of the time. Up to 1 GB is kept now; what the environment says goes first.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in MALLOC):
        return
    libc = ctypes.CDLL(None)
    for number, size in MALLOC.values():
        libc.mallopt(number, size)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the accelerator's or the host's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Where networks run: bfloat16 for ``bf16``; losses and weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def require_compiler(device: torch.device) -> None:
    """On a CPU torch.compile writes C++.

    Raises:
        UsageError: there is no compiler for it.
    """
    wanted = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # what torch looks for
    if device.type == "cpu" and not shutil.which(wanted):
        raise UsageError(f"--compile: needs a C++ compiler on a CPU, and there is no {wanted}; install it or set CXX")


def require_right_code(device: torch.device) -> None:
    """Try torch.compile on two layers where it is known to err: PyTorch 2.14, with AVX2 alone, leaves out their ReLU.

    Raises:
        UsageError: what it makes differs from the layers.
    """
    if device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability():
        return
    with torch.random.fork_rng([]):
        layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    images = torch.linspace(-3, 3, 15).view(5, 3)
    expected = layers(images)
    compile_in_place([layers], device)
    if not torch.allclose(layers(images), expected, atol=1e-4):
        raise UsageError(
            f"--compile: PyTorch {torch.__version__} makes wrong code for this processor "
            f"({torch.backends.cpu.get_cpu_capability()}); leave it out"
        )


def compile_in_place(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Let the calls of ``networks`` run compiled from the first one on, on a GPU as CUDA graphs."""
    torch._dynamo.config.recompile_limit = max(VERSIONS, torch._dynamo.config.recompile_limit)
    for network in networks:
        network.compile(mode="reduce-overhead" if device.type == "cuda" else None)


def begin_step(compiled: bool, device: torch.device) -> None:
    """To be called before each update: from here on CUDA graphs may overwrite what they returned before."""
    if compiled and device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()


def uncompiled(compiled: bool) -> contextlib.AbstractContextManager[object]:
    """Where networks run as they are written: for evaluation, whose batches of other sizes would be compiled anew."""
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
