"""The ImageNet recipes: the commands that the script gives, called on four images."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import Outcome, call, metrics, result

import train_online
import train_student
import train_teacher

ROOT = Path(__file__).parents[2]
MAINS = {f"{module.__name__}.py": module.main for module in (train_teacher, train_student, train_online)}
LAUNCHER = "-m torch.distributed.run --standalone --nproc_per_node 8 "
TINY = "--batch_size 4 --epochs 1 --num_workers 0 --device cpu --precision fp32"
# notes commands, and answers as the scripts do; everything else is asked of Python
PYTHON = """case "$*" in
*torch.distributed.run*)
    echo "$*" >>"$COMMANDS"
    echo "$SAVE_DIR/run$(grep -c . "$COMMANDS"): last epoch" ;;
*) exec "$REAL" "$@" ;;
esac
"""


def commands(recipe: str, tmp_path: Path, **settings: str) -> list[str]:
    """What the script would call; run n's folder is SAVE_DIR/run<n>."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\n{PYTHON}")
    python.chmod(0o755)
    environment = {"COMMANDS": str(tmp_path / "commands"), "REAL": sys.executable, "VIRTUAL_ENV": str(tmp_path)}
    environment |= {"SAVE_DIR": str(tmp_path / "save"), "PROCESSES": "8", "DATA_DIR": str(tmp_path / "data")}
    command = ["sh", str(ROOT / "scripts" / "imagenet.sh"), recipe]
    done = subprocess.run(command, env={**os.environ, **environment, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "commands").read_text().splitlines()


def make_images(base: Path) -> None:
    """Two classes of two images to train on and of one to test on."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 2), ("val", 1)):
        for name in ("n01440764", "n02102040"):
            folder = base / "imagenet" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (64, 80, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.JPEG")


def run(command: str) -> Outcome:
    """The same in this process, tiny."""
    script, *words = shlex.split(command.removeprefix(LAUNCHER))
    return call(MAINS[script], script, f"{shlex.join(words)} {TINY}")


@pytest.mark.parametrize(("recipe", "count"), [("aekd", 4), ("okddip", 1), ("boc", 1)])
def test_recipe(recipe: str, count: int, tmp_path: Path) -> None:
    """Each command trains the published networks; repeated, it is done, or continues what was cut off."""
    make_images(tmp_path / "data")
    listed = commands(recipe, tmp_path, TEACHER_NUM="1")
    assert len(listed) == count
    for number, command in enumerate(listed, 1):
        assert command.startswith(LAUNCHER)
        assert "--dataset imagenet" in command
        assert "--resume" in command
        folder = run(command).folder
        assert len(metrics(folder)) == 1
        assert result(folder)["dataset"] == "imagenet"
        (tmp_path / "save" / f"run{number}").symlink_to(folder)
    if recipe != "aekd":
        return  # these are the slow ones
    assert "is finished" in run(listed[-1]).out
    (folder / "result.json").unlink()
    assert "resuming after epoch 1" in run(listed[-1]).out


def test_names_of_the_real_runs_are_short_enough(tmp_path: Path) -> None:
    """The check comes before data and teachers are looked for."""
    make_images(tmp_path / "data")
    for command in commands("aekd", tmp_path):
        script, *words = shlex.split(command.removeprefix(LAUNCHER))
        words = [word.replace("--resume", "--device cpu") for word in words]
        if script == "train_student.py":
            said = call(MAINS[script], script, " ".join(words)).err
            assert "--teachers: there is no" in said, said


def test_unknown_recipe() -> None:
    refused = subprocess.run(["sh", ROOT / "scripts" / "imagenet.sh", "akd"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "aekd, okddip or boc" in refused.stderr
