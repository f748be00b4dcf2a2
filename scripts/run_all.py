"""What run.sh does once everything is installed: train what is missing, several runs at a time, then report.

python -m scripts.run_all 'TEACHER=vgg13 STUDENTS=vgg8' 'TEACHER=resnet56 STUDENTS=MobileNetV2'
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from helper.errors import UsageError
from helper.machine import cores
from helper.progress import clock
from helper.script import run_script
from helper.stopping import RESUME_ME, Stopped
from scripts import report
from scripts.outputs import folder_for
from scripts.plan import Job, jobs_of, number, variables
from scripts.reporting.runs import group, runs_in
from scripts.runner import MOST, ROOT, STOPPED, End, Runs


class Table(Runs):
    """Runs whose tables grow with each of them; where one fails the others go on.

    Args:
        out: the report's folder.
    """

    def __init__(
        self, slots: Sequence[dict[str, str]], jobs: Sequence[Job], out: Path, launcher: Sequence[str] = ()
    ) -> None:
        super().__init__(slots, jobs, launcher)
        self.out, self.seconds, self.writing = out, list[float](), threading.Lock()

    @property
    def reported(self) -> list[Path]:
        """The folders of the finished runs that are rows of the report, in its order."""
        return [self.folders[job] for job in self.jobs if job.reported and job in self.folders]

    def ended(self, job: Job, end: End, seconds: float) -> None:
        """Say how far all of it is."""
        if job in self.failed:
            self.say(f"failed with exit code {end.code}; the others go on: python {shlex.join(job.words)}")
            return
        if end.trained:
            self.seconds.append(seconds)
            if job.reported:
                with self.writing:  # what is finished has its tables, whatever becomes of the rest
                    report.write_tables(group([run for path in self.reported for run in runs_in(path)]), self.out)
        self.say(f"{len(self.folders)} of {len(self.jobs)} runs done{self.left()}")

    def left(self) -> str:
        """About how long the rest takes, as the runs so far did."""
        left = len(self.jobs) - len(self.folders)
        if not self.seconds or not left:
            return ""
        each = sum(self.seconds) / len(self.seconds)
        return f", about {clock(each * left / self.slots)} left"


def slots_of(environment: dict[str, str]) -> list[dict[str, str]]:
    """One per visible GPU, or JOBS; on a CPU JOBS processes, each with its share of the threads.

    With PROCESSES there is one slot that has everything.
    """
    jobs = number("JOBS", environment["JOBS"]) if environment.get("JOBS") else None
    if environment.get("PROCESSES"):
        if jobs:
            raise UsageError("JOBS and PROCESSES: several runs at a time, or several processes for each; choose one")
        return [{}]
    count, visible = torch.cuda.device_count(), environment.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(jobs or len(gpus))]
    jobs = jobs or min(MOST, cores())
    threads = environment.get("OMP_NUM_THREADS") or str(max(1, cores() // jobs))
    return [{"OMP_NUM_THREADS": threads}] * jobs


def launcher_of(environment: dict[str, str]) -> list[str]:
    """What starts PROCESSES processes of each run; nothing unless that is given."""
    if not environment.get("PROCESSES"):
        return []
    processes = str(number("PROCESSES", environment["PROCESSES"]))
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]


def out_of(environment: dict[str, str], values: dict[str, str]) -> str:
    """The report's folder: OUT, or one named after the row."""
    if environment.get("OUT"):
        return environment["OUT"]
    students = [entry.partition(",")[0] for entry in values["STUDENTS"].split()]
    teachers = [entry.partition(",")[0] for entry in values["TEACHER"].split()]
    name = "-".join([values["DATASET"], *([*teachers, *students] if students else ["online"])])
    return f"results/runs/{name.replace('/', '.')}"  # not among those that are committed


def plan(rows: Sequence[str], environment: dict[str, str]) -> tuple[list[Job], str]:
    """All runs of all rows, each once, and where the report goes."""
    folders = (("--save_dir", environment.get("SAVE")), ("--data_dir", environment.get("DATA")))
    where = "".join(f" {option} {shlex.quote(folder)}" for option, folder in folders if folder)
    cache = None if environment.get("CACHE") == "0" else str(Path(environment.get("SAVE") or "save") / "cache")
    jobs: dict[Job, None] = {}
    values: dict[str, str] = {}
    for row in rows or [""]:
        values = variables(row, environment)
        jobs |= dict.fromkeys(jobs_of({**values, "EXTRA": values["EXTRA"] + where}, cache))
    return list(jobs), out_of(environment, values)


def taught_by(job: Job, jobs: Sequence[Job]) -> str:
    """What a listed command of a student lacks, as a comment: where its teachers lie is known once they are trained."""
    numbers = ", ".join(str(jobs.index(teacher) + 1) for teacher in job.teachers)
    return f"  # --teachers: the last.pth of each run of line {numbers}" if numbers else ""


def main(rows: Sequence[str]) -> None:
    """Train what is missing, then report."""
    environment = dict(os.environ)
    jobs, out = plan(rows, environment)
    launcher = launcher_of(environment)
    os.chdir(ROOT)
    if environment.get("DRY_RUN"):
        print("\n".join(f"python {shlex.join([*launcher, *job.words])}{taught_by(job, jobs)}" for job in jobs))
        print(f"{len(jobs)} runs", file=sys.stderr)
        return
    runs = Table(slots_of(environment), jobs, folder_for("OUT", Path(out)), launcher)
    runs.say(f"{len(jobs)} runs, {runs.slots} at a time")
    runs.train()
    if runs.reported:
        report.main(["--out", out, "--folders", *map(str, runs.reported)])
    if runs.failed:
        said = f"{len(runs.failed)} of {len(jobs)} runs failed or were left out; start it again to go on"
        if RESUME_ME in runs.failed.values():
            raise Stopped(said)
        runs.say(said)
        sys.exit(next(iter(runs.failed.values())))


if __name__ == "__main__":
    run_script(main, stopped=STOPPED)
