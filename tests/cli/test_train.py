"""The training scripts from the command line to the run folder."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from objectives import few_pairs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import (
    ARCHS,
    CLASSES,
    call,
    distil,
    distil_under,
    metrics,
    result,
    same,
    teach,
    teach_each_other,
    weights,
    without_times,
)

import train_student
import train_teacher
from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from ensemble.qp_solvers import qp_solver_dict
from helper import checkpoint
from helper.options import Options
from helper.record import Record
from helper.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("little_data")

FILES = {"best.pth", "last.pth", "parameters.json", "metrics.jsonl", "result.json", "tensorboard"}
SCORES = {"test_accuracy", "test_accuracy5", "test_balanced_accuracy", "test_loss", "test_ece"}
FEATURE = "--distill inter --ensemble_method CAMKD -b 50"


def hyperparameters(kind: type) -> list[str]:
    """The keyword-only arguments of a constructor."""
    arguments = inspect.signature(kind).parameters.values()
    return [each.name for each in arguments if each.kind == each.KEYWORD_ONLY]


def dests(parser: Options) -> set[str]:
    return {action.dest for action in parser._actions} - {"help", "config", "resume", "overwrite", "evaluate"}


def interrupt(patch: pytest.MonkeyPatch, epoch: int) -> None:
    """Break off after the epoch's metrics are written, before its checkpoint."""
    save = Record.save

    def stop(self: Record, seconds: float) -> None:
        if self.contents.progress.epoch == epoch:
            raise KeyboardInterrupt
        save(self, seconds)

    patch.setattr(Record, "save", stop)


# ---- what a run leaves behind


