"""The options on images, in the real scripts: bad values, names, and runs that are cut off and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import Outcome, distil, metrics, result, same, teach, teach_each_other, weights, without_times

from helper import loop
from helper.seen import Reads
from helper.teachers.asked import Teachers
from models import model_dict
from scripts import report

TINY = "--model resnet8 --dataset folder --batch_size 4 --num_workers 0 --precision fp32"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree"))


def make_tree(tree: Path, parts: str = "train test") -> Path:
    """8 dark cats and 4 light dogs in each part, 24 pixels wide."""
    random = np.random.RandomState(0)
    for part in parts.split():
        for label, (name, count) in enumerate((("cat", 8), ("dog", 4))):
            (tree / part / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = random.randint(100 * label, 100 * label + 56, (20, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tree / part / name / f"{index}.png")
    return tree


def train(tree: Path, save_dir: Path, words: str = "") -> Outcome:
    return teach(save_dir, f"{TINY} --data_dir {tree} {words}")


def train_student(tree: Path, save_dir: Path, words: str = "") -> Outcome:
    return distil(save_dir, f"{TINY.replace('--model', '--model_s')} --data_dir {tree} {words}")


class Killed(Exception):
    """Stands for SIGKILL."""


def assert_goes_on(
    tree: Path,
    tmp_path: Path,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Path, Path, str], Outcome] = train,
) -> Outcome:
    """A run that is killed in its second epoch, after the checkpoint of a step, ends as one that is left alone."""
    words = f"{words} --epochs 3 --checkpoint_minutes 0.0000001"
    whole = run(tree, tmp_path / "whole", words)
    monkeypatch.setattr(loop, "LOOK", 1)
    updated = loop.Fit._updated

    def die(self: loop.Fit, batch: object, when: loop.When) -> dict[str, torch.Tensor]:
        if (when.epoch, when.step) == (2, 3):
            raise Killed
        return updated(self, batch, when)

    monkeypatch.setattr(loop.Fit, "_updated", die)
    with pytest.raises(Killed):
        run(tree, tmp_path / "cut", words)
    monkeypatch.undo()
    resumed = run(tree, tmp_path / "cut", f"{words} --resume")
    assert "resuming after step 2 of epoch 2" in resumed.out
    assert same(weights(whole.folder), weights(resumed.folder))
    assert without_times(metrics(whole.folder)) == without_times(metrics(resumed.folder))
    return whole


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--image_size 0", ("--image_size", "at least 1", "'0'")),
        ("--image_size big", ("--image_size", "'big'")),
        ("--mean 1,2", ("--mean", "one number or three, not 2")),
        ("--mean 123 117 104", ("--mean", "123", "divide by 255")),
        ("--mean x", ("--mean", "'x'")),
        ("--std 0", ("--std", "above 0")),
        ("--std 0.2,0.2,0.2,0.2", ("--std", "not 4")),
        ("--channels 4", ("--channels", "'4'", "1, 3")),
        ("--augment crop", ("--augment", "'crop'", "crop_flip, resized_crop, randaugment, trivialaugment, none")),
        ("--in_memory yes", ("--in_memory", "'yes'", "auto, always, never")),
        ("--memory_gb 0", ("--memory_gb", "above 0")),
        ("--in_memory always --memory_gb 0.00001", ("--in_memory", "--memory_gb is 1e-05")),
        ("--test_split 1", ("--test_split", "below 1")),
        ("--train_split 0", ("--train_split", "above 0")),
        ("--train_split 0.8 --test_split 0.3", ("--train_split", "--test_split", "0.8 and 0.3")),
        ("--test_split 0.2", ("--test_split", "parts already")),
        ("--mixup -1", ("--mixup", "at least 0")),
        ("--cutmix x", ("--cutmix", "'x'")),
        ("--wrong_labels 1", ("--wrong_labels", "below 1")),
        ("--specialist 4of3", ("--specialist", "KofN", "'4of3'")),
        ("--specialist 1of1", ("--specialist", "KofN", "'1of1'")),
        ("--specialist 1of3", ("--specialist", "1of3", "classes, 2")),
        ("--specialist_others 0.5", ("--specialist_others", "--specialist")),
        ("--dataset digits --image_size 3000 --memory_gb 0.5", ("--image_size", "3000", "--memory_gb is 0.5")),
    ],
)
def test_bad_values(tree: Path, tmp_path: Path, words: str, expected: tuple[str, ...]) -> None:
    outcome = train(tree, tmp_path / "save", words)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert not [word for word in expected if word not in outcome.err], outcome.err
    assert not (tmp_path / "save").exists()


def test_size_normalisation_and_colours(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--image_size 16 --mean 0.5 --std 0.25,0.25,0.2 --channels 1"
    folder = assert_goes_on(tree, tmp_path, words, monkeypatch).folder
    assert "-image_size=16-mean=0.5-std=0.25,0.25,0.2-channels=1-epochs=3-" in folder.name
    about = result(folder)
    assert (about["image_size"], about["mean"], about["channels"]) == (16, [0.5, 0.5, 0.5], 1)
    plain = train(tree, tmp_path / "plain")
    assert plain.folder.name.split("-")[1] != folder.name.split("-")[1]  # folder@identity
    refused = train(tree, tmp_path / "other", f"--epochs 4 --image_size 16 --resume {plain.folder}")
    assert refused.code == 2
    assert "--image_size" in refused.err


@pytest.mark.parametrize("held", ["never", "auto"])
@pytest.mark.parametrize("augment", ["trivialaugment", "resized_crop"])
def test_augmentation_goes_on(
    augment: str, held: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"--image_size 16 --augment {augment} --in_memory {held}"
    whole = assert_goes_on(tree, tmp_path, words, monkeypatch)
    assert f"-augment={augment}-" in whole.folder.name
    assert ("pixels in memory" in whole.out) == (held == "auto")


def test_in_memory_and_from_files_are_one_run(tree: Path, tmp_path: Path) -> None:
    first, second = (
        train(tree, tmp_path / held, f"--image_size 16 --in_memory {held}") for held in ("always", "never")
    )
    assert first.folder.name == second.folder.name
    assert same(weights(first.folder), weights(second.folder))
    assert f"{second.folder} is finished" in train(tree, tmp_path / "never", "--image_size 16").out


def test_teachers_are_cached_for_images_in_memory(tree: Path, tmp_path: Path) -> None:
    teacher = train(tree, tmp_path / "teacher", "--image_size 16").folder / "last.pth"
    words = f"--image_size 16 --teachers {teacher}"
    cache = f"--teacher_cache {tmp_path / 'cache'}"
    cached = train_student(tree, tmp_path / "cached", f"{words} {cache}")
    assert cached.code == 0, cached.err
    assert len([*(tmp_path / "cache").iterdir()]) == 1
    read = train_student(tree, tmp_path / "read", f"{words} {cache} --in_memory never")
    assert read.code == 2
    assert "--teacher_cache" in read.err


def test_a_student_of_teachers_with_eyes_and_classes_goes_on(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = train(tree, tmp_path / "teacher", "--image_size 24 --mean 0.2 --std 0.3").folder / "last.pth"
    torch.save(model_dict["resnet8"](num_classes=10).state_dict(), tmp_path / "many.pth")
    said = '{"channels": 1, "classes": {"cat": 5, "dog": 0}}'
    words = f"--image_size 16 --teachers {own} '{tmp_path}/many.pth:resnet8 {said}'"
    objective = "--distill inter -b 1 --ensemble_method AEKD"
    whole = assert_goes_on(tree, tmp_path, f"{words} {objective}", monkeypatch, train_student)
    assert f"{own}: sees 24×24 pixels, RGB, mean 0.2, std 0.3" in whole.out
    assert "pixels in memory" in whole.out


def test_one_part_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "tree", "train")
    words = "--image_size 16 --train_split 0.67 --test_split 0.25 --batch_size 2"
    whole = assert_goes_on(tree, tmp_path, words, monkeypatch)
    assert "8 images to train on, 1 to choose the best epoch on (val), 3 to test on" in whole.out
    assert "-train_split=0.67-test_split=0.25-" in whole.folder.name


@pytest.mark.parametrize("words", ["", "--validation 0.25 --batch_size 3"])
def test_balance_and_the_accuracy_of_each_class(
    words: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = assert_goes_on(tree, tmp_path, f"--balanced --image_size 16 {words}", monkeypatch)
    assert "-balanced-" in whole.folder.name
    summary, rows = result(whole.folder), metrics(whole.folder)
    assert result(next((tmp_path / "cut" / "teachers").iterdir()))["best"] == summary["best"]
    for which in ("last", "best"):
        scores = summary[which]
        assert scores["test_class_images"] == [8, 4]
        cat, dog = scores["test_class_accuracy"]
        assert scores["test_accuracy"] == pytest.approx((2 * cat + dog) / 3, abs=1e-3)
        assert scores["test_balanced_accuracy"] == pytest.approx((cat + dog) / 2, abs=1e-3)
    assert rows[-1]["validation_balanced_accuracy" if words else "test_balanced_accuracy"] >= 0
    report.main(["--save_dir", str(tmp_path / "whole"), "--out", str(tmp_path / "report")])
    table = (tmp_path / "report" / "table.md").read_text(encoding="utf-8")
    assert "balanced accuracy (%)" in table
    cat, dog = summary["last"]["test_class_accuracy"]
    assert f"| cat | 8 | {cat:.2f} |" in table
    assert f"| dog | 4 | {dog:.2f} |" in table


def test_mixtures_go_on(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = assert_goes_on(tree, tmp_path, "--image_size 16 --mixup 0.4 --cutmix 1 --batch_size 3", monkeypatch)
    assert "-mixup=0.4-cutmix=1-" in whole.folder.name


@pytest.mark.usefixtures("little_data")
def test_teachers_and_peers_learn_from_mixtures(teachers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers see what the student sees."""
    seen, asked = [], Teachers.observe

    def observe(self: Teachers, images: torch.Tensor, reads: Reads, views: torch.Tensor | None = None) -> Any:
        seen.append((images, views))
        return asked(self, images, reads, views)

    monkeypatch.setattr(Teachers, "observe", observe)
    words = "--cutmix 1 --batch_size 64"
    student = distil(tmp_path, f"{teachers} --ensemble_method CAMKD {words}")
    assert student.code == 0, student.err
    training = [(images, views) for images, views in seen if len(images) == 64]
    assert len(training) == 2
    assert all(views is None for _, views in training)
    for method in ("ONE", "OKDDip"):
        peers = teach_each_other(tmp_path, f"--method {method} {words}")
        assert peers.code == 0, peers.err
    refused = distil(tmp_path / "other", f"{teachers} {words} --teacher_cache {tmp_path / 'cache'}")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "--teacher_cache: --cutmix makes images that cannot be counted" in refused.err
    assert not (tmp_path / "other").exists()
