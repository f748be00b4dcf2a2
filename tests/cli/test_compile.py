"""``--compile``: the scripts train compiled networks, to the same result but for rounding, and write what they did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_runs import distil, metrics, teach, teach_each_other, weights
from torch import nn

from helper import machine
from helper.errors import UsageError
from helper.machine import compile_in_place, require_compiler, require_right_code

pytestmark = pytest.mark.usefixtures("little_data")
FULL = "--precision fp32 --batch_size 64"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """All of torch.compile but its code generation, which takes most of the time; lists what is compiled."""
    compiled: list[nn.Module] = []

    def trace(networks, device: torch.device) -> None:
        for network in networks:
            compiled.append(network)
            network.compile(backend="aot_eager")

    monkeypatch.setattr("helper.session.compile_in_place", trace)
    monkeypatch.setattr("helper.session.require_right_code", lambda device: None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield compiled
    torch._dynamo.reset()


def assert_alike(eager: Path, compiled: Path) -> None:
    """The same network but for rounding, under another name."""
    assert compiled != eager
    assert "compile" in compiled.name
    first, second = weights(eager), weights(compiled)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-2, atol=1e-3)
    assert metrics(eager)[0]["train_loss"] == pytest.approx(metrics(compiled)[0]["train_loss"], rel=1e-3)


def test_teacher(tmp_path: Path, traced: list[nn.Module]) -> None:
    eager, compiled = (teach(tmp_path, f"{FULL} {flag}").folder for flag in ("", "--compile"))
    assert_alike(eager, compiled)
    assert len(traced) == 1


def test_student_and_teachers(tmp_path: Path, teachers: str, traced: list[nn.Module]) -> None:
    options = f"{FULL} {teachers} --teacher_num 2 --distill hint -b 1 --feat_start_epoch 1 --ensemble_method AEKD"
    eager, compiled = (distil(tmp_path, f"{options} {flag}").folder for flag in ("", "--compile"))
    assert_alike(eager, compiled)
    assert len(traced) == 3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_teachers_behind_a_cache_stay_as_they_are(tmp_path: Path, teachers: str, traced: list[nn.Module]) -> None:
    distil(tmp_path, f"{FULL} {teachers} --teacher_num 1 --teacher_cache {tmp_path / 'cache'} --compile")
    assert len(traced) == 1


@pytest.mark.parametrize("peers", ["branches", "networks"])
def test_peers(tmp_path: Path, traced: list[nn.Module], peers: str) -> None:
    options = f"{FULL} --method OKDDip --num_branches 3 --peers {peers}"
    eager, compiled = (teach_each_other(tmp_path, f"{options} {flag}").folder for flag in ("", "--compile"))
    assert_alike(eager, compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_averaged_peers(tmp_path: Path, traced: list[nn.Module]) -> None:
    eager, compiled = (teach_each_other(tmp_path, f"{FULL} --method PCL {flag}").folder for flag in ("", "--compile"))
    assert_alike(eager, compiled)
    assert len(traced) == 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_resumed(tmp_path: Path, traced: list[nn.Module]) -> None:
    folder = teach(tmp_path, f"{FULL} --compile").folder
    teach(tmp_path, f"{FULL} --compile --epochs 2 --resume {folder}")
    assert len(traced) == 2


def test_code_is_generated() -> None:
    """The real compiler, on as little as possible."""
    device = torch.device("cpu")
    try:
        require_compiler(device)
        require_right_code(device)
    except UsageError as reason:
        pytest.skip(str(reason))
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    images, names = torch.randn(5, 3), list(network.state_dict())
    expected = network(images)
    compile_in_place([network], device)
    machine.begin_step(True, device)
    torch.testing.assert_close(network(images), expected)
    assert list(network.state_dict()) == names
    with machine.uncompiled(True):
        torch.testing.assert_close(network(images), expected, rtol=0, atol=0)


def test_wrong_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch 2.14 makes it with AVX2 alone: a layer is left out."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr("helper.machine.compile_in_place", lambda networks, device: networks[0].pop(1))
    outcome = teach(tmp_path, "--compile")
    assert outcome.code == 2
    assert "--compile: PyTorch" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helper.machine.shutil.which", lambda name: None)
    outcome = teach(tmp_path, "--compile")
    assert outcome.code == 2
    assert "--compile: needs a C++ compiler" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_not_with_statistics_of_all_processes(tmp_path: Path) -> None:
    outcome = teach(tmp_path, "--compile --sync_bn")
    assert outcome.code == 2
    assert "--compile and --sync_bn" in outcome.err
