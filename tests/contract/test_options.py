"""The command line: what is misspelt is explained, what is published is understood, what is run can be repeated."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import train_online
import train_student
import train_teacher
from dataset import dataset_dict
from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from helper.errors import UsageError
from helper.machine import device_of, precision_of
from helper.options import Options, _hyperparameters
from helper.recipe import PUBLISHED_DROPS, PUBLISHED_EPOCHS, lr_drops, require_sound_recipe, seed_of
from helper.run_folder import RunFolder, parameters_of
from helper.session import Session, folder_name
from helper.teachers.files import TeacherFile
from online import online_dict

FILES = [TeacherFile("resnet20", Path("save/a.pth")), TeacherFile("resnet20", Path("save/b.pth"))]


def parse(*arguments: str) -> argparse.Namespace:
    return train_student.options().parse(arguments)


def name_of(*arguments: str, files: Sequence[TeacherFile] = FILES) -> str:
    parser = train_student.options()
    opt = parser.parse(arguments)
    return folder_name(train_student.run_name(parser, opt, files, opt.dataset))


def teacher_name(*arguments: str) -> list[str]:
    parser = train_teacher.options()
    return parser.changed(parser.parse(arguments))


def error_of(*arguments: str) -> str:
    """The one line that the user reads."""
    with pytest.raises(UsageError) as caught:
        parse(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The parameters.json of a run with options of every kind."""
    opt = parse(*RECORDED)
    path = tmp_path / "parameters.json"
    path.write_text(json.dumps(parameters_of(opt)))
    return path


RECORDED = (
    *("--model_s", "vgg8", "--distill", "inter", "--convs", "--factor", "4", "--ensemble_method", "AEKD", "-C", "0.7"),
    *("--no-svm_norm", "--teachers", "a.pth:vgg13", "b.pth:vgg13", "--lr_decay_epochs", "10,20", "--lr", "0.02"),
    *("--epochs", "30", "--nesterov", "--data_dir", "elsewhere", "-t", "third", "--seed", "5", "-b", "50"),
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("--ensemble_metod", "--ensemble_method"), ("--model", "--model_s"), ("--epoch", "--epochs")),
        *(("--learningrate", "--learning_rate"), ("--alph=3", "--alpha"), ("--svmnorm", "--svm_norm")),
        *(("--lr_decay", "--lr_decay_"), ("--teacher_nums", "--teacher_num"), ("--batchsize", "--batch_size")),
    ],
)
def test_a_misspelt_option(typed: str, meant: str) -> None:
    message = error_of(typed, "3")
    assert repr(typed.split("=")[0]) in message
    assert f"did you mean {meant}" in message


@pytest.mark.parametrize(
    ("option", "typed", "meant"),
    [
        *(("--ensemble_method", "AEDK", "AEKD"), ("--ensemble_method", "average_loss", "AVERAGE_LOSS")),
        *(("--distill", "hnit", "hint"), ("--model_s", "resnet-8", "resnet8"), ("--dataset", "cifar-100", "cifar100")),
        *(("--model_s", "torchvision/resnet81", "torchvision/resnet18"), ("--precision", "fp23", "fp32")),
        *(("--qp_solver", "exactly", "exact"), ("--kd_scale", "units", "unit")),
    ],
)
def test_a_misspelt_value(option: str, typed: str, meant: str) -> None:
    method = ["--ensemble_method", "AEKD"] if option == "--qp_solver" else []
    message = error_of(*method, option, typed)
    assert message.startswith(f"{option}: ")
    assert repr(typed) in message
    assert f"did you mean '{meant}'" in message
    assert "choose from" in message


@pytest.mark.parametrize(
    ("option", "values"),
    [
        *(("--epochs", ["0", "-1", "1.5", "ten"]), ("--kd_T", ["0", "-4", "nan", "inf"]), ("-a", ["-1", "nan", "inf"])),
        *(("--batch_size", ["0"]), ("--validation", ["1", "-0.1"]), ("--momentum", ["1"]), ("--seed", ["-1", "x"])),
        *(("--learning_rate", ["0", "nan"]), ("--lr_decay_epochs", ["150,x", "0"]), ("--teacher_num", ["0"])),
        *(("--gpu_id", ["-1"]), ("--weight_decay", ["-1"]), ("--feat_start_epoch", ["0"])),
    ],
)
def test_a_senseless_value(option: str, values: Sequence[str]) -> None:
    for value in values:
        message = error_of(f"{option}={value}" if option.startswith("--") else option + value)
        assert option in message
        assert "expected" in message


