"""What happens around every script's ``main``."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from helper import distributed
from helper.errors import UsageError
from helper.names import print_any_name
from helper.saying import drop_unheard, is_unheard
from helper.stopping import REFUSED, RESUME_ME, RESUME_ME_FILE, Asked, Stopped, losses_said, signals

HOLD_BACK = 2.0
"""Seconds before another process than the first repeats what the first has probably said; torchrun ends it sooner."""

OF_PATHS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EROFS}
"""Errors of a path that somebody has typed."""

UNHEARD = 128 + signal.SIGPIPE
"""Exit code of what nobody reads any more: that of programs which such a signal ends."""

BEFORE_TRAINING = "nothing had been trained yet; the same command starts it again"


def run_script(main: Callable[[Sequence[str]], None], stopped: str = BEFORE_TRAINING) -> None:
    """Call ``main`` with the command line.

    Bad input becomes one line on stderr and exit code 2; a run that was stopped and can go on, exit code 75. If the
    environment names a ``RESUME_ME_FILE``, it is made for the latter, with ``.refused`` behind its name for the former.
    Where nobody reads what is printed any more, as behind ``| head``, it ends without a word.
    ``stopped`` is said of a script that is stopped outside of training.
    """
    print_any_name()
    try:
        signals.hear(stopped)  # inside, since one may come at once
        if distributed.launched() > 1:
            signals.watch(leave_at_once)
        with losses_said("the same command goes on"):
            main(sys.argv[1:])
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        leave("\ninterrupted; --resume continues from the last checkpoint", 130)
    except Stopped as reason:
        leave_to_go_on(reason)
    except Exception as error:
        if signals.broke_off:  # what a library has made of it
            leave_to_go_on(signals.asked())
        if isinstance(error, BrokenPipeError) and is_unheard(sys.stdout):
            sys.exit(UNHEARD)
        said = error if isinstance(error, UsageError) else fault_of_a_path(error)
        if said is None:
            raise
        leave_word(REFUSED)
        leave(f"{sys.argv[0]}: error: {said}", 2)
    finally:
        signals.ignore()
        distributed.stop()
        drop_unheard(sys.stdout, sys.stderr)


def fault_of_a_path(error: Exception) -> str | None:
    """What is said of a file or folder that its user alone can mend; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in OF_PATHS or not isinstance(error.filename, str):
        return None
    return f"{error.filename}: {error.strerror}"


def leave_to_go_on(reason: Stopped) -> None:
    """Exit with the code for it, and the file."""
    signals.ignore()  # of a process that goes because of another, which was told first
    leave_word()
    if isinstance(reason, Asked) and not distributed.is_first():  # which says so too, or that it has lost this one
        sys.exit(RESUME_ME)
    leave(f"{sys.argv[0]}: {reason}", RESUME_ME)


def leave_at_once(reason: Stopped) -> None:
    """The same from another thread than the main one, which is not asked."""
    leave_word()
    if distributed.is_first():
        print(f"{sys.argv[0]}: {reason}", file=sys.stderr, flush=True)
    os._exit(RESUME_ME)


def leave_word(ending: str = "") -> None:
    """That the run can go on, for those who do not get its exit code, or with :data:`REFUSED` that it cannot."""
    if RESUME_ME_FILE in os.environ:
        with contextlib.suppress(OSError):  # a full disk may be the reason to leave
            Path(os.environ[RESUME_ME_FILE] + ending).touch()


def leave(message: str, code: int) -> None:
    """Say why, once for all processes, and exit."""
    signals.ignore()
    if not distributed.is_first():
        signal.signal(signal.SIGTERM, lambda *_: os._exit(code))  # torchrun's, since the first one has ended
        time.sleep(HOLD_BACK)
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)
