"""Checkpoints of others in the real scripts: --teachers, --evaluate and --start read what the unit tests read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import Outcome, distil, result, teach, teach_each_other, weights

from helper.teachers.files import TeacherFile, fingerprint
from models import model_dict

pytestmark = pytest.mark.usefixtures("little_data")


@pytest.fixture
def twice(tmp_path: Path, teacher_files: list[Path]) -> Path:
    """A trained resnet8 and, as its average, another one: timm's form, compiled and distributed."""
    torch.manual_seed(0)
    raw = {f"module._orig_mod.{name}": value for name, value in weights(teacher_files[0].parent).items()}
    averaged = model_dict["resnet8"](num_classes=10).state_dict()
    path = tmp_path / "checkpoint-3.pth.tar"
    torch.save({"arch": "resnet8_d", "state_dict": raw, "state_dict_ema": averaged, "metric": 3.0}, path)
    return path


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert not [word for word in words if word not in outcome.err], outcome.err


def test_evaluate_by_key_and_by_run_folder(tmp_path: Path, twice: Path, teacher_files: list[Path]) -> None:
    expected = f"accuracy {result(teacher_files[0].parent)['last']['test_accuracy']:.2f} %"
    raw, averaged = teach(tmp_path, f"--evaluate {twice}"), teach(tmp_path, f"--evaluate {twice}@state_dict_ema")
    note, line = raw.out.splitlines()
    assert "'state_dict_ema'" in note
    assert line.startswith(f"{twice}: resnet8 on digits, test: {expected}")
    assert averaged.out.startswith(f"{twice}: ")
    assert len(averaged.out.splitlines()) == 1
    assert line not in averaged.out
    folder = teach(tmp_path, f"--evaluate {teacher_files[0].parent}").out
    assert folder.startswith(f"{teacher_files[0]}: resnet8 on digits, test: {expected}")
    refused(teach(tmp_path, f"--evaluate {twice}@swa"), "'swa'", "'state_dict_ema'")
    refused(teach(tmp_path, f"--evaluate {tmp_path}"), str(tmp_path / "last.pth"))


def test_a_run_with_a_teacher_by_key_repeats(tmp_path: Path, twice: Path) -> None:
    """The key is on record, part of the run's name, and known to the report."""
    plain = distil(tmp_path, f"--teachers {twice}:resnet8").folder
    keyed = distil(tmp_path, f"--teachers {twice}:resnet8@state_dict_ema").folder
    files = [TeacherFile("resnet8", twice, key) for key in (None, "state_dict_ema")]
    assert [fingerprint([file]) in folder.name for file, folder in zip(files, (plain, keyed), strict=True)] == [
        True
    ] * 2
    assert json.loads((plain / "parameters.json").read_text())["teachers"] == [f"{twice}:resnet8"]
    assert json.loads((keyed / "parameters.json").read_text())["teachers"] == [f"{twice}:resnet8@state_dict_ema"]
    assert "key" not in result(plain)["teachers"][0]
    assert result(keyed)["teachers"][0]["key"] == "state_dict_ema"
    again = distil(tmp_path, f"--config {keyed / 'parameters.json'}")
    assert f"{keyed} is finished" in again.out


def test_peers_start_from_others_weights(tmp_path: Path, twice: Path) -> None:
    outcome = teach_each_other(tmp_path, f"--method BOC --num_students 2 --batch_size 64 --start {twice}")
    assert outcome.code == 0, outcome.err
    assert "'state_dict_ema'" in outcome.out.splitlines()[0]


@pytest.mark.parametrize("change", ["classes", "nan"])
def test_what_cannot_teach_is_refused_everywhere(
    tmp_path: Path, teacher_files: list[Path], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(teacher_files[0], weights_only=True)
    assert state["classes"] == list("0123456789")
    if change == "classes":
        state |= {"dataset": "cifar10", "classes": ["airplane", *"123456789"]}
        words = ("cifar10", "'airplane'", "digits", "'0'")
    else:
        state["model"]["fc.bias"][3] = torch.nan
        words = ("'fc.bias'", "not finite")
    path, save_dir = tmp_path / "x.pth", tmp_path / "save"
    torch.save(state, path)
    monkeypatch.setattr("setting.TEACHERS", {"digits": [("resnet8", str(path))]})
    for outcome in (
        distil(save_dir),
        distil(save_dir, f"--teachers {path}"),
        distil(save_dir, f"--evaluate {path}"),
        teach(save_dir, f"--evaluate {path}"),
        teach_each_other(save_dir, f"--start {path}"),
    ):
        refused(outcome, str(path), *words)
    assert not save_dir.exists()
