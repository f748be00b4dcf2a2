"""The real scripts on small folders of images: which part is which, what is said, and names in any encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import Outcome, call, distil, metrics, result, teach

import train_online
from scripts import report

ROOT = Path(__file__).parents[2]
TINY = "--model resnet8 --dataset folder --batch_size 2 --num_workers 0 --device cpu --precision fp32"


def make_tree(tree: Path, parts: str = "train test", classes: str = "cat dog", count: int = 2) -> Path:
    """Noise, darker in the first class."""
    random = np.random.RandomState(0)
    for part in parts.split():
        for label, name in enumerate(classes.split()):
            (tree / part / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = random.randint(100 * label, 100 * label + 56, (24, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tree / part / name / f"{index}.png")
    return tree


def train(tree: Path, save_dir: Path, words: str = "") -> Outcome:
    return teach(save_dir, f"{TINY} --data_dir {tree} {words}")


def test_val_chooses_and_test_is_reported(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", "train val test")
    outcome = train(tree, tmp_path / "save")
    rows, summary = metrics(outcome.folder), result(outcome.folder)
    first, epoch, last = outcome.out.splitlines()
    assert first == "folder: 2 classes, 4 images to train on, 4 to choose the best epoch on (val), 4 to test on"
    assert f"  val {rows[0]['validation_accuracy']:.2f} %  " in epoch
    assert "chosen on the val set" in last
    assert last.endswith("on the test set")
    assert (summary["best_chosen_on"], summary["reported_on"]) == ("val", "test")
    assert {"validation_accuracy", "test_accuracy"} <= summary["best"].keys()
    evaluated = train(tree, tmp_path / "save", f"--evaluate {outcome.folder}/last.pth").out
    assert f"resnet8 on folder, test: accuracy {summary['last']['test_accuracy']:.2f} %" in evaluated
    assert len(evaluated.splitlines()) == 1
    refused = train(tree, tmp_path / "other", "--validation 0.5")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert not (tmp_path / "other").exists()


def test_a_val_alone_is_called_val(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", "train val")
    outcome = train(tree, tmp_path / "save")
    row, summary = metrics(outcome.folder)[0], result(outcome.folder)
    first, epoch, last = outcome.out.splitlines()
    assert "4 to test on (val)" in first
    assert f"  val {row['test_accuracy']:.2f} %  " in epoch
    assert "chosen on the val set" in last
    assert "test" not in last.split(": ", 1)[1]
    assert (summary["best_chosen_on"], summary["reported_on"]) == ("val", "val")
    assert " on folder, val: " in train(tree, tmp_path / "save", f"--evaluate {outcome.folder}/last.pth").out
    report.main(["--save_dir", str(tmp_path / "save"), "--out", str(tmp_path / "report")])
    table = (tmp_path / "report" / "table.md").read_text(encoding="utf-8")
    assert "Val accuracy in %" in table
    assert "the best epoch is chosen on the val set" in table
    assert (tmp_path / "report" / "curves.png").exists()


@pytest.mark.usefixtures("little_data")
def test_every_script_says_how_many_images_there_are(tmp_path: Path, teachers: str) -> None:
    expected = "digits: 10 classes, 128 images to train on, 50 to test on"
    held_out = "digits: 10 classes, 96 images to train on, 32 to choose the best epoch on (validation), 50 to test on"
    assert teach(tmp_path).out.startswith(f"{expected}\n")
    assert distil(tmp_path, teachers).out.startswith(f"{expected}\n")
    words = f"--method IND --model resnet8 --dataset digits --device cpu --epochs 1 --save_dir {tmp_path}"
    outcome = call(train_online.main, "train_online.py", f"{words} --batch_size 32 --validation 0.25")
    assert outcome.out.startswith(f"{held_out}\n")


def test_files_that_are_no_images_lose_no_run(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    folder = train(tree, tmp_path / "save").folder
    (folder / "result.json").unlink()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", "notes.txt"):
        (tree / "train" / "cat" / name).touch()
    outcome = train(tree, tmp_path / "save", "--resume")
    assert outcome.folder == folder
    assert "resuming after epoch 1" in outcome.out
    assert outcome.out.startswith(f"{tree}: left out: 1 .txt\n")


def test_a_run_says_where_its_images_were(tmp_path: Path) -> None:
    """Other images of the same classes and numbers cannot be told from a copy."""
    tree, other, save_dir = make_tree(tmp_path / "tree"), make_tree(tmp_path / "other"), tmp_path / "save"
    folder = train(tree, save_dir).folder
    assert "counts as a copy" not in train(tree, save_dir).out
    for words, now in (("", "is finished"), ("--resume", "resuming after epoch 1")):
        outcome = train(other, save_dir, words)
        assert now in outcome.out
        assert f"{folder}: its images were those of --data_dir {tree}; {other} has as many of each class" in outcome.out
        (folder / "result.json").unlink()


def test_damaged_images_are_refused_or_left_out(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    for path in ("train/cat/x.png", "train/dog/y.png", "test/dog/z.png"):
        (tree / path).touch()
    refused = train(tree, tmp_path / "save")
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    assert all(name in refused.err for name in ("train/cat/x.png", "train/dog/y.png", "test/dog/z.png"))
    assert not (tmp_path / "save").exists()
    outcome = train(tree, tmp_path / "save", "--skip_damaged")
    note, sizes = outcome.out.splitlines()[:2]
    assert "3 images cannot be read" in note
    assert sizes == "folder: 2 classes, 4 images to train on, 4 to test on"
    folder = outcome.folder
    for path in ("train/cat/x.png", "train/dog/y.png", "test/dog/z.png"):
        (tree / path).unlink()
    assert f"{folder} is finished" in train(tree, tmp_path / "save").out  # the same images


def test_a_run_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    tree, save_dir = make_tree(tmp_path / "tree"), tmp_path / "save"
    first = train(tree, save_dir, "--resume")
    assert f"\nnothing to resume in {first.folder}, starting\nepoch" in first.out
    (first.folder / "result.json").unlink()
    (tree / "train" / "dog" / "1.png").rename(tree / "train" / "dog" / "more.png")
    (tree / "train" / "dog" / "1.png").write_bytes((tree / "train" / "dog" / "0.png").read_bytes())
    other = train(tree, save_dir, "--resume --epochs 2 --lr 0.01")
    before, after = (each.folder.name.split("-")[1] for each in (first, other))
    expected = f"differs in --epochs 1, not 2; --learning_rate None, not 0.01; images {before}, not {after})"
    assert f"  nearest: {first.folder} ({expected}" in other.out
    assert "nearest" not in train(tree, save_dir, "--resume --trial 1").out
    assert "nothing to resume" not in train(tree, save_dir, "--trial 2").out


LOCALES = {"utf-8": {"LC_ALL": "C.UTF-8"}, "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}}


def test_names_in_any_encoding(tmp_path: Path) -> None:
    """Trained in one language, resumed, evaluated and learned from in another; in UTF-8 and in none."""
    tree = make_tree(tmp_path / "d\u00fc\udcff", classes="na\u00efve \udcff")
    save_dir = tmp_path / "s\u00fc\udcff"

    def run(script: str, language: str, words: str, *paths: Path | str) -> str:
        tiny = ["--batch_size", "2", "--num_workers", "0", "--device", "cpu", "--dataset", "folder"]
        where = ["--data_dir", tree, "--save_dir", save_dir]
        command = [sys.executable, script, *tiny, *where, *words.split(), *paths]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **LOCALES[language]}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
        assert done.returncode in (0, 2), done.stderr
        assert b"Traceback" not in done.stderr
        return os.fsdecode(done.stdout + done.stderr)

    lines = run("train_teacher.py", "utf-8", "--model resnet8 --epochs 1").splitlines()
    folder = Path(lines[-1].split(": ")[0])
    assert folder.is_dir()
    assert folder.parent.parent == save_dir
    assert any(name.startswith("events") for name in os.listdir(folder / "tensorboard"))
    assert json.loads((folder / "parameters.json").read_text())["data_dir"] == str(tree)
    (folder / "result.json").unlink()
    assert "resuming after epoch 1" in run("train_teacher.py", "C", "--model resnet8 --epochs 1 --resume")
    assert "accuracy" in run("train_teacher.py", "C", "--model resnet8 --evaluate", folder / "last.pth")
    for language, said in zip(LOCALES, ("their ensemble", "is finished"), strict=True):
        assert said in run("train_student.py", language, "--model_s resnet8 --epochs 1 --teachers", folder / "last.pth")
    lines = run("train_teacher.py", "C", "--epochs 2 --config", folder / "parameters.json").splitlines()
    other = Path(lines[-1].split(": ")[0])
    assert any(name.startswith("events") for name in os.listdir(other / "tensorboard"))
    assert json.loads((other / "parameters.json").read_text())["data_dir"] == str(tree)
    (tree / "train" / "\udcff" / "\udce9.png").touch()
    assert "train/\udcff/\udce9.png (empty)" in run("train_teacher.py", "C", "--model resnet8 --epochs 1")
