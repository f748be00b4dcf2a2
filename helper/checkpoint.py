"""Our checkpoints: written so that a crash never costs one, read without trusting them."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from helper.errors import UsageError


class Damaged(Exception):
    """A checkpoint that cannot be read; the message says why, in one line."""


class Untrusted(Damaged):
    """A checkpoint that would run code when it is read."""


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
            kept = _kept(path) if path.exists() else None
        if kept:
            os.replace(kept, previous(path))
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # torch's writer makes RuntimeErrors of some
        reasons = [getattr(each, "strerror", None) for each in (error, error.__context__)]
        reason = next(filter(None, reasons), "the disk may be full")
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


def _kept(path: Path) -> Path | None:
    """A second name for what is at ``path``, to become the previous one only when the new one stands.

    So two checkpoints with bytes of their own are there at any moment. None: the file system has no hard links, and it
    is the previous one already.
    """
    link = _link(path)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, previous(path))
        return None
    return link


def _link(path: Path) -> Path:
    return previous(path).with_name(previous(path).name + ".partial")


def tidy(path: Path) -> None:
    """Finish what a :func:`save` has left that was killed: its second name takes its place, if the new file stands."""
    link = _link(path)
    if not link.exists():
        return
    if path.exists() and link.samefile(path):
        link.unlink()
    else:
        os.replace(link, previous(path))


def previous(path: Path) -> Path:
    """Where :func:`save` keeps the checkpoint before this one."""
    return path.with_name(path.name + ".previous")


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint to ``*.damaged``: :func:`save` must not make it the one before."""
    os.replace(path, path.with_name(path.name + ".damaged"))


def load(path: Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU; no code is run.

    Args:
        allowed: what it may hold beside plain values and tensors, see ``torch.serialization.safe_globals``.

    Raises:
        Untrusted: it would need unpickling of code.
        Damaged: no checkpoint, or a checksum differs.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken:
                raise Damaged(f"checksum of {broken!r} differs")
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol, before the error that it leads to
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged:
        raise
    except pickle.UnpicklingError as error:
        raise _not_unpickled(str(error)) from None
    except Exception as error:
        # torch.load and zipfile raise many kinds for damaged bytes; all mean the same here.
        if isinstance(error, EOFError) or "unexpected EOF" in str(error):
            raise Damaged("it is damaged: it ends too early") from None
        raise Damaged(f"it is no checkpoint or is damaged ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise Damaged(f"it holds no dictionary, but a {type(state).__name__}")
    return state


def _not_unpickled(message: str) -> Damaged:
    """What torch's refusal means."""
    if not re.search(r"global|reduce|instantiate|build", message.partition("Please file an issue")[0], re.I):
        return Damaged("it is no checkpoint or is damaged")
    found = re.search(r"GLOBAL (\S+)", message)
    return Untrusted(f"it needs unpickling of code, which is not trusted{f': {found[1]}' if found else ''}")


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
