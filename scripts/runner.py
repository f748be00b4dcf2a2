"""Starting the runs of a plan, several at a time, and learning from each where its folder is."""

from __future__ import annotations

import json
import os
import queue
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from helper.run_folder import FOLDER_FILE, RunFolder
from helper.saying import say
from helper.stopping import REFUSED, RESUME_ME, RESUME_ME_FILE, Stopped, signals
from scripts.plan import Job

ROOT = Path(__file__).parent.parent
STOPPED = "what is trained is kept; the same command goes on"
"""For :func:`helper.script.run_script`, where a signal comes outside of :meth:`Runs.train`."""

MOST = 4
"""Runs at a time on a CPU unless somebody says how many: each takes 1 GB."""


@dataclass(frozen=True)
class End:
    """How a process ended.

    Args:
        code: its exit code; that of a run that can go on also where torchrun has made another one of it, and where
            another process trains in its folder.
        lines: what it has said.
        folder: its run folder, None where it did not come that far.
        trained: whether there was something to train.
    """

    code: int
    lines: Sequence[str]
    folder: Path | None = None
    trained: bool = True


class Runs:
    """Runs in slots (a GPU, or a share of the CPU's threads), each in a process of its own.

    Args:
        slots: for each run at a time, what is added to its environment.
        jobs: all runs.
        launcher: options of Python that come before the script, such as torchrun's.
    """

    def __init__(self, slots: Sequence[dict[str, str]], jobs: Sequence[Job], launcher: Sequence[str] = ()) -> None:
        self.free: queue.Queue[dict[str, str]] = queue.Queue()
        for slot in slots:
            self.free.put(slot)
        self.slots, self.jobs, self.launcher = len(slots), jobs, launcher
        self.folders: dict[Job, Path] = {}
        self.failed: dict[Job, int] = {}
        self.started = time.monotonic()
        self.processes: set[subprocess.Popen[str]] = set()
        self.stopping = False

    def train(self) -> None:
        """Run all, each once its teachers have ended; what fails is in ``failed``.

        Raises:
            Stopped: a signal was heard, and all runs have saved themselves and ended.
        """
        teachers = [teacher for job in self.jobs for teacher in job.teachers]
        try:
            self.side_by_side(dict.fromkeys([*teachers, *self.jobs]))
        except Stopped:
            done = f"{len(self.folders)} of {len(self.jobs)} runs are done"
            raise Stopped(f"{signals.received}: {done}; start it again to go on") from None

    def side_by_side(self, jobs: Iterable[Job]) -> None:
        """Run those jobs, as many at a time as there are slots; whatever is raised, none is left running."""
        waiting, running = list(jobs), dict[Future[None], Job]()
        with ThreadPoolExecutor(self.slots) as pool:
            try:
                while waiting or running:
                    unfinished = {*waiting, *running.values()}
                    ready = [job for job in waiting if unfinished.isdisjoint(job.teachers)]
                    for job in ready[: self.slots - len(running)]:
                        waiting.remove(job)
                        running[pool.submit(self.one, job)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[future]
                        future.result()
            except BaseException:
                self.stopping = True
                for process in list(self.processes):  # they save themselves
                    process.terminate()
                raise

    def one(self, job: Job) -> None:
        """Run one job, unless its teachers are missing or all is to stop."""
        missing = [teacher for teacher in job.teachers if teacher not in self.folders]
        if missing and not self.stopping:
            self.failed[job] = self.failed.get(missing[0], 1)
            self.say(f"left out, for its teachers are missing: {shlex.join(job.words)}")
            return
        slot = self.free.get()
        begun = time.monotonic()
        try:
            if self.stopping:
                return
            files = [f"{self.folders[teacher] / 'last.pth'}:{architecture(teacher)}" for teacher in job.teachers]
            end = self.process([*self.launcher, *job.command(files), "--resume"], slot)
        finally:
            self.free.put(slot)
        if end.code == 0 and end.folder is not None:
            self.folders[job] = end.folder
        elif not self.stopping:
            self.failed[job] = max(end.code, 1)
        else:
            return
        self.ended(job, end, time.monotonic() - begun)

    def process(self, command: Sequence[str], slot: dict[str, str]) -> End:
        """Start it, hear what it says until it ends, and learn where its run is."""
        self.say(f"python {shlex.join(command)}")
        with tempfile.TemporaryDirectory(prefix="run-") as words:
            folder_file, resume_file = Path(words, "folder.json"), Path(words, "resume")
            files = {FOLDER_FILE: str(folder_file), RESUME_ME_FILE: str(resume_file)}
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **slot, **files},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="surrogateescape",  # names of files
                start_new_session=True,  # a Ctrl-C reaches it once, from here
            )
            self.processes.add(process)
            if self.stopping:
                process.terminate()
            lines = self._listen(process, slot)
            code = process.wait()
            self.processes.discard(process)
            folder, trained = read_word(folder_file)
            can_go_on = resume_file.exists() and not Path(f"{resume_file}{REFUSED}").exists()
            if code and (can_go_on or (folder is not None and RunFolder(folder).in_use)):
                code = RESUME_ME
            return End(code, lines, folder, trained)

    def _listen(self, process: subprocess.Popen[str], slot: dict[str, str]) -> list[str]:
        assert process.stdout is not None
        lines = []
        with process.stdout:
            for line in process.stdout:
                lines.append(line.rstrip())
                self.heard(lines[-1], slot)
        return lines

    def heard(self, line: str, slot: dict[str, str]) -> None:
        """What a run says."""
        self.say(line, f"  {slot.get('CUDA_VISIBLE_DEVICES', '')}")

    def ended(self, job: Job, end: End, seconds: float) -> None:
        """A run is done, or has failed by itself; what is raised here ends the others too."""

    def say(self, text: str, before: str = "") -> None:
        """Print a line with the seconds since the start."""
        say(f"[{time.monotonic() - self.started:4.0f} s]{before} {text}")


def read_word(path: Path) -> tuple[Path | None, bool]:
    """What :meth:`helper.run_folder.RunFolder.leave_word` has left: the folder, and whether the run had to train."""
    if not path.exists():
        return None, True
    word = json.loads(path.read_text(encoding="utf-8"))
    return Path(word["folder"]), not word["finished"]


def architecture(job: Job) -> str:
    """Which network a run trains."""
    return job.words[job.words.index("--model") + 1]
