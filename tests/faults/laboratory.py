"""Starts runs, disturbs them, and compares what comes out with an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dataset.digits import Digits

PROGRAM = Path(__file__).with_name("small_digits.py")
EPOCHS = 3
COMMON = f"--dataset digits --device cpu --precision fp32 --epochs {EPOCHS} --batch_size 16 --checkpoint_minutes 1e-9"
PATIENCE = 600.0
"""Seconds after which a process is thought to hang."""
TIMES = ("images_per_second", "seconds")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A script that runs."""

    server: Server
    pid: int
    log: Path
    code: int | None = None

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends by itself in that time."""
        if self.code is not None:
            return True
        handle = os.pidfd_open(self.pid)
        try:
            return bool(select.select([handle], [], [], max(0.0, seconds))[0])
        finally:
            os.close(handle)

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        if not self.ends_within(PATIENCE):
            self.kill()
            raise TimeoutError(f"process {self.pid} hangs:\n{self.said}")
        if self.code is None:
            self.code = int(self.server.ask(wait=self.pid))
        return self.code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @property
    def said(self) -> str:
        return self.log.read_text()


class Server:
    """Forks scripts from a process that has imported torch already; a start costs no seconds."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            text=True,
        )
        self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(
        self, words: str, save_dir: Path, log: Path, die_at: int = 0, environment: dict[str, str] | None = None
    ) -> Process:
        """``words``: script and options."""
        script, *options = shlex.split(words)
        options = [*shlex.split(COMMON), *options, "--save_dir", str(save_dir), "--resume"]
        pid = self.ask(
            script=script,
            options=options,
            folder=str(save_dir),
            log=str(log),
            die_at=die_at,
            environment=environment or {},
        )
        return Process(self, pid, log)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@dataclass
class Torchrun:
    """``torchrun`` with two processes, of the same interface as :class:`Process`."""

    process: subprocess.Popen[bytes]
    log: Path
    resume_me: Path

    @classmethod
    def start(cls, words: str, save_dir: Path, log: Path) -> Torchrun:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        launcher += ["--master_addr", "127.0.0.1", "--master_port", str(free_port()), str(PROGRAM)]
        script, *options = shlex.split(words)
        command = [*launcher, script, *shlex.split(COMMON), *options, "--save_dir", str(save_dir), "--resume"]
        resume_me = log.with_suffix(".resume")
        environment = {**os.environ, **ENVIRONMENT, "RESUME_ME_FILE": str(resume_me)}
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        return cls(process, log, resume_me)

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"torchrun hangs:\n{self.said}") from None

    def kill(self) -> None:
        """All of it at once; the workers lead process groups of their own."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            os.kill(pid, signal.SIGKILL)

    @property
    def workers(self) -> list[int]:
        """The processes that train."""
        return [pid for pid in descendants(self.process.pid) if "RANK" in environment_of(pid)]

    @property
    def said(self) -> str:
        return self.log.read_text()


def listens(pid: int) -> bool:
    """Whether it has set its handlers."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", read(Path(f"/proc/{pid}/status")), re.M)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def environment_of(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:  # it has ended
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in read(path).split()]
    return [each for child in children for each in (child, *descendants(child))]


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def folder_in(save_dir: Path) -> Path:
    """The one run folder."""
    (folder,) = (path for path in save_dir.glob("*/*") if path.is_dir())
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def equal(one: Any, other: Any) -> bool:
    """Whether two states agree in every bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def state_of(path: Path) -> dict[str, Any]:
    state = torch.load(path, weights_only=True)
    return {name: value for name, value in state.items() if name not in TIMES}


def curves(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """The steps of each of TensorBoard's curves."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    known = events.Tags()["scalars"]
    names = {name for row in rows_of(folder) for name in row} - {"epoch"}
    for tag in sorted({*known, *names}):
        yield tag, [event.step for event in events.Scalars(tag)] if tag in known else []


def differences(expected: Path, save_dir: Path) -> list[str]:
    """How a finished run differs from an undisturbed one; nothing, if all is well."""
    folder = folder_in(save_dir)
    found = [name for name in ("last.pth", "best.pth") if not equal(state_of(expected / name), state_of(folder / name))]
    if rows_of(expected) != rows_of(folder):
        found.append("metrics.jsonl")
    results = [json.loads((each / "result.json").read_text()) for each in (expected, folder)]
    found += [f"result.json: {which}" for which in ("last", "best") if results[0][which] != results[1][which]]
    return (
        found
        + left_in(save_dir)
        + [f"TensorBoard's {tag}" for tag, steps in curves(folder) if steps != in_epochs(folder, tag)]
    )


