"""The real training scripts, called in this process on a handful of digits."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import train_online
import train_student
import train_teacher
from dataset.base import Split
from dataset.digits import Digits
from helper.images import ImageOptions
from helper.run_folder import FOLDER_FILE
from helper.script import run_script
from scripts.runner import End, read_word

MAINS = {f"{module.__name__}.py": module.main for module in (train_teacher, train_student, train_online)}
TRAIN, TEST, CLASSES, SMALL = 128, 50, 10, 16
ARCHS = ("resnet8", "wrn_16_1", "ShuffleV2_0_5")  # three families, maps of different widths


@dataclass(frozen=True)
class Outcome:
    """What a user sees of a call."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run folder, which the last line of a successful call begins with."""
        assert self.code == 0, self.err
        return Path(self.out.splitlines()[-1].split()[0].removesuffix(":"))


@contextlib.contextmanager
def few_digits(size: int = SMALL) -> Iterator[None]:
    """Fewer images, smaller unless somebody says how large, so that an epoch takes a fraction of a second."""
    parts = first_digits(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset.digits.SIZE", size)
        patch.setattr(Digits, "load", lambda _: parts)
        yield


@functools.cache
def first_digits(size: int) -> tuple[Split, Split]:
    """The first images of both parts, read once."""
    digits = Digits(Path())
    digits.wanted = ImageOptions(image_size=size)
    train, test = digits.load()
    return train.subset(torch.arange(TRAIN)), test.subset(torch.arange(TEST))


def call(main: Callable[[Sequence[str]], None], name: str, words: str) -> Outcome:
    """Call a script's main as ``python name words`` would."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("sys.argv", [name, *shlex.split(words)])
        try:
            run_script(main)
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def ended(command: Sequence[str], folder: Path) -> End:
    """What a real process would end with; ``folder`` is for the word that it leaves."""
    word = folder / "word.json"
    word.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_FILE, str(word))
        outcome = call(MAINS[command[0]], command[0], shlex.join(command[1:]))
    lines = [*outcome.out.splitlines(), *outcome.err.splitlines()]
    return End(outcome.code, lines, *read_word(word))


def teach(save_dir: Path, words: str = "") -> Outcome:
    """``train_teacher.py`` on digits; later words override these."""
    recipe = f"--model resnet8 --dataset digits --device cpu --epochs 1 --save_dir {save_dir}"
    return call(train_teacher.main, "train_teacher.py", f"{recipe} {words}")


def distil(save_dir: Path, words: str = "") -> Outcome:
    """``train_student.py`` on digits; later words override these."""
    recipe = f"--model_s resnet8 --dataset digits --device cpu --epochs 1 --save_dir {save_dir}"
    return call(train_student.main, "train_student.py", f"{recipe} {words}")


def distil_under(files: Sequence[Path], save_dir: Path, words: str) -> Outcome:
    """With these teachers; with the first of them alone, as often, where the loss suits one kind of networks only."""
    outcome = distil(save_dir, f"--teachers {shlex.join(map(str, files))} {words}")
    if outcome.code == 0:
        return outcome
    assert re.fullmatch(r".*--distill: .*; choose .*\n", outcome.err)
    return distil(save_dir, f"--teachers {shlex.join([str(files[0])] * len(files))} {words}")


def teach_each_other(save_dir: Path, words: str = "") -> Outcome:
    """``train_online.py`` on digits; later words override these."""
    recipe = f"--model resnet8 --dataset digits --device cpu --epochs 1 --save_dir {save_dir}"
    return call(train_online.main, "train_online.py", f"{recipe} {words}")


def weights(folder: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    """The network in a checkpoint."""
    return torch.load(folder / name, weights_only=True)["model"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two networks agree in every bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics that are the same on every machine and at every load."""
    return [{name: row[name] for name in row if name not in ("images_per_second", "seconds")} for row in rows]
