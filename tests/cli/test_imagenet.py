"""The ImageNet recipes: the commands that the script gives, called on four images."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import ROOT
from PIL import Image
from sums import all_asked
from tiny_runs import MAINS, call, ended, metrics, result

from scripts import run_all
from scripts.reporting.runs import parser_of
from scripts.runner import End, Runs

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "8"]
TINY = "--batch_size 4 --epochs 1 --num_workers 0 --device cpu --precision fp32"
# says what run_all.py would find; everything else is asked of Python
PYTHON = """#!/bin/sh
if [ "$*" = "-m scripts.run_all" ]; then
    exec "$REAL" -c 'import json, os; print("said", json.dumps(dict(os.environ)))'
fi
exec "$REAL" "$@"
"""


def variables_of(recipe: str, tmp_path: Path, **settings: str) -> dict[str, str]:
    """What the script hands to run_all.py."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {"REAL": sys.executable, "VIRTUAL_ENV": str(tmp_path), "PROCESSES": "8"}
    environment |= {"SAVE_DIR": str(tmp_path / "save"), "DATA_DIR": str(tmp_path / "data")}
    command = ["sh", str(ROOT / "scripts" / "imagenet.sh"), recipe]
    done = subprocess.run(command, env={**os.environ, **environment, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1].removeprefix("said "))


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


TRAINED = [("aekd", 4), ("okddip", 1), ("boc", 1)]  # of the recipes for peers one, unless all are asked for


@pytest.mark.parametrize(("recipe", "count"), TRAINED if all_asked() else TRAINED[:2])
def test_recipe(recipe: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command trains the published networks; repeated, it is done, or continues what was cut off."""
    make_images(tmp_path / "data")
    given = variables_of(recipe, tmp_path, TEACHER_NUM="1", OUT=str(tmp_path / "out"), EXTRA=TINY)
    ends: list[End] = []

    def process(self: Runs, command: list[str], slot: dict[str, str]) -> End:
        """The same in this process."""
        assert (command[:5], slot) == (LAUNCHER, {})
        ends.append(ended(command[5:], tmp_path))
        return ends[-1]

    monkeypatch.setattr(Runs, "process", process)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    run_all.main([])
    assert len(ends) == count
    for end in ends:
        assert end.folder is not None
        assert len(metrics(end.folder)) == 1
        assert result(end.folder)["dataset"] == "imagenet"
    assert (tmp_path / "out" / "index.html").exists()
    if recipe != "aekd":
        return  # these are the slow ones
    (ends[-1].folder / "result.json").unlink()
    run_all.main([])
    *before, last = ends[count:]
    assert not any(end.trained for end in before)
    assert any("resuming after epoch 1" in line for line in last.lines)


PUBLISHED = {
    "aekd": [
        *(f"train_teacher.py --model torchvision/resnet50 {{}} --trial {trial}" for trial in range(3)),
        "train_teacher.py --model torchvision/resnet18 {} --nesterov --trial 5",
        "train_student.py --model_s torchvision/resnet18 {} --distill kd --ensemble_method AEKD -r 1 -a 0.9 -b 0 "
        "--nesterov --trial 5",
        "train_student.py --model_s torchvision/resnet18 {} --distill kd --ensemble_method AVERAGE_LOSS -r 1 -a 0.9 "
        "-b 0 --nesterov --trial 5",
    ],
    "okddip": ["train_online.py --method OKDDip --model torchvision/resnet34 {} --num_branches 4 --trial 5"],
    "boc": ["train_online.py --method BOC --model torchvision/efficientnet_b0 {} --num_students 5 --trial 5"],
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_published_options(recipe: str, tmp_path: Path) -> None:
    given = variables_of(recipe, tmp_path, TRIAL="5", DATA_DIR="a b")
    jobs, out = run_all.plan([], given)
    assert out == f"results/runs/imagenet-{recipe}"
    schedule = "--epochs 90 --learning_rate 0.1 --lr_decay_epochs 30,60 --weight_decay 1e-4"
    batch = 256
    if recipe == "boc":
        batch = 128
        schedule = "--epochs 100 --learning_rate 0.001 --lr_decay_epochs 50,70,90 --lr_decay_rate 0.5 "
        schedule += "--weight_decay 1e-4"
    common = f"--dataset imagenet --data_dir 'a b' --save_dir {tmp_path / 'save'} --batch_size {batch} {schedule}"
    for job, command in zip(jobs, PUBLISHED[recipe], strict=True):
        script, *words = shlex.split(command.format(common))
        assert job.words[0] == script
        parser = parser_of({"train_teacher.py": "alone", "train_student.py": "student"}.get(script, "online"))
        assert parser.parse(job.words[1:]) == parser.parse(words)


def test_names_of_the_real_runs_are_short_enough(tmp_path: Path) -> None:
    """The check comes before data and teachers are looked for."""
    make_images(tmp_path / "data")
    jobs, _ = run_all.plan([], variables_of("aekd", tmp_path))
    for job in jobs:
        if job.teachers:
            files = [f"{tmp_path / str(k)}.pth:torchvision/resnet50" for k in range(3)]
            script, *words = job.command(files)
            said = call(MAINS[script], script, shlex.join([*words, "--device", "cpu"])).err
            assert "--teachers: there is no" in said, said


@pytest.mark.parametrize(("visible", "processes"), [("0,1", "2"), ("3", "1"), ("", "1")])
def test_a_process_for_each_visible_gpu(visible: str, processes: str, tmp_path: Path) -> None:
    given = variables_of("aekd", tmp_path, PROCESSES="", CUDA_VISIBLE_DEVICES=visible)
    assert given["PROCESSES"] == processes


def test_unknown_recipe() -> None:
    refused = subprocess.run(["sh", ROOT / "scripts" / "imagenet.sh", "akd"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "aekd, okddip or boc" in refused.stderr