def test_run_folder_of_a_teacher(tmp_path: Path) -> None:
    folder = teach(tmp_path, "--epochs 2").folder
    assert folder == tmp_path / "teachers" / "resnet8-digits-epochs=2-trial=0"
    assert {path.name for path in folder.iterdir()} >= FILES

    parameters = json.loads((folder / "parameters.json").read_text())
    assert parameters.keys() == dests(train_teacher.options())
    assert (parameters["model"], parameters["epochs"], parameters["batch_size"]) == ("resnet8", 2, 64)

    rows = metrics(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    train = {"train_loss", "train_accuracy", "learning_rate", "images_per_second", "seconds"}
    assert all(row.keys() == {"epoch", *train, *SCORES} for row in rows)

    summary = result(folder)
    recorded = {name: rows[1][name] for name in ("epoch", *sorted(SCORES))}
    assert {name: value for name, value in summary["last"].items() if "test_class_" not in name} == recorded
    assert len(summary["last"]["test_class_accuracy"]) == len(summary["last"]["test_class_images"]) == CLASSES
    assert summary["best"]["test_accuracy"] == max(row["test_accuracy"] for row in rows)
    assert (summary["best_chosen_on"], summary["seed"], summary["epochs"]) == ("test", 0, 2)
    assert summary.keys() >= {"hours", "images_per_second", "versions", "git_revision", "command", "device"}
    assert summary["command"].startswith("python train_teacher.py --model resnet8")

    last = checkpoint.load(folder / "last.pth")
    assert (last["arch"], last["num_classes"], last["dataset"], last["epoch"]) == ("resnet8", CLASSES, "digits", 2)


def test_run_folder_of_a_student(tmp_path: Path, teachers: str) -> None:
    outcome = distil(tmp_path, f"{teachers} {FEATURE} --epochs 2")
    folder = outcome.folder
    assert folder.parent == tmp_path / "students"
    assert folder.name.startswith("resnet8-digits-inter-CAMKD-1xresnet8+1xwrn_16_1+1xShuffleV2_0_5@")
    assert folder.name.endswith("-r=1-a=1-b=50-epochs=2-trial=0")
    assert {path.name for path in folder.iterdir()} >= FILES
    parameters = json.loads((folder / "parameters.json").read_text())
    of_others = {name for kind in (*distill_dict.values(), *ensemble_dict.values()) for name in hyperparameters(kind)}
    chosen = (distill_dict["inter"], distill_dict["kd"], ensemble_dict["CAMKD"])  # kd stands beside a loss on features
    of_others -= {name for each in chosen for name in hyperparameters(each)}
    assert {"hint_layer", "C", "svm_norm", "qp_solver"} <= of_others
    assert parameters.keys() == dests(train_student.options()) - of_others
    assert (parameters["alpha"], parameters["beta"], parameters["convs"]) == (1, 50, False)

    first, second = metrics(folder)
    assert "train_loss_feature" not in first, "the released code leaves the feature loss out of the first epoch"
    assert "train_loss_feature" in second
    summary = result(folder)
    assert [teacher["arch"] for teacher in summary["teachers"]] == list(ARCHS)
    for k, teacher in enumerate(summary["teachers"]):
        assert f"teacher {k}: {teacher['accuracy']:.2f} %" in outcome.out
    assert f"ensemble: {summary['teacher_ensemble']['accuracy']:.2f} %" in outcome.out
    for which in ("last", "best"):
        assert 0 <= summary[which]["test_ensemble_agreement"] <= 100
        assert summary[which]["test_ensemble_kl"] > 0
        assert 0 <= summary[which]["test_ece"] <= 100


def test_tensorboard_holds_a_curve_for_every_part(tmp_path: Path, teachers: str) -> None:
    folder = distil(tmp_path, f"{teachers} {FEATURE} --epochs 2").folder
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    parts = {"loss", "loss_ce", "loss_kd", "loss_feature", "accuracy"}
    each = {f"{prefix}weight_{k}" for prefix in ("", "feature_") for k in range(3)}
    assert tags >= {f"train_{name}" for name in parts | each} | SCORES | {"learning_rate"}
    logged = [event.value for event in events.Scalars("test_accuracy")]
    assert logged == pytest.approx([row["test_accuracy"] for row in metrics(folder)])


def test_aekd_logs_its_gradients(tmp_path: Path, teachers: str) -> None:
    (row,) = metrics(distil(tmp_path, f"{teachers} --distill hint --ensemble_method AEKD -b 1").folder)
    for prefix in ("train_", "train_feature_"):
        assert row[f"{prefix}combined_gradient"] > 0
        assert -1 <= row[f"{prefix}gradient_cosine"] <= 1 + 1e-9


# ---- every pair of loss and method


@pytest.mark.parametrize(
    ("words", "unread"),
    [("nkd", True), ("nkd,hint -b 1", True), ("nkd --ensemble_method MTKDRL", False), ("hint -b 1", False)],
)
def test_a_temperature_that_nothing_reads_is_said(tmp_path: Path, teachers: str, words: str, unread: bool) -> None:
    said = distil(tmp_path, f"{teachers} --distill {words} --kd_T 3").out
    assert (f"--kd_T 3: nothing in --distill {words.split()[0]} reads it" in said) == unread


@pytest.mark.parametrize(("distill", "method"), few_pairs())
def test_three_teachers_of_different_families(
    tmp_path: Path, teacher_files: list[Path], distill: str, method: str
) -> None:
    beta = 0 if distill_dict[distill].on_logits() else 0.1
    words = f"--distill {distill} --ensemble_method {method} -b {beta}"
    if "distill_warmup" in hyperparameters(distill_dict[distill]):
        words += " --distill_warmup 0"
    files = teacher_files if distill != "semckd" else [*teacher_files[:2], teacher_files[0]]  # a ShuffleNet is too wide
    folder = distil_under(files, tmp_path, words).folder
    (row,) = metrics(folder)
    of_first_epoch = 1 / (json.loads((folder / "parameters.json").read_text()).get("distill_warmup") or 1)
    a, b = (1, beta * of_first_epoch) if beta else (of_first_epoch, 0)
    parts = row["train_loss_ce"] + a * row["train_loss_kd"] + b * row.get("train_loss_feature", 0)
    assert row["train_loss"] == pytest.approx(parts, rel=1e-5)
    kind = ensemble_dict[method]
    total = kind().total(3)
    for prefix in ("train_weight_", "train_feature_weight_")[: 2 if beta else 1]:
        mean = [row[f"{prefix}{k}"] for k in range(3)]
        assert total is None or sum(mean) * (3 if kind.released_division else 1) == pytest.approx(total, abs=1e-4)


def test_several_losses_at_once(tmp_path: Path, teachers: str) -> None:
    """Each has its curves, its weights and its part of -b; ``--config`` repeats the run."""
    words = f"{teachers} --distill inter,hint --ensemble_method AEKD -b 0.1,2"
    folder = distil(tmp_path, f"{words} --epochs 2 --feat_start_epoch 2").folder
    assert "-inter,hint-AEKD-" in folder.name
    assert "-b=0.1,2-" in folder.name
    first, row = metrics(folder)
    assert not [name for name in first if "feature" in name]
    parts = row["train_loss_ce"] + row["train_loss_kd"]
    parts += 0.1 * row["train_loss_feature_inter"] + 2 * row["train_loss_feature_hint"]
    assert row["train_loss"] == pytest.approx(parts, rel=1e-5)
    for name in ("inter", "hint"):
        assert sum(row[f"train_feature_{name}_weight_{k}"] for k in range(3)) == pytest.approx(1, abs=1e-4)
    again = distil(tmp_path / "again", f"--config {folder / 'parameters.json'} --epochs 2").folder
    assert same(weights(again), weights(folder))


@pytest.mark.parametrize("method", ensemble_dict)
def test_one_teacher_weighs_one(tmp_path: Path, teacher_files: list[Path], method: str) -> None:
    words = f"--teachers {teacher_files[0]} --distill inter --ensemble_method {method} -b 1"
    (row,) = metrics(distil(tmp_path, words).folder)
    assert row["train_weight_0"] == row["train_feature_weight_0"] == 1
    assert "train_weight_1" not in row


@pytest.mark.parametrize("method", ["EBKD", "CAMKD"])
def test_unit_scale_makes_weights_sum_to_1(tmp_path: Path, teachers: str, method: str) -> None:
    (row,) = metrics(distil(tmp_path, f"{teachers} --ensemble_method {method} --kd_scale unit").folder)
    assert sum(row[f"train_weight_{k}"] for k in range(3)) == pytest.approx(1, rel=1e-5)


def test_torchvision_student(tmp_path: Path, teachers: str) -> None:
    folder = distil(tmp_path, f"--model_s torchvision/resnet18 {teachers} --teacher_num 1").folder
    assert folder.name.startswith("torchvision.resnet18-digits-kd-AVERAGE_LOSS-1xresnet8@")
    assert "layer4.1.conv2.weight" in weights(folder)


@pytest.mark.parametrize("solver", qp_solver_dict)
def test_qp_solvers(tmp_path: Path, teachers: str, solver: str) -> None:
    words = f"{teachers} --ensemble_method AEKD -C 0.5 --batch_size 128"
    (row,) = metrics(distil(tmp_path, f"{words} --qp_solver {solver}").folder)
    found = [row[f"train_weight_{k}"] for k in range(3)]
    assert sum(found) == pytest.approx(1)
    if solver != "svm":  # it stops at its starting point
        (exact,) = metrics(distil(tmp_path / "exact", words).folder)
        assert found == pytest.approx([exact[f"train_weight_{k}"] for k in range(3)], abs=1e-4)


def test_svm_norm_changes_the_weights(tmp_path: Path, teachers: str) -> None:
    words = f"{teachers} --ensemble_method AEKD -C 1 --batch_size 128"
    off, on = (metrics(distil(tmp_path, f"{words} {flag}").folder)[0] for flag in ("--no-svm_norm", "--svm_norm"))
    assert any(off[f"train_weight_{k}"] != pytest.approx(on[f"train_weight_{k}"], abs=1e-3) for k in range(3))


def test_distill_decay_ends_with_cross_entropy_alone(tmp_path: Path, teachers: str) -> None:
    first, last = metrics(distil(tmp_path, f"{teachers} --distill_decay --epochs 2").folder)
    assert first["train_loss"] == pytest.approx(first["train_loss_ce"] + first["train_loss_kd"], rel=1e-5)
    assert last["train_loss"] == pytest.approx(last["train_loss_ce"], rel=1e-5)


# ---- the same again


def test_the_same_command_gives_the_same_bits(tmp_path: Path, teachers: str) -> None:
    words = f"{teachers} --distill hint --ensemble_method AEKD -b 1"
    first, second = (distil(tmp_path / name, words).folder for name in "ab")
    assert first.name == second.name
    assert same(weights(first), weights(second))
    assert without_times(metrics(first)) == without_times(metrics(second))


def test_the_seed_changes_the_result(tmp_path: Path) -> None:
    first, second, third = (teach(tmp_path, words).folder for words in ("", "--seed 1", "--trial 1"))
    assert len({first, second, third}) == 3
    assert not same(weights(first), weights(second))
    assert same(weights(second), weights(third)), "a trial that is a number is the seed"


def test_config_repeats_a_run(tmp_path: Path, teachers: str) -> None:
    words = f"{teachers} --distill hint --ensemble_method AEKD -b 1 -C 0.5 --hint_layer 1 --lr_decay_epochs 1,2"
    first = distil(tmp_path / "a", words).folder
    # not through `distil`, so that every option comes from the file
    again = f"--config {first}/parameters.json --save_dir {tmp_path}/b"
    second = call(train_student.main, "train_student.py", again).folder
    assert first.name == second.name
    assert same(weights(first), weights(second))
    third = call(train_student.main, "train_student.py", f"{again} --seed 7").folder
    assert not same(weights(first), weights(third)), "options beside --config override it"


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged checkpoint"])
def test_resuming_gives_the_bits_of_an_undisturbed_run(tmp_path: Path, teachers: str, damaged: bool) -> None:
    words = f"{teachers} {FEATURE} --epochs 3 --nesterov"
    undisturbed = distil(tmp_path / "a", words).folder

    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch=3)
        cut = distil(tmp_path / "b", words)
    assert cut.code == 130
    assert "--resume" in cut.err
    (unfinished,) = (tmp_path / "b" / "students").iterdir()
    assert len(metrics(unfinished)) == 3, "the third line has to go"
    if damaged:  # as by a full disk: the checkpoint of epoch 1 is used
        last = unfinished / "last.pth"
        last.write_bytes(last.read_bytes()[:-1000])

    resumed = distil(tmp_path / "b", f"{words} --resume")
    assert f"resuming after epoch {1 if damaged else 2}" in resumed.out
    assert same(weights(undisturbed), weights(resumed.folder))
    assert same(weights(undisturbed, "best.pth"), weights(resumed.folder, "best.pth"))
    assert without_times(metrics(undisturbed)) == without_times(metrics(resumed.folder))