def test_an_option_without_its_value() -> None:
    assert "--epochs" in error_of("--epochs")
    assert "'resnet8'" in error_of("resnet8")  # a value without its option


@pytest.mark.parametrize(
    ("arguments", "option", "owner"),
    [
        (["-C", "0.6"], "-C", "AEKD"),
        (["-C0.6", "--ensemble_method", "CAMKD"], "-C", "AEKD"),
        (["--ensemble_method", "EBKD", "--no-svm_norm"], "--svm_norm", "AEKD"),
        (["--qp_solver", "exact"], "--qp_solver", "AEKD"),  # even its default
        (["--hint_layer", "1"], "--hint_layer", "hint"),
        (["--distill", "hint", "--factor", "2"], "--factor", "inter"),
    ],
)
def test_an_option_of_another_method(arguments: Sequence[str], option: str, owner: str) -> None:
    message = error_of(*arguments)
    assert message.startswith(f"{option}: ")
    assert owner in message


# what the user typed for nothing, with what
IN_VAIN = [
    ("--lr_decay_rate 0.5", "--lr_schedule cosine"),
    ("--lr_decay_rate 0.5", "--lr_schedule onecycle"),
    ("--momentum 0.5", "--optimizer adam"),
    ("--momentum 0.0", "--optimizer adamw"),
    ("--nesterov", "--optimizer adam"),
    ("--nesterov", "--optimizer adamw"),
    ("--factor 4", "--distill inter -b 1 --no-convs"),
    ("--dkd_beta 2.0", "--distill ls --ls_loss kd"),
    ("--dkd_alpha 2.0", "--distill ls --ls_loss kd"),
    ("--detach_weights", "--ensemble_method CAMKD --beta 0.0"),
]


@pytest.mark.parametrize(("typed", "beside"), IN_VAIN)
def test_an_option_that_another_leaves_without_effect(typed: str, beside: str, tmp_path: Path) -> None:
    """Refused where it is typed; its default, and what an earlier run has on record, are not."""
    option, other = typed.replace(" ", "="), "=".join(beside.split("--")[-1].split())
    assert error_of(*beside.split(), *typed.split()) == f"{option}: nothing reads it with --{other}; leave it out"
    plain = parse(*beside.split())
    path, (name, *value) = tmp_path / "parameters.json", typed.removeprefix("--").split()
    assert vars(parse(*beside.split(), *default_words(name, getattr(plain, name)))) == vars(plain)
    path.write_text(json.dumps({**parameters_of(plain), name: json.loads(value[0]) if value else True}))
    assert getattr(parse("--config", str(path)), name) != getattr(plain, name)


def default_words(name: str, value: object) -> list[str]:
    return [f"--no-{name}"] if value is False else [f"--{name}", str(value)]


@pytest.mark.parametrize(
    "words",
    [
        *("--distill inter --convs --factor 4", "--distill inter,simkd -b 1,1 --factor 4"),
        *("--distill ls --ls_loss dkd --dkd_beta 2", "--distill dkd --dkd_beta 2"),
        *("--ensemble_method CAMKD --detach_weights --distill hint -b 1", "--optimizer sgd --momentum 0.5"),
    ],
)
def test_an_option_that_has_an_effect(words: str) -> None:
    parse(*words.split())


@pytest.mark.parametrize(
    ("script", "registry"),
    [(train_student, distill_dict), (train_student, ensemble_dict), (train_online, online_dict)],
)
def test_what_leaves_an_option_without_effect_is_an_option(script: Any, registry: dict[str, Any]) -> None:
    dests = {action.dest for action in script.options()._actions}
    for entry in registry.values():
        assert entry.unread.keys() <= {parameter.name for parameter in _hyperparameters(entry)}
        assert {other for other, _ in entry.unread.values()} <= dests


