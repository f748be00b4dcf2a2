"""Checkpoints survive crashes and damage, are read without running their code, and load in the originals' forms."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import resource
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from helper import checkpoint, foreign, run_folder
from helper.checkpoint import Damaged, load, load_newest, previous, save, tidy
from helper.errors import UsageError
from helper.run_folder import RunFolder
from helper.teachers.files import TeacherFile, chosen_teachers
from helper.teachers.loading import Around, load_teachers
from helper.teachers.record import Eyes
from helper.weights import Labels, load_network
from models import model_dict

CLASSES = 4
LABELS = Labels("digits", CLASSES)
AROUND = Around(LABELS, Eyes(0.5, 0.5, 32, "RGB").checked("digits"), torch.zeros(2, 3, 32, 32))


def network(name: str = "resnet8", num_classes: int = CLASSES, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return model_dict[name](num_classes=num_classes)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def full(epoch: int) -> dict[str, Any]:
    """All that a run needs to go on."""
    return {**dict.fromkeys(run_folder.NEEDED), "epoch": epoch}


def small(value: float) -> dict[str, Any]:
    return {**full(3), "model": {"weight": torch.full((4,), value)}, "arch": "resnet8"}


def value_of(state: Mapping[str, Any] | None) -> float:
    assert state is not None
    return state["model"]["weight"][0].item()


def error_of(action: Any, *arguments: Any) -> str:
    """The message of its UsageError, which is one line."""
    with pytest.raises(UsageError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.pth"


def test_round_trip(path: Path) -> None:
    mine = network()
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)
    mine(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    save({"model": mine.state_dict(), "optimizer": optimizer.state_dict(), "best": {"epoch": 1}, "hours": 0.5}, path)

    state = load(path)
    assert same(state["model"], mine.state_dict())
    assert (state["best"], state["hours"]) == ({"epoch": 1}, 0.5)
    momentum = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    assert all(
        torch.equal(a, optimizer.state[p]["momentum_buffer"]) for a, p in zip(momentum, mine.parameters(), strict=True)
    )
    other = network(seed=1)
    rest = load_network(other, path, "resnet8", LABELS, "--evaluate").about
    assert same(other.state_dict(), mine.state_dict())
    assert rest["hours"] == 0.5
    assert torch.load(path, weights_only=True)["hours"] == 0.5  # plain torch reads it too


def test_the_one_before_is_kept(path: Path) -> None:
    assert load_newest(path) == (None, [])
    for value in (1, 2, 3):
        save(small(value), path)
    assert value_of(load(path)) == 3
    assert value_of(load(previous(path))) == 2
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.pth", "last.pth.previous"]


def test_a_file_system_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    for value in (1, 2, 3):
        save(small(value), path)
    assert (value_of(load(path)), value_of(load(previous(path)))) == (3, 2)
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.pth", "last.pth.previous"]


class PowerCut(BaseException):
    """Nothing is caught when the power fails."""


def test_a_full_disk_is_said_and_costs_nothing(path: Path) -> None:
    save(small(1), path)
    save(small(2), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, before[1]))
    try:
        with pytest.raises(UsageError, match=r"last\.pth cannot be written .*; the one before is kept"):
            save(small(3), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (value_of(load(path)), value_of(load(previous(path)))) == (2, 1)
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.pth", "last.pth.previous"]


@pytest.mark.parametrize("call", range(5))
def test_a_crash_while_saving_costs_nothing(path: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the power fails, the newest whole checkpoint is found."""
    save(small(1), path)
    save(small(2), path)
    calls = iter(range(9))

    def failing(action: Any) -> Any:
        def run(*arguments: Any, **settings: Any) -> Any:
            if next(calls) == call:
                raise PowerCut
            return action(*arguments, **settings)

        return run

    for module, name in ((torch, "save"), (os, "fsync"), (os, "link"), (os, "replace")):
        monkeypatch.setattr(module, name, failing(getattr(module, name)))
    with pytest.raises(PowerCut):
        save(small(3), path)
    monkeypatch.undo()
    newest, before = (3, 1) if call == 4 else (2, 1)  # the last call only moves the one before
    assert value_of(load(path)) == newest, "it is there at every moment"
    assert load_newest(path)[1] == []
    with path.open("r+b") as file:
        file.truncate(100)
    state, notes = load_newest(path)
    assert value_of(state) == before, "bytes of its own"
    assert len(notes) == 1
    save(small(4), path)
    assert value_of(load_newest(path)[0]) == 4
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.pth", "last.pth.previous"]


