"""Teachers with eyes and classes of their own in the real scripts, live and from the cache; faults are one line."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import Outcome, call, distil, first_digits, metrics, result, teach, weights
from torch import Tensor, nn

from dataset.base import Split
from dataset.digits import Digits
from helper.teachers.record import Teacher
from models import model_dict
from scripts import fill_cache

pytestmark = pytest.mark.usefixtures("little_data_of_usual_size")
LOW, HIGH = ["0", "1", "2", "3", "4"], ["9", "8", "7", "6", "5"]


def lists(patch: pytest.MonkeyPatch, *teachers: Teacher | tuple[str, str]) -> None:
    """As if a person had written them into ``setting.py``."""
    patch.setattr("setting.TEACHERS", {"digits": list(teachers)})


def pixels(part: Split) -> Tensor:
    """[N, 3, 32, 32], from 0 to 1."""
    return part.images.permute(0, 3, 1, 2).float() / 255


def trained(
    images: Tensor, labels: Tensor, classes: int = 10, epochs: int = 3, network: nn.Module | None = None
) -> nn.Module:
    """A network, or a resnet8, that has learnt something of images as it wants them."""
    torch.manual_seed(0)
    network = network or model_dict["resnet8"](num_classes=classes)
    if images.shape[1] == 1:
        network.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (network(images).argmax(1) == labels).float().mean().item() * 100


WAYS: dict[str, dict[str, Any]] = {
    "bytes": {"mean": 0, "std": 1 / 255},
    "large": {"mean": 0.5, "std": 0.25, "size": 40},
    "grey": {"mean": 0.3, "std": 0.3, "channels": 1},
}


def wanted(values: Tensor, mean: float, std: float, size: int = 32, channels: int = 3) -> Tensor:
    if size != values.shape[-1]:
        values = F.interpolate(values, (size, size), mode="bilinear")
    return (values[:, :channels] - mean) / std  # digits are grey


@pytest.fixture(scope="module")
def own_ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Teacher, float]]:
    """Plain weights of three networks, and how accurate each is alone, in percent."""
    (train, test), folder, made = first_digits(32), tmp_path_factory.mktemp("ways"), {}
    for name, way in WAYS.items():
        network = trained(wanted(pixels(train), **way), train.labels)
        torch.save(network.state_dict(), folder / f"{name}.pth")
        alone = accuracy(network, wanted(pixels(test), **way), test.labels)
        made[name] = Teacher("resnet8", folder / f"{name}.pth", **way), alone
    return made


def printed(outcome: Outcome) -> list[float]:
    """What is said of each teacher."""
    assert outcome.code == 0, outcome.err
    return [float(each) for each in re.findall(r"^teacher \d: ([\d.]+) %", outcome.out, re.M)]


def test_each_teacher_is_as_accurate_as_alone(
    tmp_path: Path, own_ways: dict[str, tuple[Teacher, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live, with losses on maps, and from the cache; and the run is repeated from its record."""
    lists(monkeypatch, *(teacher for teacher, _ in own_ways.values()))
    alone = [pytest.approx(each, abs=0.005) for _, each in own_ways.values()]
    cache = f"--teacher_cache {tmp_path / 'cache'}"
    live = distil(tmp_path / "s", "--distill inter -b 50 --ensemble_method CAMKD")
    cached = distil(tmp_path / "s", cache)
    assert printed(live) == printed(cached) == alone
    assert f"{own_ways['large'][0].path}: sees 40×40 pixels, RGB, mean 0.5, std 0.25" in live.out
    plain = distil(tmp_path / "s", "--distill kd")
    assert metrics(cached.folder)[0]["train_loss_kd"] == pytest.approx(
        metrics(plain.folder)[0]["train_loss_kd"], rel=1e-2
    )
    assert "mean" in result(live.folder)["teachers"][0]
    lists(monkeypatch)
    again = distil(tmp_path / "s", f"--config {live.folder / 'parameters.json'}")
    assert f"{live.folder} is finished" in again.out
    config = f"--config {cached.folder / 'parameters.json'}"
    filled = call(fill_cache.main, "fill_cache.py", f"{config} --device cpu {cache}")
    assert "views of 3 teachers are there" in filled.out, filled.err


