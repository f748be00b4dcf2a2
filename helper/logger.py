"""TensorBoard behind ``log_value``, the call of the ``tensorboard_logger`` package that the originals use.

That package cannot be imported beside protobuf ≥ 3.21, so ``torch.utils.tensorboard`` writes the files.
"""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class Logger:
    """Scalars of one run.

    Args:
        folder: where the event files go.
        first_step: points at or after this step, left by a run that was cut off, are hidden.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def log_value(self, name: str, value: float, step: int) -> None:
        """Add one point to the curve ``name``."""
        self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write out what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Write out what is buffered and close the file."""
        self._writer.close()
