"""What is exported equals what was trained, without what only training needs."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import json
import os
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from checkout import ROOT
from PIL import Image

import train_online
import train_student
import train_teacher
from dataset.digits import Digits
from helper import checkpoint
from helper.average import Average
from helper.cost import parameter_count
from helper.errors import UsageError
from models import model_dict
from online import online_dict
from scripts import export

TINY = ("--dataset", "digits", "--batch_size", "32", "--device", "cpu", "--epochs", "1")
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
ALONE = ("teacher", "student")
PAGE = (ROOT / "docs" / "export.md").read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs of the real commands on a few digits: every online method, a teacher, and its student."""
    train, test = Digits.load(Digits.__new__(Digits))
    parts = train.subset(torch.arange(64)), test.subset(torch.arange(32))
    common = (*TINY, "--save_dir", str(tmp_path_factory.mktemp("save")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "load", lambda _: parts)
        folders = {"teacher": trained(train_teacher, "--model", "wrn_16_1", *common)}
        teacher = str(folders["teacher"] / "last.pth")
        folders["student"] = trained(train_student, "--model_s", "resnet8", "--teachers", teacher, *common)
        for method in online_dict:
            folders[method] = trained(train_online, "--method", method, "--model", "resnet8", *common)
        averaged = ("--method", "ONE", "--model", "resnet8", "--ema", "0.5", *common)
        folders["averaged"] = trained(train_online, *averaged)
    return folders


def trained(script: ModuleType, *arguments: str) -> Path:
    """Run a training script; its folder."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        script.main(arguments)
    return Path(output.getvalue().splitlines()[-1].split(": ")[0])


def exported(run: Path, *arguments: str) -> Path:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        export.main([str(run), *arguments])
    return Path(output.getvalue().split(": ")[0])


@torch.no_grad()
def program(path: Path) -> torch.Tensor:
    return torch.export.load(path).module()(images())


def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def peers_of(run: Path, which: str = "last") -> train_online.PeerTraining:
    """The trained peers, as the run's checkpoint has them."""
    task = export.rebuild_peers(run, checkpoint.load(run / f"{which}.pth"), torch.zeros(2, 3, 32, 32))
    task.trained.eval()
    return task


def network_of(run: Path) -> torch.nn.Module:
    """The network used in the end, which its checkpoint is enough for."""
    state = checkpoint.load(run / "last.pth")
    network = model_dict[state["arch"]](num_classes=10).eval()
    network.load_state_dict(state["model"])
    return network


@pytest.mark.parametrize("name", [*ALONE, *online_dict])
@torch.no_grad()
def test_the_network_used_in_the_end(runs: dict[str, Path], name: str) -> None:
    path = exported(runs[name])
    network = network_of(runs[name])
    torch.testing.assert_close(program(path), network(images()))
    assert path == runs[name] / "last_network.pt2"
    size = sum(value.numel() for value in torch.export.load(path).parameters())
    assert size == parameter_count(network)
    if name not in ALONE:  # the same as among its peers
        torch.testing.assert_close(program(path), peers_of(runs[name]).predict(images())["network"])


@torch.no_grad()
def test_a_student_and_the_ensemble(runs: dict[str, Path], tmp_path: Path) -> None:
    task = peers_of(runs["BOC"], "best")
    student = exported(runs["BOC"], "--student", "3", "--checkpoint", "best", "--out", str(tmp_path / "a.pt2"))
    torch.testing.assert_close(program(student), task.peers.networks[3](images()))
    whole = exported(runs["ONE"], "--ensemble")
    torch.testing.assert_close(program(whole), peers_of(runs["ONE"]).predict(images())["one_e"])
    branch = exported(runs["CLILR"], "--branch", "2")
    torch.testing.assert_close(program(branch), peers_of(runs["CLILR"]).peers.networks[2](images()))


@torch.no_grad()
def test_peers_are_their_average_where_there_is_one(runs: dict[str, Path], tmp_path: Path) -> None:
    """``--ema``: of the last epoch as of the best one, which is the same here, what was evaluated."""
    run, state = runs["averaged"], checkpoint.load(runs["averaged"] / "last.pth")
    task = peers_of(runs["averaged"])
    task.trained.load_state_dict(state["trained"])
    live = task.peers.networks[2](images())
    with Average(task.trained, 0.5, state["average"]).shown():
        peer, predictions = task.peers.networks[2](images()), task.predict(images())
    assert not torch.allclose(peer, live, rtol=1e-3)
    for which in ("last", "best"):
        for words, logits in (
            ("--leader", predictions["network"]),
            ("--student 2", peer),
            ("--ensemble", predictions[task.method.ensemble]),
        ):
            path = exported(run, *words.split(), "--checkpoint", which, "--out", str(tmp_path / "a.pt2"))
            torch.testing.assert_close(program(path), logits)


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("student", []), ("OKDDip", ["--leader"]), ("BOC", ["--student", "3"]), ("ONE", ["--ensemble"])],
)
@torch.no_grad()
def test_onnx(runs: dict[str, Path], name: str, arguments: list[str]) -> None:
    import onnxruntime

    path = exported(runs[name], "--format", "onnx", *arguments)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images().numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected(runs[name], arguments), rtol=1e-4, atol=1e-4)


