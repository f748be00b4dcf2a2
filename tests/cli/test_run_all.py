"""run.sh's plan and its runs; every line of every preset, made tiny."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import ROOT, own_files, own_names
from tiny_runs import MAINS, call, ended, few_digits

import train_online
import train_student
from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from helper.errors import UsageError
from helper.run_folder import RunFolder
from helper.session import Session
from helper.teachers.asked import Teachers
from models import model_dict
from scripts import plan, run_all
from scripts.plan import DEFAULTS, Job, jobs_of, variables
from scripts.reporting.published import published
from scripts.reporting.runs import Group, Run, parser_of
from scripts.runner import End, Runs, architecture
from train_student import make_losses

PRESETS = [path for path in own_files() if path.parent == ROOT / "scripts" / "presets"]


def rows_of(preset: Path, tmp_path: Path) -> list[str]:
    """What a preset hands to run_all.py, with its METHODS and ONLINE put into each row."""
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], dict(os.environ)]), file=open(os.environ['SAID'], 'a'))\n"
    )
    stub.chmod(0o755)
    (tmp_path / ".installed-requirements.txt").write_text(checksum())
    environment = {"PATH": os.environ["PATH"], "VIRTUAL_ENV": str(tmp_path), "SAID": str(tmp_path / "said.json")}
    subprocess.run(["sh", str(preset)], env=environment, check=True, capture_output=True)
    rows = []
    for line in (tmp_path / "said.json").read_text().splitlines():
        words, given = json.loads(line)
        if "scripts.run_all" in words:
            common = [f"{name}={shlex.quote(given[name])}" for name in DEFAULTS if name in given]
            rows += [" ".join([*common, row]) for row in words[words.index("scripts.run_all") + 1 :]]
    return rows


def checksum() -> str:
    """Of requirements.txt, as setup.sh notes it, so that nothing is installed."""
    with (ROOT / "requirements.txt").open() as file:
        return subprocess.run(["cksum"], stdin=file, capture_output=True, text=True, check=True).stdout.strip()


# ---- the plan


def test_published_commands() -> None:
    environment = {"TEACHER": "resnet20", "STUDENT": "vgg8", "SEEDS": "0 1", "EPOCHS": "10", "TEACHER_NUM": "2"}
    jobs = jobs_of(variables("", {**environment, "EXTRA": "--precision bf16"}), "save/cache")
    said = [shlex.join(job.words) for job in jobs]
    ends = [f"--epochs 10 --trial {trial} --precision bf16" for trial in (0, 1)]
    assert said[:4] == [
        *(f"train_teacher.py --model resnet20 --dataset cifar100 {end}" for end in ends),
        *(f"train_teacher.py --model vgg8 --dataset cifar100 --nesterov {end}" for end in ends),
    ]
    methods = ("kd AVERAGE_LOSS -b 0", "hint AVERAGE_LOSS -b 100", "kd EBKD -b 0", "kd AEKD -b 0", "inter CAMKD -b 50")
    cached = {"kd AVERAGE_LOSS -b 0", "kd EBKD -b 0", "kd AEKD -b 0"}
    assert said[4:] == [
        f"train_student.py --model_s vgg8 --dataset cifar100 --distill {method.replace(' ', ' --ensemble_method ', 1)} "
        f"--nesterov -r 1 -a 1 {end}{' --teacher_cache save/cache' * (method in cached)}"
        for method in methods
        for end in ends
    ]
    assert all(job.teachers == tuple(jobs[:2]) for job in jobs[4:])
    assert [job.reported for job in jobs[:3]] == [False, False, True]
    files = ["a/last.pth:resnet20", "b/last.pth:resnet20"]
    assert jobs[4].command(files)[-3:] == ["--teachers", *files]


def test_each_recipe_keeps_its_epochs_unless_told() -> None:
    for epochs, expected in (("", (240, 300)), ("8", (8, 8))):
        row = f"STUDENTS=resnet8 METHODS=kd:AEKD ONLINE='OKDDip:resnet8 alone:resnet8' EPOCHS={epochs}"
        *_, student, peers, alone = jobs_of(variables(row, {}), None)
        online = train_online.parse(train_online.options(), peers.words[1:])[0]
        assert parser_of("student").parse(student.words[1:]).epochs == expected[0]
        opt = parser_of("alone").parse(alone.words[1:])
        assert opt.epochs == online.epochs == expected[1]
        assert (opt.batch_size, opt.learning_rate, opt.nesterov) == (128, 0.1, True)
        assert opt.lr_decay_epochs == ([150, 225] if not epochs else [4, 6])


@pytest.mark.parametrize(
    "row",
    [
        "STUDENTS=resnet8 METHODS=kd:AEKD,optimizer=adamw",
        "STUDENTS=resnet8,optimizer=adam METHODS=kd:AEKD",
        "STUDENTS=resnet8 METHODS=kd:AEKD,optimizer=adamw,optimizer=sgd",
        "STUDENTS=resnet8 METHODS=kd:AEKD EXTRA='--optimizer=adamw'",
        "TEACHER=resnet56,nesterov STUDENTS=resnet8 METHODS=kd:AEKD EXTRA='--optimizer adamw'",
        "STUDENTS= ONLINE='OKDDip:resnet8 alone:resnet8 OKDDip:resnet8,recipe=OKDDip' EXTRA='--optimizer adamw'",
    ],
)
def test_students_have_nesterov_momentum_where_the_optimizer_has_momentum(row: str) -> None:
    jobs = [job for job in jobs_of(variables(row, {}), None) if job.words[2] != "resnet32x4"]
    assert jobs
    for job in jobs:
        opt = plan.parser_of(job.words[0]).read(job.words[1:])
        assert ("--nesterov" in job.words) == (opt.optimizer == "sgd"), job.words


def test_peers_are_looked_at_under_their_own_recipe() -> None:
    row = "STUDENTS= ONLINE=BOC:resnet20"
    assert jobs_of(variables(row, {"EXTRA": "--optimizer adam"}), None)
    with pytest.raises(UsageError, match="--momentum"):  # its optimizer is Adam
        jobs_of(variables(row, {"EXTRA": "--momentum 0.5"}), None)


def test_words_of_methods_and_peers() -> None:
    row = "STUDENTS=resnet8 TEACHER_NUM=1 METHODS=hint:AEKD:7,qp_solver=svm,hint_layer=-2,svm_norm=true"
    *_, job = jobs_of(variables(row, {}), "cache")
    opt = parser_of("student").parse(job.words[1:])
    assert (opt.distill, opt.ensemble_method, opt.beta, opt.qp_solver) == ("hint", "AEKD", 7.0, "svm")
    assert (opt.hint_layer, opt.svm_norm, opt.teacher_cache) == (-2, True, None)
    (job,) = jobs_of(variables("STUDENTS= ONLINE=BOC:resnet20,num_students=3", {}), None)
    assert parser_of("online").parse(job.words[1:]).num_students == 3


def test_what_cannot_be_counted_is_not_cached() -> None:
    cases = {"": True, "--augment none": True, "--augment randaugment": False, "--mixup 0.2": False}
    for dataset, extra, cached in [("imagenet", "", False), *(("digits", *case) for case in cases.items())]:
        *_, job = jobs_of(variables(f"DATASET={dataset} METHODS=kd:AEKD", {"EXTRA": extra}), "cache")
        assert ("--teacher_cache" in job.words) == cached, extra


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("TEACHERS=vgg13", "TEACHERS=vgg13: expected VARIABLE=value; choose from DATASET"),
        ("vgg13", "vgg13: expected VARIABLE=value"),
        ("METHODS='kd:AEKD", "METHODS='kd:AEKD: a quote is not closed"),
        ('EXTRA="--data_dir o\'brien"', "o'brien: a quote is not closed"),
        ("METHODS=kd", "METHODS: expected LOSS:WEIGHTING[:b]"),
        ("METHODS=kd:AEDK", "did you mean 'AEKD'?"),
        ("METHODS=kd:AEKD,sharp=1", "--sharp"),
        ("TEACHER=resnet21", "resnet21"),
        ("TEACHER=", "TEACHER: names no network"),
        ("TEACHER_NUM=0", "TEACHER_NUM: "),
        ("EPOCHS=some", "--epochs"),
        ("STUDENTS= ONLINE=OKDDip", "ONLINE: expected METHOD:MODEL"),
        ("STUDENTS= ONLINE=OKDip:resnet8", "OKDip"),
        ("STUDENTS= ONLINE=alone:resnet8,recipe=OKDip", "OKDip"),
        ("STUDENTS= ONLINE=ONE:resnet8,recipe=OKDip", "OKDip"),
    ],
)
def test_bad_variables_are_refused_in_one_line(row: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        jobs_of(variables(row, {}), None)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_rows_end_with_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    outcome = call(run_all.main, "run_all.py", "METHODS=kd")
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)


def test_teachers_may_have_options_of_their_own() -> None:
    teacher, _, student = jobs_of(
        variables("TEACHER=resnet14,epochs=7 TEACHER_NUM=1 STUDENTS=resnet8 METHODS=kd:AEKD EPOCHS=2", {}), None
    )
    assert parser_of("alone").parse(teacher.words[1:]).epochs == 7
    assert parser_of("student").parse(student.words[1:]).epochs == 2
    assert architecture(teacher) == "resnet14"


def test_folders_with_any_name() -> None:
    jobs, _ = run_all.plan(["STUDENTS= ONLINE=alone:resnet8"], {"SAVE": "a b", "DATA": "c'd"})
    opt = parser_of("alone").parse(jobs[0].words[1:])
    assert (opt.save_dir, opt.data_dir) == (Path("a b"), Path("c'd"))


def test_processes_of_each_run() -> None:
    assert run_all.launcher_of({}) == []
    assert run_all.launcher_of({"PROCESSES": "8"})[-2:] == ["--nproc_per_node", "8"]
    assert run_all.slots_of({"PROCESSES": "8"}) == [{}], "one run at a time, on everything"
    with pytest.raises(UsageError, match="JOBS and PROCESSES"):
        run_all.slots_of({"PROCESSES": "8", "JOBS": "2"})


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(run_all, "cores", lambda: 6)
    assert run_all.slots_of({}) == [{"OMP_NUM_THREADS": "1"}] * 4
    assert run_all.slots_of({"JOBS": "2"}) == [{"OMP_NUM_THREADS": "3"}] * 2
    assert run_all.slots_of({"JOBS": "9", "OMP_NUM_THREADS": "2"}) == [{"OMP_NUM_THREADS": "2"}] * 9
    with pytest.raises(UsageError, match="JOBS"):
        run_all.slots_of({"JOBS": "many"})
    monkeypatch.setattr(run_all.torch.cuda, "device_count", lambda: 2)
    assert run_all.slots_of({}) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    chosen = run_all.slots_of({"CUDA_VISIBLE_DEVICES": "4,6", "JOBS": "3"})
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in chosen] == ["4", "6", "4"]


# ---- presets


def options_of(job: Job) -> argparse.Namespace:
    """What a run's script makes of its words, the recipe of its method included."""
    script, *words = job.words
    if script == "train_online.py":
        return train_online.parse(train_online.options(), words)[0]
    return parser_of("alone" if script == "train_teacher.py" else "student").parse(words)


