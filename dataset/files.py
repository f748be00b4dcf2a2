"""Dataset files: fetched whole or not at all, and one clear line when they are missing or damaged."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import textwrap
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision.datasets.utils import check_integrity

from dataset.base import MemoryDataset, Split
from helper.errors import UsageError

MOST_NAMES = 20
"""Images or classes named in a message."""


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from.

    Attributes:
        name: of the dataset.
        folder: below ``data_dir``, holds its files.
        address: to download it from.
        archive: (file name, md5 or None) of the one file to download; used instead of a download when it already
            lies in ``data_dir``. None when there are several files.
        checksums: (path below ``folder``, md5 or None) of the files that must be there; used to name what is wrong.
    """

    name: str
    folder: str
    address: str
    archive: tuple[str, str | None] | None
    checksums: tuple[tuple[str, str | None], ...]


def provide(source: Source, data_dir: Path, download: Callable[[Path], object]) -> None:
    """Make sure that the folder is there: leave it alone if it is, else download it.

    Args:
        source: describes the dataset.
        data_dir: where its folder belongs.
        download: makes the folder below the directory that it is given. That is a scratch directory, whose folder is
            moved into place only when it is complete: an interrupted download leaves nothing behind.

    Raises:
        UsageError: not there and not to be had.
    """
    target = data_dir / source.folder
    if is_filled(target):
        return
    try:
        with scratch(data_dir) as directory:
            borrow_archive(source, data_dir, directory)
            with contextlib.redirect_stdout(io.StringIO()):
                download(directory)
            if not is_filled(target):  # by another run in the meantime
                os.replace(directory / source.folder, target)
    except UsageError:
        raise
    except Exception as error:  # torchvision raises a different one for every mishap
        raise UsageError(
            f"--dataset {source.name}: not found, and the download failed ({one_line(error)}). "
            f"get it from {source.address} and unpack it to {target}, or point --data_dir to the folder that holds "
            f"{source.folder}"
        ) from error


class DownloadedDataset(MemoryDataset):
    """A dataset that is downloaded by torchvision's class ``reader``, and then read part by part."""

    reader: Any

    @property
    @abstractmethod
    def source(self) -> Source:
        """Where its files come from."""

    def download(self, directory: Path) -> None:
        """Make the folder below ``directory``."""
        self.reader(directory, download=True)

    @abstractmethod
    def read(self, train: bool) -> Split:
        """The training or the test part."""

    def load(self) -> tuple[Split, Split]:
        provide(self.source, self.data_dir, self.download)
        with reading(self.source, self.data_dir):
            return self.read(train=True), self.read(train=False)


def is_filled(folder: Path) -> bool:
    """Whether there is a folder with something in it."""
    return folder.is_dir() and any(folder.iterdir())


@contextlib.contextmanager
def scratch(data_dir: Path) -> Iterator[Path]:
    """A temporary directory on the file system of ``data_dir``; a ``data_dir`` made for it goes again if empty."""
    existed = data_dir.exists()
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as directory:
            yield Path(directory)
    finally:
        if not existed and not any(data_dir.iterdir()):
            data_dir.rmdir()


def borrow_archive(source: Source, data_dir: Path, directory: Path) -> None:
    """Link an archive that the user has put in ``data_dir`` into ``directory``; UsageError when it is damaged."""
    if source.archive is None or not (data_dir / source.archive[0]).is_file():
        return
    name, md5 = source.archive
    archive = data_dir / name
    if not check_integrity(archive, md5):
        raise UsageError(f"--dataset {source.name}: {archive} is damaged. delete it and get it from {source.address}")
    (directory / name).symlink_to(archive.resolve())


@contextlib.contextmanager
def reading(source: Source, data_dir: Path) -> Iterator[None]:
    """Whatever goes wrong while files are read inside this context becomes a UsageError that names them."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # old pickles: nothing that a user could act upon
            yield
    except Exception as error:
        target = data_dir / source.folder
        fault = first_fault(target, source.checksums) or f"{target} cannot be read ({one_line(error)})"
        raise UsageError(
            f"--dataset {source.name}: {fault}. delete {target} and start again to download it, "
            f"or get it from {source.address}"
        ) from error


def first_fault(folder: Path, checksums: Iterable[tuple[str, str | None]]) -> str | None:
    """What is wrong with the first file that is missing or damaged."""
    for name, md5 in checksums:
        try:
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if not check_integrity(folder / name, md5):
                return f"{folder / name} is damaged"
        except OSError as error:
            return f"{folder / name} cannot be read ({one_line(error)})"
    return None


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + rest


def one_line(error: BaseException) -> str:
    """The error's message, shortened to one line, or its type if it has none."""
    return textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__