def test_several_losses_at_once() -> None:
    """Each has its hyperparameters, and a run's name and record that --config repeats."""
    parser = train_student.options()
    opt = parser.parse(["--distill", "hint,inter", "-b", "1000,0.5", "--hint_layer", "1", "--convs"])
    assert (opt.distill, opt.beta, opt.hint_layer, opt.factor) == ("hint,inter", [1000, 0.5], 1, 2)
    assert parser.hyperparameters(opt, "distill", "hint") == {"hint_layer": 1}
    assert "-hint,inter-" in name_of("--distill", "hint,inter", "-b", "1000,0.5")
    assert "-b=1000,0.5-hint_layer=1-convs-" in name_of(
        *("--distill", "hint,inter", "-b", "1000,0.5", "--hint_layer", "1", "--convs")
    )


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ("hint,nothing", "--distill: unknown value 'nothing'"),
        ("hint,", "--distill: unknown value ''"),
        ("hint,inter,hint", "--distill: 'hint,inter,hint' holds hint twice"),
    ],
)
def test_several_losses_of_which_one_is_wrong(distill: str, message: str) -> None:
    assert error_of("--distill", distill).startswith(message)


def test_an_option_of_none_of_several_losses() -> None:
    message = error_of("--distill", "hint,kd", "--factor", "3")
    assert message.startswith("--factor: belongs to --distill inter")
    assert message.endswith("not to hint,kd")


def test_methods_that_share_an_argument_with_different_defaults() -> None:
    """Each keeps its own; a value that is given is that of all, and tells the run from others."""

    def one(*, wide: int = 3) -> None: ...

    def two(*, wide: int = 5) -> None: ...

    parser = Options("")
    parser.add_methods("", "kind", {"one": one, "two": two}, "one", "", several=True)
    plain, given = (parser.parse(["--kind", "one,two", *more]) for more in ([], ["--wide", "3"]))
    assert [parser.hyperparameters(plain, "kind", name)["wide"] for name in ("one", "two")] == [3, 5]
    assert [parser.hyperparameters(given, "kind", name)["wide"] for name in ("one", "two")] == [3, 3]
    assert [parser.changed(opt, ["kind"]) for opt in (plain, given)] == [[], ["wide=3"]]


@pytest.mark.parametrize(("dest", "registry"), [("distill", distill_dict), ("ensemble_method", ensemble_dict)])
def test_every_hyperparameter_is_a_flag(dest: str, registry: dict[str, Any]) -> None:
    """Shown in --help, typed, with the default of the signature."""
    text = train_student.options().format_help()
    for name, entry in registry.items():
        parser = train_student.options()
        opt = parser.parse([f"--{dest}", name])
        values = parser.hyperparameters(opt, dest)
        assert values == {parameter.name: parameter.default for parameter in _hyperparameters(entry)}
        assert all(f"--{hyperparameter}" in text for hyperparameter in values)
        assert not set(values) & {"student_shapes", "teacher_shapes"}
    assert all(name in text for name in registry)


def test_help_leaves_with_success(capsys: pytest.CaptureFixture[str]) -> None:
    for parser in (train_student.options(), train_teacher.options()):
        with pytest.raises(SystemExit) as left:
            parser.parse(["--help"])
        assert left.value.code == 0
        text = capsys.readouterr().out
        assert all(name in text for name in dataset_dict)
        assert all(action.help for action in parser._actions)


def test_defaults_are_the_published_ones() -> None:
    opt = parse()
    expected = vars(
        argparse.Namespace(
            model_s="resnet8",
            distill="kd",
            ensemble_method="AVERAGE_LOSS",
            kd_T=4.0,
            kd_scale="released",
            teacher_num=None,
            gamma=1.0,
            alpha=1.0,
            beta=0.0,
            epochs=240,
            batch_size=64,
            momentum=0.9,
            weight_decay=5e-4,
            lr_decay_rate=0.1,
            dataset="cifar100",
            trial="0",
        )
    )
    assert {name: getattr(opt, name) for name in expected} == expected
    assert parse("--ensemble_method", "AEKD").C == 0.6
    assert lr_drops(opt.epochs, opt.lr_decay_epochs) == [150, 180, 210]


