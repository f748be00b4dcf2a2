"""What a run writes while it trains: a line for each epoch, curves, checkpoints. One process of several does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from helper import checkpoint, distributed
from helper.contents import Contents
from helper.logger import Logger
from helper.progress import epoch_line
from helper.run_folder import RunFolder
from helper.saying import say


class Record:
    """The files of a run folder, in the process that writes them; in the others every call does nothing.

    Args:
        run: an opened run folder.
        contents: what goes into the checkpoints.
        epochs: of the whole run.
        minutes: how long at most no checkpoint is written, of ``--checkpoint_minutes``.
        chosen_on, chosen_name: what the best epoch is chosen on, in the names of columns and as people call it.
    """

    def __init__(
        self, run: RunFolder, contents: Contents, epochs: int, minutes: float, chosen_on: str, chosen_name: str
    ) -> None:
        self.run, self.contents, self.epochs, self.minutes = run, contents, epochs, minutes
        self.chosen_on, self.chosen_name = chosen_on, chosen_name

    @contextlib.contextmanager
    def opened(self, epoch: int) -> Iterator[None]:
        """While the run trains, from this epoch on."""
        self.logger = Logger(self.run.path / "tensorboard", epoch) if distributed.is_first() else None
        self.saved_at = time.monotonic()
        try:
            yield
        finally:
            if self.logger:
                self.logger.close()

    def due(self) -> bool:
        """Whether it is time for a checkpoint in the middle of an epoch, in any of the processes."""
        return any(distributed.gather(time.monotonic() - self.saved_at > self.minutes * 60))

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """An epoch that is done; its checkpoint last, so that a run that is cut off here repeats the epoch."""
        if self.logger is None:
            return
        self.run.append_metrics(row)  # first: what TensorBoard cannot write, it says at length
        self.logger.log_row(row)
        say(epoch_line(row, self.epochs, self.chosen_on, self.chosen_name))
        if is_best:
            checkpoint.save(self.contents.best(), self.run.best)
        self.save(row["seconds"])

    def save(self, seconds: float) -> None:
        """The checkpoint to go on from; ``seconds`` that the run has taken."""
        if self.logger is not None:
            checkpoint.save(self.contents.last(seconds), self.run.last)
        self.saved_at = time.monotonic()

    def result(self, result: dict[str, Any]) -> None:
        """What the run has come to."""
        if self.logger is not None:
            self.run.write_json("result.json", result)
