"""What is exported equals what was trained, without what only training needs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path

import pytest
import torch

import train_online
import train_teacher
from dataset.digits import Digits
from helper import checkpoint
from helper.cost import parameter_count
from helper.errors import UsageError
from models import model_dict
from scripts import export

TINY = ("--dataset", "digits", "--batch_size", "32", "--device", "cpu", "--epochs", "1", "--model", "resnet8")
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs on a few digits."""
    train, test = Digits.load(Digits.__new__(Digits))
    parts = train.subset(torch.arange(64)), test.subset(torch.arange(32))
    save = tmp_path_factory.mktemp("save")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(Digits, "load", lambda _: parts)
        for method in ("OKDDip", "ONE", "BOC"):
            train_online.main(["--method", method, *TINY, "--save_dir", str(save)])
        train_teacher.main([*TINY, "--save_dir", str(save)])
    folders = {path.name.split("-")[0]: path for path in save.glob("*/*")}
    return folders


def exported(run: Path, *arguments: str) -> Path:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        export.main([str(run), *arguments])
    return Path(output.getvalue().split(": ")[0])


@torch.no_grad()
def program(path: Path) -> torch.Tensor:
    return torch.export.load(path).module()(images())


def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", ["OKDDip", "resnet8"])
@torch.no_grad()
def test_the_network_used_in_the_end(runs: dict[str, Path], name: str) -> None:
    path = exported(runs[name])
    network = model_dict["resnet8"](num_classes=10).eval()
    network.load_state_dict(checkpoint.load(runs[name] / "last.pth")["model"])
    torch.testing.assert_close(program(path), network(images()))
    assert path == runs[name] / "last_network.pt2"
    size = sum(value.numel() for value in torch.export.load(path).parameters())
    assert size == parameter_count(network)


@torch.no_grad()
def test_a_student_and_the_ensemble(runs: dict[str, Path], tmp_path: Path) -> None:
    state = checkpoint.load(runs["BOC"] / "best.pth")
    task = export.rebuild_peers(runs["BOC"], state, torch.zeros(2, 3, 32, 32))
    task.trained.eval()
    student = exported(runs["BOC"], "--student", "3", "--checkpoint", "best", "--out", str(tmp_path / "a.pt2"))
    torch.testing.assert_close(program(student), task.peers.networks[3](images()))
    whole = exported(runs["ONE"], "--ensemble")
    task = export.rebuild_peers(runs["ONE"], checkpoint.load(runs["ONE"] / "last.pth"), torch.zeros(2, 3, 32, 32))
    task.trained.eval()
    torch.testing.assert_close(program(whole), task.predict(images())["one_e"])


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("arguments", [["--student", "3"], ["--ensemble"]])
def test_onnx(runs: dict[str, Path], arguments: list[str]) -> None:
    assert exported(runs["BOC"], "--format", "onnx", *arguments).suffix == ".onnx"


def test_onnx_without_its_packages(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install onnx onnxscript onnxruntime"):
        export.main([str(runs["BOC"]), "--format", "onnx"])


def test_a_network_that_differs_is_refused() -> None:
    network = model_dict["resnet8"](num_classes=10).eval()
    with pytest.raises(UsageError, match="differ from the trained one's"):
        export.check_outputs(network, lambda x: network(x) * 1.01, torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("BOC", ["--student", "5"], "--student: the run has peers 0 to 4, got 5"),
        ("resnet8", ["--student", "0"], "trained a single network"),
        ("resnet8", ["--ensemble"], "trained a single network"),
        ("nowhere", [], "no run with parameters.json"),
        ("BOC", ["--student", "1", "--leader"], "not allowed with"),
    ],
)
def test_bad_input_is_one_line(runs: dict[str, Path], name: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        export.main([str(runs.get(name, Path("nowhere"))), *arguments])
    assert "\n" not in str(caught.value)