def test_published_spellings() -> None:
    """Of OKDDip and ONE, of RepDistiller and its descendants; all mean the same."""
    okddip = parse("--num_epochs", "300", "--lr", "0.1", "--wd", "1e-4", "--schedule", "150", "225", "--gpu_id", "0")
    plain = parse("--epochs=300", "--learning_rate=0.1", "--weight_decay=1e-4", "--lr_decay_epochs", "150,225")
    assert okddip.gpu_id == 0
    assert {**vars(okddip), "gpu_id": None} == vars(plain)
    assert okddip.lr_decay_epochs == [150, 225]
    device_of(okddip)  # also on a machine without a GPU
    camkd = parse(
        *("--model_s", "vgg8", "--teacher_num", "3", "--distill", "inter", "--ensemble_method", "CAMKD", "--nesterov"),
        *("-r", "1", "-a", "1", "-b", "50", "--trial", "0", "--gpu_id", "0", "--lr_decay_epochs", "150,180,210"),
    )
    assert (camkd.gamma, camkd.alpha, camkd.beta, camkd.nesterov, camkd.teacher_num) == (1, 1, 50, True, 3)
    assert camkd.lr_decay_epochs == [150, 180, 210]
    assert parse("--schedule", "150, 180", "210").lr_decay_epochs == [150, 180, 210]
    assert parse("--dataset", "CIFAR100").dataset == parse("--dataset", "cifar100").dataset
    assert parse("-t", "3").trial == parse("--trial", "3").trial == "3"
    assert parse("--distill", "hint", "--hint_layer", "-2").hint_layer == -2


# For each option that changes the result: arguments that differ in nothing else from the second list.
CHANGING: dict[str, tuple[list[str], list[str]]] = {
    "model_s": (["--model_s", "vgg8"], []),
    "pretrained": (["--pretrained"], []),
    "gamma": (["-r", "0.5"], []),
    "alpha": (["-a", "0.5"], []),
    "beta": (["-b", "0.5"], []),
    "kd_T": (["--kd_T", "3"], []),
    "lr_schedule": (["--lr_schedule", "cosine"], []),
    "warmup_epochs": (["--warmup_epochs", "0.5"], []),
    "clip_grad": (["--clip_grad", "1"], []),
    "kd_scale": (["--kd_scale", "unit"], []),
    "distill_decay": (["--distill_decay"], []),
    "feat_start_epoch": (["--feat_start_epoch", "1"], []),
    "feat_stop_epoch": (["--feat_stop_epoch", "9"], []),
    "distill": (["--distill", "hint"], []),
    "ensemble_method": (["--ensemble_method", "EBKD"], []),
    "hint_layer": (["--distill", "hint", "--hint_layer", "1"], ["--distill", "hint"]),
    "convs": (["--distill", "inter", "--convs"], ["--distill", "inter"]),
    "factor": (["--distill", "inter", "--convs", "--factor", "4"], ["--distill", "inter", "--convs"]),
    "C": (["--ensemble_method", "AEKD", "-C", "0.7"], ["--ensemble_method", "AEKD"]),
    "svm_norm": (["--ensemble_method", "AEKD", "--no-svm_norm"], ["--ensemble_method", "AEKD"]),
    "qp_solver": (["--ensemble_method", "AEKD", "--qp_solver", "svm"], ["--ensemble_method", "AEKD"]),
    "dataset": (["--dataset", "cifar10"], []),
    "batch_size": (["--batch_size", "128"], []),
    "image_size": (["--image_size", "32"], []),
    "mean": (["--mean", "0.5"], []),
    "std": (["--std", "0.5"], []),
    "augment": (["--augment", "none"], []),
    "train_split": (["--train_split", "0.8"], []),
    "test_split": (["--test_split", "0.2"], []),
    "balanced": (["--balanced"], []),
    "wrong_labels": (["--wrong_labels", "0.4"], []),
    "specialist": (["--specialist", "1of3"], []),
    "specialist_others": (["--specialist", "1of3", "--specialist_others", "0.2"], ["--specialist", "1of3"]),
    "mixup": (["--mixup", "1"], []),
    "cutmix": (["--cutmix", "1"], []),
    "channels": (["--channels", "1"], []),
    "ema": (["--ema", "0.9"], []),
    "label_smoothing": (["--label_smoothing", "0.1"], []),
    "validation": (["--validation", "0.1"], []),
    "epochs": (["--epochs", "239"], []),
    "learning_rate": (["--lr", "0.1"], []),
    "lr_decay_epochs": (["--schedule", "1", "2"], ["--schedule", "1"]),
    "lr_decay_rate": (["--lr_decay_rate", "0.2"], []),
    "weight_decay": (["--wd", "0"], []),
    "momentum": (["--momentum", "0"], []),
    "nesterov": (["--nesterov"], []),
    "optimizer": (["--optimizer", "adam"], []),
    "trial": (["-t", "1"], []),
    "seed": (["--seed", "1"], []),
    "precision": (["--precision", "bf16"], []),
    "accumulate": (["--accumulate", "2"], []),
    "sync_bn": (["--sync_bn"], []),
    "compile": (["--compile"], []),
    "teacher_cache": (["--teacher_cache", "cache"], []),
}
KEEPING: dict[str, list[str]] = {
    "data_dir": ["--data_dir", "/elsewhere"],
    "skip_damaged": ["--skip_damaged"],  # without it, damaged images are refused
    "save_dir": ["--save_dir", "elsewhere"],
    "resume": ["--resume"],
    "checkpoint_minutes": ["--checkpoint_minutes", "1"],
    "overwrite": ["--overwrite"],
    "evaluate": ["--evaluate", "a.pth"],
    "device": ["--device", "cpu"],
    "gpu_id": ["--gpu_id", "1"],
    "in_memory": ["--in_memory", "never"],  # the images' identity tells where it makes a difference
    "memory_gb": ["--memory_gb", "1"],
    "num_workers": ["--num_workers", "1"],
    "teacher_cache_gb": ["--teacher_cache_gb", "1"],
}
BY_FILES = {"teacher_num", "teachers"}  # the fingerprint of the teachers' files tells
OTHER = {"help", "config"}


