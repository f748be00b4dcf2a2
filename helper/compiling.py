"""``--compile``: networks through torch.compile, in place, so that checkpoints stay what they are."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable

import torch
from torch import nn

from helper.errors import UsageError

VERSIONS = 64
"""Compiled versions of one piece of code, of which all networks share some; torch gives up after 8."""


def require_compiler(device: torch.device) -> None:
    """On a CPU torch.compile writes C++.

    Raises:
        UsageError: there is no compiler for it.
    """
    wanted = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # what torch looks for
    if device.type == "cpu" and not shutil.which(wanted):
        raise UsageError(f"--compile: needs a C++ compiler on a CPU, and there is no {wanted}; install it or set CXX")


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