def runs_of_preset(name: str, tmp_path: Path) -> dict[str, list[argparse.Namespace]]:
    """The options of a preset's published runs on CIFAR-100, by script."""
    jobs = jobs_of_preset(name, tmp_path)
    return {script: [opt for opt, _ in each] for script, each in jobs.items()}


def jobs_of_preset(name: str, tmp_path: Path) -> dict[str, list[tuple[argparse.Namespace, Job]]]:
    """The same with what they are of."""
    (preset,) = [path for path in PRESETS if path.stem == name]
    runs: dict[str, list[tuple[argparse.Namespace, Job]]] = {}
    for row in rows_of(preset, tmp_path):
        for job in jobs_of(variables(row, {}), None):
            opt = options_of(job)
            if opt.dataset == "cifar100":
                runs.setdefault(job.words[0], []).append((opt, job))
    return runs


def test_one_as_its_authors_train_it(tmp_path: Path) -> None:
    runs = runs_of_preset("one", tmp_path)
    for opt in (each for script in runs.values() for each in script):
        assert opt.model in ("resnet32", "resnet164_bottleneck")
        assert (opt.epochs, opt.batch_size, opt.learning_rate) == (300, 128, 0.1)
        assert (opt.weight_decay, opt.nesterov) == (1e-4, False)
    assert all(opt.lr_decay_epochs == [151, 225] for opt in runs["train_teacher.py"])
    assert all((opt.num_branches, opt.detach_targets) == (3, True) for opt in runs["train_online.py"])


