#!/usr/bin/env python3
"""How fast this collection is on this machine: input, training steps, losses, peers, AEKD's solver, memory.

python -m scripts.benchmark --precision bf16 --json benchmark.json --plot benchmark.png
python -m scripts.benchmark --settings resnet20x3:resnet8 --only steps --compile

Everything is compared within one run: variants take turns, medians are reported. The images are random and the
networks untrained, so nothing is downloaded and no teacher is needed. On one CPU core it takes about half an hour;
`--seconds 5 --steps 20` is a shorter look.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that `python scripts/benchmark.py` finds the folders too

import torch

import train_teacher
from helper.errors import UsageError
from helper.machine import device_name
from helper.options import Flatten, Options, one_of, positive_float, positive_int
from helper.run_folder import write_atomically
from helper.script import run_script
from scripts.bench import input, losses, memory, peers, plot, solver, steps
from scripts.bench.subjects import Setting, session_of, words
from scripts.bench.timing import text_of
from scripts.outputs import require_figure, require_no_folder

PUBLISHED = ("resnet20x3:resnet8", "resnet32x4x3:vgg8", "wrn_40_2x3:ShuffleV1")
QUICK = ("resnet8x2:resnet8",)

SECTIONS: dict[str, ModuleType] = {
    "input": input,
    "steps": steps,
    "losses": losses,
    "online": peers,
    "solver": solver,
    "memory": memory,
}


def options() -> Options:
    """The command line."""
    parser = Options("How fast this collection is on this machine.")
    add = parser.section("what is measured")
    only = one_of("--only", tuple(SECTIONS))
    add(
        "--only",
        type=lambda text: [only(each) for each in text.split(",")],
        default=list(SECTIONS),
        metavar=",".join(SECTIONS),
        help="sections; all, unless given",
    )
    add(
        "--settings",
        type=lambda text: [Setting.parse(text)],
        nargs="+",
        action=Flatten,
        default=None,
        metavar="TEACHERxK:STUDENT",
        help=f"networks; {' '.join(PUBLISHED)}, unless given",
    )
    add("--batch_size", type=positive_int, default=None, help="images in a step; 64, unless given")
    add(
        "--quick", action="store_true", help="a small network, few steps: shows that all runs, its figures mean nothing"
    )
    add = parser.section("how")
    add("--steps", type=positive_int, default=200, help="rounds, in each of which every variant takes one step")
    add("--seconds", type=positive_float, default=40.0, help="no new round of a group of variants after so long")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    add("--precision", default=None, help="of the training scripts; their default, unless given")
    add("--compile", action="store_true", help="of the training scripts, for all but what is as released")
    add = parser.section("where to")
    add("--json", type=Path, default=None, help="file for all figures")
    add("--plot", type=Path, default=None, help="file for a figure, such as benchmark.png")
    return parser


def parse(arguments: Sequence[str]) -> Any:
    """The options, with what ``--quick`` stands for."""
    opt = options().parse(arguments)
    opt.gpu_id = None
    opt.settings = opt.settings or [Setting.parse(text) for text in (QUICK if opt.quick else PUBLISHED)]
    opt.batch_size = opt.batch_size or (8 if opt.quick else 64)
    for option, path in (("--json", opt.json), ("--plot", opt.plot)):
        if path and not path.parent.is_dir():
            raise UsageError(f"{option}: there is no folder {path.parent}")
    if opt.json:
        require_no_folder("--json", opt.json)
    if opt.plot:
        require_figure("--plot", opt.plot)
    if opt.quick:
        opt.steps, opt.seconds = 2, 1.0
    return opt


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    opt = parse(arguments)
    session = session_of(train_teacher.options().parse(words(opt)))
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s]   {what}", file=sys.stderr, flush=True)

    arithmetic = session.precision + ", compiled" * opt.compile
    machine = f"{device_name(session.device)}; PyTorch {torch.__version__}; batch {opt.batch_size}, {arithmetic}"
    figures: dict[str, Any] = {"machine": machine, "quick": opt.quick}
    print(machine, flush=True)
    for name in opt.only:
        title = SECTIONS[name].TITLE
        say(title)
        figures[name] = SECTIONS[name].measure(opt, say)
        for table, rows in figures[name].items():
            print(f"\n== {title}: {table}", *text_of(rows), sep="\n", flush=True)
        if opt.json:  # after each section: one that is stopped leaves what it has measured
            write_atomically(opt.json, json.dumps(figures, indent=1) + "\n")
    if opt.plot:
        plot.draw(figures, opt.plot)


if __name__ == "__main__":
    run_script(main)
