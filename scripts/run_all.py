"""What run.sh does once everything is installed: train what is missing, several runs at a time, then report.

python -m scripts.run_all 'TEACHER=vgg13 STUDENTS=vgg8' 'TEACHER=resnet56 STUDENTS=MobileNetV2'
"""

from __future__ import annotations

import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from helper.progress import clock
from helper.script import run_script
from helper.stopping import RESUME_ME, SIGNALS, Stopped
from scripts import report
from scripts.plan import Job, jobs_of, number, variables
from scripts.quickstart import ROOT, cores
from scripts.reporting.runs import group, runs_in

MOST = 4
"""Runs at a time on a CPU unless JOBS says how many: each takes 1 GB."""


class Runs:
    """Runs in slots (a GPU, or a share of the CPU's threads), each in a process of its own.

    Args:
        slots: for each run at a time, what is added to its environment.
        jobs: all runs that there will be.
        out: the report's folder; its tables grow with every run.
    """

    def __init__(self, slots: Sequence[dict[str, str]], jobs: Sequence[Job], out: Path) -> None:
        self.free: queue.Queue[dict[str, str]] = queue.Queue()
        for slot in slots:
            self.free.put(slot)
        self.slots, self.jobs, self.out, self.total, self.done = len(slots), jobs, out, len(jobs), 0
        self.folders: dict[Job, Path] = {}
        self.failed: dict[Job, int] = {}
        self.seconds: list[float] = []
        self.started = time.monotonic()
        self.processes: set[subprocess.Popen[str]] = set()
        self.lock, self.tables, self.stopping = threading.Lock(), threading.Lock(), False

    @property
    def reported(self) -> list[Path]:
        """The folders of the finished runs that are rows of the report, in its order."""
        return [self.folders[job] for job in self.jobs if job.reported and job in self.folders]

    def all(self, jobs: Sequence[Job]) -> None:
        """Run those jobs; they return when all have ended or are left out."""
        with ThreadPoolExecutor(self.slots) as pool:
            for future in [pool.submit(self.one, job) for job in jobs]:
                future.result()

    def one(self, job: Job) -> None:
        """Run one job, unless its teachers are missing or all is to stop."""
        if self.stopping:
            return
        missing = [teacher for teacher in job.teachers if teacher not in self.folders]
        if missing:
            self.failed[job] = self.failed.get(missing[0], 1)
            self.say(f"left out, for its teachers are missing: {shlex.join(job.words)}")
            return
        files = [f"{self.folders[teacher] / 'last.pth'}:{architecture(teacher)}" for teacher in job.teachers]
        slot = self.free.get()
        begun = time.monotonic()
        try:
            code, lines = self.process([*job.command(files), "--resume"], slot)
        finally:
            self.free.put(slot)
        self.note(job, code, lines, time.monotonic() - begun)

    def process(self, command: list[str], slot: dict[str, str]) -> tuple[int, list[str]]:
        """Start it, pass on what it says, and return its exit code and its lines."""
        self.say(f"python {shlex.join(command)}")
        with self.lock:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **slot},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="surrogateescape",  # names of files
                start_new_session=True,  # a Ctrl-C reaches it once, from here
            )
            self.processes.add(process)
            if self.stopping:
                process.terminate()
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            self.say(line.rstrip(), f"  {slot.get('CUDA_VISIBLE_DEVICES', '')}")
        code = process.wait()
        with self.lock:
            self.processes.discard(process)
        return code, lines

    def note(self, job: Job, code: int, lines: list[str], seconds: float) -> None:
        """Remember how a run ended, and say how far all of it is."""
        last = lines[-1] if lines else ""
        if code == 0:
            self.folders[job] = Path(last.split(": ")[0].split(" is finished")[0])
            self.done += 1
            if " is finished (" not in last:
                self.seconds.append(seconds)
                if job.reported:
                    self.grow()
            self.say(f"{self.done} of {self.total} runs done{self.left()}")
        elif not self.stopping:
            self.failed[job] = code if code > 0 else 1
            self.say(f"failed with exit code {code}; the others go on: python {shlex.join(job.words)}")

    def grow(self) -> None:
        """Write the tables of what is finished, so that they are there whatever becomes of the rest."""
        with self.tables:
            report.write_tables(group([run for folder in self.reported for run in runs_in(folder)]), self.out)

    def left(self) -> str:
        """About how long the rest takes, as the runs so far did."""
        if not self.seconds or self.done == self.total:
            return ""
        each = sum(self.seconds) / len(self.seconds)
        return f", about {clock(each * (self.total - self.done) / self.slots)} left"

    def say(self, text: str, before: str = "") -> None:
        print(f"[{time.monotonic() - self.started:4.0f} s]{before} {text}", flush=True)

    def stop(self, *_: Any) -> None:
        """Let every run save itself and end."""
        self.stopping = True
        for process in list(self.processes):
            process.terminate()