def test_one_as_okddip_compares_with_it(tmp_path: Path) -> None:
    peers = runs_of_preset("okddip", tmp_path)["train_online.py"]
    theirs = [opt for opt in peers if opt.method == "ONE"]
    assert len(theirs) == 5
    for opt in theirs:
        assert (opt.num_branches, opt.detach_targets, opt.lr_decay_epochs) == (4, False, [150, 225])
    for opt in peers:
        assert (opt.epochs, opt.batch_size, opt.learning_rate) == (300, 128, 0.1)
        assert (opt.weight_decay, opt.nesterov, opt.num_branches) == (5e-4, True, 4)


def test_pcl_compares_three_peers_each_under_one_recipe(tmp_path: Path) -> None:
    runs = runs_of_preset("pcl", tmp_path)
    peers = runs["train_online.py"]
    assert {opt.method for opt in peers} == {"DML", "CLILR", "ONE", "FFL", "OKDDip", "KDCL", "PCL"}
    for opt in (*peers, *runs["train_teacher.py"]):
        assert (opt.epochs, opt.batch_size, opt.learning_rate) == (300, 128, 0.1)
        assert (opt.weight_decay, opt.nesterov) == (5e-4, True)
    assert {opt.num_branches for opt in peers} == {3}


def test_ae_kds_teachers_have_nesterov_momentum(tmp_path: Path) -> None:
    runs = runs_of_preset("ae_kd", tmp_path)
    assert all(opt.nesterov for script in runs.values() for opt in script)
    assert {(opt.gamma, opt.alpha, opt.learning_rate, opt.C) for opt in runs["train_student.py"] if "C" in opt} == {
        (1, 0.9, 0.05, 0.6)
    }


