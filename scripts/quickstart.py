"""What quickstart.sh does once everything is installed: teachers, students, peers, tables and figures, on digits."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helper.script import run_script
from helper.stopping import Stopped, signals
from scripts import report

ROOT = Path(__file__).parent.parent
OUT = Path("results/quickstart")
ONLINE = OUT / "online"
TEACHERS = [f"train_teacher.py --model resnet14 --dataset digits --epochs 10 --trial {trial}" for trial in range(3)]
# A fixed choice, however many methods there are, and whatever setting.py says.
RECIPE = "--dataset digits --epochs 6 --nesterov --trial 0"
DISTILLED = (
    *(("kd", "AVERAGE_LOSS", 0), ("kd", "EBKD", 0), ("kd", "CAMKD", 0), ("kd", "AEKD", 0)),
    *(("hint", "AVERAGE_LOSS", 100), ("inter", "CAMKD", 50)),  # published: FitNet-MKD and CA-MKD itself
)
ONLINE_RECIPE = "--model resnet8 --dataset digits --epochs 6 --batch_size 64 --trial 0"
# What most peers are trained with, spelt out for a single network.
ALONE = f"train_teacher.py {ONLINE_RECIPE} --learning_rate 0.1 --lr_decay_epochs 3 4 --nesterov"
PEERS = ("IND", "CLILR", "DML", "ONE", "OKDDip", "BOC")
RUNNING: set[subprocess.Popen[str]] = set()


def student_commands(teachers: Sequence[Path]) -> list[str]:
    """The student alone, and under the teachers of these run folders."""
    files = " ".join(f"{folder}/last.pth" for folder in teachers)
    return [
        f"train_teacher.py --model resnet8 {RECIPE}",
        *(
            f"train_student.py --distill {loss} --ensemble_method {method} -b {b} {RECIPE} --teachers {files}"
            for loss, method, b in DISTILLED
        ),
    ]


def online_commands() -> list[str]:
    """The student's network alone, and peers of it under each online method, for as many epochs."""
    return [ALONE, *(f"train_online.py --method {method} {ONLINE_RECIPE}" for method in PEERS)]


def train(command: str, started: float) -> Path:
    """Run one training script on one core, continuing what is there; returns its run folder."""
    say(started, f"python {command}")
    # Networks this small use one core better than two, so that independent runs go side by side.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *shlex.split(command), "--resume"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",  # names of files
        start_new_session=True,  # a Ctrl-C reaches it once, from here
    )
    RUNNING.add(process)
    if signals.received:
        process.terminate()
    out, err = process.communicate()
    RUNNING.discard(process)
    if process.returncode:
        raise SystemExit(f"python {command}: failed\n{out}{err}")
    last = out.splitlines()[-1]
    say(started, last)
    return Path(last.split()[0].removesuffix(":"))


def train_all(commands: Sequence[str], started: float) -> list[Path]:
    """Run the commands, as many at a time as there are cores (at most 4: each takes 1 GB)."""
    with ThreadPoolExecutor(min(4, cores())) as pool:
        try:
            return list(pool.map(lambda command: train(command, started), commands))
        except Stopped:
            for process in list(RUNNING):  # they save themselves
                process.terminate()
            raise


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def say(started: float, text: str) -> None:
    """Print a line with the seconds since ``started``."""
    print(f"[{time.monotonic() - started:4.0f} s]   {text}", flush=True)


def main() -> None:
    """Train what is not trained yet, then report."""
    os.chdir(ROOT)
    started = time.monotonic()
    students, peers = student_commands(train_all(TEACHERS, started)), online_commands()
    folders = train_all([*peers, *students], started)  # the slowest first, so that no core waits at the end
    for out, part in ((OUT, folders[len(peers) :]), (ONLINE, folders[: len(peers)])):
        report.main(["--out", str(out), "--folders", *map(str, part)])


if __name__ == "__main__":
    run_script(lambda _: main(), stopped="what is trained is kept; the same command goes on")