def architecture(job: Job) -> str:
    """Which network a run trains."""
    return job.words[job.words.index("--model") + 1]


def slots_of(environment: dict[str, str]) -> list[dict[str, str]]:
    """One per visible GPU, or JOBS; on a CPU JOBS processes, each with its share of the threads."""
    jobs = number("JOBS", environment["JOBS"]) if environment.get("JOBS") else None
    count, visible = torch.cuda.device_count(), environment.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(jobs or len(gpus))]
    jobs = jobs or min(MOST, cores())
    threads = environment.get("OMP_NUM_THREADS") or str(max(1, cores() // jobs))
    return [{"OMP_NUM_THREADS": threads}] * jobs


def out_of(environment: dict[str, str], values: dict[str, str]) -> str:
    """The report's folder: OUT, or one named after the row."""
    if environment.get("OUT"):
        return environment["OUT"]
    students = values["STUDENTS"].split()
    name = "-".join([values["DATASET"], *([values["TEACHER"], *students] if students else ["online"])])
    return f"results/{name.replace('/', '.')}"


def plan(rows: Sequence[str], environment: dict[str, str]) -> tuple[list[Job], str]:
    """All runs of all rows, each once, and where the report goes."""
    save = save_dir(environment)
    cache = None if environment.get("CACHE") == "0" else str(save / "cache")
    jobs: dict[Job, None] = {}
    values: dict[str, str] = {}
    for row in rows or [""]:
        values = variables(row, environment)
        if environment.get("SAVE"):
            values["EXTRA"] += f" --save_dir {shlex.quote(environment['SAVE'])}"
        jobs |= dict.fromkeys(jobs_of(values, cache))
    return list(jobs), out_of(environment, values)


def save_dir(environment: dict[str, str]) -> Path:
    """Where run folders go."""
    return Path(environment.get("SAVE") or "save")


def main(rows: Sequence[str]) -> None:
    """Train what is missing, then report."""
    environment = dict(os.environ)
    jobs, out = plan(rows, environment)
    os.chdir(ROOT)
    if environment.get("DRY_RUN"):
        print("\n".join(f"python {shlex.join(job.words)}" for job in jobs))
        return
    runs = Runs(slots_of(environment), jobs, Path(out))
    for name in SIGNALS:
        signal.signal(name, runs.stop)
    teachers = list(dict.fromkeys(teacher for job in jobs for teacher in job.teachers))
    runs.say(f"{len(jobs)} runs, {runs.slots} at a time")
    runs.all(teachers)
    runs.all([job for job in jobs if job not in teachers])
    if runs.stopping:
        raise Stopped(f"{runs.done} of {runs.total} runs are done; start it again to go on")
    if runs.reported:
        report.main(["--out", out, "--folders", *map(str, runs.reported)])
    if runs.failed:
        codes = list(runs.failed.values())
        runs.say(f"{len(codes)} of {runs.total} runs failed or were left out; start it again to go on")
        sys.exit(RESUME_ME if RESUME_ME in codes else codes[0])


if __name__ == "__main__":
    run_script(main)