@pytest.mark.parametrize(
    "today",
    [
        "--optimizer adamw --lr_schedule cosine --ema 0.9 --label_smoothing 0.1",
        "--augment trivialaugment --balanced --mixup 0.2 --cutmix 1",
    ],
)
def test_todays_recipes_are_resumed_bitwise(tmp_path: Path, teachers: str, today: str) -> None:
    """In every script; they are part of the run's name."""
    recipe = f"--epochs 2 --validation 0.2 --batch_size 32 {today}"
    for script, words in (
        (teach, recipe),
        (distil, f"{teachers} --distill hint -b 1 {recipe}"),
        (teach_each_other, f"--method ONE {recipe}"),
    ):
        whole = script(tmp_path / "a", words).folder
        assert today.split()[-2].replace("--", "-") in whole.name
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, epoch=2)
            assert script(tmp_path / "b", words).code == 130
        resumed = script(tmp_path / "b", f"{words} --resume").folder
        assert same(weights(whole), weights(resumed))
        assert same(weights(whole, "best.pth"), weights(resumed, "best.pth"))
        assert without_times(metrics(whole)) == without_times(metrics(resumed))
        assert result(whole)["last"] == result(resumed)["last"]
        assert result(whole)["best"] == result(resumed)["best"]


def test_unfinished_run_is_left_alone(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch=2)
        teach(tmp_path, "--epochs 2")
    (unfinished,) = (tmp_path / "teachers").iterdir()
    before = {path: path.stat().st_mtime_ns for path in unfinished.rglob("*")}
    refused = teach(tmp_path, "--epochs 2")
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    assert all(word in refused.err for word in (str(unfinished), "--resume", "--overwrite"))
    assert {path: path.stat().st_mtime_ns for path in unfinished.rglob("*")} == before
    assert result(teach(tmp_path, "--epochs 2 --overwrite").folder)["last"]["epoch"] == 2