def expected(run: Path, arguments: list[str]) -> torch.Tensor:
    """What the trained network answers."""
    if "--ensemble" in arguments:
        return peers_of(run).predict(images())["one_e"]
    if "--student" in arguments:
        return peers_of(run).peers.networks[int(arguments[1])](images())
    return network_of(run)(images())


def test_onnx_without_its_packages(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install onnx onnxscript onnxruntime"):
        export.main([str(runs["BOC"]), "--format", "onnx"])


@pytest.mark.parametrize("factor", [1.01, float("nan"), float("inf")])
def test_a_network_that_differs_is_refused(factor: float) -> None:
    network = model_dict["resnet8"](num_classes=10).eval()
    with pytest.raises(UsageError, match="differ from the trained one's"):
        export.check_outputs(network, lambda x: network(x) * factor, torch.zeros(2, 3, 32, 32))


def with_other_parameters(run: Path, to: Path, **others: object) -> Path:
    """A copy of a run whose parameters.json somebody has edited."""
    shutil.copytree(run, to)
    parameters = json.loads((run / "parameters.json").read_text())
    (to / "parameters.json").write_text(json.dumps({**parameters, **others}))
    return to


def test_no_file_is_run_that_parameters_alone_name(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise SystemExit('it was run')")
    run = with_other_parameters(runs["KDCL"], tmp_path / "run", model=f"{tmp_path}/net.py:Net")
    for words in ([], ["--arch", "resnet8"], ["--student", "0"]):
        with pytest.raises(UsageError, match=r"says that the network is .*net\.py:Net, the checkpoint resnet8"):
            export.main([str(run), *words])
    with pytest.raises(UsageError, match=r"--arch: .*net\.py:Net, but the peers of .*run are resnet8"):
        export.main([str(run), "--arch", f"{tmp_path}/net.py:Net"])
    exported(runs["KDCL"], "--arch", "resnet8")


def test_parameters_of_another_run_are_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    run = with_other_parameters(runs["OKDDip"], tmp_path / "run", num_branches=5)
    with pytest.raises(UsageError, match=r"holds other networks than its parameters\.json describes") as caught:
        export.main([str(run)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("BOC", ["--student", "5"], "--student, --branch: the run has peers 0 to 4, got 5"),
        ("student", ["--student", "0"], "trained a single network"),
        ("teacher", ["--ensemble"], "trained a single network"),
        ("nowhere", [], "no run with parameters.json"),
        ("BOC", ["--student", "1", "--leader"], "not allowed with"),
        ("student", ["--out", "."], "--out: . is a folder; name the file"),
        ("student", ["--out", f"{__file__}/a.pt2"], r"--out: .*test_export\.py/a\.pt2 cannot be written: "),
    ],
)
def test_bad_input_is_one_line(runs: dict[str, Path], name: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        export.main([str(runs.get(name, Path("nowhere"))), *arguments])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["3", "[1]"])
def test_parameters_that_are_no_options_are_one_line(content: str, runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["student"], tmp_path / "run")
    (tmp_path / "run" / "parameters.json").write_text(content)
    with pytest.raises(UsageError, match=r"run/parameters\.json is damaged, it is no JSON object$"):
        export.main([str(tmp_path / "run")])


PEERS = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))
"""


@pytest.mark.parametrize("method", ["DML", "OKDDip"])
def test_peers_of_a_file_whose_children_have_names_of_ours(method: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(PEERS)
    name = f"{tmp_path}/net.py:Net"
    words = ("--method", method, "--peers", "networks", "--model", name, *TINY, "--save_dir", str(tmp_path / "save"))
    run = trained(train_online, *words)
    task = peers_of(run)
    with torch.no_grad():
        peer, predictions = task.peers.networks[1](images()), task.predict(images())
    found = {"--leader": predictions["network"], "--student 1": peer}
    if task.method.ensemble:
        found["--ensemble"] = predictions[task.method.ensemble]
    for which, logits in found.items():
        path = exported(run, *which.split(), "--arch", name, "--out", str(tmp_path / "a.pt2"))
        torch.testing.assert_close(program(path), logits)


SCRIPTED = """
import warnings