def test_without_a_word_they_are_blind(
    tmp_path: Path, own_ways: dict[str, tuple[Teacher, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, alone = own_ways["bytes"]
    lists(monkeypatch, ("resnet8", str(teacher.path)))
    other = distil(tmp_path, "")
    assert printed(other)[0] < alone - 5
    lists(monkeypatch, teacher)
    own = distil(tmp_path, "")
    assert own.folder != other.folder  # another name
    assert printed(own) == [pytest.approx(alone, abs=0.005)]


def test_teachers_are_reported_in_full_precision(
    tmp_path: Path, own_ways: dict[str, tuple[Teacher, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As their authors have measured them, whatever a run computes in."""
    lists(monkeypatch, *(teacher for teacher, _ in own_ways.values()))
    runs = [distil(tmp_path, f"--precision {precision}").folder for precision in ("fp32", "bf16")]
    full, low = (result(run) for run in runs)
    assert low["teachers"] == full["teachers"]
    assert low["teacher_ensemble"] == full["teacher_ensemble"]
    assert not torch.equal(*(weights(run)["conv1.weight"] for run in runs))


@pytest.mark.parametrize("said", ["--mean 0.1,0.2,0.3 --std 0.5", "--channels 1 --mean 0.5"])
def test_a_checkpoint_is_evaluated_on_images_as_in_its_training(tmp_path: Path, said: str) -> None:
    run = teach(tmp_path, said).folder
    expected = f"accuracy {result(run)['last']['test_accuracy']:.2f} %"
    plain, same = (teach(tmp_path, f"--evaluate {run} {words}").out for words in ("", said))
    assert expected in plain
    assert expected in same
    assert f"{run / 'last.pth'}: sees 32×32 pixels, " in plain
    assert "sees" not in same


CIFAR_RESNET = """
import torch.nn as nn
import torch.nn.functional as F


class LambdaLayer(nn.Module):
    def __init__(self, lambd):
        super().__init__()
        self.lambd = lambd

    def forward(self, x):
        return self.lambd(x)


class Block(nn.Module):
    def __init__(self, before, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if before != planes:
            more = (planes - before) // 2
            self.shortcut = LambdaLayer(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more)))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2))
        self.layer3 = nn.Sequential(Block(32, 64, 2))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))
"""
MINE = "from cifar_resnet import ResNet\n\n\ndef resnet8():\n    return ResNet()\n"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_public_network_of_option_a_is_as_accurate_as_published(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code beside a person's file, trained on ImageNet's mean and std, saved from several devices."""
    (tmp_path / "cifar_resnet.py").write_text(CIFAR_RESNET)
    (tmp_path / "mine.py").write_text(MINE)
    eyes = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    train, test = (
        (pixels(part) - torch.tensor(eyes["mean"]).view(3, 1, 1)) / torch.tensor(eyes["std"]).view(3, 1, 1)
        for part in first_digits(32)
    )
    arch = f"{tmp_path}/mine.py:resnet8"
    network = trained(train, first_digits(32)[0].labels, network=model_dict[arch](num_classes=10))
    alone = accuracy(network, test, first_digits(32)[1].labels)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    about = {"state_dict": state, "best_prec1": torch.tensor(alone), "args": argparse.Namespace(lr=0.1)}
    torch.save(about, tmp_path / "model.th", _use_new_zipfile_serialization=not legacy)
    typed = distil(tmp_path / "s", f"--teachers '{tmp_path}/model.th:{arch} {json.dumps(eyes)}'")
    assert printed(typed) == [pytest.approx(alone, abs=0.005)]
    lists(monkeypatch, Teacher(arch, tmp_path / "model.th", **eyes))  # type: ignore[arg-type]
    assert f"{typed.folder} is finished" in distil(tmp_path / "s", "").out


# ---- specialists


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Teacher, float]]:
    """Plain weights of two networks that know five digits each, and how accurate each is on those."""
    (train, test), folder, made = first_digits(32), tmp_path_factory.mktemp("halves"), []
    for names in (LOW, HIGH):
        (images, labels), (others, theirs) = (of_classes(part, names) for part in (train, test))
        network = trained(images, labels, classes=5)
        path = folder / f"{names[0]}.pth"
        torch.save({"state_dict": network.state_dict()}, path)
        made.append((Teacher("resnet8", path, classes=names), accuracy(network, others, theirs)))
    return made


