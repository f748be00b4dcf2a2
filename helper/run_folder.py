"""One run's folder: its options, metrics, checkpoints and result."""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from helper import checkpoint
from helper.errors import UsageError
from helper.names import recorded
from helper.saying import say

NEEDED = ("epoch", "epochs", "seconds", "accuracy", "best", "trained", "optimizer")
"""What ``last.pth`` holds so that a run can go on from it."""

FOLDER_FILE = "RUN_FOLDER_FILE"
"""The environment variable that names a file for :meth:`RunFolder.leave_word`."""

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}
"""Errors of file systems that cannot lock files, such as Lustre mounted without ``flock``."""


class RunFolder:
    """``save/<kind>/<name>/``; nothing is written before :meth:`open`. One process at a time may have it open.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / "last.pth", path / "best.pth"
        self.metrics, self.result = path / "metrics.jsonl", path / "result.json"
        self.lock = path / ".lock"
        self._locks: list[int] = []

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.result.exists()

    @property
    def saved(self) -> bool:
        """Whether there is a checkpoint to go on from, whole or damaged."""
        return self.last.exists() or checkpoint.previous(self.last).exists()

    def precision_in(self, state: Mapping[str, Any]) -> str | None:
        """What the run has been computed with up to its checkpoint ``state``."""
        return state.get("precision") or (self.read_json("parameters.json") or {}).get("precision")  # older: as asked

    def newest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """:func:`helper.checkpoint.load_newest` of ``last.pth``.

        Raises:
            UsageError: all are damaged, or it is another file in its place, such as a copy of ``best.pth``.
        """
        state, notes = checkpoint.load_newest(self.last)
        missing = [] if state is None else [name for name in NEEDED if name not in state]
        if missing:
            raise UsageError(
                f"--resume: {self.last} lacks what going on needs: {', '.join(missing)}; is it a copy of "
                f"{self.best.name}? put the run's own back, or --overwrite starts again"
            )
        return state, notes

    def require_permission(self, resume: bool, overwrite: bool) -> None:
        """Refuse to touch an unfinished run unless told how.

        Raises:
            UsageError: it needs ``--resume`` or ``--overwrite``.
        """
        recorded = self.metrics.exists() and self.metrics.stat().st_size > 0
        if (recorded or self.saved) and not self.finished and not resume and not overwrite:
            raise UsageError(f"{self.path} holds an unfinished run; continue it with --resume, or --overwrite it")

    def leave_word(self, finished: bool) -> None:
        """Tell whoever started this script with :data:`FOLDER_FILE` in its environment where the run is.

        Args:
            finished: there is nothing to train.

        Raises:
            UsageError: the file cannot be written.
        """
        if FOLDER_FILE not in os.environ:
            return
        path = Path(os.environ[FOLDER_FILE])
        try:
            write_atomically(path, json.dumps({"folder": str(self.path), "finished": finished}))
        except OSError as error:
            raise UsageError(f"{FOLDER_FILE}: {path} cannot be written ({error.strerror})") from None

    def open(
        self, parameters: dict[str, Any], overwrite: bool, earlier: RunFolder | None = None
    ) -> dict[str, Any] | None:
        """Make the folder, write the options, and return the state to resume from, if there is one.

        Args:
            parameters: for ``parameters.json``.
            overwrite: empty the folder first.
            earlier: a run to go on from, where this one has not begun; it is only read.

        Raises:
            UsageError: the folder cannot be made or written, or another process trains in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take()
            return self._begin(parameters, overwrite, earlier)
        except (OSError, UsageError) as error:
            self.close()
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"--save_dir: cannot write {self.path} ({error.strerror})") from None

    def _begin(self, parameters: dict[str, Any], overwrite: bool, earlier: RunFolder | None) -> dict[str, Any] | None:
        if overwrite:
            for entry in self.path.iterdir():
                if entry == self.lock:  # with another file in its place, another process would not find it locked
                    continue
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if earlier is None or self.saved:
            return self._resume(parameters)
        try:
            self._copy(earlier)
            return self._resume(parameters)
        except (OSError, UsageError):
            for path in (self.last, self.best, self.metrics):  # with which this run would have begun
                path.unlink(missing_ok=True)
            raise

    def _copy(self, earlier: RunFolder) -> None:
        """Begin with what another run has come to."""
        state, damaged = earlier.newest()
        rows = earlier._rows_until(state)
        say_damaged(damaged)
        whole = earlier.last if earlier.last.exists() and not damaged else checkpoint.previous(earlier.last)
        self._write_metrics(rows)
        # the last one last: with that this run has begun; one that was cut off in its first epoch has no other
        for source, target in ((earlier.best, self.best), (whole, self.last)):
            if source.exists():
                with checkpoint.written_beside(target) as partial:
                    shutil.copyfile(source, partial)

    def _resume(self, parameters: dict[str, Any]) -> dict[str, Any] | None:
        for path in (self.last, self.best):
            checkpoint.tidy(path)
        state, damaged = self.newest()
        say_damaged(damaged)
        if damaged:
            checkpoint.set_aside(self.last)
        self._write_metrics(self._rows_until(state))  # a cut off run may have written more than its last checkpoint
        self.write_json("parameters.json", parameters)
        return state

    def close(self) -> None:
        """Let others have the folder."""
        while self._locks:
            os.close(self._locks.pop())

    @property
    def in_use(self) -> bool:
        """Whether another process trains in it."""
        try:
            self._take()
        except UsageError:
            return True
        except OSError:  # it is not there, or not to be written
            return False
        finally:
            self.close()
        return False

    def _take(self) -> None:
        """Lock a file in the folder, and the folder itself, until this process ends, however it ends.

        NFS carries only the lock of a file that is open for writing to other machines, and earlier versions of this
        collection lock only the folder.
        """
        os.register_at_fork(after_in_child=self.close)  # processes that read images outlive a killed run by seconds
        for path, flags in ((self.path, os.O_RDONLY), (self.lock, os.O_RDWR | os.O_CREAT)):
            self._locks.append(os.open(path, flags, 0o666))
            try:
                fcntl.flock(self._locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{self.path}: another process trains in this folder; wait for it or end it") from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise

    def _rows_until(self, state: dict[str, Any] | None) -> list[dict[str, Any]]:
        """The lines of the epochs that a checkpoint has behind it.

        Raises:
            UsageError: some are missing.
        """
        epoch = state["epoch"] if state else 0
        rows = [row for row in self.read_metrics() if row["epoch"] <= epoch]
        missing = {*range(1, epoch + 1)} - {row["epoch"] for row in rows}
        if missing:
            raise UsageError(
                f"--resume: {self.metrics} is damaged: the lines from epoch {min(missing)} on are missing or cannot be "
                "read; repair it, or --overwrite starts again"
            )
        return rows

    def _write_metrics(self, rows: list[dict[str, Any]]) -> None:
        write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The epochs recorded so far; a last line that was cut off in writing is left out."""
        rows = []
        for line in self.metrics.read_bytes().splitlines() if self.metrics.exists() else []:
            try:
                row = json.loads(line)
                int(row["epoch"])
            except (ValueError, TypeError, KeyError):
                break
            rows.append(row)
        return rows

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one epoch's line.

        Raises:
            UsageError: it cannot be written.
        """
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What :meth:`write_json` wrote, or None.

        Raises:
            UsageError: it is damaged.
        """
        path, content = self.path / name, None
        if not path.exists():
            return None
        with contextlib.suppress(ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UsageError(f"{path} is damaged, it is no JSON object; repair it, or --overwrite starts again")
        return content

    def write_json(self, name: str, content: Any) -> None:
        """Write ``content`` whole or not at all.

        Raises:
            UsageError: it cannot be written.
        """
        path = self.path / name
        with writing(path):
            write_atomically(path, json.dumps(content, indent=2, default=str) + "\n")

    def load_best(self) -> dict[str, Any]:
        """The best epoch's checkpoint.

        Raises:
            UsageError: it is damaged.
        """
        try:
            return checkpoint.load(self.best)
        except checkpoint.Damaged as error:
            raise UsageError(
                f"{self.best}: {error}; its test accuracy cannot be found out, {self.last.name} is whole"
            ) from None


def say_damaged(notes: Sequence[str]) -> None:
    """Print what :meth:`RunFolder.newest` has found out."""
    for note in notes:
        say(f"{note}; the one before it is used")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """UsageError where ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); the last checkpoint is kept, --resume goes on"
        ) from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` beside ``path``, flush it to the disk, then rename."""
    with checkpoint.written_beside(path) as partial, partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def parameters_of(opt: argparse.Namespace) -> dict[str, Any]:
    """Every option in the form that ``--config`` reads."""
    leave_out = {"config", "resume", "overwrite", "evaluate"}
    plain = {name: value for name, value in vars(opt).items() if name not in leave_out}
    return json.loads(recorded(json.dumps(plain, default=str, ensure_ascii=False)))


def provenance() -> dict[str, Any]:
    """What a reader needs to repeat a run: the command, the revision, versions and machine."""
    return {
        "command": recorded(shlex.join(["python", *sys.argv])),
        "git_revision": _git_revision(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
        },
        "machine": platform.platform(),
    }


@functools.cache  # of a process: later, files may be others than those that were read
def _git_revision() -> str | None:
    """The commit of this collection, with ``+`` where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