def test_ca_mkds_pairs_and_settings(tmp_path: Path) -> None:
    runs = runs_of_preset("ca_mkd", tmp_path)
    teachers = [opt for opt in runs["train_teacher.py"] if not opt.nesterov]  # students alone have it
    assert {(opt.model, opt.trial) for opt in teachers} == {
        (model, trial) for model in ("wrn_40_2", "resnet56", "vgg13", "resnet32x4") for trial in "012"
    }
    students = runs["train_student.py"]
    assert len(students) == 7 * 5
    for opt in students:
        assert (opt.gamma, opt.alpha, opt.kd_T, opt.nesterov, opt.epochs) == (1, 1, 4, True, 240)
        assert opt.beta == {"kd": 0, "hint": 100, "inter": 50}[opt.distill]


def test_bocs_students_together_and_alone(tmp_path: Path) -> None:
    (peers,) = runs_of_preset("boc", tmp_path).values()
    assert len(peers) == 6 * 6
    for opt in peers:
        shallow = opt.model == "resnet20"
        assert (opt.num_students, opt.num_blocks, opt.optimizer) == (5, 3, "adam")
        assert (opt.epochs, opt.batch_size) == ((400, 64) if shallow else (350, 128))


def test_repdistillers_rows_are_held_against_its_table(tmp_path: Path) -> None:
    students = jobs_of_preset("repdistiller", tmp_path)["train_student.py"]
    assert len(students) == 13 * 12 + 6
    for opt, job in students:
        (script, *_), arch = job.words, architecture(job.teachers[0])
        result = {"teachers": [{"arch": arch, "path": "0.pth"}], "precision": "fp32"}
        found = published(Group("", [Run(Path(script), vars(opt), result, [])]))
        if opt.distill in ("ab", "fsp"):
            assert found is None, "published of another use of them"
        else:
            assert found is not None, opt
            assert (found.source, found.of) == ("HobbitLong/RepDistiller README", "last")
            assert (found.differing, opt.nesterov) == ([], False)


def test_the_zoo_is_every_loss_under_every_weighting(tmp_path: Path) -> None:
    found = [
        (len(job.teachers), opt.distill, opt.ensemble_method)
        for opt, job in jobs_of_preset("zoo", tmp_path)["train_student.py"]
    ]
    losses, weightings = own_names(distill_dict), own_names(ensemble_dict)
    assert len(found) == len(set(found))
    assert set(found) == {*product([1], losses, ["AVERAGE_LOSS"]), *product([3], losses, weightings)}


