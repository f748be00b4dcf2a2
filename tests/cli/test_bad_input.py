"""Bad input: one clear line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from tiny_runs import TRAIN, Outcome, call, distil, teach, teach_each_other, weights

import train_student
import train_teacher
from helper.session import Session
from helper.teachers.files import TeacherFile, training_command
from models import model_dict

pytestmark = pytest.mark.usefixtures("little_data")


ONE_BY_ONE = "--distill srrl -b 1 --feat_start_epoch 1 --epochs 2 --batch_size 1"


def refused(outcome: Outcome, save_dir: Path, *words: str) -> None:
    """Assert that the call failed as it should, with ``words`` in its one line."""
    assert outcome.code == 2
    assert re.match(r"train_(teacher|student|online)\.py: error: \S", outcome.err)
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert not [word for word in words if word not in outcome.err], outcome.err
    assert not save_dir.exists(), "something was written"


@pytest.fixture
def save_dir(tmp_path: Path) -> Path:
    return tmp_path / "save"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model resnet65", ("--model", "'resnet65'", "did you mean 'resnet56'?")),
        ("--model torchvision/resnet81", ("--model", "did you mean 'torchvision/resnet18'?")),
        ("--dataset digitz", ("--dataset", "did you mean 'digits'?")),
        ("--learning_rat 1", ("--learning_rat", "did you mean --learning_rate?")),
        ("--epochs 0", ("--epochs", "at least 1", "'0'")),
        ("--epochs many", ("--epochs", "'many'")),
        ("--lr -1", ("--learning_rate", "above 0")),
        ("--lr nan", ("--learning_rate", "'nan'")),
        ("--momentum 1", ("--momentum",)),
        ("--lr_decay_epochs 1,x", ("--lr_decay_epochs", "'x'")),
        ("--lr_decay_epochs ,", ("--lr_decay_epochs", "','")),
        ("--seed -1", ("--seed",)),
        ("--ema 1", ("--ema", "from 0 to below 1", "'1'")),
        ("--label_smoothing -0.1", ("--label_smoothing", "from 0 to below 1", "'-0.1'")),
        ("--trial ../up", ("--trial", "'../up'")),
        ("--precision fp8", ("--precision", "fp32, bf16")),
        ("--device tpu", ("--device", "'tpu'")),
        ("--device cuda:99", ("--device", "99")),
        ("--validation 1", ("--validation",)),
        ("--validation 0.999", ("--validation", "empty")),
        (f"--batch_size {TRAIN + 1}", ("--batch_size", str(TRAIN + 1), f"training set of {TRAIN} images")),
        ("--validation 0.5 --batch_size 100", ("--batch_size", "training set of 64 images")),
        ("--resume --overwrite", ("--resume", "--overwrite")),
        ("--nesterov --momentum 0", ("--nesterov", "--momentum")),
        ("--lr_schedule cosine --lr_decay_rate 0.5", ("--lr_decay_rate=0.5", "--lr_schedule=cosine", "leave it out")),
        ("--optimizer adam --momentum 0.5", ("--momentum=0.5", "--optimizer=adam", "leave it out")),
        ("--optimizer adamw --nesterov", ("--nesterov", "--optimizer=adamw", "leave it out")),
        ("--device cpu --gpu_id 0", ("--gpu_id=0", "--device=cpu", "leave it out")),
        ("--device cuda:1 --gpu_id 2", ("--gpu_id=2", "--device=cuda:1", "leave it out")),
        ("--pretrained", ("--pretrained", "resnet8")),
        ("--config /nowhere.json", ("--config", "/nowhere.json")),
        ("--evaluate /nowhere.pth", ("--evaluate", "/nowhere.pth")),
        # maps of 1×1 pixel
        ("--model torchvision/resnet18 --batch_size 1", ("--batch_size", "1", "layer3.0.bn1", "a single value")),
        ("--model torchvision/resnet18 --batch_size 4 --accumulate 4", ("4", "one image", "smaller --accumulate")),
        # images of 16×16 are too small for these
        ("--model torchvision/alexnet", ("torchvision/alexnet", "16×16")),
        ("--model torchvision/vit_b_32", ("torchvision/vit_b_32", "16×16", "224")),
    ],
)
def test_teacher_options(save_dir: Path, words: str, expected: tuple[str, ...]) -> None:
    refused(teach(save_dir, words), save_dir, *expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model_s resnet9", ("--model_s", "did you mean 'resnet8'?")),
        ("--ensemble_method AKED", ("--ensemble_method", "did you mean 'AEKD'?")),
        ("--feat_start_epoch 1", ("--feat_start_epoch", "no loss on feature maps")),
        ("--distill hint -b 1 --feat_start_epoch 2", ("--feat_start_epoch", "2", "the last of 1 --epochs")),
        ("--feat_stop_epoch 1", ("--feat_stop_epoch", "no loss on feature maps")),
        ("--distill hint -b 1 --epochs 9 --feat_stop_epoch 1", ("--feat_stop_epoch: 1 is before", ", 2 (--feat_start")),
        ("--distill hints", ("--distill", "did you mean 'hint'?")),
        ("--ensemble_metod AEKD", ("--ensemble_metod", "did you mean --ensemble_method?")),
        ("--teacher_num 0", ("--teacher_num",)),
        ("--teacher_num 4", ("--teacher_num", "4", "lists 3")),
        ("--ensemble_method AEKD -C 0.2", ("-C", "0.2", "0.3333")),
        ("--ensemble_method AEKD -C 1.5", ("-C", "1.5")),
        ("--ensemble_method CAMKD -C 0.5", ("-C", "AEKD", "CAMKD")),
        ("--ensemble_method AEKD --qp_solver mosek", ("--qp_solver", "exact, cvxpy, scipy, svm")),
        ("--hint_layer 1", ("--hint_layer", "hint", "kd")),
        ("--distill hint -b 1 --hint_layer 9", ("--hint_layer", "9", "0 to 3")),
        ("--distill hint -b 1 --hint_layer -6", ("--hint_layer", "-6", "0 to 3")),
        ("--distill inter -b 1 --convs --factor 0", ("--factor",)),
        ("--distill inter -b 1 --factor 4", ("--factor=4", "--no-convs", "leave it out")),
        ("--distill ls --dkd_beta 2", ("--dkd_beta=2", "--ls_loss=kd", "leave it out")),
        ("--ensemble_method CAMKD --detach_weights", ("--detach_weights", "--beta=0", "leave it out")),
        ("-b 50", ("-b", "50", "kd")),
        ("--distill hint,inter -b 50", ("-b", "50 is 1 of 2", "hint, inter")),
        ("--distill hint,kd -b 50,1", ("-b", "50,1 is 2 of 1", "hint")),
        ("--distill hint,hint -b 50,1", ("--distill", "hint twice")),
        ("--distill hint,inte -b 50,1", ("--distill", "did you mean 'inter'?")),
        ("--distill simkd", ("-b", "0", "simkd gives the student its answers")),
        ("--distill ft -b 1 --init_epochs -1", ("--init_epochs", "-1")),
        ("--distill crd -b 1 --nce_k 0", ("--nce_k", "0")),
        ("--distill crd -b 1 --nce_t 0", ("--nce_t", "0")),
        ("--distill crd -b 1 --nce_m 1.5", ("--nce_m", "1.5")),
        ("--distill crd -b 1 --feat_dim 0", ("--feat_dim", "0")),
        ("--model_s torchvision/resnet18 --distill ofd -b 1", ("--distill", "torchvision/resnet18", "before their")),
        ("-a -1", ("-a", "at least 0")),
        ("-r 0 -a 0", ("-r", "-a", "-b")),
        ("-r 0 -a 0 --distill at -b 1 --feat_stop_epoch 1 --epochs 3", ("-r", "-a", "epoch 2 would have no loss")),
        ("-r 0 -a 0 --distill at -b 1 --feat_start_epoch 2 --epochs 3", ("-r", "-a", "epoch 1 would have no loss")),
        (f"{ONE_BY_ONE} --feat_stop_epoch 0", ("--batch_size", "1", "a single value")),
        (f"{ONE_BY_ONE} --feat_stop_epoch 1", ("--batch_size", "1", "a single value")),
        ("-a 2 --distill_decay", ("--distill_decay", "-a", "0 to 1")),
        ("--kd_T 0", ("--kd_T", "above 0")),
        # a transformer has no maps
        ("--model_s torchvision/swin_t --distill hint -b 1", ("torchvision/swin_t", "--distill kd")),
        (f"--batch_size {TRAIN + 1}", ("--batch_size", f"training set of {TRAIN} images")),
    ],
)
def test_student_options(save_dir: Path, teachers: str, words: str, expected: tuple[str, ...]) -> None:
    refused(distil(save_dir, f"{teachers} {words}"), save_dir, *expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--method OKDDIP", ("--method", "'OKDDIP'", "did you mean 'OKDDip'?")),
        ("--method IND --num_branches 1", ("--num_branches", "at least 2", "1")),
        ("--method ONE --num_branches 1", ("--num_branches", "at least 2", "1")),
        ("--method OKDDip --num_branches 2", ("--num_branches", "at least 3", "2")),
        ("--method CLILR --peers networks", ("--peers", "branches")),
        ("--method IND --model torchvision/swin_t", ("--model", "torchvision/swin_t", "no stages")),
        ("--method BOC --ratios 0.5,0.5", ("--ratios", "three numbers", "'0.5,0.5'")),
        ("--method BOC --single_student 5", ("--single_student", "0 to 4", "5")),
        ("--method BOC --single_student 1 --kd_T 5", ("--kd_T=5", "--single_student=1", "leave it out")),
        ("--method BOC --num_students 17", ("--num_students", "student 16 of 17", "without channels")),
        ("--method BOC --model densenetd40k12 --num_students 13", ("--num_students", "student 12 of 13")),
        ("--method BOC --model torchvision/resnet18", ("--model", "torchvision/resnet18", "torchvision/efficientnet_")),
        ("--method BOC --num_branches 3", ("--num_branches", "BOC")),
        ("--method ONE --batch_size 8 --accumulate 8", ("--batch_size", "8", "one image at a time")),
        ("--start /nowhere.pth", ("--start", "/nowhere.pth")),
    ],
)
def test_online_options(save_dir: Path, words: str, expected: tuple[str, ...]) -> None:
    refused(teach_each_other(save_dir, words), save_dir, *expected)


def test_a_process_ends_with_2_and_one_line(save_dir: Path) -> None:
    """What the other tests call in this process."""
    words = ["--method", "BOC", "--ratios", "1,2", "--dataset", "digits", "--save_dir", str(save_dir)]
    done = subprocess.run(
        [sys.executable, "train_online.py", *words],
        cwd=Path(train_student.__file__).parent,
        capture_output=True,
        text=True,
    )
    refused(Outcome(done.returncode, done.stdout, done.stderr), save_dir, "--ratios", "'1,2'")


def test_c_is_ignored_for_one_teacher(save_dir: Path, teachers: str) -> None:
    assert distil(save_dir, f"{teachers} --teacher_num 1 --ensemble_method AEKD -C 0.1").code == 0


# ---- teachers


def test_missing_teachers_come_with_their_commands(
    tmp_path: Path, save_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(train_student.main, "train_student.py", "--ensemble_method AEKD")
    assert outcome.code == 2
    line, *commands = outcome.err.splitlines()
    assert line.startswith("train_student.py: error: setting.py: there is no save/teachers/resnet32x4-cifar100-trial=0")
    expected = [
        f"  python train_teacher.py --model resnet32x4 --dataset cifar100 --trial {trial}" for trial in range(3)
    ]
    assert commands == expected
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize(
    ("dataset", "arch", "path"),
    [
        ("cifar100", "resnet32x4", "save/teachers/resnet32x4-cifar100-trial=2/last.pth"),
        ("digits", "resnet14", "save/teachers/resnet14-digits-epochs=8-trial=1/last.pth"),
        (
            "digits",
            "wrn_16_1",
            "save/teachers/wrn_16_1-digits-lr_decay_epochs=3,4-nesterov-precision=bf16-trial=a_b/x.pth",
        ),
        (
            "digits",
            "resnet8",
            "save/teachers/resnet8-digits-learning_rate=1e-05-weight_decay=0-seed=3-trial=0/best.pth",
        ),
        ("digits", "torchvision/resnet18", "save/teachers/torchvision.resnet18-digits-pretrained-trial=0/last.pth"),
    ],
)
def test_printed_commands_make_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, dataset: str, arch: str, path: str
) -> None:
    folders = []
    monkeypatch.setattr(Session, "train", lambda self, run, *_: folders.append(run.path))
    monkeypatch.setattr(Session, "build", lambda *_, **__: torch.nn.Identity())
    script, *words = training_command(TeacherFile(arch, Path(path)), dataset).removeprefix("python ").split(" ", 1)
    assert call(train_teacher.main, script, *words).code == 0
    assert folders == [Path(path).parent]


def test_a_teacher_of_an_unknown_folder_comes_with_a_command_that_is_one(tmp_path: Path) -> None:
    """What is printed can be pasted, or taken apart: no comment in it."""
    arch, path = "resnet8", tmp_path / "my nets" / "mine.pth"
    outcome = distil(tmp_path / "save", f"--teachers '{path}:{arch}'")
    line, command = outcome.err.splitlines()
    assert line.endswith(f"there is no {path}; train it, and name its last.pth in --teachers:")
    assert command.strip() == training_command(TeacherFile(arch, path), "digits")
    assert shlex.split(command, comments=True) == shlex.split(command)
    train_teacher.options().parse(shlex.split(command)[2:])


def test_no_teachers_listed(save_dir: Path) -> None:
    refused(distil(save_dir, "--dataset svhn"), save_dir, "setting.py", "svhn", "--teachers")


def test_answers_through_a_classifier_that_cannot_read_them(save_dir: Path, tmp_path: Path) -> None:
    """Its own map is twice as large as the student's."""
    model = model_dict["vgg16_fc3"](num_classes=10).state_dict()
    torch.save({"arch": "vgg16_fc3", "num_classes": 10, "model": model}, tmp_path / "x.pth")
    words = f"--image_size 32 --model_s torchvision/resnet18 --teachers {tmp_path}/x.pth --distill simkd -r 0 -a 0 -b 1"
    refused(distil(save_dir, words), save_dir, "--distill", "simkd", "Output size is too small")


