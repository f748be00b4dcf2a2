"""What tools write to, looked at before they work for minutes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase

from helper.errors import UsageError


def folder_for(option: str, path: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        UsageError: it cannot be made or written; ``option`` named it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: {path} cannot be made ({error.strerror})") from None
    try:
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UsageError(f"{option}: {path} cannot be written ({error.strerror})") from None


def require_no_folder(option: str, path: Path) -> None:
    """UsageError where a file is to be written and a folder is; ``option`` named it."""
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder; name the file")


def require_figure(option: str, path: Path) -> None:
    """UsageError where no figure is written to files of that name, or it is a folder's; ``option`` named it."""
    require_no_folder(option, path)
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise UsageError(f"{option}: {path} does not end like a figure; choose from .{', .'.join(kinds)}")
