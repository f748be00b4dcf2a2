"""What quickstart.sh does once everything is installed: teachers, students, peers, table and figures, on digits."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setting
from ensemble import ensemble_dict
from helper.script import run_script
from helper.stopping import Stopped, signals
from helper.teachers import TeacherFile, training_command
from online import online_dict
from scripts import report

ROOT = Path(__file__).parent.parent
OUT = Path("results/quickstart")
RECIPE = "--dataset digits --epochs 6 --nesterov --trial 0"
ONLINE_RECIPE = "--model resnet8 --dataset digits --epochs 3 --batch_size 64 --trial 0"
RUNNING: set[subprocess.Popen[str]] = set()
FEATURE_RUNS = (("hint", "AVERAGE_LOSS", 100), ("inter", "CAMKD", 50))  # published: FitNet-MKD and CA-MKD itself


def teacher_commands() -> list[str]:
    """What trains the teachers that setting.py lists for digits."""
    listed = [TeacherFile(arch, Path(path)) for arch, path in setting.TEACHERS["digits"]]
    return [training_command(file, "digits").removeprefix("python ") for file in listed]


def student_commands() -> list[str]:
    """The student alone, under each ensemble method, and with the published losses on feature maps."""
    runs = [*(("kd", method, 0) for method in ensemble_dict), *FEATURE_RUNS]
    return [
        f"train_teacher.py --model resnet8 {RECIPE}",
        *(f"train_student.py --distill {loss} --ensemble_method {method} -b {b} {RECIPE}" for loss, method, b in runs),
    ]


def online_commands() -> list[str]:
    """Peers of the student's architecture under each online method, for half the epochs: a step trains several."""
    return [f"train_online.py --method {method} {ONLINE_RECIPE}" for method in online_dict]


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
    train_all(teacher_commands(), started)
    folders = train_all([*student_commands(), *online_commands()], started)
    report.main(["--out", str(OUT), "--folders", *map(str, folders)])


if __name__ == "__main__":
    run_script(lambda _: main(), stopped="what is trained is kept; the same command goes on")