def test_every_option_is_classified() -> None:
    """A new option of the script goes into CHANGING or KEEPING; hyperparameters of new methods are looked after."""
    hyperparameters = {
        parameter.name
        for registry in (distill_dict, ensemble_dict)
        for entry in registry.values()
        for parameter in _hyperparameters(entry)
    }
    options = {action.dest for action in train_student.options()._actions}
    assert options - hyperparameters == (CHANGING.keys() | KEEPING.keys() | BY_FILES | OTHER) - hyperparameters


@pytest.mark.parametrize("option", list(CHANGING))
def test_the_runs_name_tells_every_difference(option: str) -> None:
    changed, plain = CHANGING[option]
    assert name_of(*changed) != name_of(*plain)


def test_the_runs_names_are_all_different() -> None:
    names = {name_of(*arguments) for pair in CHANGING.values() for arguments in pair}
    assert len(names) == len({tuple(arguments) for pair in CHANGING.values() for arguments in pair})


@pytest.mark.parametrize("option", list(KEEPING))
def test_the_runs_name_leaves_out_what_changes_nothing(option: str) -> None:
    assert name_of(*KEEPING[option]) == name_of()


def test_the_runs_name_tells_the_teachers() -> None:
    other = TeacherFile("resnet20", Path("save/c.pth"))
    names = [name_of(files=files) for files in (FILES, FILES[:1], [FILES[0], other], [other, FILES[0]])]
    assert len(set(names)) == 4
    assert "2xresnet20@" in names[0]
    assert "3xresnet20+2xvgg13@" in name_of(files=[other] * 3 + [TeacherFile("vgg13", Path("v"))] * 2)
    assert name_of("--teacher_num", "2") == name_of()


def test_the_runs_name_of_close_values() -> None:
    """Also where they differ in the seventh digit only."""
    assert name_of("--lr", "0.0123456") != name_of("--lr", "0.01234561")
    assert name_of("-a", "0.9") != name_of("-a", "0.9000001")
    assert name_of("--lr", "1e-1") == name_of("--lr", "0.1")


def test_a_teachers_name() -> None:
    assert teacher_name() == []
    assert teacher_name("--epochs", "10", "--model", "vgg13") == ["model=vgg13", "epochs=10"]
    assert teacher_name("--schedule", "1", "2", "--num_workers", "1") == ["lr_decay_epochs=1,2"]


def test_names_no_file_system_minds() -> None:
    assert "/" not in name_of("--model_s", "torchvision/resnet18")
    with pytest.raises(UsageError, match="--trial"):
        name_of("--trial", "x" * 200)
    for trial in ("a/b", "a-b", "a b", "", "ä"):
        with pytest.raises(UsageError, match="--trial"):
            require_sound_recipe(parse(f"--trial={trial}"))


def test_a_config_repeats_a_run(recorded: Path) -> None:
    repeated = parse("--config", str(recorded))
    assert {**vars(repeated), "config": None} == vars(parse(*RECORDED))
    assert name_of("--config", str(recorded)) == name_of(*RECORDED)
    assert parameters_of(repeated) == json.loads(recorded.read_text())