def of_classes(part: Split, names: list[str]) -> tuple[Tensor, Tensor]:
    """Images as the dataset normalises them, and labels counted as in ``names``."""
    info = Digits(Path()).info
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (info.mean, info.std))
    numbers = torch.tensor([int(name) for name in names])
    keep = torch.isin(part.labels, numbers)
    labels = (part.labels[keep][:, None] == numbers).long().argmax(1)
    return (pixels(part)[keep] - mean) / std, labels


@pytest.mark.parametrize("method", ["AEKD", "CAMKD"])
def test_specialists_teach_one_student(
    tmp_path: Path, halves: list[tuple[Teacher, float]], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists(monkeypatch, *(teacher for teacher, _ in halves))
    alone = [pytest.approx(each, abs=0.005) for _, each in halves]
    words = f"--ensemble_method {method}"
    live = distil(tmp_path / "s", f"{words} --distill inter -b 50")
    assert printed(live) == alone
    assert live.out.count("% over the 5 classes that it knows") == 2
    assert "no teacher knows" not in live.out
    stored = [distil(tmp_path / "s", f"{words} -a {a} --teacher_cache {tmp_path / 'cache'}") for a in (1, 0.9)]
    plain = distil(tmp_path / "s", words)
    assert [printed(each) for each in stored] == [alone] * 2
    first, _, expected = (metrics(each.folder)[0]["train_loss_kd"] for each in (*stored, plain))
    assert first == pytest.approx(expected, rel=1e-2)


def test_a_teacher_of_many_classes_teaches_some(
    tmp_path: Path, halves: list[tuple[Teacher, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other logits of a network with 20 make no difference, and with no teacher for a class that is said."""
    (teacher, alone), _ = halves
    small, where = torch.load(teacher.path or "", weights_only=True)["state_dict"], [7, 3, 19, 0, 11]
    large = model_dict["resnet8"](num_classes=20).state_dict()
    large |= {name: value for name, value in small.items() if not name.startswith("fc.")}
    for name in ("fc.weight", "fc.bias"):
        large[name] = torch.full_like(large[name], 5.0)
        large[name][where] = small[name]
    torch.save(large, tmp_path / "large.pth")
    many = Teacher("resnet8", tmp_path / "large.pth", classes=dict(zip(LOW, where, strict=True)))
    outcomes = []
    for each in (teacher, many):
        lists(monkeypatch, each)
        outcomes.append(distil(tmp_path / "s", ""))
        assert printed(outcomes[-1]) == [pytest.approx(alone, abs=0.005)]
        assert "no teacher knows 5, 6, 7, 8, 9: only the labels teach these" in outcomes[-1].out
    first, second = (weights(each.folder) for each in outcomes)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)
    again = distil(tmp_path / "s", f"--config {outcomes[1].folder / 'parameters.json'}")
    assert "is finished" in again.out
    assert json.loads((outcomes[1].folder / "parameters.json").read_text())["teachers"] == [
        f'{tmp_path / "large.pth"}:resnet8 {{"classes": {json.dumps([list(each) for each in many.classes.items()])}}}'  # type: ignore[union-attr]
    ]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"classes": ["0", "1", "2", "3", "cat"]}, "classes: unknown value 'cat'"),
        ({"classes": ["0", "1", "2", "3"]}, "classes: names 4 logits, but it has 5"),
        ({"classes": {"0": 0, "1": 5}}, "classes: names 6 logits, but it has 5"),
        ({"classes": [0, 1, 2, 3, 3]}, "the class 3 is there twice"),
        ({"size": 0}, "size: 0 is no number of pixels"),
        ({"mean": 127}, "mean: 127 is above 1"),
        ({}, "was trained for 5 classes, not for 10 classes"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, halves: list[tuple[Teacher, float]], said: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = halves[0][0].path
    lists(monkeypatch, Teacher("resnet8", path, **said))
    for words in ("", f"--teachers '{path}:resnet8 {json.dumps(said)}'" if said else f"--teachers {path}:resnet8"):
        refused = distil(tmp_path / "s", words)
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1
        assert why in refused.err, refused.err
        assert str(path) in refused.err
    assert not (tmp_path / "s").exists()
