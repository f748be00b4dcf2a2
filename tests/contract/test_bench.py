"""The benchmark compares like with like, and hides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from objectives import pairs
from torch import Tensor

from distiller_zoo import distill_dict
from ensemble import EnsembleMethod, TeacherLosses, ensemble_dict
from helper.batch import When
from online import online_dict
from scripts import benchmark
from scripts.bench import losses, timing
from scripts.bench.as_released import ReleasedPeers, has_released_form
from scripts.bench.released_losses import released_losses
from scripts.bench.subjects import Offline, Online, Pair, Setting, in_nchw


@pytest.fixture(scope="module")
def opt() -> Any:
    return benchmark.parse(["--quick", "--device", "cpu", "--precision", "fp32"])


@pytest.fixture(scope="module")
def bench(opt: Any) -> Iterator[Offline]:
    with Offline(Setting("resnet8", 3, "resnet8"), opt) as made:
        yield made


RELEASED = [
    Pair(distill, ensemble)
    for distill, ensemble in pairs()
    if ensemble_dict[ensemble].symmetric and has_released_form(distill_dict[distill])
]


@pytest.mark.parametrize("pair", RELEASED, ids=str)
def test_released_step_has_the_same_loss(bench: Offline, pair: Pair) -> None:
    torch.manual_seed(0)  # on some networks the two solvers differ by more
    task, old = bench.both(pair)
    task.trained.train()
    batch = bench.batches[0]
    expected = task.step(batch, When(task.opt.epochs, task.opt.epochs))["loss"].item()
    assert old.step(batch.images.contiguous(), batch.target)["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("distill", released_losses)
def test_released_loss_has_the_same_value(bench: Offline, distill: str) -> None:
    torch.manual_seed(0)
    ways = losses.ways_of(distill, bench)
    assert ways[losses.THEN]().item() == pytest.approx(ways[losses.OURS]().item(), rel=5e-3)  # crd draws its own


class Listening(EnsembleMethod):
    """Remembers what it is told of the teachers' own logits."""

    def __init__(self) -> None:
        self.told: list[Tensor] = []

    def weights(self, teachers: TeacherLosses) -> Tensor:
        self.told.append(teachers.teacher_logits)
        return torch.ones(len(teachers.losses))


def test_released_weightings_are_told_the_same(bench: Offline) -> None:
    """Of maps that a teacher's classifier can read, too, what it says itself."""
    task, old = bench.both(Pair("inter", "AVERAGE_LOSS"))
    ours, theirs = Listening(), Listening()
    old.method = theirs
    for term in task.terms:
        term.method = ours
    batch = bench.batches[0]
    task.step(batch, When(task.opt.epochs, task.opt.epochs))
    old.step(batch.images.contiguous(), batch.target)
    assert len(ours.told) == 2
    for mine, released in zip(ours.told, theirs.told, strict=True):
        torch.testing.assert_close(mine, released, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", online_dict)
def test_released_peers_have_the_same_loss(opt: Any, method: str) -> None:
    bench = Online(method, "resnet8", opt)
    epoch, batch = bench.opt.epochs // 4, next(iter(bench.session.loaders.train))
    old = ReleasedPeers(bench.task.peers, bench.task.method, epoch, bench.opt.epochs)
    expected = bench.task.step(batch, When(epoch, bench.opt.epochs))["loss"]
    assert old.step(*in_nchw(batch))["loss"] == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    for (name, mine), theirs in zip(bench.task.peers.named_parameters(), old.peers.parameters(), strict=True):
        if mine.grad is not None:  # of eight images, a unit at the edge of its ReLU can be a hundredth
            assert theirs.grad.norm().item() == pytest.approx(mine.grad.norm().item(), rel=0.1), name


def test_what_is_ours_is_compiled_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    for name in ("require_compiler", "require_right_code"):
        monkeypatch.setattr(f"helper.session.{name}", lambda device: None)
    monkeypatch.setattr("helper.session.compile_in_place", lambda networks, device: compiled.extend(networks))
    opt = benchmark.parse(["--quick", "--device", "cpu", "--precision", "fp32", "--compile"])
    with Offline(Setting("resnet8", 2, "resnet8"), opt) as bench:
        fit = bench.fit(Pair(*pairs()[0]))
        assert compiled == [*bench.teachers.networks, fit.task.student]
        bench.alone()
        bench.released(Pair(*pairs()[0]))
        assert len(compiled) == 4
    made = Online(next(iter(online_dict)), "resnet8", opt)
    assert compiled[4:] == [made.task.peers]


def test_every_variant_takes_every_turn() -> None:
    names = ["a", "b", "c"]
    orders = [timing.ordered(names, number) for number in range(6)]
    for turn in range(3):
        assert sorted(order[turn] for order in orders) == ["a", "a", "b", "b", "c", "c"]


def test_variants_are_timed_together() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.alternate(variants, 4, 60.0, torch.device("cpu"))
    assert {name: len(each) for name, each in times.items()} == {"a": 4, "b": 4}
    assert calls[6:] == ["a", "b", "b", "a", "b", "a", "a", "b"]


def test_ratios_are_of_the_same_round() -> None:
    times = {"a": [1.0, 2.0, 30.0], "b": [1.0, 1.0, 10.0], "c": [1.0, 1.0, 5.0]}
    assert timing.ratio(times, "a", "b") == 2.0
    assert timing.ratio(times, "a", "b", "c") == 1.0
    rows = timing.rows_of(times, 8, ["a"], "b")
    assert rows == {"a": {"ms": 2000.0, "images_per_s": 4.0, "vs_b": 2.0, "rounds": 3}}
    head, line = timing.text_of(rows)
    assert head.split() == ["ms", "images_per_s", "vs_b", "rounds"]
    assert line.split() == ["a", "2,000", "4", "2", "3"]
