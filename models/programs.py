"""Whole networks in a file, as teachers of logits: ``FILE.pt2`` of ``torch.export``, ``torchscript/FILE``.

Neither is read as weights alone: ``torch.export.load`` unpickles, and TorchScript runs code of its own. They are for
files whose author one trusts, which is why one has to name them as networks.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from helper.errors import UsageError
from helper.teachers.record import Eyes
from models.base import Builder, from_outside, source_dict
from models.wrapped import Wrapped, checksum, first_line

PREFIX = "torchscript/"

ABOUT = "about.json"
"""The extra file of a program in which :mod:`scripts.export` says how it wants its images and what its classes are."""

GREY = "grey three times"
"""What ends its ``layout`` where the images are brightness alone."""

Load: TypeAlias = Callable[[Path], tuple[nn.Module, Mapping[str, Any]]]


class Program(nn.Module):
    """What a file computes, in evaluation whatever mode is asked for: its mode was chosen when it was written."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: Tensor) -> Tensor:
        return self.program(images)

    def train(self, mode: bool = True) -> Program:
        return self


class ProgramNetwork(Wrapped):
    """Such a file as a network of logits only."""

    def compile(self, *_: Any, **__: Any) -> None:
        """It has been compiled, as far as it will be."""


def exported(path: Path) -> tuple[nn.Module, Mapping[str, Any]]:
    """A program of ``torch.export`` that takes any number of images, and what it says of itself.

    Raises:
        UsageError: it takes one number of images only.
    """
    extra = {ABOUT: ""}
    program = torch.export.load(path, extra_files=extra)
    (images,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    if isinstance(images.meta["val"].shape[0], int):
        raise UsageError(
            f"{path} takes batches of exactly {images.meta['val'].shape[0]} images; export it with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )
    return program.module(), json.loads(extra[ABOUT] or "{}")


def scripted(path: Path) -> tuple[nn.Module, Mapping[str, Any]]:
    """A TorchScript file, which says nothing of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; its files are not gone
        return torch.jit.load(path, map_location="cpu").eval(), {}


def program_network(load: Load, path: Path, label: str, num_classes: int, whole: bool = False) -> ProgramNetwork:
    """Read a file.

    Args:
        load: :func:`exported` or :func:`scripted`: the network in a file, and what the file says of it.
        path: the file.
        label: what messages call it.
        num_classes: what its logits should be.
        whole: has to be asked for: there is no such network without its weights.

    Raises:
        UsageError: it cannot be read.
    """
    if not whole:
        raise UsageError(f"{label} is a whole network, which can only teach: name it alone under --teachers")
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{label} cannot be read: it is no such file or is damaged")
    try:
        program, about = load(path)
        network = ProgramNetwork(num_classes, Program(program), label)
        grey = about.get("layout", "").endswith(GREY)
        network.wants = Eyes(about.get("mean"), about.get("std"), about.get("image_size"), 1 if grey else None)
        network.class_names = about.get("classes")
    except UsageError:
        raise
    except Exception as error:  # of zip archives, of pickles, of torch's versions: many kinds mean the same here
        raise UsageError(f"{label} cannot be read: {first_line(error)}") from None
    return network


@source_dict.register("FILE.pt2")
def export_source(name: str) -> Builder | None:
    """Files of ``torch.export``."""
    return _found(name, exported, Path(name)) if name.endswith(".pt2") else None


@source_dict.register("torchscript/FILE")
def script_source(name: str) -> Builder | None:
    """Files of TorchScript."""
    return _found(name, scripted, Path(name.removeprefix(PREFIX))) if name.startswith(PREFIX) else None


def _found(name: str, load: Load, path: Path) -> Builder:
    if not path.is_file():
        raise UsageError(f"{name!r}: there is no file {str(path)!r}")
    return from_outside(partial(program_network, load, path, name), lambda: f"{path.stem}@{checksum(path)}")
