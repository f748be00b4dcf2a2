"""How far a run is, on a terminal: the bar over an epoch's batches, and a line for each epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from helper import distributed
from helper.meters import Means


class progress(tqdm):
    """A bar over batches on a terminal, and nothing elsewhere.

    Args:
        batches: what is iterated over.
        title: left of the bar.
        total, start: batches in an epoch, and those that an earlier part of the run has seen.
        batch_size: images per batch, those of all processes.
    """

    def __init__(self, batches: Iterable[Any], title: str, total: int, start: int, batch_size: int) -> None:
        silent = not (sys.stderr.isatty() and distributed.is_first())
        places = {"total": total, "initial": start, "unit": " images", "unit_scale": batch_size}
        super().__init__(batches, desc=title, leave=False, disable=silent, **places)
        self._shown = 0.0

    def show(self, means: Means) -> None:
        """Put loss and accuracy beside the bar, if it is time to: the means are read twice a second at most."""
        now = time.monotonic()
        if self.disable or now - self._shown < 0.5:
            return
        self._shown = now
        values = means.read()
        self.set_postfix_str(f"loss {values['loss']:.4f}, accuracy {values['accuracy']:.2f} %", refresh=False)


def epoch_line(row: Mapping[str, Any], epochs: int, chosen_on: str, chosen_name: str) -> str:
    """What is said of an epoch: its ``row`` on record; the best one is chosen on ``chosen_on``, as people call it."""
    left = row["seconds"] / row["epoch"] * (epochs - row["epoch"])
    return (
        f"epoch {row['epoch']:3d}/{epochs}  loss {row['train_loss']:.4f}  train {row['train_accuracy']:.2f} %  "
        f"{chosen_name} {row[f'{chosen_on}_accuracy']:.2f} %  lr {row['learning_rate']:.2g}  "
        f"{row['images_per_second']:.0f} images/s  left {clock(left)}"
    )


def clock(seconds: float) -> str:
    """``h:mm:ss``"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