def tensor_bytes(path: Path) -> range:
    """Where the tensor's numbers lie in the file."""
    with zipfile.ZipFile(path) as archive:
        (entry,) = (info for info in archive.infolist() if "/data/" in info.filename)
    content = path.read_bytes()
    lengths = content[entry.header_offset + 26 : entry.header_offset + 30]
    start = entry.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return range(start, start + entry.file_size)


def attempt(path: Path) -> tuple[dict[str, Any] | None, str]:
    """What the file holds, or why it is damaged."""
    try:
        return load(path), ""
    except Damaged as error:
        return None, str(error)


def test_a_flipped_bit_is_noticed(path: Path) -> None:
    """Any bit of the numbers; elsewhere it is noticed or does no harm."""
    save(small(1.5), path)
    whole, numbers = path.read_bytes(), tensor_bytes(path)
    assert len(numbers) == 16
    for place in (*numbers, *range(0, len(whole), 5)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        state, complaint = attempt(path)
        if state is None:
            assert complaint
            assert "\n" not in complaint
        else:
            assert place not in numbers
            assert same(state["model"], small(1.5)["model"])


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"hello\n" * 50, b"PK\x03\x04", b"\x80\x02]q\x00."])
def test_what_is_no_checkpoint(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(Damaged) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"hello\n" * 50])
def test_damage_is_not_taken_for_malice(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(Damaged, match="damaged"):
        load(path)


def test_every_truncation_is_noticed(path: Path) -> None:
    save(small(1), path)
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 20), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            load(path)


@pytest.mark.parametrize("damage", ["empty", "half", "flipped"])
def test_the_one_before_replaces_a_damaged_one(path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(small(1), path)
    save(small(2), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[tensor_bytes(path)[0]] ^= 4
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "flipped": bytes(flipped)}[damage])

    state, (note,) = load_newest(path)
    assert value_of(state) == 1
    assert str(path) in note
    assert "\n" not in note
    (path.parent / "metrics.jsonl").write_text("".join(f'{{"epoch": {n}}}\n' for n in range(1, 9)))
    RunFolder(path.parent).open({}, overwrite=False)  # as --resume does
    assert str(path) in capsys.readouterr().out
    assert path.with_name("last.pth.damaged").exists()
    save(small(3), path)
    assert (value_of(load(path)), value_of(load(previous(path)))) == (3, 1), "the damaged one is not kept for it"

    path.write_bytes(b"")
    previous(path).write_bytes(b"")
    message = error_of(load_newest, path)
    assert message.startswith("--resume: ")
    assert message.count(".pth") >= 2
    assert "--overwrite" in message


@pytest.fixture
def earlier(tmp_path: Path) -> RunFolder:
    """A run of two epochs."""
    run = RunFolder(tmp_path / "earlier")
    run.open({}, overwrite=False)
    for epoch in (1, 2):
        run.append_metrics({"epoch": epoch})
        save(full(epoch), run.last)
    save(full(1), run.best)
    run.close()
    return run


@pytest.mark.parametrize("damage", ["none", "half", "gone"])
def test_going_on_elsewhere_starts_from_the_newest_whole_one(damage: str, earlier: RunFolder, tmp_path: Path) -> None:
    if damage == "half":
        earlier.last.write_bytes(earlier.last.read_bytes()[:-99])
    elif damage == "gone":
        earlier.last.unlink()
    before = {path: path.read_bytes() for path in earlier.path.iterdir()}
    run, epoch = RunFolder(tmp_path / "longer"), 2 if damage == "none" else 1
    for _ in range(2):  # the second one finds what the first has left
        state = run.open({}, overwrite=False, earlier=earlier)
        run.close()
        assert state == load(run.last) == full(epoch)
        assert load(run.best) == full(1)
        assert run.read_metrics() == [{"epoch": each} for each in range(1, epoch + 1)]
        assert sorted(path.name for path in run.path.iterdir()) == [
            *(".lock", "best.pth", "last.pth", "metrics.jsonl", "parameters.json")
        ]
    assert {path: path.read_bytes() for path in earlier.path.iterdir()} == before


