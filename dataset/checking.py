"""Which image files cannot be read: found before training, and remembered, so that it costs nothing the next time."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from dataset.files import some_of
from dataset.pictures import fault_of
from helper import distributed

T = TypeVar("T")

THREADS = 16
"""They wait for the disk most of the time."""

AT_ONCE = 2048
"""Files looked at between two words to the other processes, which would not wait for ever."""


def damaged_among(paths: Sequence[str], tree: Path) -> dict[str, str]:
    """The images that cannot be read, and why. Among several processes the first looks, and tells the others.

    Args:
        paths: the images.
        tree: the folder that they lie in.
    """
    found: dict[str, str] = {}
    search = _search(paths, tree)
    while (some := distributed.from_first(lambda: next(search, None))) is not None:
        found |= some
    return found


def _search(paths: Sequence[str], tree: Path) -> Iterator[dict[str, str]]:
    """The damaged ones among the next files, until there are no more."""
    memory = cache_folder() / "images" / f"{sha256(os.fsencode(tree.absolute())).hexdigest()[:16]}.npy"
    known = _recall(memory)
    before = len(known)
    bar = tqdm(total=len(paths), desc="checking images", unit=" images", leave=False, disable=not sys.stderr.isatty())
    try:
        with bar, ThreadPoolExecutor(THREADS) as pool:
            for first in range(0, len(paths), AT_ONCE):
                some = paths[first : first + AT_ONCE]
                marks = _merged(pool.map(marks_of, _shares(some)))
                new = [path for path in some if marks[path] not in known]
                faults = _merged(pool.map(faults_of, _shares(new)))
                known.update(mark for path in new if faults[path] is None and (mark := marks[path]) is not None)
                bar.update(len(some))
                yield {path: fault for path in new if (fault := faults[path]) is not None}
    finally:
        if len(known) > before:
            _remember(known, memory)


def _shares(paths: Sequence[str]) -> list[Sequence[str]]:
    """A part for each thread: to hand over files one by one takes longer than to look at small ones."""
    return [paths[thread::THREADS] for thread in range(THREADS)]


def _merged(parts: Iterable[dict[str, T]]) -> dict[str, T]:
    return {path: value for part in parts for path, value in part.items()}


def faults_of(paths: Sequence[str]) -> dict[str, str | None]:
    """:func:`dataset.pictures.fault_of` each."""
    return {path: fault_of(path) for path in paths}


def marks_of(paths: Sequence[str]) -> dict[str, int | None]:
    """Path, size and time of each file as one number; None where there is no file."""
    here, marks = os.getcwdb(), dict[str, int | None]()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            marks[path] = None
            continue
        name = os.path.join(here, os.fsencode(path))
        described = b"%s\0%d\0%d" % (name, status.st_size, status.st_mtime_ns)
        marks[path] = int.from_bytes(blake2b(described, digest_size=8).digest(), "big")
    return marks


def cache_folder() -> Path:
    """Where this collection keeps what it can find out again."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        base = Path(os.devnull)
    return base / "ensemble-distillation"


def _recall(memory: Path) -> set[int]:
    """The marks of files that were whole; none where nothing is kept."""
    try:
        return set(np.load(memory, allow_pickle=False).tolist())
    except (OSError, ValueError, EOFError):
        return set()


def _remember(known: set[int], memory: Path) -> None:
    """Keep the marks, whole or not at all; where nothing can be written, the next run looks again."""
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=memory.parent) as scratch:
            partial = Path(scratch) / memory.name
            np.save(partial, np.array(sorted(known), dtype=np.uint64))
            os.replace(partial, memory)


def listed(damaged: Mapping[str, str], tree: Path) -> str:
    """``3 images cannot be read: train/a/3.png (empty), …``."""
    start = tree if tree.is_dir() else tree.parent  # of a list
    names = [f"{os.path.relpath(path, start)} ({fault})" for path, fault in damaged.items()]
    return f"{len(names)} image{'s' * (len(names) != 1)} cannot be read: {some_of(names)}"
