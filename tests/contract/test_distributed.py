"""Several processes learn what one does, and say the same of it."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sums import all_asked
from torch import nn
from torch.utils.checkpoint import checkpoint

from dataset.base import Split
from dataset.loader import part_of
from helper import distributed
from helper.errors import UsageError
from helper.sync_bn import SyncBatchNorm, synchronise
from helper.update import leaves

ROOT = Path(__file__).parents[2]
Outcomes = dict[str, tuple[dict[str, torch.Tensor], dict[str, float]]]


FEW = ("hint", "OKDDip")  # the first with each weighting that it is paired with
CHANCE = ("RLW", "MTKDRL")
"""Weightings that depend on the order of the teachers, by chance or by what they have learned."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def outcomes(folder: Path, processes: int, names: Sequence[str]) -> dict[str, Outcomes]:
    """What so many processes made of every method, or of those of ``names``."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    if processes > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        environment |= address
    command = [sys.executable, str(Path(__file__).with_name("several_processes.py")), str(folder), *names]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=600)[0] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(said)
    assert not any("find_unused_parameters" in each for each in said), "gradients are searched for in vain"
    made: dict[str, Outcomes] = torch.load(folder / "outcomes.pth", weights_only=True)
    return made


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[key].double() - other[key].double()).abs().max().item() for key in one)


def check_same(tmp_path: Path, names: Mapping[int, Sequence[str]]) -> None:
    """6 steps in float64, and of some the first in float32; 31 test images, which neither 2 nor 3 divide.

    ``names`` says for 1 and more processes which methods they train.
    """
    made: dict[int, Any] = {}
    for processes, each in names.items():
        folder = tmp_path / str(processes)
        folder.mkdir()
        made[processes] = outcomes(folder, processes, each)
    for dtype, tolerance in (("torch.float64", 1e-9), ("torch.float32", 1e-5)):
        assert made[1][dtype]
        for processes in names.keys() - {1}:
            theirs = made[processes][dtype]
            common = theirs.keys() & made[1][dtype].keys()
            assert common == theirs.keys() or (common and dtype == "torch.float32")
            for name in common:
                weights, scores = theirs[name]
                alone, alone_scores = made[1][dtype][name]
                assert farthest(weights, alone) < tolerance, (name, processes, dtype)
                accuracies = {key: value for key, value in alone_scores.items() if "accuracy" in key}
                assert {key: scores[key] for key in accuracies} == accuracies, (name, processes, dtype)
                if dtype == "torch.float64":  # else a confidence may fall into the next bin
                    numbers = {key: value for key, value in alone_scores.items() if "class_" not in key}
                    found = {key: scores[key] for key in numbers}
                    assert scores.keys() == alone_scores.keys()
                    assert found == pytest.approx(numbers, abs=1e-4), (name, processes)


def test_processes_learn_what_one_does(tmp_path: Path) -> None:
    check_same(tmp_path, {1: (), 2: (), 3: () if all_asked() else FEW})


def test_processes_draw_what_one_does(tmp_path: Path) -> None:
    check_same(tmp_path, {1: CHANCE, 2: CHANCE})


def test_a_layer_that_is_not_used_is_left_alone_as_in_one_process(tmp_path: Path) -> None:
    check_same(tmp_path, {1: ["unused"], 2: ["unused"]})


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_graph_that_hides_weights_is_known(reentrant: bool) -> None:
    """It is not searched: what gets its gradient within a backward pass must not get it twice."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.randn(2, 3, requires_grad=True)
    found = leaves(second(checkpoint(first, x, use_reentrant=reentrant)).sum())
    assert found is None if reentrant else {x, *first.parameters(), *second.parameters()} == {*(found or ())}


def test_timms_norms_see_the_whole_batch(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    check_same(tmp_path, {1: ["timm"], 2: ["timm"]})


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_alone_it_is_batch_normalisation(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain: nn.Module = nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)
    plain = plain.double() if dtype == torch.float64 else plain
    holder = nn.Sequential(nn.Sequential(plain))
    before = {key: value.clone() for key, value in holder.state_dict().items()}
    synchronise(holder)
    synchronised = holder[0][0]
    assert isinstance(synchronised, SyncBatchNorm)
    assert holder.state_dict().keys() == before.keys()
    reference = nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)
    reference = reference.to(next(synchronised.parameters()).dtype)
    input, target = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    results = []
    for module in (synchronised, reference):
        mine = input.clone().requires_grad_()
        output = module(mine)
        (output * target).sum().backward()
        assert mine.grad is not None
        results.append([output, mine.grad, module.weight.grad, module.running_mean, module.running_var])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    holder.eval()
    reference.eval()
    torch.testing.assert_close(synchronised(input), reference(input), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_timms_go_on_with_their_activation(act: str) -> None:
    """As it was in evaluation, bitwise; in training as one process would have it."""
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    layer = layers.BatchNormAct2d(5, act_layer=act, drop_layer=partial(nn.Dropout, 0.5)).double()
    nn.init.normal_(layer.bias)
    plain = nn.Sequential(nn.Conv2d(3, 5, 1).double(), layer)
    made = copy.deepcopy(plain)
    synchronise(made)
    assert isinstance(made[1], SyncBatchNorm)
    assert made.state_dict().keys() == plain.state_dict().keys()
    input = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    results = []
    for each in (made, plain):
        torch.manual_seed(1)  # of the dropout
        output = each(input)
        output.square().sum().backward()
        results.append([output, each[0].weight.grad, each[1].weight.grad, each[1].running_var])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    made.load_state_dict(plain.state_dict())
    assert torch.equal(made.eval()(input), plain.eval()(input))


def test_others_with_a_forward_of_their_own_are_refused() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    network = nn.Sequential(nn.BatchNorm2d(5), Own(5))
    with pytest.raises(
        UsageError, match=r"^--sync_bn: the network has batch normalisations of its own make \(Own\); leave it out$"
    ):
        synchronise(network)
    assert type(network[0]) is nn.BatchNorm2d


def test_a_batch_that_cannot_be_shared_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.per_process("--batch_size", 64, 2) == 32
    with pytest.raises(UsageError, match=r"--batch_size: 64 cannot be shared equally by 1 processes × --accumulate 3"):
        distributed.per_process("--batch_size", 64, 3)
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(
        UsageError, match=r"--batch_size: 64 cannot be shared equally by 3 processes; choose a multiple"
    ):
        distributed.per_process("--batch_size", 64, 1)


@pytest.mark.parametrize(("count", "processes"), [(31, 2), (31, 3), (2, 3), (0, 2)])
def test_shares_are_everything_once(count: int, processes: int) -> None:
    everything = Split(torch.empty(count, 1), torch.arange(count))
    seen: list[int] = []
    for rank in range(processes):
        seen += part_of(everything, (rank, processes)).labels.tolist()
    assert seen == list(range(count))
