"""A run's scalars in TensorBoard."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from helper.run_folder import writing


class Logger:
    """Scalars of one run.

    Args:
        folder: where the event files go.
        first_step: points at or after this step, left by a run that was cut off, are hidden.

    Raises:
        UsageError: nothing can be written there; so does :meth:`log_row`.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        with writing(folder):
            _wait_for_a_later_second(folder)
            self._writer = SummaryWriter(str(self._reachable(folder)), purge_step=first_step)
            self._writer.flush()

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

    def log_row(self, row: Mapping[str, float]) -> None:
        """Add a point to the curve of each of the row's names, at its ``epoch``."""
        with writing(self.folder):
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, int(row["epoch"]))
            self._writer.flush()

    def close(self) -> None:
        """Close the file; what could not be written has been said."""
        with contextlib.suppress(OSError):
            self._writer.close()
        if self._scratch is not None:
            self._scratch.cleanup()


def _wait_for_a_later_second(folder: Path) -> None:
    """Than those that the names of event files begin with: TensorBoard reads them in the order of their names."""
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*")]
    time.sleep(min(1.0, max(0.0, max(seconds, default=0) + 1 - time.time())))
