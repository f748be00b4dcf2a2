"""TensorBoard behind ``log_value``, the call of the ``tensorboard_logger`` package that the originals use.

That package cannot be imported beside protobuf ≥ 3.21, so ``torch.utils.tensorboard`` writes the files.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from helper.errors import UsageError


class Logger:
    """Scalars of one run.

    Args:
        folder: where the event files go.
        first_step: points at or after this step, left by a run that was cut off, are hidden.

    Raises:
        UsageError: nothing can be written there; so do the methods.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        with self._writing():
            self._writer = SummaryWriter(str(self._reachable(folder)), purge_step=first_step)
        self.flush()

    def _reachable(self, folder: Path) -> Path:
        """The folder, or a link to it where its name is no UTF-8, which tensorboard cannot take."""
        try:
            str(folder).encode()
            return folder
        except UnicodeEncodeError:
            folder.mkdir(parents=True, exist_ok=True)
            self._scratch = tempfile.TemporaryDirectory()  # until the last point is written
            link = Path(self._scratch.name) / "tensorboard"
            link.symlink_to(folder.absolute())
            return link

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"{self.folder} cannot be written ({error.strerror}); the last checkpoint is kept, --resume goes on"
            ) from None

    def log_value(self, name: str, value: float, step: int) -> None:
        """Add one point to the curve ``name``."""
        with self._writing():
            self._writer.add_scalar(name, value, step)

    def log_row(self, row: Mapping[str, float]) -> None:
        """Add a point to the curve of each of the row's names, at its ``epoch``."""
        for name, value in row.items():
            if name != "epoch":
                self.log_value(name, value, int(row["epoch"]))
        self.flush()

    def flush(self) -> None:
        """Write out what is buffered."""
        with self._writing():
            self._writer.flush()

    def close(self) -> None:
        """Close the file; what could not be written has been said."""
        with contextlib.suppress(OSError):
            self._writer.close()
        if self._scratch is not None:
            self._scratch.cleanup()