import torch
from torch import nn


def net(num_classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes)))
"""


def test_what_is_torchscript_already_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SCRIPTED)
    (tmp_path / "parameters.json").write_text("{}")
    name = f"{tmp_path}/net.py:net"
    about = {"arch": name, "num_classes": 10, "classes": list("0123456789"), "image_size": 32, "mean": [0.5] * 3}
    weights = model_dict[name](num_classes=10).state_dict()
    checkpoint.save({"model": weights, "std": [0.5] * 3, **about}, tmp_path / "last.pth")
    with pytest.raises(
        UsageError, match=r"its network is TorchScript, which cannot be exported again; .*torch.jit.save"
    ):
        export.main([str(tmp_path), "--arch", name])


ABOUT = {
    "image_size": 32,
    "mean": [0.3057] * 3,
    "std": [0.3243] * 3,
    "classes": list("0123456789"),
    "layout": "NCHW, RGB, (value / 255 - mean) / std",
}


def about_of(path: Path) -> dict[str, object]:
    """What an exported program says of itself."""
    extra = {"about.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["about.json"])


@pytest.mark.parametrize("name", [*ALONE, "BOC"])
def test_what_is_exported_says_how_it_wants_its_images(
    runs: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run knows: neither the images nor their dataset are asked. The folder of --out is made."""
    monkeypatch.setattr(export, "info_of", lambda *_: pytest.fail("the dataset was asked"))
    path = exported(runs[name], "--out", str(tmp_path / "new" / "folder" / "a.pt2"))
    assert about_of(path) == ABOUT
    assert [file.name for file in path.parent.iterdir()] == ["a.pt2"]


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
@pytest.mark.filterwarnings("default")
def test_a_graph_says_how_it_wants_its_images(runs: dict[str, Path]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported(runs["student"], "--format", "onnx"))
    metadata = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(value) for name, value in metadata.items() if name in ABOUT} == ABOUT


def test_runs_of_earlier_versions_ask_their_dataset(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoint.load(runs["student"] / "last.pth")
    old = {name: value for name, value in state.items() if name not in ("classes", "image_size", "mean", "std")}
    parameters = json.loads((runs["student"] / "parameters.json").read_text())
    checkpoint.save(old, tmp_path / "last.pth")
    (tmp_path / "parameters.json").write_text(json.dumps(parameters))
    export.main([str(tmp_path)])
    first, _ = capsys.readouterr().out.splitlines()
    assert first.endswith("does not say classes, image_size, mean, std; taken from --dataset digits")
    assert about_of(tmp_path / "last_network.pt2") == ABOUT

    elsewhere = {**parameters, "dataset": "folder", "data_dir": str(tmp_path / "gone")}
    (tmp_path / "parameters.json").write_text(json.dumps(elsewhere))
    with pytest.raises(UsageError, match=r"does not say classes, image_size, mean, std; .*no folder") as caught:
        export.main([str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_what_was_there(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.pt2"
    path.write_text("of before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"--out: .*a\.pt2 cannot be written: No space left on device"):
        export.main([str(runs["student"]), "--out", str(path)])
    assert path.read_text() == "of before"


def test_the_pages_lines_name_what_is_on_a_photograph(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (lines,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "photograph.jpg" in text]
    path = exported(runs["teacher"], "--out", str(tmp_path / "last_network.pt2"))
    picture = torch.randint(256, (48, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(picture.numpy()).save(tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, "docs/export.md", "exec"), {})
    name, share = capsys.readouterr().out.split()
    assert name in ABOUT["classes"]
    assert 10 <= int(share.removesuffix("%")) <= 100
    assert path.exists()
