"""``--ema``: what the average is, and that it is what is evaluated, saved and resumed; ``--label_smoothing``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helper.average import Average
from helper.batch import Batch, When
from helper.label_loss import label_loss

STEPS = 7


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5)).double()
    made(images(0))
    made.register_buffer("memory", torch.zeros(3))
    return made


def images(seed: int) -> torch.Tensor:
    return torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(made: nn.Module, average: Average, first: int = 1, last: int = STEPS) -> list[dict[str, torch.Tensor]]:
    """Some steps, and what the network was after each of them."""
    optimizer, seen = torch.optim.SGD(made.parameters(), 0.1), []
    for number in range(first, last + 1):
        optimizer.zero_grad()
        made(images(number)).square().mean().backward()
        optimizer.step()
        made.memory += 1
        average.update(When(1 + (number - 1) // 4, 10, 1 + (number - 1) % 4, 4))
        seen.append({name: value.clone() for name, value in made.state_dict().items()})
    return seen


def shown(made: nn.Module, average: Average) -> dict[str, torch.Tensor]:
    with average.shown():
        return {name: value.clone() for name, value in made.state_dict().items()}


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_it_is_the_mean_of_all_weights_so_far(decay: float) -> None:
    made = network()
    start = {name: value.clone() for name, value in made.state_dict().items()}
    average = Average(made, decay)
    seen = trained(made, average)
    now = shown(made, average)
    for name, value in start.items():
        expected = value
        for number, each in enumerate(seen, 1):
            stays = min(decay, (1 + number) / (10 + number))
            expected = stays * expected + (1 - stays) * each[name]
        moves = name not in ("memory", "1.num_batches_tracked")
        torch.testing.assert_close(now[name], expected if moves else seen[-1][name], rtol=0, atol=1e-12)
    for name, value in made.state_dict().items():
        assert torch.equal(value, seen[-1][name]), "what is trained is as it was"


def test_it_comes_back_after_an_error() -> None:
    made = network()
    average = Average(made, 0.9)
    (*_, last) = trained(made, average)
    with contextlib.suppress(KeyError), average.shown():
        raise KeyError
    assert all(torch.equal(value, last[name]) for name, value in made.state_dict().items())


def test_it_goes_on_bitwise() -> None:
    straight = network()
    whole = Average(straight, 0.9)
    trained(straight, whole)
    cut = network()
    before = Average(cut, 0.9)
    trained(cut, before, last=3)
    again = network(1)
    again.load_state_dict(cut.state_dict())
    after = Average(again, 0.9, before.state()["average"])
    trained(again, after, first=4)
    expected = shown(straight, whole)
    assert all(torch.equal(value, expected[name]) for name, value in shown(again, after).items())


def test_without_one_nothing_is_kept() -> None:
    made = network()
    average = Average(made, 0)
    (*_, last) = trained(made, average)
    assert average.state() == {}
    assert all(torch.equal(value, last[name]) for name, value in shown(made, average).items())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_smoothed_labels(smoothing: float) -> None:
    logits, target = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    other, share = torch.tensor([1, 1, 0, 2]), torch.full((4,), 0.7, dtype=torch.float64)

    def expected(labels: torch.Tensor) -> torch.Tensor:
        soft = (1 - smoothing) * F.one_hot(labels, 5) + smoothing / 5
        return -(soft * logits.log_softmax(1)).sum(1)

    plain: Any = Batch(logits, target)
    mixed: Any = Batch(logits, target, other=other, share=share)
    torch.testing.assert_close(label_loss(logits, plain, "none", smoothing), expected(target))
    torch.testing.assert_close(label_loss(logits, plain, smoothing=smoothing), expected(target).mean())
    both = share * expected(target) + (1 - share) * expected(other)
    torch.testing.assert_close(label_loss(logits, mixed, "none", smoothing), both)


def test_a_run_shows_its_average(tmp_path: Path) -> None:
    """The weights that are trained are those of a run without one; what is saved as the network is what was scored."""
    from test_loop import Data, Linear, fit_of

    runs = {}
    for name, words in (("plain", ()), ("ema", ("--ema", "0.5"))):
        task = Linear()
        fit = fit_of(tmp_path / name, task, "--epochs", "3", *words)
        fit()
        runs[name] = torch.load(tmp_path / name / "last.pth", weights_only=True)
        row = fit.run.read_metrics()[-1]
    ema = runs["ema"]
    assert all(torch.equal(value, ema["trained"][name]) for name, value in runs["plain"]["trained"].items())
    assert not torch.equal(ema["model"]["1.weight"], ema["trained"]["network.1.weight"])
    assert torch.equal(ema["model"]["1.weight"], ema["average"]["network.1.weight"])
    task.trained["network"].load_state_dict(ema["model"])
    data = Data()
    task.trained.eval()
    right = task.predict(data.images)["network"].argmax(1) == data.target
    assert row["test_accuracy"] == pytest.approx(100 * right.double().mean().item())
