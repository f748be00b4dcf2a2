"""The figure of the same rows in several settings."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import pyplot as plt
from tiny_runs import result

from helper.errors import UsageError
from scripts import differences
from scripts.reporting.runs import read_run, write_records


@pytest.fixture
def folders(runs: Path, tmp_path: Path) -> list[Path]:
    """``two``: all students, and those of the plain average under one of their teachers; ``few``: without CAMKD."""
    students = [run for folder in sorted(runs.glob("students/*-trial=*")) if (run := read_run(folder))]
    plain = [run for run in students if "-AVERAGE_LOSS-" in run.path.name]
    of_one = [replace(run, result={**run.result, "teachers": run.result["teachers"][:1]}) for run in plain]
    few = [run for run in students if "-CAMKD-" not in run.path.name]
    made = {"two": [*of_one, *students], "few": few}
    for name, some in made.items():
        (tmp_path / name).mkdir()
        write_records(some, tmp_path / name)
    return [tmp_path / name for name in made]


def test_rows_are_compared_with_the_plain_average_of_all_teachers(folders: list[Path], runs: Path) -> None:
    title, (base,), gaps = differences.panel_of(folders[0])
    assert (title, base.first.setting["teacher_num"]) == ("two", 2)
    assert [*gaps] == [
        "AVERAGE_LOSS, kd, 1 teacher",
        "CAMKD, inter, b 50",
        "AEKD, kd, qp_solver exact",
        "AEKD, kd, qp_solver svm",
    ]
    accuracies = [
        [result(each)["last"]["test_accuracy"] for each in sorted(runs.glob(f"students/*{name}*trial=*"))]
        for name in ("qp_solver=svm", "-AVERAGE_LOSS-")
    ]
    gap, p = gaps["AEKD, kd, qp_solver svm"]
    assert gap.mean == pytest.approx(statistics.mean(a - b for a, b in zip(*accuracies, strict=True)))
    assert p is not None
    assert p >= (gap.p or 0.0), "corrected"
    assert gaps["CAMKD, inter, b 50"][1] is None, "one seed is no test"
    assert gaps["AVERAGE_LOSS, kd, 1 teacher"][0].mean == 0, "the same runs"


def test_a_file_that_is_no_figure_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match=r"--out: .*folder\.png is a folder; name the file"):
        differences.main([str(tmp_path / "missing"), "--out", str(tmp_path / "folder.png")])
    for name in ("x.foo", "x"):
        with pytest.raises(UsageError, match=rf"--out: .*{name} does not end like a figure; choose from .* .png"):
            differences.main([str(tmp_path / "missing"), "--out", str(tmp_path / name)])


def test_rows_that_differ_in_their_teachers_alone_are_all_there(runs: Path, tmp_path: Path) -> None:
    solved = [run for folder in sorted(runs.glob("students/*-AEKD-*trial=*")) if (run := read_run(folder))]
    plain = [run for folder in sorted(runs.glob("students/*-AVERAGE_LOSS-*")) if (run := read_run(folder))]
    swapped = [replace(run, result={**run.result, "teachers": run.result["teachers"][::-1]}) for run in solved]
    write_records([*plain, *solved, *swapped], tmp_path)
    assert len(differences.panel_of(tmp_path).gaps) == 4


def test_each_student_is_compared_with_its_own_plain_average(runs: Path, tmp_path: Path) -> None:
    names = ("-AEKD-*solver=svm", "-kd-AVERAGE_LOSS-")
    few = [run for name in names for path in sorted(runs.glob(f"students/*{name}*")) if (run := read_run(path))]
    others = [replace(run, parameters={**run.parameters, "model_s": "resnet14"}) for run in few]
    for run in others:
        run.result = {
            **run.result,
            "last": {**run.result["last"], "test_accuracy": run.seed + 2 * ("AEKD" in str(run.path))},
        }
    others[0].result["last"]["test_accuracy"] += 1  # gaps of 3 and 2 points
    write_records([*few, *others], tmp_path)
    panel = differences.panel_of(tmp_path)
    assert [base.first.model for base in panel.bases] == ["resnet8", "resnet14"]
    gap, _ = panel.gaps["AEKD, kd, model_s resnet14"]
    assert gap.mean == 2.5
    assert "AVERAGE_LOSS of resnet14 0.50 ± 0.71 %" in differences.title_of(panel)


def test_all_panels_have_the_same_rows(folders: list[Path], tmp_path: Path) -> None:
    figure = differences.drawn([differences.panel_of(folder) for folder in folders])
    first, second = figure.axes
    assert [each.get_text() for each in first.get_yticklabels()] == [*differences.panel_of(folders[0]).gaps]
    assert (len(first.containers), len(second.containers)) == (4, 2)
    assert first.get_title().startswith("two: ")
    assert "resnet8" in first.get_title()
    plt.close(figure)
    out = tmp_path / "new" / "figure.png"
    differences.main([*map(str, folders), "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")


def test_folders_without_anything_to_compare_with_are_refused(runs: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    write_records([run for folder in runs.glob("teachers/*") if (run := read_run(folder))], alone)
    for folder in (alone, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=rf"^folders: {folder} holds no row 'AVERAGE_LOSS, kd' to compare with; "):
            differences.main([str(folder), "--out", str(tmp_path / "figure.png")])