@pytest.mark.parametrize("fault", ["all damaged", "lines are missing", "the disk is full", "the disk is full at last"])
def test_what_is_refused_leaves_no_run_that_has_begun(
    fault: str, earlier: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = RunFolder(tmp_path / "longer")
    with monkeypatch.context() as patch:
        if fault == "all damaged":
            earlier.last.write_bytes(b"")
            previous(earlier.last).write_bytes(b"")
        elif fault == "lines are missing":
            earlier.metrics.write_text('{"epoch": 2}\n')
        else:
            patch.setattr(*((RunFolder, "write_json") if "last" in fault else (shutil, "copyfile")), refuse)
        message = error_of(run.open, {}, False, earlier)
    assert str(run.path if "disk" in fault else earlier.path) in message
    assert list(run.path.iterdir()) == [run.lock]


def forms(state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """How others write checkpoints."""
    wrapped = {f"module.{name}": value for name, value in state.items()}
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    options = argparse.Namespace(learning_rate=0.05, lr_decay_epochs=[150, 180, 210], model_path="./save/models")
    return {
        "RepDistiller": {"opt": options, "model": dict(state), "best_acc": torch.tensor(75.6), "epoch": 240},
        "last": {"opt": options, "model": dict(state), "optimizer": {"state": {}, "param_groups": []}},
        "DataParallel": {"state_dict": wrapped, "epoch": 3, "arch_of_another_kind": None},
        "kuangliu": {"net": wrapped, "acc": 93.0},
        "torchvision": dict(state),
        "before PyTorch 0.4.1": {"model": old},
    }


@pytest.mark.parametrize("form", list(forms({})))
@pytest.mark.parametrize("archive", [True, False])
def test_checkpoints_of_others_load(path: Path, form: str, archive: bool) -> None:
    theirs = network(seed=1)
    torch.save(forms(theirs.state_dict())[form], path, _use_new_zipfile_serialization=archive)
    mine = network(seed=2)
    load_network(mine, path, "resnet8", LABELS, "--evaluate")
    assert same(mine.state_dict(), theirs.state_dict())


def test_imagenet_checkpoints_of_torchvision_load(path: Path) -> None:
    """As CA-MKD and AE-KD save their torchvision networks."""
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(num_classes=CLASSES)
    torch.save({"epoch": 90, "model": theirs.state_dict(), "best_acc": torch.tensor(69.8)}, path)
    mine = network("torchvision/resnet18")
    load_network(mine, path, "torchvision/resnet18", LABELS, "--teachers")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(mine.eval()(images), theirs.eval()(images))


class Intruder:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Innocent:
    """An instance of a class that the reader may not have."""


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_checkpoint_is_not_run(path: Path, archive: bool) -> None:
    mark = path.with_name("mark")
    for guest in (Intruder(f"touch {mark}"), Innocent()):
        state = {**small(1), "guest": guest}
        torch.save(state, path, _use_new_zipfile_serialization=archive)
        with pytest.raises(Damaged, match="unpickling of code, which is not trusted"):
            load(path)
        message = error_of(load_network, network(), path, "resnet8", LABELS, "--evaluate")
        assert message.startswith("--evaluate: ")
        path.write_bytes(pickle.dumps(state))
        with pytest.raises(Damaged):
            load(path)
    assert not mark.exists()
    torch.save({"network": nn.Linear(1, 1)}, path)
    with pytest.raises(Damaged, match="not trusted"):
        load(path)


def test_the_allowance_for_namespaces_ends_with_the_call(path: Path) -> None:
    allowed = set(torch.serialization.get_safe_globals())
    torch.save({"opt": argparse.Namespace(a=1)}, path)
    foreign.read(path)
    assert set(torch.serialization.get_safe_globals()) == allowed


def ours(model: nn.Module, **changes: Any) -> dict[str, Any]:
    """What a training script writes."""
    about = {"arch": "resnet8", "num_classes": CLASSES, "classes": None, "dataset": "digits", "precision": "fp32"}
    return {**about, "model": model.state_dict(), "epoch": 1, **changes}


WRONG: dict[str, tuple[Any, str]] = {
    "missing": (None, "there is no checkpoint"),
    "another arch, declared": (lambda: ours(network("vgg8"), arch="vgg8"), "holds a vgg8, not a resnet8"),
    "another arch, by its own name": (
        lambda: {"model": network("vgg8").state_dict(), "arch": "VGG"},
        "is not a resnet8: .*; it calls itself 'VGG'",
    ),
    "another arch": (lambda: {"model": network("resnet14").state_dict()}, "is not a resnet8.*missing.*extra"),
    "another width": (lambda: {"model": network("resnet8x4").state_dict()}, "does not fit a resnet8|is not a resnet8"),
    "another class count": (lambda: {"model": network(num_classes=7).state_dict()}, "4 classes: 'fc.*7"),
    "another class count, declared": (
        lambda: ours(network(num_classes=7), num_classes=7),
        "7 classes, the dataset has 4 classes$",
    ),
    "no weights": ({"epoch": 3}, "holds no weights"),
    "nothing": ({}, "holds no weights"),
    "no dictionary": ([1, 2], "holds no dictionary"),
    "numbered weights": ({"model": {0: torch.zeros(1)}}, ""),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_what_does_not_fit_is_explained(path: Path, what: str) -> None:
    content, pattern = WRONG[what]
    if callable(content):
        content = content()
    if content is not None:
        torch.save(content, path)
    mine = network()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    message = error_of(load_network, mine, path, "resnet8", LABELS, "--evaluate")
    assert message.startswith("--evaluate: ")
    assert str(path) in message
    assert re.search(pattern, message)
    assert same(mine.state_dict(), before)


def test_teachers_say_their_own_architecture(tmp_path: Path) -> None:
    """From the checkpoint, from the folder's name, or from the option."""
    files = []
    for folder, state in (
        ("any", {"model": network("vgg8").state_dict(), "arch": "vgg8"}),
        ("resnet8x4_cifar100_lr_0.05_trial_0", {"model": network("resnet8x4").state_dict()}),
        ("mine", {"model": network().state_dict()}),
    ):
        file = tmp_path / folder / "last.pth"
        file.parent.mkdir()
        checkpoint.save(state, file)
        files.append(str(file))
    given = [*files[:2], f"{files[2]}:resnet8"]
    chosen = chosen_teachers([], given, None, "digits", model_dict)
    assert [file.arch for file in chosen] == ["vgg8", "resnet8x4", "resnet8"]
    teachers, notes = load_teachers(chosen, network, AROUND, "fp32")
    assert (len(teachers), notes) == (3, [])
    assert not any(parameter.requires_grad for one in teachers.networks for parameter in one.parameters())
    assert chosen_teachers([], given, 2, "digits", model_dict) == chosen[:2]

    def choose(*given: str, teacher_num: int | None = None) -> Any:
        return chosen_teachers([], list(given), teacher_num, "digits", model_dict)

    assert error_of(choose, files[2]).endswith(f"write {files[2]}:ARCH")
    assert "--teachers" in error_of(choose, f"{files[2]}:resnet9")
    assert "--teachers" in error_of(choose, str(tmp_path / "nothing.pth"))
    with pytest.raises(UsageError, match="--teacher_num: 4"):
        choose(*given, teacher_num=4)
    assert "setting.py" in error_of(chosen_teachers, [], None, None, "digits", model_dict)
    Path(files[0]).write_bytes(b"")
    assert "damaged" in error_of(choose, files[0])


def test_unfinished_teachers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save({"model": network().state_dict(), "epoch": 3, "epochs": 10}, path)
    _, notes = load_teachers([TeacherFile("resnet8", path)], network, AROUND, "fp32")
    assert notes == [f"{path}: trained for 3 of 10 epochs only"]


@pytest.mark.parametrize("which", [0, 1], ids=["before the new one stands", "after it"])
def test_a_save_that_was_killed_is_finished(which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace, done = tmp_path / "last.pth", os.replace, []
    for number in (1, 2):
        save(small(number), path)

    def killed(*names: Path) -> None:
        if len(done) == which:
            raise PowerCut
        done.append(names)
        replace(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(PowerCut):
            save(small(3), path)
    assert (tmp_path / "last.pth.previous.partial").exists()
    tidy(path)
    assert (value_of(load(path)), value_of(load(previous(path)))) == ((2, 1), (3, 2))[which]
    assert {file.name for file in tmp_path.iterdir()} == {"last.pth", "last.pth.previous"}


def test_what_torch_makes_of_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer raises a RuntimeError because of the OSError."""

    def fails(*_: object) -> None:
        try:
            raise OSError(27, "File too large")
        finally:
            raise RuntimeError("unexpected pos 1")

    monkeypatch.setattr("torch.save", fails)
    with pytest.raises(UsageError, match=r"cannot be written \(File too large\)"):
        save({}, tmp_path / "last.pth")
