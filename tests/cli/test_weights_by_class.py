"""``python -m scripts.weights``: whom finished students listen to."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import few_digits, metrics

from helper.errors import UsageError
from scripts import weights

CLASSES = 10


@pytest.fixture(autouse=True)
def _few() -> Iterator[None]:
    with few_digits():
        yield


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "classes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_weights_of_each_class(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    students = sorted((runs / "students").glob("*trial=*"))
    before = {path: path.read_bytes() for folder in students for path in folder.iterdir() if path.is_file()}
    weights.main([*map(str, students), "--out", str(tmp_path / "out")])
    assert before == {path: path.read_bytes() for folder in students for path in folder.iterdir() if path.is_file()}
    assert (tmp_path / "out" / "classes.png").read_bytes().startswith(b"\x89PNG")
    found = rows(tmp_path / "out")
    assert len(found) == (4 + 1) * CLASSES, "CAMKD weighs on two levels"
    told = capsys.readouterr().out
    by_row: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in found:
        by_row.setdefault((row["method"], row["losses"]), []).append(row)
    for (label, level), each in by_row.items():
        assert f"{label}, {level}, teacher 1: " in told
        sums = [float(row["weight_0"]) + float(row["weight_1"]) for row in each]
        expected = 0.5 if label.startswith("CAMKD") else 1  # as released, 1/K
        assert sums == pytest.approx([expected] * CLASSES, abs=1e-4)
    assert {row["weight_0"] for row in by_row["AVERAGE_LOSS, kd", "logit"]} == {"0.50000"}
    assert len({row["weight_0"] for row in by_row["CAMKD, inter, b 50", "logit"]}) > 1


def test_weights_are_about_those_of_the_last_epoch(runs: Path, tmp_path: Path) -> None:
    (folder,) = (runs / "students").glob("*CAMKD*")
    weights.main([str(folder), "--out", str(tmp_path)])
    last = metrics(folder)[-1]
    for level, name in (("logit", "train_weight_0"), ("feature", "train_feature_weight_0")):
        each = [row for row in rows(tmp_path) if row["losses"] == level]
        mean = sum(float(row["weight_0"]) * int(row["images"]) for row in each) / sum(
            int(row["images"]) for row in each
        )
        assert mean == pytest.approx(last[name], rel=0.2)


def test_a_class_that_one_seed_has_not_seen() -> None:
    """Each seed counts as often as it has seen the class."""
    nan = float("nan")
    first = weights.PerClass(torch.tensor([[0.2, nan, nan]]), torch.tensor([1, 0, 0]))
    second = weights.PerClass(torch.tensor([[0.6, 0.5, nan]]), torch.tensor([3, 2, 0]))
    mean, images = weights.mean_over_seeds([{"logit": first}, {"logit": second}])["logit"]
    assert images.tolist() == [4, 2, 0]
    assert mean[0].tolist() == pytest.approx([0.5, 0.5, nan], nan_ok=True)


@pytest.mark.parametrize(("dataset", "classes"), [("mnist", "01"), ("digits", "ab")])
def test_runs_on_other_classes_share_no_table(
    dataset: str, classes: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many of them do not make them the same."""
    sessions = [
        SimpleNamespace(opt=SimpleNamespace(dataset=name), info=SimpleNamespace(classes=list(each), num_classes=2))
        for name, each in (("digits", "01"), (dataset, classes))
    ]
    seen = {"logit": weights.PerClass(torch.ones(2, 2), torch.ones(2, dtype=torch.int64))}
    monkeypatch.setattr(weights, "trained", lambda *_: (None, sessions.pop(0)))
    monkeypatch.setattr(weights, "listened", lambda *_: seen)
    folders = sorted(map(str, (runs / "students").glob("*-kd-AVERAGE*")))
    with pytest.raises(UsageError, match="is on another dataset or other classes than those before it"):
        weights.main([*folders, "--out", str(tmp_path)])


@pytest.mark.parametrize("which", ["teachers/*trial=0", "students/unfinished"])
def test_what_has_no_weights_is_refused(which: str, runs: Path, tmp_path: Path) -> None:
    (folder,) = runs.glob(which)
    with pytest.raises(UsageError, match="is no finished student of several teachers"):
        weights.main([str(folder), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_file_is_run_only_when_it_is_asked_for(runs: Path, tmp_path: Path) -> None:
    (folder,) = (runs / "students").glob("*CAMKD*")
    (tmp_path / "net.py").write_text("raise ValueError('it was run')")
    name, parameters = f"{tmp_path}/net.py:Net", json.loads((folder / "parameters.json").read_text())
    path, _, _ = parameters["teachers"][0].partition(":")
    shutil.copytree(folder, tmp_path / "run")
    words = [str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    for edited in ({"model_s": name}, {"teachers": [f"{path}:{name}", *parameters["teachers"][1:]]}):
        (tmp_path / "run" / "parameters.json").write_text(json.dumps({**parameters, **edited}))
        with pytest.raises(UsageError, match=r"says that its network is .*net\.py:Net; --arch .*net\.py:Net uses that"):
            weights.main(words)
        with pytest.raises(UsageError, match="it was run"):
            weights.main([*words, "--arch", name])


def test_parameters_of_another_run_are_one_line(runs: Path, tmp_path: Path) -> None:
    (folder,) = (runs / "students").glob("*CAMKD*")
    shutil.copytree(folder, tmp_path / "run")
    parameters = json.loads((folder / "parameters.json").read_text())
    (tmp_path / "run" / "parameters.json").write_text(json.dumps({**parameters, "model_s": "resnet14"}))
    with pytest.raises(UsageError, match=r"run: its checkpoint holds other networks than its parameters"):
        weights.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
