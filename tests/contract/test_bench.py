"""The benchmark compares like with like, and hides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ensemble import ensemble_dict
from scripts import benchmark
from scripts.bench import solver, timing, verdicts
from scripts.bench.as_released import ReleasedDistillation, ReleasedPeers
from scripts.bench.subjects import Offline, Online, Pair, Setting, online_methods, pairs


@pytest.fixture(scope="module")
def opt() -> Any:
    return benchmark.parse(["--quick", "--device", "cpu", "--precision", "fp32"])


@pytest.fixture(scope="module")
def bench(opt: Any) -> Iterator[Offline]:
    with Offline(Setting("resnet8", 3, "resnet8"), opt) as made:
        yield made


@pytest.mark.parametrize("pair", [pair for pair in pairs() if ensemble_dict[pair.ensemble].symmetric], ids=str)
def test_released_step_has_the_same_loss(bench: Offline, pair: Pair) -> None:
    parser, opt = bench.options(pair)
    solvers = {"qp_solver": "svm"} if "qp_solver" in parser.hyperparameters(opt, "ensemble_method") else {}
    task = bench.distillation(pair, bench.teachers, **solvers)
    old = ReleasedDistillation(task.student, bench.raw_teachers(), task.adapters, task.method, opt.kd_T, opt.beta)
    task.trained.train()
    batch = bench.batches[0]
    expected = task.step(batch, opt.epochs)["loss"].item()
    assert old.step(batch.images.contiguous(), batch.target)["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", online_methods())
def test_released_peers_have_the_same_loss(opt: Any, method: str) -> None:
    bench = Online(method, "resnet8", opt)
    epoch, batch = bench.opt.epochs // 4, next(iter(bench.session.loaders.train))
    old = ReleasedPeers(bench.task.peers, bench.task.method, epoch, bench.opt.epochs)
    expected = bench.task.step(batch, epoch)["loss"]
    assert old.step(batch.images.contiguous(), batch.target)["loss"] == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    for (name, mine), theirs in zip(bench.task.peers.named_parameters(), old.peers.parameters(), strict=True):
        if mine.grad is not None:  # of eight images, a unit at the edge of its ReLU can be a hundredth
            assert theirs.grad.norm().item() == pytest.approx(mine.grad.norm().item(), rel=0.1), name


def test_what_is_ours_is_compiled_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr("helper.session.require_compiler", lambda device: None)
    monkeypatch.setattr("helper.session.compile_in_place", lambda networks, device: compiled.extend(networks))
    opt = benchmark.parse(["--quick", "--device", "cpu", "--precision", "fp32", "--compile"])
    with Offline(Setting("resnet8", 2, "resnet8"), opt) as bench:
        fit = bench.fit(pairs()[0])
        assert compiled == [*bench.teachers.networks, fit.task.student]
        bench.alone()
        bench.released(pairs()[0])
        assert len(compiled) == 4
    made = Online(online_methods()[0], "resnet8", opt)
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


def test_no_point_is_below_the_bound() -> None:
    for gram in solver.problems(5).values():
        exact = solver.qp_solver_dict["exact"](gram, solver.C)
        bound = solver.lower_bound(gram, torch.full((5,), 0.2, dtype=torch.float64))
        assert bound <= 0.5 * exact @ gram @ exact
        assert solver.lower_bound(gram, exact) == pytest.approx(float(0.5 * exact @ gram @ exact), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "target", "least", "anyway", "verdict"),
    [
        (1.0, 1.1, False, False, "ok"),
        (1.2, 1.1, False, False, "missed"),
        (1.2, 1.1, False, True, "ok"),
        (3.0, 3.5, True, False, "missed"),
        (4.0, 3.5, True, False, "ok"),
        (4.0, None, True, False, "reported"),
        (float("nan"), 1.1, False, False, "missed"),
        (1.0 + 1e-7, 1.0, False, False, "ok"),  # as it is printed: 1.000
        (0.9999, 1.0, True, False, "ok"),
        (1.001, 1.0, False, False, "missed"),
    ],
)
def test_a_miss_is_a_miss(value: float, target: float | None, least: bool, anyway: bool, verdict: str) -> None:
    row = verdicts.Row("measure", value, target, least, anyway)
    assert row.verdict == verdict
    assert verdict in verdicts.text([row])[1]