def test_when_weighting_matters_is_asked_of_four_sets_at_equal_strength(tmp_path: Path) -> None:
    students = jobs_of_preset("when", tmp_path)["train_student.py"]
    under_three = [(opt, job) for opt, job in students if len(job.teachers) == 3]
    sets = {job.teachers for _, job in under_three}
    told = {tuple((opt.model, opt.wrong_labels, opt.specialist) for opt in map(options_of, each)) for each in sets}
    assert told == {
        (("resnet20", 0, None),) * 3,
        (("wrn_40_2", 0, None), ("resnet20", 0, None), ("resnet8", 0, None)),
        (("resnet20", 0, None), ("resnet20", 0, None), ("resnet20", 0.4, None)),
        tuple(("resnet20", 0, f"{k}of3") for k in (1, 2, 3)),
    }
    assert len(under_three) == len(sets) * 10 * 3
    assert {(opt.distill, opt.kd_scale, opt.epochs) for opt, _ in under_three} == {("kd", "unit", 30)}
    alone = {job.teachers[0] for _, job in students if len(job.teachers) == 1}
    assert alone == {each[0] for each in sets}


@pytest.mark.parametrize("preset", ["repdistiller", "zoo"])
def test_every_pair_of_a_preset_takes_its_losses(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks and losses without memory: nothing of them is computed, and each network is asked once."""
    monkeypatch.setattr("train_student.feature_shapes", cache(train_student.feature_shapes))
    monkeypatch.setattr("helper.teachers.asked.as_autocast", lambda images: images)  # which knows no such device
    asked = {
        (architecture(job.teachers[0]), opt.model_s, opt.distill): opt
        for opt, job in jobs_of_preset(preset, tmp_path)["train_student.py"]
    }
    labels, parser = torch.arange(100).repeat(2), train_student.options()
    with torch.device("meta"):
        images = torch.empty(8, 3, 32, 32)
        networks = {arch: model_dict[arch](100).eval() for arch in {arch for pair in asked for arch in pair[:2]}}
        for (teacher, student, distill), opt in asked.items():
            settings = parser.hyperparameters(opt, "distill", distill)
            of = Teachers([networks[teacher]])
            (loss,) = make_losses(distill_dict[distill], settings, networks[student], of, images, 100, labels, 8)
            assert isinstance(loss, distill_dict[distill])


class Reached(Exception):
    """A run has got as far as its folder."""


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_line_of_a_preset_reaches_its_run_folder(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed, checked and named; networks are built only in the runs below."""
    environment = {"DATASET": "digits", "EPOCHS": "1", "EXTRA": f"--save_dir {tmp_path}"}
    rows = rows_of(preset, tmp_path)
    published = {job for row in rows for job in jobs_of(variables(row, {}), None)}
    assert len(published) > 7
    jobs = dict.fromkeys(job for row in rows for job in jobs_of(variables(row, environment), None))
    names: dict[str, Job] = {}

    def reached(session: Any, kind: str, name: list[str]) -> None:
        names["-".join([kind, *name])] = job
        raise Reached

    class Small:
        """Stands for peers whose networks would take their time."""

        networks = (None,)

    monkeypatch.setattr(Session, "run_folder", reached)
    monkeypatch.setattr(Session, "build", lambda *_, **__: None)
    monkeypatch.setattr("online.base.OnlineMethod.make_peers", lambda *_: Small())
    monkeypatch.setattr("online.boc.BOC.make_peers", lambda *_: Small())
    for job in jobs:
        files = [f"{list(jobs).index(teacher)}.pth:{architecture(teacher)}" for teacher in job.teachers]
        script, *words = job.command(files)
        with pytest.raises(Reached):
            MAINS[script](words)
    assert len(names) == len(jobs), "no two runs share a folder"
    assert max(map(len, names)) < 200


def test_a_dry_run_lists_and_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DRY_RUN", "1")
    monkeypatch.chdir(ROOT)
    run_all.main(["TEACHER=resnet20 STUDENTS='vgg8,no-nesterov resnet8' METHODS=kd:AEKD"])
    said = capsys.readouterr()
    assert said.err == "7 runs\n"
    assert len(said.out.splitlines()) == 7
    assert [" --no-nesterov" in line for line in said.out.splitlines()] == [*[False] * 3, True, True, False, False]
    taught = [line.partition("  # ")[2] for line in said.out.splitlines()]
    lines = "--teachers: the last.pth of each run of line 1, 2, 3"
    assert taught == ["", "", "", "", lines, "", lines], "where teachers lie is not known yet"


def test_where_the_report_goes_is_looked_at_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for name in (*DEFAULTS, "DRY_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUT", str(tmp_path / "file"))
    monkeypatch.setattr(Runs, "train", lambda _: pytest.fail("it has begun"))
    monkeypatch.chdir(ROOT)
    outcome = call(run_all.main, "run_all", "'STUDENTS= ONLINE=alone:resnet8'")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"run_all: error: OUT: {tmp_path / 'file'} cannot be made (File exists)\n"


def test_a_table_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Real processes' work, done in this one on few digits: trains, skips what is finished, reports."""
    asked: list[str] = []
    table, rows = tmp_path / "out" / "runs.csv", []

    def process(self: Runs, command: list[str], slot: dict[str, str]) -> End:
        asked.append(shlex.join(command))
        rows.append(table.read_text().count("\n") - 1 if table.exists() else 0)
        return ended(command, tmp_path)

    monkeypatch.setattr(Runs, "process", process)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(ROOT)
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    settings = {"DATASET": "digits", "EPOCHS": "1", "JOBS": "1", "SAVE": str(tmp_path), "OUT": str(tmp_path / "out")}
    for name, value in {**settings, "EXTRA": "--device cpu"}.items():
        monkeypatch.setenv(name, value)
    row = "TEACHER=resnet8 TEACHER_NUM=2 STUDENTS=resnet8 METHODS='kd:AVERAGE_LOSS kd:AEKD,C=0.1 kd:AEKD' "
    row += "ONLINE='IND:resnet8,num_branches=2 alone:resnet8'"
    with few_digits():
        with pytest.raises(SystemExit) as end:
            run_all.main([row])
        first, count = capfd.readouterr().out, len(asked)
        assert end.value.code == 2, "the bound is too small"
        assert count == 8
        assert rows == [0, 0, 0, 1, 2, 2, 3, 4], "the table grows with every run"
        assert "failed with exit code 2; the others go on: python train_student.py" in first
        assert "7 of 8 runs done" in first
        with table.open(newline="") as file:
            labels = [line["method"] for line in csv.DictReader(file)]
        assert len(labels) == 5
        assert any(tmp_path.glob("cache/**/*")), "the teachers' answers are shared"
        run_all.main([row.replace(",C=0.1", "")])
    again = capfd.readouterr().out
    assert "7 of 7 runs done" in again
    assert again.count("images/s  left") == 0, "nothing is trained twice"
    assert (tmp_path / "out" / "index.html").exists()


def test_teachers_that_fail_leave_their_students_out(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = Job(("train_teacher.py", "--model", "resnet8"))
    student = Job(("train_student.py",), (teacher,))
    runs = Runs([{}], [teacher, student])
    runs.failed[teacher] = 2
    runs.side_by_side([student])
    assert list(runs.failed.values()) == [2, 2]
    assert "its teachers are missing" in capsys.readouterr().out


def test_no_slot_waits_for_teachers_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one teacher trains, what does not need it is done; its students come once it has ended."""
    first, slow = (Job(("train_teacher.py", "--model", "resnet8", "--trial", trial)) for trial in "01")
    alone = Job(("train_teacher.py", "--model", "resnet14"))
    of_first, of_both = (Job(("train_student.py", name), of) for name, of in (("a", (first,)), ("b", (first, slow))))
    begun: list[Job] = []
    others_done = threading.Event()

    def one(self: Runs, job: Job) -> None:
        begun.append(job)
        if job is slow:
            assert others_done.wait(60)
        if job is of_first:
            others_done.set()

    monkeypatch.setattr(Runs, "one", one)
    Runs([{}, {}], [first, slow, alone, of_both, of_first]).train()
    assert {*begun[:2]} == {first, slow}
    assert begun[2:] == [alone, of_first, of_both]


def test_stopping_saves_the_runs_and_asks_to_come_again(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in (*DEFAULTS, "STUDENT", "OUT")}
    settings = {"DATASET": "digits", "EPOCHS": "400", "SAVE": str(tmp_path), "JOBS": "1", "CUDA_VISIBLE_DEVICES": ""}
    settings["EXTRA"] = "--validation 0.5"  # half an epoch's time
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.run_all", "STUDENTS= ONLINE=alone:resnet8"],
        cwd=ROOT,
        env={**environment, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("teachers/*/last.pth")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, out + err
    assert re.search(r"SIGTERM: 0 of 1 runs are done; start it again to go on$", err.strip())
    (folder,) = tmp_path.glob("teachers/*")
    assert not RunFolder(folder).finished
    assert "--resume goes on from there" in out
