"""Checkpoints: written so that a crash never costs one, read without trusting them."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helper.errors import UsageError


class Damaged(Exception):
    """A checkpoint that cannot be read; the message says why, in one line."""


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` to ``path`` so that at any moment a whole file is there; the one before becomes ``*.previous``.

    The file is a zip archive, whose checksums are verified here before it takes the place, and by :func:`load`.

    Raises:
        UsageError: it cannot be written; what was there stays.
    """
    try:
        with written_beside(path) as partial:
            with partial.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            with zipfile.ZipFile(partial) as archive:
                if archive.testzip():
                    raise OSError(None, "what was written differs when it is read again")
            if path.exists():
                _keep(path)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # torch's writer makes RuntimeErrors of some
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise UsageError(f"{path} cannot be written ({reason}); the one before is kept, --resume goes on") from None


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A file that takes the place of ``path`` when it is whole, and goes when something comes in between."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _keep(path: Path) -> None:
    """Make ``path`` the previous one too; it stays where it is, if the file system has hard links."""
    link = previous(path).with_name(previous(path).name + ".partial")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        link = path
    os.replace(link, previous(path))


def previous(path: Path) -> Path:
    """Where :func:`save` keeps the checkpoint before this one."""
    return path.with_name(path.name + ".previous")


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint to ``*.damaged``: :func:`save` must not make it the one before."""
    os.replace(path, path.with_name(path.name + ".damaged"))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU. Files of the originals' formats are read too; no code is run.

    Raises:
        Damaged: no checkpoint, a checksum differs, or it would need unpickling of code.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken:
                raise Damaged(f"checksum of {broken!r} differs")
        # RepDistiller's *_last.pth holds its options as a Namespace; nothing else is allowed.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged:
        raise
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"global|reduce|instantiate|build", str(error).partition("Please file an issue")[0], re.I)
        reason = "it needs unpickling of code, which is not trusted" if unsafe else "it is no checkpoint or is damaged"
        raise Damaged(reason) from None
    except Exception as error:
        # torch.load and zipfile raise many kinds for damaged bytes; all mean the same here.
        raise Damaged(f"it is no checkpoint or is damaged ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise Damaged("it holds no dictionary")
    return state


def load_newest(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The checkpoint at ``path``, or the one before where that is damaged.

    Returns:
        the state (None: there is none) and a line for each damaged file.

    Raises:
        UsageError: there are checkpoints and every one is damaged.
    """
    notes: list[str] = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            return load(candidate), notes
        except Damaged as error:
            notes.append(f"{candidate}: {error}")
    if notes:
        raise UsageError(f"--resume: {'; '.join(notes)}; --overwrite starts again")
    return None, notes


def network_state(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The network's weights in any of the forms of RepDistiller, CA-MKD, AE-KD and torchvision.

    Raises:
        Damaged: it holds no weights.
    """
    for key in ("model", "state_dict", "net"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    weights = {str(name).removeprefix("module."): value for name, value in state.items()}
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise Damaged("it holds no weights under 'model' or 'state_dict'")
    return weights


def load_network(network: nn.Module, path: Path, arch: str, num_classes: int, option: str) -> dict[str, Any]:
    """Load weights into ``network``.

    Args:
        network: constructed as ``arch`` with ``num_classes``.
        path: the checkpoint.
        arch, num_classes: for the messages, and compared with what the checkpoint says of itself.
        option: what named the file, for the messages.

    Returns:
        the rest of the checkpoint.

    Raises:
        UsageError: the file is missing, damaged, of another architecture or of another number of classes.
    """
    if not path.is_file():
        raise UsageError(f"{option}: there is no checkpoint {str(path)!r}")
    try:
        state = load(path)
        weights = network_state(state)
    except Damaged as error:
        raise UsageError(f"{option}: {str(path)!r} cannot be loaded: {error}") from None
    _compare(f"{option}: {str(path)!r}", state, arch, num_classes)
    _load_weights(network, weights, f"{option}: {str(path)!r}", arch, num_classes)
    return {key: value for key, value in state.items() if not isinstance(value, Mapping)}


def _compare(what: str, state: Mapping[str, Any], arch: str, num_classes: int) -> None:
    stored_arch, stored_classes = state.get("arch", arch), state.get("num_classes", num_classes)
    if stored_arch != arch:
        raise UsageError(f"{what} holds a {stored_arch}, not a {arch}")
    if stored_classes != num_classes:
        raise UsageError(f"{what} was trained for {stored_classes} classes, the dataset has {num_classes}")


def _load_weights(network: nn.Module, weights: dict[str, torch.Tensor], what: str, arch: str, num_classes: int) -> None:
    own = network.state_dict()
    # Checkpoints from before PyTorch 0.4.1 have no batch counters; nothing here reads them.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    if missing or unexpected:
        name, word = (missing[0], "lacks") if missing else (unexpected[0], "has an extra")
        raise UsageError(
            f"{what} is not a {arch}: it {word} {name!r} ({len(missing)} missing, {len(unexpected)} extra)"
        )
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise UsageError(
                f"{what} does not fit a {arch} with {num_classes} classes: "
                f"{name!r} is {list(value.shape)}, expected {list(own[name].shape)}"
            )
    network.load_state_dict(weights, strict=False)