def test_the_command_line_overrides_a_config(recorded: Path) -> None:
    config = ("--config", str(recorded))
    later = (
        *("--schedule", "7", "-C", "0.9", "--svm_norm", "--no-convs", "--factor", "2", "--lr", "0.3"),
        *("--teachers", "c.pth"),
    )
    opt = parse(*config, *later)
    assert (opt.lr_decay_epochs, opt.C, opt.svm_norm, opt.convs) == ([7], 0.9, True, False)
    assert (opt.learning_rate, opt.teachers, opt.epochs) == (0.3, ["c.pth"], 30)
    assert vars(parse(*later, *config)) == vars(opt)  # wherever it stands
    assert name_of(*config, *later) == name_of(*RECORDED, *later)
    assert name_of(*config, "--epochs", "240") == name_of(*RECORDED, "--epochs", "240")  # back to a default


def test_another_method_than_the_configs(recorded: Path) -> None:
    """What belongs to the old method falls away, what belongs to the new one has its defaults or is given."""
    config = ("--config", str(recorded))
    opt = parse(*config, "--ensemble_method", "CAMKD", "--distill", "hint", "--hint_layer", "1")
    assert not {"C", "svm_norm", "qp_solver", "convs", "factor"} & vars(opt).keys()
    assert opt.hint_layer == 1
    message = error_of(*config, "--ensemble_method", "CAMKD", "-C", "0.9")
    assert message.startswith("-C: ")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "5", "[1]", "null", '{"epoch": 3}', '{"epochs": "many"}', '{"epochs": 0}', '{"distill": "nothing"}'),
        *('{"momentum": 2}', '{"epochs": true}', '{"alpha": [1]}'),
    ],
)
def test_a_config_that_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "parameters.json"
    path.write_text(content)
    message = error_of("--config", str(path))
    assert message.startswith("-")
    error_of("--config", str(tmp_path / "missing.json"))


