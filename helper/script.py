"""What happens around every script's ``main``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from helper import distributed
from helper.errors import UsageError
from helper.names import print_any_name
from helper.stopping import RESUME_ME, Stopped, losses_said, signals

HOLD_BACK = 2.0
"""Seconds before another process than the first repeats what the first has probably said; torchrun ends it sooner."""


BEFORE_TRAINING = "nothing had been trained yet; the same command starts it again"


def run_script(main: Callable[[Sequence[str]], None], stopped: str = BEFORE_TRAINING) -> None:
    """Call ``main`` with the command line.

    Bad input becomes one line on stderr and exit code 2; a run that was stopped and can go on, exit code 75 and a file
    ``RESUME_ME_FILE``, if the environment names one: torchrun keeps the exit codes of its processes to itself.
    ``stopped`` is said of a script that is stopped outside of training.
    """
    print_any_name()
    signals.hear(stopped)
    try:
        with losses_said("the same command goes on"):
            main(sys.argv[1:])
    except KeyboardInterrupt:
        leave("\ninterrupted; --resume continues from the last checkpoint", 130)
    except Stopped as reason:
        leave_to_go_on(reason)
    except Exception as error:
        if signals.broke_off:  # what a library has made of it
            leave_to_go_on(signals.stopped())
        if not isinstance(error, UsageError):
            raise
        leave(f"{sys.argv[0]}: error: {error}", 2)
    finally:
        signals.ignore()
        distributed.stop()


def leave_to_go_on(reason: Stopped) -> None:
    """Exit with the code for it, and the file."""
    if "RESUME_ME_FILE" in os.environ:
        Path(os.environ["RESUME_ME_FILE"]).touch()
    leave(f"{sys.argv[0]}: {reason}", RESUME_ME)


def leave(message: str, code: int) -> None:
    """Say why, once for all processes, and exit."""
    if not distributed.is_first():
        signal.signal(signal.SIGTERM, lambda *_: os._exit(code))  # torchrun's, since the first one has ended
        time.sleep(HOLD_BACK)
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)
