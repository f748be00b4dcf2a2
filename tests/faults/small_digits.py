"""The real scripts on few digits, looking and saving every other step, so that much happens in little time.

python small_digits.py train_student.py OPTION…    one run, as ``python train_student.py OPTION…`` would be
python small_digits.py --serve                     many, each forked from this process, which has imported torch
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torchvision.transforms import v2

import train_online
import train_student
import train_teacher
from dataset.base import DatasetInfo, FileDataset, Files, Transform, dataset_dict
from dataset.digits import Digits
from helper import loop
from helper.script import run_script

MAINS = {f"{module.__name__}.py": module.main for module in (train_teacher, train_student, train_online)}
TRAIN, TEST, LOOK = 96, 50, 2
WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.link")


@dataset_dict.register("pictures")
class Pictures(FileDataset):
    """Files ``train|test/<label>-*.png``, which processes read."""

    info = DatasetInfo("pictures", 10, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0, True)

    def load(self) -> tuple[Files, Files]:
        return self.part("train"), self.part("test")

    def part(self, name: str) -> Files:
        paths = sorted((self.data_dir / name).iterdir())
        return Files(tuple(map(str, paths)), torch.tensor([int(path.name[0]) for path in paths]))

    def train_transform(self) -> Transform:
        return v2.RandomHorizontalFlip()

    def test_transform(self) -> Transform:
        return v2.Identity()


def shrink() -> None:
    """Fewer images, and mid-epoch checkpoints as often as may be."""
    train, test = Digits(Path()).load()
    parts = train.subset(torch.arange(TRAIN)), test.subset(torch.arange(TEST))
    Digits.load = lambda _: parts  # type: ignore[method-assign]
    loop.LOOK = LOOK


def call(script: str, options: list[str]) -> None:
    """What ``python script options`` does."""
    sys.argv = [script, *options]
    run_script(MAINS[script])


def die_at(number: int, folder: str) -> None:
    """Kill this process when it is about to touch files of ``folder`` for the so-manieth time."""
    left = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in WRITES and folder in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def as_child(request: dict[str, Any], output: int) -> None:
    """In a forked process: become the script."""
    os.setsid()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    if request["die_at"]:
        die_at(request["die_at"], request["folder"])
    code = 0
    try:
        call(request["script"], request["options"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def start(request: dict[str, Any]) -> tuple[int, subprocess.Popen[bytes]]:
    """Fork; what it says goes through a pipe, which no limit on the size of files concerns."""
    reading, writing = os.pipe()
    with open(request["log"], "ab") as log:
        copying = subprocess.Popen(["cat"], stdin=reading, stdout=log)
    child = os.fork()
    if child == 0:
        as_child(request, writing)
    os.close(reading)
    os.close(writing)
    return child, copying


def serve() -> None:
    """Answer requests, a JSON line each: start a script (its process id), or wait for one to end (its exit code)."""
    copying = {}
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            copying.pop(request["wait"]).wait()
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer, copier = start(request)
            copying[answer] = copier
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    shrink()
    if sys.argv[1] == "--serve":
        serve()
    else:
        call(sys.argv[1], sys.argv[2:])
