"""What quickstart.sh does once everything is installed: teachers, students, peers, tables and figures, on digits."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from helper.machine import cores
from helper.script import run_script
from scripts import report
from scripts.plan import Job, jobs_of, variables
from scripts.runner import MOST, ROOT, STOPPED, End, Runs

OUT = Path("results/quickstart")

# A fixed choice, however many methods there are, and whatever setting.py says; at its end FitNet-MKD and CA-MKD itself.
OFFLINE = """
DATASET=digits TEACHER=resnet14,epochs=8 TEACHER_NUM=3 STUDENTS=resnet8 EPOCHS=4 EXTRA="--image_size 16"
METHODS="kd:AVERAGE_LOSS kd:EBKD kd:CAMKD kd:AEKD hint:AVERAGE_LOSS:100 inter:CAMKD:50"
"""
ONLINE = """
DATASET=digits STUDENTS= EPOCHS=4 EXTRA="--image_size 16 --batch_size 64"
ONLINE="alone:resnet8 IND:resnet8 CLILR:resnet8 DML:resnet8 ONE:resnet8 OKDDip:resnet8 BOC:resnet8"
"""


class Quiet(Runs):
    """Runs of which only the last line is said, unless they fail, which ends it all."""

    def heard(self, line: str, slot: dict[str, str]) -> None:
        """Leave it for the end."""

    def ended(self, job: Job, end: End, seconds: float) -> None:
        """Pass on the result.

        Raises:
            SystemExit: it has failed.
        """
        if job in self.failed:
            said = "\n".join(end.lines)
            raise SystemExit(f"python {shlex.join(job.words)}: failed\n{said}")
        self.say(end.lines[-1])


def jobs_in(row: str) -> list[Job]:
    """The runs of a row, whatever the environment says."""
    return jobs_of(variables(row, {}), None)


def train(jobs: list[Job]) -> dict[Job, Path]:
    """The folder of each run, after what is missing has been trained."""
    # Networks this small use one core better than two, so that independent runs go side by side.
    runs = Quiet([{"OMP_NUM_THREADS": "1"}] * min(MOST, cores()), jobs)
    runs.train()
    return runs.folders


def main() -> None:
    """Train what is not trained yet, then report."""
    os.chdir(ROOT)
    offline, online = jobs_in(OFFLINE), jobs_in(ONLINE)
    folders = train([*online, *offline])  # the slowest first, so that no core waits at the end
    for out, jobs in ((OUT, offline), (OUT / "online", online)):
        report.main(["--out", str(out), "--folders", *(str(folders[job]) for job in jobs if job.reported)])


if __name__ == "__main__":
    run_script(lambda _: main(), stopped=STOPPED)
