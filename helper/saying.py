"""What is said on stdout, also where nobody hears it any more."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TextIO

from tqdm import tqdm


def say(text: str) -> None:
    """Print a line beside the bars at once, in work that takes hours and leaves its results on the disk.

    Where stdout can no longer be written, as behind ``| head -1`` or where ``tee`` was ended, that is said once on
    stderr, and the work goes on.
    """
    if sys.stdout is None:  # closed from the start, where print says nothing either
        return
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except OSError as error:
        lead_nowhere(sys.stdout)
        with contextlib.suppress(OSError):  # it may have led to the same place
            print(f"{sys.argv[0]}: stdout cannot be written ({error.strerror}); going on", file=sys.stderr, flush=True)


def is_unheard(stream: TextIO) -> bool:
    """Whether the one who read this pipe has gone."""
    try:
        polled = select.poll()
        polled.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in polled.poll(0))
    except (AttributeError, OSError, ValueError):  # none, no file, or a closed one
        return False


def drop_unheard(*streams: TextIO) -> None:
    """Forget what streams still hold that nobody reads: Python would fail to write it at its end, and say so."""
    for stream in filter(is_unheard, streams):
        lead_nowhere(stream)


def lead_nowhere(stream: TextIO) -> None:
    """From now on what is written to it is lost, and what it still holds."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
