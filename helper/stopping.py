"""Ending a run so that it can go on: signals are remembered and answered between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

RESUME_ME = 75
"""Exit code of a run that was stopped and can be continued with --resume (EX_TEMPFAIL of sysexits.h)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to end, or lost a process, after its state was saved; the scripts print the message."""


class Signals:
    """While it is open, the first SIGTERM, SIGUSR1 or Ctrl-C is only remembered; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