def test_finished_run_says_so(tmp_path: Path) -> None:
    first = teach(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    for words in ("", "--resume"):
        second = teach(tmp_path, words)
        assert second.folder == first.folder
        assert "is finished" in second.out
        assert f"{result(first.folder)['last']['test_accuracy']:.2f} %" in second.out
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_files_of_a_run_that_are_damaged_or_others_are_named(tmp_path: Path) -> None:
    run = RunFolder(teach(tmp_path).folder)
    damaged = {run.result: "{", run.path / "parameters.json": "[]"}
    for path, text in damaged.items():
        whole = path.read_text()
        path.write_text(text)
        refused = teach(tmp_path, f"--trial 1 --epochs 2 --resume {run.path}" * (path != run.result))
        assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused.err
        assert f"{path} is damaged" in refused.err
        path.write_text(whole)
    run.result.unlink()
    (run.path / "parameters.json").write_text("{")  # of the run itself: it is written anew
    assert teach(tmp_path, "--resume").code == 0
    run.result.unlink()
    shutil.copy(run.best, run.last)
    refused = teach(tmp_path, "--resume")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused.err
    assert f"{run.last} lacks what going on needs: " in refused.err


def test_resume_with_nothing_there_starts(tmp_path: Path) -> None:
    assert result(teach(tmp_path, "--resume").folder)["last"]["epoch"] == 1


@pytest.mark.parametrize(("began", "other"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_a_resumed_run_keeps_its_precision(tmp_path: Path, teachers: str, began: str, other: str) -> None:
    """Also where ``auto`` means something else, as on another machine; the folder bears the same name there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helper.session.precision_of", lambda opt, device: began)
        undisturbed = distil(tmp_path / "a", f"{teachers} --epochs 2").folder
        interrupt(patch, epoch=2)
        distil(tmp_path / "b", f"{teachers} --epochs 2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helper.session.precision_of", lambda opt, device: other)
        resumed = distil(tmp_path / "b", f"{teachers} --epochs 2 --resume").folder
        elsewhere = distil(tmp_path / "c", f"{teachers} --epochs 2").folder
    assert undisturbed.name == resumed.name == elsewhere.name
    assert [result(folder)["precision"] for folder in (undisturbed, resumed, elsewhere)] == [began, began, other]
    assert checkpoint.load(resumed / "last.pth")["precision"] == began
    assert same(weights(undisturbed), weights(resumed))
    assert not same(weights(undisturbed), weights(elsewhere))


def test_a_run_from_before_auto_resumes_as_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch=2)
        teach(tmp_path, "--epochs 2")
    (folder,) = (tmp_path / "teachers").iterdir()
    state = checkpoint.load(folder / "last.pth")
    del state["precision"]
    checkpoint.save(state, folder / "last.pth")
    asked = json.loads((folder / "parameters.json").read_text()) | {"precision": "fp32"}
    (folder / "parameters.json").write_text(json.dumps(asked))
    assert result(teach(tmp_path, "--epochs 2 --resume").folder)["precision"] == "fp32"


def test_a_finished_run_goes_on_to_more_epochs(tmp_path: Path, teachers: str) -> None:
    words = f"{teachers} {FEATURE} --schedule 1 2"
    first = distil(tmp_path, f"{words} --epochs 2").folder
    before = {path: path.read_bytes() for path in first.iterdir() if path.is_file()}
    longer = distil(tmp_path, f"{words} --epochs 3 --resume {first}")
    assert "resuming after epoch 2" in longer.out
    assert longer.folder != first
    assert {path: path.read_bytes() for path in first.iterdir() if path.is_file()} == before
    straight = distil(tmp_path / "straight", f"{words} --epochs 3").folder
    assert same(weights(straight), weights(longer.folder))
    assert without_times(metrics(straight)) == without_times(metrics(longer.folder))


@pytest.mark.parametrize("damage", ["half", "gone"])
def test_a_run_whose_last_checkpoint_is_damaged_goes_on_to_more_epochs(damage: str, tmp_path: Path) -> None:
    run = RunFolder(teach(tmp_path, "--epochs 2").folder)
    if damage == "half":
        run.last.write_bytes(run.last.read_bytes()[:-99])
    else:
        run.last.unlink()
    longer = teach(tmp_path, f"--epochs 3 --resume {run.path}")
    assert "resuming after epoch 1" in longer.out
    assert [row["epoch"] for row in metrics(longer.folder)] == [1, 2, 3]


def test_a_run_that_goes_on_may_be_cut_off_too(tmp_path: Path) -> None:
    """Drops of the learning rate that have passed before it went on stay where they were."""
    words = "--lr_decay_rate 0.5"
    first = teach(tmp_path, f"{words} --epochs 4").folder
    straight = teach(tmp_path / "a", f"{words} --epochs 9 --resume {first}").folder
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch=6)
        assert teach(tmp_path / "b", f"{words} --epochs 9 --resume {first}").code == 130
    resumed = teach(tmp_path / "b", f"{words} --epochs 9 --resume").folder
    rates = [row["learning_rate"] for row in metrics(straight)]
    assert rates == [row["learning_rate"] for row in metrics(resumed)]
    assert same(weights(straight), weights(resumed))


def test_going_on_from_within_the_first_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a run has no best checkpoint yet, nor a line of metrics."""
    monkeypatch.setattr("helper.loop.LOOK", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "epoch", interrupted)
        teach(tmp_path, "--epochs 1 --checkpoint_minutes 1e-9")
    (cut,) = (tmp_path / "teachers").iterdir()
    assert not (cut / "best.pth").exists()
    longer = teach(tmp_path, f"--epochs 2 --checkpoint_minutes 1e-9 --resume {cut}")
    assert "resuming after step 2 of epoch 1" in longer.out
    assert [row["epoch"] for row in metrics(longer.folder)] == [1, 2]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_going_on_as_another_script_or_with_other_teachers_is_refused(
    tmp_path: Path, teacher_files: list[Path], teachers: str
) -> None:
    alone, student = teach(tmp_path).folder, distil(tmp_path, teachers).folder
    others = f"--teachers {teacher_files[1]} {teacher_files[0]} {teacher_files[2]}"
    for outcome, reason in (
        (teach_each_other(tmp_path, f"--epochs 2 --resume {alone}"), "is another script's"),
        (distil(tmp_path, f"{teachers} --epochs 2 --resume {alone}"), "is another script's"),
        (distil(tmp_path, f"{others} --epochs 2 --resume {student}"), "has another --teachers"),
    ):
        assert outcome.code == 2
        assert reason in outcome.err
        assert len(outcome.err.splitlines()) == 1


def test_going_on_with_other_classes_is_refused(tmp_path: Path) -> None:
    """Those of the run itself, and of one elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, epoch=2)
        teach(tmp_path, "--epochs 2")
    (folder,) = (tmp_path / "teachers").iterdir()
    state = checkpoint.load(folder / "last.pth")
    checkpoint.save({**state, "classes": ["zero", *state["classes"][1:]]}, folder / "last.pth")
    for words in ("--epochs 2 --resume", f"--epochs 3 --resume {folder}"):
        refused = teach(tmp_path, words)
        assert refused.code == 2
        assert f"--resume: {folder} was trained on other classes, 1 of them: 0 is 'zero'" in refused.err
        assert len(refused.err.splitlines()) == 1
    checkpoint.save(state, folder / "last.pth")
    assert "resuming after epoch 1" in teach(tmp_path, "--epochs 2 --resume").out


def test_going_on_from_another_run_is_refused(tmp_path: Path) -> None:
    first = teach(tmp_path, "--epochs 2").folder
    for words, reason in (
        (f"--epochs 3 --lr 0.3 --resume {first}", "has another --learning_rate"),
        (f"--epochs 1 --trial 1 --resume {first}", "has another --trial"),
        (f"--epochs 1 --resume {first}", "--epochs: 1, but the run in"),
        (f"--epochs 3 --resume {tmp_path}/nowhere", "holds no run to go on from"),
    ):
        refused = teach(tmp_path, words)
        assert refused.code == 2
        assert reason in refused.err
        assert len(refused.err.splitlines()) == 1
    assert len(list((tmp_path / "teachers").iterdir())) == 1


# ---- other ways to call them


def test_evaluate_prints_the_accuracy_and_writes_nothing(tmp_path: Path, teacher_files: list[Path]) -> None:
    path = teacher_files[1]
    expected = f"accuracy {result(path.parent)['last']['test_accuracy']:.2f} %"
    for outcome in (
        teach(tmp_path / "save", f"--model {ARCHS[1]} --evaluate {path} --batch_size 100000"),
        distil(tmp_path / "save", f"--model_s {ARCHS[1]} --evaluate {path}"),
    ):
        assert outcome.code == 0
        assert expected in outcome.out
    assert not (tmp_path / "save").exists()


def test_validation_chooses_the_best_epoch(tmp_path: Path) -> None:
    folder = teach(tmp_path, "--validation 0.25 --epochs 3").folder
    rows, summary = metrics(folder), result(folder)
    assert all("validation_accuracy" in row and "test_accuracy" not in row for row in rows)
    assert summary["best_chosen_on"] == "validation"
    assert summary["best"]["validation_accuracy"] == max(row["validation_accuracy"] for row in rows)
    for which, name in (("last", "last.pth"), ("best", "best.pth")):
        outcome = teach(tmp_path, f"--evaluate {folder / name}")
        assert f"accuracy {summary[which]['test_accuracy']:.2f} %" in outcome.out


def test_heterogeneous_teachers_of_the_originals_forms(tmp_path: Path, teacher_files: list[Path]) -> None:
    """Checkpoints that say nothing of themselves: ``path:arch``, or the folder's name."""
    named = tmp_path / "wrn_16_1_vanilla" / "wrn_16_1_last.pth"
    named.parent.mkdir()
    torch.save({"model": weights(teacher_files[1].parent)}, named)
    prefixed = tmp_path / "any.pth"
    wrapped = {f"module.{name}": value for name, value in weights(teacher_files[0].parent).items()}
    torch.save({"state_dict": wrapped}, prefixed)
    summary = result(distil(tmp_path, f"--teachers {prefixed}:resnet8 {named}").folder)
    assert [teacher["arch"] for teacher in summary["teachers"]] == ["resnet8", "wrn_16_1"]
    expected = [result(path.parent)["last"]["test_accuracy"] for path in teacher_files[:2]]
    assert [teacher["accuracy"] for teacher in summary["teachers"]] == expected


def test_a_loss_that_explodes_ends_the_run(tmp_path: Path) -> None:
    outcome = teach(tmp_path, "--lr 1e30")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "--learning_rate" in outcome.err
