"""Ending a run so that it can go on: signals are heard from the start, and in training answered between two steps."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from types import FrameType
from typing import Any

from helper import distributed

RESUME_ME = 75
"""Exit code of a run that was stopped and can be continued with --resume (EX_TEMPFAIL of sysexits.h)."""

RESUME_ME_FILE = "RESUME_ME_FILE"
"""The environment variable that names a file to make then, too: torchrun keeps the exit codes of its processes."""

REFUSED = ".refused"
"""What its name has at the end where a process cannot go on; those who have lost that process make the other one."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

PATIENCE = 2.0
"""Seconds until a process that cannot answer a signal is thought to wait for others."""

SOON = 5.0
"""Seconds between two looks of several processes at most; Slurm's grace is 30."""


class Stopped(BaseException):
    """The run was asked to end, or lost a process, after its state was saved; the scripts print the message.

    Like KeyboardInterrupt no Exception: it may come out of a signal, and nobody on the way should take it for theirs.
    """


class Asked(Stopped):
    """A signal was heard; the message begins with its name."""


class ReadersLost(Stopped):
    """A process that reads images has ended; raised between two batches."""


class Signals:
    """What this process has been told by the first SIGTERM, SIGUSR1, SIGHUP or Ctrl-C; ``received`` is its name.

    Before there is something to save, it ends the script where it is. From :meth:`hold` on it is only remembered. A
    second Ctrl-C interrupts at once, all other repetitions make no difference.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.held = False
        self.advice = ""
        self._wakes: int | None = None

    def hear(self, advice: str) -> None:
        """Set the handlers; ``advice`` follows the signal's name when it ends the script."""
        self.received, self.held, self.advice = None, False, advice
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish
                signal.signal(number, self._receive)

    def watch(self, end: Callable[[Stopped], None]) -> None:
        """Have a thread call ``end`` where the main one cannot: in a call that waits for other processes."""
        woken, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)

        def wait() -> None:
            while number := os.read(woken, 1):
                time.sleep(PATIENCE)
                if number[0] in SIGNALS and not self.received and not self.held:
                    self.received = signal.Signals(number[0]).name
                    end(self.asked())

        threading.Thread(target=wait, daemon=True).start()

    def hold(self) -> None:
        """From now on only remember."""
        self.held = True
        if self._wakes is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._wakes)
            self._wakes = None
        if self.received:  # and some library has swallowed what was raised
            raise self.asked()

    @staticmethod
    def ignore() -> None:
        """The script has come to its end: nothing that is heard now makes a difference."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @property
    def broke_off(self) -> bool:
        """Whether a signal has ended the script where it was."""
        return self.received is not None and not self.held

    def asked(self) -> Asked:
        """What it is ended with."""
        return Asked(f"{self.received}: {self.advice}")

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number).name
        if not self.held:
            raise self.asked()


signals = Signals()
"""The one of this process: there is one handler for each signal."""


class Looks:
    """In which steps the processes look up together: each ``most`` steps, and every few seconds where they are slow.

    In between nobody waits for another. A process that is alone hears at every step.
    """

    def __init__(self, most: int) -> None:
        self.most, self.interval = most, 1
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count from this step on."""
        self.last, self.since = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to look after this step."""
        return step >= self.last + self.interval or (signals.received is not None and distributed.size() == 1)

    def asked(self) -> Asked | None:
        """Whether any process has received a signal; all have to ask."""
        received = [each for each in distributed.gather(signals.received) if each]
        return Asked(received[0]) if received else None

    def done(self, step: int) -> None:
        """Agree on when to look next: the first process knows how long a step takes."""
        each = (time.monotonic() - self.since) / max(1, step - self.last)
        self.interval = distributed.from_first(lambda: max(1, min(self.most, int(SOON / max(each, 1e-9)))))
        self.begin(step)


def interruptible(batches: Any, most: int) -> Iterator[Any]:
    """The batches of an evaluation. The processes may have different numbers: they look up while all have some.

    Raises:
        Asked: in every process, when one of them has received a signal.
    """
    looks, common = Looks(most), min(distributed.gather(len(batches)))
    for number, batch in enumerate(batches):
        if number < common and looks.due(number):
            asked = looks.asked()
            if asked:
                raise asked
            looks.done(number)
        yield batch


@contextlib.contextmanager
def losses_said(advice: str) -> Iterator[None]:
    """Turn the error that follows when another process has ended into one line.

    Raises:
        Stopped: with the advice.
    """
    try:
        yield
    except RuntimeError as error:
        if distributed.launched() > 1 and re.search(r"connection|peer|timed? ?out|nccl|gloo|socket", str(error), re.I):
            reason = str(error).strip().splitlines()[-1][:120]
            raise Stopped(f"another process of this run has ended or cannot be reached ({reason}); {advice}") from None
        raise


@contextlib.contextmanager
def starting_readers() -> Iterator[None]:
    """Processes that are started inside leave signals to this one: they are born with all of them blocked.

    Nor does the end of one of them raise anything in the middle of a step, as torch's handler of SIGCHLD would: it is
    found out when a batch does not come.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    told = signal.getsignal(signal.SIGCHLD)
    # another thread may take a signal all the same, whose answer would leave torch's loader half made
    held, signals.held = signals.held, True
    try:
        yield
    finally:
        signals.held = held
        if signal.getsignal(signal.SIGCHLD) is not told:
            signal.signal(signal.SIGCHLD, told or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if signals.received and not held:
        raise signals.asked()


def in_readers() -> Callable[[int], None]:
    """What such a process calls first: it ends on a SIGTERM of the one that calls this, and of nobody else."""
    return functools.partial(_obey, os.getpid())


def _obey(master: int, _: int) -> None:
    # a batch that is handed over while the run ends has no taker, of which Python would tell at length
    said = Queue._on_queue_feeder_error  # type: ignore[attr-defined]
    Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, item: None if isinstance(error, BrokenPipeError) else said(error, item)
    )
    hook = sys.excepthook  # which the thread that hands tensors over tells the same
    sys.excepthook = lambda kind, error, trace: (
        None if isinstance(error, (ConnectionError, EOFError)) else hook(kind, error, trace)
    )

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != master:
            pass
        os._exit(0)

    if sys.platform != "darwin":  # which cannot tell who has sent it
        threading.Thread(target=wait, daemon=True).start()