@pytest.mark.parametrize("distill", ["kd", "dkd", "ls", "hint -a 0 -b 1"])
def test_a_teacher_of_a_single_class(distill: str, save_dir: Path, tmp_path: Path) -> None:
    model = model_dict["resnet8"](num_classes=1).state_dict()
    torch.save({"arch": "resnet8", "num_classes": 1, "model": model}, tmp_path / "x.pth")
    words = f"""--teachers '{tmp_path}/x.pth:resnet8 {{"classes": [3]}}' --distill {distill}"""
    if "hint" in distill:
        assert distil(save_dir, words).code == 0
    else:
        refused(distil(save_dir, words), save_dir, "--teachers", "teacher 0 knows a single class")


@pytest.mark.parametrize(
    "listed", [["x.pth"], ["resnet8"], ("resnet8", "x.pth"), [("resnet8", "x.pth", 32)], [{"resnet8": "x.pth"}], [None]]
)
def test_what_is_no_teacher_in_setting(listed: Any, save_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setting.TEACHERS", {"digits": listed})
    refused(distil(save_dir), save_dir, "setting.py", "is no teacher", '("ARCHITECTURE", "CHECKPOINT")')


@pytest.mark.parametrize("option", ["--evaluate", "--save_dir", "--teachers", "--resume", "--config"])
def test_a_path_that_no_file_system_takes(option: str, save_dir: Path) -> None:
    outcome = distil(save_dir, f"{option} {'x' * 300}")
    refused(outcome, save_dir, "x" * 300)


@pytest.mark.parametrize("given", ["{}/nothing.pth", "{}:resnet8x"])
def test_missing_teacher_on_the_command_line(save_dir: Path, tmp_path: Path, given: str) -> None:
    refused(distil(save_dir, f"--teachers {given.format(tmp_path)}"), save_dir, "--teachers", str(tmp_path))


def bad_checkpoint(path: Path, kind: str, good: Path) -> None:
    """Write a checkpoint with something wrong."""
    state: dict[str, Any] = {"arch": "resnet8", "num_classes": 10, "dataset": "digits", "model": weights(good.parent)}
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:5000])
    elif kind == "flipped bit":
        content = bytearray(good.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "code":
        torch.save({**state, "extra": itertools.count}, path)
    elif kind == "classes":
        torch.save({**state, "num_classes": 100}, path)
    elif kind == "silent classes":
        state["model"]["fc.weight"] = torch.zeros(100, 64)
        torch.save({"model": state["model"]}, path)
    elif kind == "architecture":
        torch.save({**state, "arch": "resnet20", "model": model_dict["resnet20"](num_classes=10).state_dict()}, path)
    elif kind == "silent architecture":
        del state["model"]["fc.bias"]
        torch.save({"model": state["model"]}, path)
    elif kind == "no weights":
        torch.save({"epoch": 3}, path)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("truncated", "damaged"),
        ("flipped bit", "checksum"),
        ("text", "no checkpoint"),
        ("code", "not trusted"),
        ("classes", "100 classes"),
        ("silent classes", "[100, 64]"),
        ("architecture", "resnet20"),
        ("silent architecture", "fc.bias"),
        ("no weights", "no weights"),
    ],
)
def test_wrong_teacher(tmp_path: Path, save_dir: Path, teacher_files: list[Path], kind: str, expected: str) -> None:
    path = tmp_path / "bad.pth"
    bad_checkpoint(path, kind, teacher_files[0])
    refused(distil(save_dir, f"--teachers {path}:resnet8"), save_dir, str(path), expected)
    refused(teach(save_dir, f"--evaluate {path}"), save_dir, "--evaluate", str(path), expected)


# ---- datasets


def test_missing_dataset(tmp_path: Path, save_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> NoReturn:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    outcome = teach(save_dir, f"--dataset cifar100 --data_dir {tmp_path}/data")
    refused(outcome, save_dir, "cifar100", f"{tmp_path}/data/cifar-100-python", "https://")
    assert not (tmp_path / "data").exists()


def test_damaged_dataset(tmp_path: Path, save_dir: Path) -> None:
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"damaged")
    refused(teach(save_dir, f"--dataset cifar100 --data_dir {tmp_path}/data"), save_dir, str(folder), "damaged")


def test_missing_image_folder(tmp_path: Path, save_dir: Path) -> None:
    refused(teach(save_dir, f"--dataset folder --data_dir {tmp_path}"), save_dir, f"{tmp_path}/train")


def test_save_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = teach(tmp_path / "file")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "--save_dir" in outcome.err
