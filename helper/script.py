"""What happens around every script's ``main``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from helper import distributed
from helper.errors import UsageError
from helper.names import print_any_name
from helper.stopping import RESUME_ME, Stopped

HOLD_BACK = 2.0
"""Seconds before another process than the first repeats what the first has probably said; torchrun ends it sooner."""


def run_script(main: Callable[[Sequence[str]], None]) -> None:
    """Call ``main`` with the command line.

    Bad input becomes one line on stderr and exit code 2; a run that was stopped and can go on, exit code 75 and a file
    ``RESUME_ME_FILE``, if the environment names one: torchrun keeps the exit codes of its processes to itself.
    """
    print_any_name()
    try:
        main(sys.argv[1:])
    except UsageError as error:
        leave(f"{sys.argv[0]}: error: {error}", 2)
    except Stopped as reason:
        if "RESUME_ME_FILE" in os.environ:
            Path(os.environ["RESUME_ME_FILE"]).touch()
        leave(f"{sys.argv[0]}: {reason}", RESUME_ME)
    except KeyboardInterrupt:
        leave("\ninterrupted; --resume continues from the last checkpoint", 130)
    finally:
        distributed.stop()


def leave(message: str, code: int) -> None:
    """Say why, once for all processes, and exit."""
    if not distributed.is_first():
        time.sleep(HOLD_BACK)
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
