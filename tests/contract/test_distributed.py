"""Several processes learn what one does, and say the same of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helper import distributed
from helper.errors import UsageError
from helper.sync_bn import SyncBatchNorm, synchronise

ROOT = Path(__file__).parents[2]
Outcomes = dict[str, tuple[dict[str, torch.Tensor], dict[str, float]]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def outcomes(folder: Path, processes: int) -> dict[str, Outcomes]:
    """What so many processes made of every method."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if processes > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        environment |= address
    command = [sys.executable, str(Path(__file__).with_name("several_processes.py")), str(folder)]
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
    return max((one[key] - other[key]).abs().max().item() for key in one)


def test_processes_learn_what_one_does(tmp_path: Path) -> None:
    """20 steps in float64, and the first in float32; 31 test images, which neither 2 nor 3 divide."""
    made: dict[int, Any] = {}
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        folder.mkdir()
        made[processes] = outcomes(folder, processes)
    for dtype, tolerance in (("torch.float64", 1e-9), ("torch.float32", 1e-5)):
        assert len(made[1][dtype]) >= 18
        for processes in (2, 3):
            for name, (weights, scores) in made[processes][dtype].items():
                alone, alone_scores = made[1][dtype][name]
                assert farthest(weights, alone) < tolerance, (name, processes, dtype)
                accuracies = {key: value for key, value in alone_scores.items() if "accuracy" in key}
                assert {key: scores[key] for key in accuracies} == accuracies, (name, processes, dtype)
                if dtype == "torch.float64":  # else a confidence may fall into the next bin
                    assert scores == pytest.approx(alone_scores, abs=1e-4), (name, processes)


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
def test_shares_are_everything_once(count: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: processes)
    seen: list[int] = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        seen += range(count)[distributed.share_of(count)]
    assert seen == list(range(count))