def left_in(save_dir: Path) -> list[str]:
    """Halves of files."""
    return [f"{path.name} remains" for path in save_dir.rglob("*.partial")]


def in_epochs(folder: Path, name: str) -> list[int]:
    """The epochs whose metrics have that name."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["epoch"] for row in rows if name in row]


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@dataclass
class Undisturbed:
    """A run nothing happened to."""

    folder: Path
    seconds: float


class Laboratory:
    """Everything the tests share: the server, teachers, undisturbed runs.

    Args:
        base: an empty folder.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.server = Server()
        self._undisturbed: dict[str, Undisturbed] = {}
        self._made = 0

    def fresh(self) -> Path:
        """A new empty folder."""
        self._made += 1
        path = self.base / str(self._made)
        path.mkdir()
        return path

    def start(self, words: str, save_dir: Path, **settings: Any) -> Process:
        """Start, or resume, a run in ``save_dir``; what it says goes beside it."""
        self._made += 1
        return self.server.start(self.filled(words, save_dir), save_dir, self.base / f"{self._made}.log", **settings)

    def start_torchrun(self, words: str, save_dir: Path) -> Torchrun:
        self._made += 1
        return Torchrun.start(self.filled(words, save_dir), save_dir, self.base / f"{self._made}.log")

    def filled(self, words: str, save_dir: Path) -> str:
        """``TEACHERS``, ``PICTURES`` and ``CACHE`` become paths."""
        if "TEACHERS" in words:
            words = words.replace("TEACHERS", " ".join(str(path) for path in self.teachers()))
        if "PICTURES" in words:
            words = words.replace("PICTURES", str(self.pictures()))
        return words.replace("CACHE", f"{save_dir}.cache")

    def pictures(self) -> Path:
        """Digits in image files."""
        folder = self.base / "pictures"
        if not folder.exists():
            for part, count in zip(Digits(Path()).load(), (96, 50), strict=True):
                below = folder / ("test" if (folder / "train").exists() else "train")
                below.mkdir(parents=True)
                for i, (image, label) in enumerate(zip(part.images[:count], part.labels.tolist(), strict=False)):
                    Image.fromarray(image.numpy()).save(below / f"{label}-{i}.png")
        return folder

    def teachers(self) -> Sequence[Path]:
        archs = ("resnet8", "wrn_16_1")
        return [
            self.undisturbed(f"train_teacher.py --model {arch} --trial {9 + i}").folder / "last.pth"
            for i, arch in enumerate(archs)
        ]

    def undisturbed(self, words: str, torchrun: bool = False) -> Undisturbed:
        """The run that disturbed ones are compared with, and how long it took."""
        key = f"{torchrun} {words}"
        if key not in self._undisturbed:
            save_dir, words = self.fresh(), self.filled(words, self.base)
            started = time.monotonic()
            process = (self.start_torchrun if torchrun else self.start)(words, save_dir)
            assert process.wait() == 0, process.said
            self._undisturbed[key] = Undisturbed(folder_in(save_dir), time.monotonic() - started)
        return self._undisturbed[key]

    def begun(self, words: str, rng: random.Random) -> tuple[Path, Process]:
        """A run in a random step after its second checkpoint: with one before the last."""
        expected = self.undisturbed(words)
        while True:
            save_dir = self.fresh()
            process = self.start(words, save_dir)
            while not list(save_dir.glob("*/*/last.pth.previous")) and not process.ends_within(0.005):
                pass
            if not process.ends_within(rng.uniform(0, expected.seconds / 3)):
                return save_dir, process
            process.wait()

    def finish(self, words: str, save_dir: Path) -> list[str]:
        """Resume a run to its end; how it differs from the undisturbed one."""
        process = self.start(words, save_dir)
        if process.wait() != 0:
            return [f"cannot be resumed: {process.said}"]
        return differences(self.undisturbed(words).folder, save_dir)

    def close(self) -> None:
        self.server.close()


class Tally:
    """How many faults of a kind were tried, and which cost something."""

    def __init__(self, kind: str, properties: list[tuple[str, object]]) -> None:
        self.kind, self.tried, self.lost = kind, 0, 0
        self.problems: list[str] = []
        self._properties = properties

    def add(self, problems: list[str], faults: int = 1) -> None:
        """Record faults of one run, and what they cost."""
        self.tried += faults
        self.lost += faults if problems else 0
        self.problems += problems
        self._properties[:] = [("faults", (self.kind, self.tried, self.lost))]
