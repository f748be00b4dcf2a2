"""Tables, figures and the page of finished runs, and the part of them in README and pages."""

from __future__ import annotations

import csv
import errno
import os
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT, own_files
from scipy import stats
from tiny_runs import call, result

from helper.errors import UsageError
from scripts import report
from scripts import weights as weights_by_class
from scripts.outputs import folder_for
from scripts.reporting import figures, tables
from scripts.reporting.page import page
from scripts.reporting.published import OF, lines, published
from scripts.reporting.readme import filled_in, texts
from scripts.reporting.runs import Group, Run, best_of, group, read_run, write_records
from scripts.reporting.statistics import baseline_of, half_width, holm, p_value, paired

PNG = b"\x89PNG"


def test_report_writes_tables_and_figures(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "digits"
    report.main(["--save_dir", str(runs), "--out", str(out), "--dataset", "digits"])
    assert {path.name for path in out.iterdir()} == {
        *("runs.csv", "records.jsonl", "table.md", "index.html"),
        *(f"{name}.png" for name in ("accuracy", "curves", "weights", "conflict", "solver", "diversity", "cost")),
    }
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))

    with (out / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    for row in rows:
        expected = result(Path(row["folder"]))
        assert float(row["last_accuracy"]) == pytest.approx(expected["last"]["test_accuracy"], abs=1e-4)
        assert float(row["best_accuracy"]) == pytest.approx(expected["best"]["test_accuracy"], abs=1e-4)
        assert int(row["seed"]) == expected["seed"]

    assert rows[0]["method"] == "resnet8 alone", "what the others are compared with comes first"
    text = (out / "table.md").read_text()
    assert text in capsys.readouterr().out
    alone = [float(row["last_accuracy"]) for row in rows if row["method"] == "resnet8 alone"]
    assert f"| resnet8 alone | {statistics.mean(alone):.2f} ± {statistics.stdev(alone):.2f} |" in text
    assert "| AEKD, kd, qp_solver exact | " in text
    assert "| CAMKD, inter, b 50 | " in text
    assert "Teachers: resnet8 " in text
    assert "the best epoch is chosen on the test or validation set" in text


def test_rows_under_other_teachers_are_told_apart_by_as_little_as_does(runs: Path) -> None:
    run = read_run(sorted(runs.glob("students/*-kd-AVERAGE_LOSS-*-trial=0"))[0])
    assert run is not None
    first, second = run.result["teachers"]
    moved = {**first, "path": "elsewhere/last.pth"}
    together, alone, other = (
        replace(run, result={**run.result, "teachers": each}) for each in ([first, second], [first], [moved])
    )

    def told(*of: Run) -> list[str]:
        return [each.label.removeprefix("AVERAGE_LOSS, kd").removeprefix(", teachers ") for each in group(of)]

    assert told(together) == [""]
    assert told(together, alone) == ["1xresnet8+1xwrn_16_1", "1xresnet8"]
    assert [each.partition("@")[0] for each in told(alone, other)] == ["1xresnet8", "1xresnet8"]
    assert len({*told(alone, other)}) == 2


def test_rows_of_teachers_that_have_changed_under_their_paths(runs: Path) -> None:
    """Runs that do not say what the weights were, as older ones, go to the first row that they fit."""
    solved, plain = (sorted(runs.glob(f"students/*{name}*")) for name in ("-AEKD-*solver=svm", "-kd-AVERAGE_LOSS-"))
    first, second, third = (run for path in (*plain, solved[0]) if (run := read_run(path)))
    recorded = [each["weights"] for each in first.result["teachers"]]
    assert recorded == [each["weights"] for each in second.result["teachers"]]
    assert len({*recorded}) == 2, "two files"
    assert all(len(each) == 12 for each in recorded)

    def under(run: Run, weights: str | None) -> Run:
        teachers = [{**each, "weights": weights} for each in run.result["teachers"]]
        return replace(run, result={**run.result, "teachers": teachers})

    def rows(*weights: str | None) -> list[int]:
        return [len(each.runs) + len(each.repeats) for each in group([under(first, each) for each in weights])]

    assert rows("a", "a") == [2]
    assert rows("a", "b") == [1, 1]
    assert rows(None, "a", "b", None) == [3, 1]
    labels = [each.label for each in group([under(first, "a"), under(second, "b")])]
    assert all(label.startswith("AVERAGE_LOSS, kd, teacher_weights ") for label in labels)
    for weights, there in (("a", True), (None, True), ("b", False)):
        average, other = group([under(first, "a"), under(third, weights)])
        assert (baseline_of(other, [average, other]) is average) == there


def test_baselines_have_seen_the_same_images(runs: Path) -> None:
    paths = [sorted(runs.glob(f"students/*{name}*"))[0] for name in ("-kd-AVERAGE_LOSS-", "-AEKD-*solver=svm")]
    plain, solved = (run for path in paths if (run := read_run(path)))

    def on(run: Run, images: str) -> Run:
        return replace(run, result={**run.result, "images": f"digits{images}"})

    for images, there in (("@0a1b2c", True), ("", True), ("@3d4e5f", False)):
        average, other = group([on(plain, "@0a1b2c"), on(solved, images)])
        assert (baseline_of(other, [average, other]) is average) == there


def test_report_keeps_the_given_order(runs: Path, tmp_path: Path) -> None:
    folders = sorted(map(str, runs.glob("*/*-trial=0")), reverse=True)
    report.main(["--folders", *folders, "--out", str(tmp_path)])
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert [row["folder"] for row in csv.DictReader(file)] == folders


def test_report_goes_on_from_an_earlier_one(runs: Path, tmp_path: Path) -> None:
    """Where run folders are gone, the records of an earlier report stand for them; the newer of two counts."""
    first, *others = sorted(runs.glob("*/*-trial=*"))
    old, grown, whole = (tmp_path / name for name in ("old", "grown", "whole"))
    report.main(["--folders", str(first), *map(str, others[:2]), "--out", str(old)])
    report.main(["--folders", str(old), *map(str, others[1:]), "--out", str(grown)])
    report.main(["--folders", str(first), *map(str, others), "--out", str(whole)])
    for path in whole.iterdir():
        if path.name != "index.html":  # it has the folder's name for a title
            assert (grown / path.name).read_bytes() == path.read_bytes(), path.name
    report.main(["--folders", str(grown), "--out", str(grown)])
    assert (grown / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()


def test_report_tells_settings_apart(runs: Path) -> None:
    first, second = (read_run(folder) for folder in sorted(runs.glob("teachers/*")))
    assert first is not None
    assert second is not None
    assert [each.label for each in group([first, second])] == ["resnet8 alone"]
    second.parameters["batch_size"] = 128
    labels = [each.label for each in group([first, second])]
    assert labels == ["resnet8 alone, batch_size 64", "resnet8 alone, batch_size 128"]


def test_one_seed_is_one_run(runs: Path, tmp_path: Path) -> None:
    """A trial that is no number leaves the seed 0: of such runs the one named last counts, and the others are named."""
    first, *_ = sorted(runs.glob("students/*-kd-AVERAGE*-trial=0"))
    other = sorted(runs.glob("students/*-kd-AVERAGE*-trial=1"))[0]
    run = read_run(first)
    assert run is not None
    again = [replace(run, path=tmp_path / name, parameters={**run.parameters, "trial": name}) for name in "abc"]
    records = tmp_path / "records"
    records.mkdir()
    write_records(again, records)
    out = tmp_path / "out"
    report.main(["--folders", str(first), str(records), str(other), "--out", str(out)])
    with (out / "runs.csv").open(newline="") as file:
        assert [row["folder"] for row in csv.DictReader(file)] == [str(tmp_path / "c"), str(other)]
    text = (out / "table.md").read_text()
    page_text = (out / "index.html").read_text()
    for path in (first, tmp_path / "a", tmp_path / "b"):
        said = f"{path} is left out, since {tmp_path / 'c'} is of the same setting and seed."
        assert said in text
        assert said in page_text
    report.main(["--folders", str(out), "--out", str(tmp_path / "later")])
    for name in ("records.jsonl", "table.md"):
        assert (tmp_path / "later" / name).read_bytes() == (out / name).read_bytes()


def test_report_tells_apart_what_only_the_names_of_runs_say(runs: Path) -> None:
    first, second = (read_run(folder) for folder in sorted(runs.glob("students/*-kd-AVERAGE*")))
    assert first is not None
    assert second is not None
    path, images = second.path, second.result["images"]

    def labels(name: str, **result: Any) -> list[str]:
        other = replace(second, path=path.with_name(name), result={**second.result, **result})
        return [each.label.removeprefix("AVERAGE_LOSS, kd") for each in group([first, other])]

    assert labels(path.name) == [""]
    assert labels(path.name.replace("-trial", "-cached-trial")) == ["", ", cached True"]
    assert labels(path.name, images=f"{images}@0a1b2c") == ["", ", images 0a1b2c"]
    without = {name: value for name, value in second.result.items() if name != "images"}
    older = replace(second, path=path.with_name(path.name.replace("-digits-", "-digits@0a1b2c-")), result=without)
    assert [each.label for each in group([first, older])][1].endswith(", images 0a1b2c")
    edited = [path.name.replace("resnet8-", f"net.py@{letters}-", 1) for letters in ("0a1b2c", "3d4e5f")]
    both = [replace(second, path=path.with_name(name)) for name in edited]
    assert [each.label.rpartition(", ")[2] for each in group(both)] == ["network 0a1b2c", "network 3d4e5f"]
    second.parameters["batch_size"] = 128
    assert labels(path.name, images=f"{images}@0a1b2c")[1].endswith(", batch_size 128"), "which tells that, too"


def test_one_run_is_one_run_however_it_is_named(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sorted(runs.glob("students/*-kd-AVERAGE*"))[0]
    monkeypatch.chdir(folder.parent)
    report.main(["--folders", folder.name, str(folder), "--out", str(tmp_path)])
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 1


def test_commands_leave_out_what_they_found(runs: Path) -> None:
    run = read_run(sorted(runs.glob("students/*-kd-AVERAGE*"))[0])
    assert run is not None
    for words in ("--resume", "--resume save/a", "--resume=save/a", "--overwrite", "--overwrite --resume"):
        run.result["command"] = f"python train_student.py --alpha 1 {words} --trial 2"
        assert run.command == "python train_student.py --alpha 1 --trial 2", words
        run.result["command"] = f"python train_student.py --trial 2 {words}"
        assert run.command == "python train_student.py --trial 2", words


@pytest.mark.parametrize("name", ["result.json", "parameters.json", "records.jsonl"])
def test_damaged_runs_are_named(name: str, runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sorted(runs.glob("students/*-kd-AVERAGE*"))[0], tmp_path / "run")
    (folder / name).write_text("{")
    outcome = call(report.main, "report", f"--folders {folder} --out {tmp_path / 'out'}")
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert str(folder / name) in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.jsonl", None, "has no epochs"),
        ("metrics.jsonl", "", "has no epochs"),
        ("result.json", '{"best": {}}', "does not say last, best_chosen_on, "),
    ],
)
def test_runs_that_lack_something_are_named(
    name: str, content: str | None, said: str, runs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sorted(runs.glob("students/*-kd-AVERAGE*"))[0], tmp_path / "run")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    outcome = call(report.main, "report", f"--folders {folder} --out {tmp_path / 'out'}")
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert str(folder / name) in outcome.err
    assert said in outcome.err


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(UsageError, match=r"^--out: .* cannot be written \(Read-only file system\)$"):
        folder_for("--out", tmp_path)


@pytest.mark.parametrize("mark", ["x: Peeers", "y", "y: Peers"])
def test_a_mistyped_mark_leaves_all_pages_as_they_are(
    mark: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    report.main(["--folders", str(next(runs.glob("teachers/*"))), "--out", str(tmp_path / "results" / "x")])
    pages = {"README.md": "<!-- results/x -->\n<!-- end -->", "docs/a.md": f"<!-- results/{mark} -->\n<!-- end -->"}
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    outcome = call(report.main, "report", "--readme")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert outcome.err.startswith(f"report: error: --readme: {tmp_path / 'docs' / 'a.md'}: ")
    assert {name: (tmp_path / name).read_text() for name in pages} == pages


@pytest.mark.parametrize(("main", "option"), [(report.main, "--folders "), (weights_by_class.main, "")])
def test_where_to_write_is_looked_at_first(
    main: Callable[[Sequence[str]], None], option: str, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    folder = sorted(runs.glob("students/*-kd-AVERAGE*"))[0]
    outcome = call(main, "tool", f"{option}{folder} --out {tmp_path / 'file'}")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"tool: error: --out: {tmp_path / 'file'} cannot be made (File exists)\n"


def test_rows_may_have_other_options_than_each_other(runs: Path) -> None:
    """As of a method of a person's own that was edited."""
    first, second = (read_run(folder) for folder in sorted(runs.glob("students/*-kd-AVERAGE*")))
    assert first is not None
    assert second is not None
    first.parameters["gone"], second.parameters["batch_size"] = 5, 99
    for pair in ([first, second], [second, first]):
        labels = [each.label for each in group(pair)]
        assert any("gone 5" in label for label in labels), labels
        assert any("batch_size 99" in label for label in labels), labels


def test_report_without_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    missing = ["--folders", str(next(runs.glob("students/*"))), str(runs / "students" / "missing")]
    for words in (["--dataset", "cifar100"], ["--folders", str(tmp_path)], missing):
        with pytest.raises(SystemExit) as end:
            report.main(["--save_dir", str(runs), "--out", str(out), *words])
        assert end.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not out.exists()


def test_curves_are_means_and_deviations_over_seeds(runs: Path) -> None:
    members = [run for run in map(read_run, sorted(runs.glob("teachers/*"))) if run]
    epochs, means, stds = Group("", members).curve("test_accuracy")
    assert epochs == [1, 2]
    for epoch in (0, 1):
        values = [run.metrics[epoch]["test_accuracy"] for run in members]
        assert means[epoch] == pytest.approx(statistics.mean(values))
        assert stds[epoch] == pytest.approx(statistics.stdev(values))


def test_difference_to_the_default_weighting_is_paired(runs: Path) -> None:
    groups = group([run for run in map(read_run, sorted(runs.glob("students/*"))) if run])
    (aekd,) = [each for each in groups if each.label == "AEKD, kd, qp_solver exact"]
    baseline = baseline_of(aekd, groups)
    assert baseline is not None
    assert baseline.label == "AVERAGE_LOSS, kd"
    assert baseline_of(baseline, groups) is None
    gaps = [
        mine.accuracy("last") - theirs.accuracy("last") for mine, theirs in zip(aekd.runs, baseline.runs, strict=True)
    ]
    found = paired(aekd, baseline)
    assert found is not None
    assert (found.mean, found.pairs) == (pytest.approx(statistics.mean(gaps)), 2)
    assert found.half == pytest.approx(half_width(gaps))
    (inter,) = [each for each in groups if each.label.startswith("CAMKD")]
    assert baseline_of(inter, groups) is baseline
    alone = paired(inter, baseline)
    assert alone is not None
    assert (alone.half, alone.pairs) == (None, 1)
    assert str(alone).endswith(" (1 seed)")


def test_rows_of_other_options_are_compared(runs: Path) -> None:
    groups = group([run for run in map(read_run, sorted(runs.glob("*/*"))) if run])
    by_label = {each.label: each for each in groups}
    exact, svm = (f"AEKD, kd, qp_solver {solver}" for solver in ("exact", "svm"))
    expected = [str(paired(by_label[svm], by_label[exact], which)) for which in ("last", "best")]
    assert tables.options_table(groups).rows == [[svm, exact, *expected, "2"]]


def test_differences_are_corrected_for_their_number(runs: Path, tmp_path: Path) -> None:
    report.main(
        ["--folders", *map(str, sorted(runs.glob("*/*"))), "--out", str(tmp_path), "--against", "resnet8 alone"]
    )
    groups = group([run for run in map(read_run, sorted(runs.glob("*/*"))) if run])
    table = tables.differences_table(groups, "resnet8 alone")
    assert table.title == "Differences to resnet8 alone"
    assert {row[0] for row in table.rows} == {each.label for each in groups if len(each.runs) > 1} - {"resnet8 alone"}
    assert table.markdown() in (tmp_path / "table.md").read_text()
    default = tables.differences_table(groups)
    assert "AEKD, kd, qp_solver exact" in {row[0] for row in default.rows}
    (tmp_path / "sets" / "x").mkdir(parents=True)
    (tmp_path / "records.jsonl").rename(tmp_path / "sets" / "x" / "records.jsonl")
    marks = "<!-- results/sets/x: Differences to {} -->\n<!-- end -->"
    assert table.markdown() in filled_in(marks.format("resnet8 alone"), tmp_path)
    with pytest.raises(UsageError, match="no table 'Differences to nobody'"):
        filled_in(marks.format("nobody"), tmp_path)


def test_p_values_are_scipys() -> None:
    values = [0.3, 0.5, -0.1, 0.4]
    assert p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert (p_value([1.0]), p_value([0.0, 0.0])) == (None, 1.0)


def test_equal_gaps_are_no_test(runs: Path) -> None:
    """Not even where rounding tells them apart."""
    assert (p_value([1.0, 1.0]), p_value([0.3, 0.1 + 0.2])) == (None, None)
    plain = [run for path in sorted(runs.glob("students/*-kd-AVERAGE_LOSS-*")) if (run := read_run(path))]

    def above(by: float, name: str) -> list[Run]:
        last = [{**run.result["last"], "test_accuracy": run.accuracy("last") + by} for run in plain]
        own = {"ensemble_method": name}
        return [
            replace(run, parameters={**run.parameters, **own}, result={**run.result, "last": each})
            for run, each in zip(plain, last, strict=True)
        ]

    table = tables.differences_table(group([*plain, *above(1.0, "EBKD"), *above(0.0, "RLW")]))
    first, second = ([row[0], row[1], *row[3:5]] for row in table.rows)
    assert first == ["EBKD, kd", "+1.00 [–]", "–", "–"]
    assert second == ["RLW, kd", "+0.00 [+0.00, +0.00]", "1.000", "1.000"]
    assert "corrected for the 1 rows of this table (Holm). –: all seeds differ by the same" in table.words


def test_holms_correction() -> None:
    """By hand: 3 · 0.01, then 2 · 0.03 and 0.04, which may not be smaller than what comes before it."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_row_to_compare_with_has_to_be_there(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        report.main(["--save_dir", str(runs), "--out", str(out), "--against", "nobody"])
    assert end.value.code == 2
    assert "report: error: --against: 'nobody' is none of the rows: " in capsys.readouterr().err
    assert not out.exists()


def test_an_option_is_chosen_on_validation_images(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = runs.glob("students/*-CAMKD-*")
    other = read_run(next(runs.glob("students/*-kd-AVERAGE_LOSS-*-trial=0")))
    run = read_run(folder)
    assert run is not None
    assert other is not None
    found = {"0.5": (40.0, 90.0), "1": (50.0, 10.0), "2": (45.0, 95.0)}  # validation and test
    made = [
        replace(
            run,
            path=tmp_path / alpha,
            parameters={**run.parameters, "alpha": float(alpha)},
            metrics=[{**run.metrics[-1], "validation_accuracy": validation, "test_accuracy": test}],
        )
        for alpha, (validation, test) in found.items()
    ]
    assert [each.label for each in best_of(group([*made, other]), "alpha")] == [
        "CAMKD, inter, b 50, alpha 1.0",
        "AVERAGE_LOSS, kd",
    ]
    (tmp_path / "in").mkdir()
    write_records([*made, other], tmp_path / "in")
    words = ["--folders", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--choose"]
    report.main([*words, "alpha"])
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 2
    del made[0].metrics[-1]["validation_accuracy"]
    write_records(made, tmp_path / "in")
    for option, message in (("alfa", "'alfa' is no option"), ("alpha", "alpha 0.5 was trained without --validation")):
        with pytest.raises(SystemExit) as end:
            report.main([*words, option])
        assert end.value.code == 2
        assert re.search(rf"^report: error: --choose: .*{message}", capsys.readouterr().err)


def test_weights_of_the_teachers_are_told(runs: Path) -> None:
    groups = group([run for run in map(read_run, sorted(runs.glob("*/*"))) if run])
    table = tables.weights_table(groups)
    header, rows = table.filled()
    assert {row[0] for row in rows} == {each.label for each in groups if each.label.startswith(("AEKD", "CAMKD"))}
    for each in groups:
        told = [row for row in rows if row[:2] == [each.label, "logits"]]
        for row, metrics in zip(told, each.first.metrics, strict=False):
            assert row[2] == str(metrics["epoch"])
            means = [by_epoch[metrics["epoch"]] for by_epoch in curves(each, "train_weight_")]
            assert row[3] == " ".join(f"{mean:.3f}" for mean in means)
    svm = [dict(zip(header, row, strict=True)) for row in rows if row[0] == "AEKD, kd, qp_solver svm"]
    assert svm
    for row in svm:
        assert float(row["combined gradient"]) >= float(row["with exact weights"])
        assert 0 <= float(row["at the start"]) <= 1
    assert tables.first_middle_last(range(1, 31)) == [1, 15, 30]
    assert tables.first_middle_last([1, 2]) == [1, 2]


def curves(each: Group, prefix: str) -> list[dict[int, float]]:
    """The mean of each metric of that name by epoch."""
    return [dict(zip(*each.curve(name)[:2], strict=True)) for name in each.names(prefix)]


def test_interval_is_students() -> None:
    values = [1.0, 2.5, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 3, statistics.mean(values), stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2)


def test_older_runs_stay_in_their_group(runs: Path) -> None:
    first, second = (read_run(folder) for folder in sorted(runs.glob("students/*-kd-AVERAGE*")))
    assert first is not None
    assert second is not None
    for name in ("accumulate", "sync_bn", "optimizer", "teacher_cache", "teacher_cache_gb", "checkpoint_minutes"):
        del first.parameters[name]
    del first.result["precision"]
    first.parameters["precision"] = second.result["precision"]  # older runs had to say which
    second.parameters |= {"checkpoint_minutes": 3.0, "teacher_cache_gb": 1.0, "num_workers": 0}
    assert [each.label for each in group([first, second])] == ["AVERAGE_LOSS, kd"]


def a_row(options: str, epochs: int, **others: Any) -> Group:
    """A row as far as published values are concerned."""
    given: dict[str, Any] = dict(word.split("=", 1) for word in options.split())
    teachers = given.pop("teachers", None)
    parameters = {"dataset": "cifar100", "epochs": epochs, "precision": "bf16", **given, **others}
    number, arch = teachers.split("x", 1) if teachers else (0, "")
    result = {"teachers": [{"arch": arch, "path": f"{k}.pth"} for k in range(int(number))]} if teachers else {}
    return Group("", [Run(Path(), parameters, result, [])])


def test_published_value_of_the_same_setting() -> None:
    options = "teachers=2xwrn_40_2 model_s=wrn_16_2 distill=kd ensemble_method=AEKD"
    found = published(a_row(options, 240, beta=0.0))
    assert found is not None
    assert (found.value, found.differing) == (75.68, [])
    near = published(a_row(options, 30, beta=0.0, kd_scale="unit"))
    assert near is not None
    assert near.differing == ["30 of 240 epochs", "kd_scale unit"]
    for other in ("3xwrn_40_2", "2xvgg8"):
        assert published(a_row(options.replace("2xwrn_40_2", other), 240, beta=0.0)) is None
    assert published(a_row(options, 240, beta=0.0, dataset="cifar10")) is None
    online = published(a_row("method=ONE model=resnet164_bottleneck", 300))
    assert online is not None
    assert (online.value, online.differing) == (78.38, ["called resnet110 there"])
    alone = published(a_row("model=resnet32", 300, **RECIPE_OF_ONE))
    assert alone is not None
    assert (alone.value, alone.differing) == (68.82, [])


RECIPE_OF_ONE = {
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "nesterov": False,
    "pretrained": False,
    "lr_decay_epochs": [151, 225],
}


def test_published_values_are_held_against_the_same_of_the_runs() -> None:
    """RepDistiller's table is of the last epoch; means of peers are held against the best mean of the peers."""
    result = {"last": {"test_accuracy": 70.0}, "best": {"test_accuracy": 71.0, "test_peer_accuracy": 69.0}}
    metrics = [{"test_peer_accuracy": accuracy} for accuracy in (68.0, 70.5, 69.0)]
    options = {"gamma": 0.1, "alpha": 0.9, "beta": 0.0}
    student = a_row("teachers=1xvgg13 model_s=vgg8 distill=kd ensemble_method=AVERAGE_LOSS", 240, **options)
    peers = a_row("model=densenetd40k12 method=DML", 300, dataset="cifar100")
    for each, of, expected in ((student, "last", 70.0), (peers, "", 71.0)):
        each.first.result |= result
        found = published(each)
        assert found is not None
        assert (found.of, found.here(each)) == (of, (expected, None))
    run = peers.first
    assert run.best_mean_of_peers() == 69.0, "of the one epoch that is known"
    run.metrics += metrics
    assert run.best_mean_of_peers() == 70.5
    assert {line["of"] for line in lines()} == OF.keys()


def test_values_that_a_later_paper_repeats_under_other_teachers_are_not_preferred() -> None:
    repeated = [line for line in lines() if "CA-MKD's table" in line["note"]]
    assert len(repeated) == 10
    assert {line["preferred"] for line in repeated} == {"no"}


def test_what_is_known_of_a_published_method_stands_beside_its_value() -> None:
    for line in lines():
        if "distill=hint ensemble_method=AVERAGE_LOSS beta=100" in line["options"] and "gamma" not in line["options"]:
            assert "no gradient" in line["note"], line
        if line["student"] == "densenetd40k12" and line["method"] in ("CLILR", "ONE", "OKDDip"):
            assert "one last dense block" in line["note"], line
        if line["source"].startswith("ONE "):
            assert "resnet110_bottleneck" not in line["options"], line


def test_published_values_can_be_matched_by_options_that_exist() -> None:
    assert len(lines()) > 220
    for line in lines():
        options = dict(word.split("=", 1) for word in line["options"].split())
        row = a_row(line["options"], 240, **{name: float(options[name]) for name in options.keys() & {"beta"}})
        assert options.keys() <= row.first.setting.keys() | {"learning_rate"}, line


class Structure(HTMLParser):
    """Counts the elements of a page, and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def test_page_holds_everything(runs: Path, tmp_path: Path) -> None:
    report.main(["--save_dir", str(runs), "--out", str(tmp_path)])
    text = (tmp_path / "index.html").read_text()
    structure = Structure(text)
    assert structure.open == []
    images = [attributes for tag, attributes in structure.found if tag == "img"]
    assert len(images) == len(figures.FIGURES) == len(list(tmp_path.glob("*.png")))
    assert all(str(each["src"]).startswith("data:image/png;base64,") for each in images)
    assert all(each["alt"] for each in images)
    assert structure.count("table") == (tmp_path / "table.md").read_text().count("\n|---|") == 7
    assert "python train_student.py" in text
    assert not re.search(r"(src|href)=.(?!data:)", text), "nothing outside the file"


def test_page_escapes_what_it_is_told(tmp_path: Path) -> None:
    table = tables.Table("a < b", "x & y", ["<i>"], [["<script>"]])
    text = page("</title>", [table], ["<p>"], {"<b>": "a > b"}, tmp_path)
    structure = Structure(text)
    assert structure.open == []
    assert structure.count("script") == structure.count("i") == structure.count("b") == 0


def test_empty_columns_are_left_out() -> None:
    table = tables.Table("", "", ["a", "b", "c"], [["1", "", "2"], ["3", "", ""]])
    assert table.markdown() == "| a | c |\n|---|---|\n| 1 | 2 |\n| 3 |  |"


def test_a_bar_divides_no_cell(tmp_path: Path) -> None:
    table = tables.Table("", "", ["a|b"], [["file|x.py:Net"]])
    assert table.markdown() == "| a\\|b |\n|---|\n| file\\|x.py:Net |"
    assert "<td>file|x.py:Net</td>" in page("", [table], [], {}, tmp_path)


@pytest.mark.parametrize(("what", "value"), [("dataset", "mnist"), ("classes", list("abcdefghij")), ("images", None)])
def test_classes_of_other_test_images_share_no_table(what: str, value: Any, runs: Path) -> None:
    """Even where they are called alike, as the digits of several datasets are."""
    run = read_run(sorted(runs.glob("teachers/*"))[0])
    assert run is not None
    counts = run.result["last"]["test_class_images"]

    def titles(dataset: str = "digits", classes: Any = "0123456789", images: Any = counts) -> list[str]:
        last = {**run.result["last"], "test_class_images": images or [2 * count for count in counts]}
        result = {**run.result, "dataset": dataset, "classes": list(classes), "last": last}
        other = replace(run, result=result, parameters={**run.parameters, "dataset": dataset, "batch_size": 128})
        first = replace(run, result={**run.result, "classes": list("0123456789")})
        return list(tables.class_table(group([first, other])).header)

    assert len(titles()) == 4
    assert len(titles(**{what: value})) == 3


def test_scores_beyond_accuracy_are_told(runs: Path, tmp_path: Path) -> None:
    folder = next(runs.glob("students/*AEKD*trial=0"))
    report.main(["--folders", str(folder), "--out", str(tmp_path)])
    with (tmp_path / "runs.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    expected = result(folder)
    for which in ("last", "best"):
        for name in ("loss", "ece", "ensemble_agreement", "ensemble_kl"):
            assert float(row[f"{which}_{name}"]) == pytest.approx(expected[which][f"test_{name}"], abs=1e-4)
    assert (row["processes"], row["precision"]) == ("1", expected["precision"])
    gap = expected["last"]["test_accuracy"] - expected["teacher_ensemble"]["accuracy"]
    assert f"{gap:+.2f}" in (tmp_path / "table.md").read_text().split("## Beyond accuracy")[1]


@pytest.mark.parametrize("path", [path for path in texts(ROOT) if path in own_files()], ids=lambda path: path.name)
def test_tables_in_texts_are_those_of_results(path: Path) -> None:
    text = path.read_text()
    assert text == filled_in(text, ROOT / "results"), "python -m scripts.report --readme writes them"


def test_all_pages_with_tables_are_found(tmp_path: Path) -> None:
    for name in ("README.md", "docs/a.md", "docs/plain.md", "results/b.md", "results/x/table.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        marks = "no table" if "plain" in name else "<!-- results/x -->\n<!-- end -->"
        (tmp_path / name).write_text(marks)
    assert [str(path.relative_to(tmp_path)) for path in texts(tmp_path)] == ["README.md", "docs/a.md", "results/b.md"]


def test_text_can_hold_a_table_of_the_report(runs: Path, tmp_path: Path) -> None:
    report.main(["--folders", *map(str, sorted(runs.glob("students/*AEKD*"))), "--out", str(tmp_path / "x")])
    made = filled_in("<!-- results/x: Other options -->\n<!-- end -->\n", tmp_path)
    (row,) = [
        line
        for line in (tmp_path / "x" / "table.md").read_text().splitlines()
        if line.startswith("| AEKD, kd, qp_solver svm | AEKD")
    ]
    assert row in made.splitlines()
    with pytest.raises(UsageError, match="'Peers' among Accuracy, "):
        filled_in("<!-- results/x: Peers -->\n<!-- end -->", tmp_path)


def test_a_pages_part_follows_its_file(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    csv_text = "method,last_accuracy,best_accuracy,best_chosen_on,epochs,images_per_second,device\n"
    csv_text += "A,50,51,test,3,9,CPU\nA,52,53,test,3,11,CPU\nB,1,2,test,3,4,GPU\n"
    (tmp_path / "x" / "runs.csv").write_text(csv_text)
    made = filled_in("before\n<!-- results/x -->\nold\n<!-- end -->\nafter", tmp_path)
    assert made.startswith("before\n<!-- results/x -->\nTest accuracy")
    assert made.endswith("<!-- end -->\nafter")
    assert "| A | 51.00 ± 1.41 | 52.00 ± 1.41 | 2 | 3 | 10 |\n| B | 1.00 | 2.00 | 1 | 3 | 4 |" in made
    assert filled_in(made, tmp_path) == made


def test_report_needs_somewhere_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        report.main([])
    assert end.value.code == 2
    assert capsys.readouterr().err == "report: error: --out: say which folder to write to, or --readme\n"


def test_figures_are_left_out_where_there_is_nothing_to_draw(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.png").write_text("of an earlier report")
    report.main(["--folders", str(next(runs.glob("teachers/*"))), "--out", str(tmp_path)])
    assert {path.stem for path in tmp_path.glob("*.png")} == {"accuracy", "curves"}