def test_a_repeated_run_is_found_finished(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real script but for the training: its parameters.json leads to the very same run folder."""

    def train(self: Session, run: RunFolder, *_: object) -> None:
        scores = {"epoch": 1, "test_accuracy": 10.0}
        run.open(parameters_of(self.opt), overwrite=False)
        run.write_json("result.json", {"last": scores, "best": scores, "best_chosen_on": "test"})

    monkeypatch.setattr(Session, "train", train)
    monkeypatch.setattr(Session, "test", lambda *_: defaultdict(lambda: {"accuracy": 10.0}))
    train_student.main([*tiny, "--distill", "hint", "-b", "3", "--ensemble_method", "AEKD", "-C", "0.7", "-t", "x"])
    (run,) = (tmp_path / "save" / "students").iterdir()
    capsys.readouterr()
    train_student.main(["--config", str(run / "parameters.json")])
    assert f"{run} is finished" in capsys.readouterr().out
    assert list(run.parent.iterdir()) == [run]


@pytest.mark.parametrize("epochs", [1, 2, 10, 30, 60, 100, 240, 300, 480])
def test_the_learning_rate_drops_at_the_published_fractions(epochs: int) -> None:
    drops = lr_drops(epochs, None)
    assert drops == sorted(drops)
    for drop, published in zip(drops, PUBLISHED_DROPS, strict=True):
        assert abs(drop - published * epochs / PUBLISHED_EPOCHS) <= 0.5
    assert lr_drops(epochs, [3, 5]) == [3, 5]


def test_the_seed_is_the_trial_unless_given() -> None:
    assert seed_of(parse("-t", "7")) == 7
    assert seed_of(parse("-t", "7", "--seed", "0")) == 0
    assert seed_of(parse("-t", "first")) == 0


def test_what_contradicts_itself_is_refused() -> None:
    for arguments in (("--resume", "--overwrite"), ("--nesterov", "--momentum", "0")):
        with pytest.raises(UsageError, match=arguments[0]):
            require_sound_recipe(parse(*arguments))
    with pytest.raises(UsageError, match="--device: unknown value 'gpu'"):
        device_of(parse("--device", "gpu"))


def test_a_gpu_is_said_once(tmp_path: Path) -> None:
    """A device that is typed stands over the GPU of an earlier run's config, though, as options do."""
    for device in ("cpu", "cuda", "cuda:1"):
        message = error_of("--gpu_id", "2", "--device", device)
        assert message == f"--gpu_id=2: nothing reads it with --device={device}; leave it out"
    path = tmp_path / "parameters.json"
    path.write_text(json.dumps(parameters_of(parse("--gpu_id", "2"))))
    assert device_of(parse("--config", str(path), "--device", "cpu")) == torch.device("cpu")


def test_processes_share_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(parse("--device", "cuda:1")) == device_of(parse("--gpu_id", "1")) == torch.device("cuda", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device_of(parse()) == device_of(parse("--device", "cuda")) == torch.device("cuda", 1)
    for option in (("--device", "cuda:1"), ("--gpu_id", "1")):
        with pytest.raises(UsageError, match=rf"{option[0]}: .* choose them with CUDA_VISIBLE_DEVICES"):
            device_of(parse(*option))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="torchrun: 4 processes need 4 GPUs, this machine has 2"):
        device_of(parse())
    assert device_of(parse("--device", "cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["-b", "50"], "-b"),
        (["-r", "0", "-a", "0"], "-r, -a, -b"),
        (["--ensemble_method", "AEKD", "-C", "0.2"], "-C"),
        (["--teacher_num", "3"], "--teacher_num"),
        (["--evaluate", "nothing.pth"], "--evaluate"),
        (["--teachers", "nothing.pth"], "--teachers"),
        (["--pretrained"], "--pretrained"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments: list[str], option: str, tiny: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        train_student.main([*tiny, *arguments])
    assert str(caught.value).startswith(f"{option}: ")
    assert not (tmp_path / "save").exists()


def test_methods_may_share_an_argument() -> None:
    """The flag is shared; each method keeps the default of its own signature."""

    class One:
        def __init__(self, *, width: int = 3) -> None: ...

    class Two:
        def __init__(self, *, width: int = 5, deep: bool = True) -> None: ...

    parser = Options("")
    parser.add_methods("", "kind", {"one": One, "two": Two}, "one", "")
    assert parser.hyperparameters(parser.parse([]), "kind") == {"width": 3}
    opt = parser.parse(["--kind", "two", "--no-deep"])
    assert parser.hyperparameters(opt, "kind") == {"width": 5, "deep": False}
    assert parser.changed(opt) == ["kind=two", "deep=False"]


def test_a_hyperparameter_without_type_or_default() -> None:
    class Untyped:
        def __init__(self, *, width=3) -> None: ...  # type: ignore[no-untyped-def]

    class Required:
        def __init__(self, *, width: int) -> None: ...

    for kind in (Untyped, Required):
        with pytest.raises(TypeError, match=rf"{kind.__name__}: its argument width needs a type and a default"):
            Options("").add_methods("", "kind", {"one": kind}, "one", "")


def test_a_hyperparameter_called_as_an_option_of_the_script() -> None:
    """One that comes before it is shared, one that comes after it is refused in a line that says whose it is."""

    def mine(*, rate: float = 0.1, epochs: int = 3) -> None: ...

    parser = Options("")
    parser.section("before")("--rate", type=float, default=0.5)
    parser.add_methods("", "kind", {"mine": mine}, "mine", "")
    assert parser.parse([]).rate == 0.5
    with pytest.raises(UsageError, match=r"^mine: an argument epochs would be the script's own --epochs; rename it$"):
        parser.section("after")("--epochs", type=int, default=240)


@pytest.mark.parametrize(("able", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_asks_the_hardware(able: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able}, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert precision_of(argparse.Namespace(precision="auto"), torch.device("cpu")) == expected
    for forced in ("fp32", "bf16"):
        assert precision_of(argparse.Namespace(precision=forced), torch.device("cpu")) == forced


@pytest.mark.parametrize(
    ("isa", "capability", "expected"),
    [
        ("AVX2", "AVX512", "fp32"),
        ("AVX512_CORE", "AVX512", "fp32"),
        ("AVX512_CORE_BF16", "AVX512", "bf16"),
        ("AVX512_CORE_AMX", "AVX512", "bf16"),
        ("", "AVX2", "fp32"),
        ("", "DEFAULT", "fp32"),
        ("", "AVX512", "bf16"),
    ],
)
def test_auto_precision_keeps_to_what_may_be_used(
    isa: str, capability: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert precision_of(argparse.Namespace(precision="auto"), torch.device("cpu")) == expected
