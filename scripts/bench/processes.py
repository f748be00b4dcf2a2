"""One batch shared by several processes: images per second of a training step, one CPU thread or one GPU each.

As a script it is one of these processes, started by torchrun with the options as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from helper import distributed
from helper.errors import UsageError
from helper.recipe import device_of
from scripts.bench.machine import cores
from scripts.bench.steps import of_logits, table_line
from scripts.bench.subjects import Offline, Pair, Setting, step_of
from scripts.bench.timing import median, seconds_of

Figures = dict[str, Any]

ROOT = Path(__file__).parents[2]
ORDER = (False, True, True, False)
"""Whether all processes take part, turn by turn."""
MOST, SETTLING = 100, 3
"""Steps of a turn, and how many before them are not timed."""


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """Milliseconds of a step of the first setting by one process and by as many as fit, at most eight."""
    kind = device_of(opt).type
    most = max(2, min(8, cores())) if kind == "cpu" else torch.cuda.device_count()
    times: dict[int, list[float]] = {}
    for several in ORDER if most > 1 else (False,):
        count = most if several else 1
        say(f"{opt.settings[0]}: {count} process{'es' * several}")
        times.setdefault(count, []).append(run(count, opt))
    milliseconds = {count: median(each) for count, each in times.items()}
    return {
        "setting": str(opt.settings[0]),
        "batch_size": opt.batch_size,
        "backend": "gloo" if kind == "cpu" else "nccl",
        "cores": cores(),
        "ms": milliseconds,
        "images_per_second": {count: 1e3 * opt.batch_size / each for count, each in milliseconds.items()},
    }


def run(count: int, opt: argparse.Namespace) -> float:
    """Start so many processes, and return the milliseconds of a step."""
    chosen = {name: getattr(opt, name) for name in ("batch_size", "precision", "compile", "steps")}
    chosen |= {"setting": str(opt.settings[0]), "device": device_of(opt).type}
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*starter, "-m", __name__, json.dumps(chosen)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"--only: {count} processes could not train together: {done.stderr.strip()[-300:]}")
    return float(done.stdout.splitlines()[-1])


def text(figures: Figures) -> list[str]:
    """For people."""
    lines = [
        f"{figures['setting']}, {of_logits()[1]}, a batch of {figures['batch_size']} shared through "
        f"{figures['backend']}, one thread or GPU each; {figures['cores']} cores",
        table_line("", ["ms", "images/s"]),
    ]
    for count, each in figures["ms"].items():
        cells = [f"{each:.2f}", f"{figures['images_per_second'][count]:,.0f}"]
        lines.append(table_line(f"{count} process{'es' if count > 1 else ''}", cells))
    return lines


def main(chosen: str) -> None:
    """Take part; the first process prints the milliseconds of a step."""
    opt = argparse.Namespace(**json.loads(chosen))
    with Offline(Setting.parse(opt.setting), opt) as bench:
        fit = bench.fit(Pair(*of_logits()[1].split()))
        fit.connect(fit.opt.epochs)
        step = step_of(fit)
        # Not as long as there is time: all processes have to take the same number of steps.
        times = [seconds_of(step, bench.device) for _ in range(SETTLING + min(MOST, opt.steps))][SETTLING:]
    print(1e3 * median(times), flush=True)
    distributed.stop()


if __name__ == "__main__":
    main(sys.argv[1])
