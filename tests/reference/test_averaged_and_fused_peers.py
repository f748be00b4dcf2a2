"""KDCL, FFL and PCL against values of released code and re-implementations (``tests/data/online.json``), in float64.

Each case is drawn from generators that are seeded with its names. KDCL's MinLogit and Naive have no code: their values
are an evaluation of the paper's formulas apart from ours.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from online import OnlineMethod, Outputs, Peers, averaging, online_dict

Case = dict[str, Any]
CASES: dict[str, list[Case]] = json.loads((Path(__file__).parents[1] / "data" / "online.json").read_text())


def each_case(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", CASES[name], ids=[str(case["seed"]) for case in CASES[name]])


def draw(case: Case, name: str, *shape: int, scale: float = 1.0) -> Tensor:
    seed = zlib.crc32(f"{case['seed']}:{name}".encode())
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)) * scale


def target_of(case: Case) -> Tensor:
    seed = zlib.crc32(f"{case['seed']}:target".encode())
    return torch.from_numpy(np.random.RandomState(seed).randint(0, case["C"], case["B"]))


def peers_of(case: Case, count: int) -> Tensor:
    return draw(case, "peers", count, case["B"], case["C"], scale=case["scale"]).requires_grad_()


def outputs_of(logits: Tensor, **known: Any) -> Outputs:
    return Outputs(logits, **{"vectors": (), "maps": (), "trunk": None, **known})


def assert_golden(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-11)


def total(method: OnlineMethod, losses: dict[str, Tensor]) -> Tensor:
    """The whole loss at the full weight of the KL."""
    weights = method.weights(300, 300)
    return sum((weights[name] * each.sum() for name, each in losses.items()), torch.zeros(()))


# --- KDCL ---


@each_case("KDCL")
def test_kdcl(case: Case) -> None:
    method = online_dict["KDCL"](target="mean", kd_T=case["T"], alpha=case["alpha"])
    logits = peers_of(case, case["peers"])
    losses = method.losses(outputs_of(logits), target_of(case))
    assert_golden(losses["ce"], case["ce"])
    assert_golden(losses["kd"], case["kl_to_mean"])
    weights = method.weights(1, 10)
    assert_golden(weights["ce"] * losses["ce"] + weights["kd"] * losses["kd"], case["losses"])
    total(method, losses).backward()
    assert_golden(logits.grad.flatten(1).norm(dim=1), case["gradient_norm_peers"])


@each_case("KDCL")
def test_kdcls_targets_of_the_paper(case: Case) -> None:
    logits, target = peers_of(case, case["peers"]), target_of(case)
    naive, minlogit = (online_dict["KDCL"](target=name, kd_T=case["T"]) for name in ("naive", "minlogit"))
    best = torch.tensor(case["naive_index"])
    torch.testing.assert_close(naive.targets(logits, target), logits[best, torch.arange(case["B"])], rtol=0, atol=0)
    assert_golden(naive.losses(outputs_of(logits), target)["kd"], case["naive_kl"])
    assert_golden(minlogit.cross_entropies(minlogit.targets(logits, target)[None], target)[0], case["minlogit_ce"])
    assert_golden(minlogit.losses(outputs_of(logits), target)["kd"], case["minlogit_kl"])


# --- FFL ---

FUSION = {"depthwise": "conv1", "bn1": "bn1", "pointwise": "conv1_1", "bn2": "bn1_1", "fc": "fc2"}


@torch.no_grad()
def fill_fusion(case: Case, fusion: nn.Module) -> None:
    for name, weight in fusion.named_parameters():
        child, kind = name.split(".")
        values = draw(case, f"fusion.{FUSION[child]}.{kind}", *weight.shape)
        spread = np.sqrt(1 / np.prod(weight.shape[1:])) if weight.ndim > 1 else 0.1
        weight.copy_(spread * values + (weight.ndim == 1 and kind == "weight"))


@each_case("FFL")
def test_ffl(case: Case) -> None:
    method, logits, size = online_dict["FFL"](kd_T=case["T"]), peers_of(case, 2), (case["B"], case["D"], case["H"])
    maps = [draw(case, f"map{j}", *size, case["H"]).requires_grad_() for j in range(2)]
    outputs = outputs_of(logits, maps=tuple((each,) for each in maps))
    method.attach(outputs)
    method.double()
    fill_fusion(case, method.fusion)
    fused = method.predictions(outputs)["fused"]
    assert_golden(fused[0], case["fused_logits_row0"])
    assert_golden(fused.norm(), case["fused_norm"])
    losses = method.losses(outputs, target_of(case))
    assert_golden(losses["ce"], case["ce"])
    assert_golden(losses["kd"], case["kl"])
    loss = total(method, losses)
    assert_golden(loss, case["total"])
    loss.backward()
    assert_golden(logits.grad.flatten(1).norm(dim=1), case["gradient_norm_peers"])
    assert_golden(torch.stack([each.grad.norm() for each in maps]), case["gradient_norm_maps"])
    module = torch.cat([weight.grad.flatten() for weight in method.fusion.parameters()])
    assert_golden(module.norm(), case["gradient_norm_module"])


# --- PCL ---


class Told(nn.Module):
    """A classifier that has been told its answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, vectors: Tensor) -> Tensor:
        return self.answer


@each_case("PCL")
def test_pcl(case: Case) -> None:
    method, logits, size = online_dict["PCL"](kd_T=case["T"]), peers_of(case, 3), (case["B"], case["C"])
    ensemble = draw(case, "ensemble", *size, scale=case["scale"]).requires_grad_()
    averaged = draw(case, "ema_peers", 3, *size, scale=case["scale"])
    method.classifier = Told(ensemble)
    outputs = outputs_of(logits, vectors=(torch.zeros(size),), averaged=averaged)
    losses = method.losses(outputs, target_of(case))
    assert_golden(losses["ce"], [*case["ce"], case["ensemble_ce"]])
    assert_golden(losses["kd"], np.add(case["kl_to_ensemble"], case["kl_to_ema_peers"]).tolist())
    assert_golden(losses["ce"][:3] + losses["kd"], case["per_peer_total"])
    loss = total(method, losses)
    assert_golden(loss, case["total_at_full_weight"])
    loss.backward()
    assert_golden(logits.grad.flatten(1).norm(dim=1), case["gradient_norm_peers"])
    assert_golden(ensemble.grad.norm(), case["gradient_norm_ensemble"])


@each_case("PCL")
@pytest.mark.parametrize(("ramp_up", "values"), [("paper", "intended"), ("released", "released")])
def test_pcls_ramp_up(case: Case, ramp_up: str, values: str) -> None:
    method = online_dict["PCL"](ramp_up=ramp_up)
    expected = dict(zip(case["rampup"]["epochs_from_0"], case["rampup"][values], strict=True))
    ramp = {epoch: method.weights(epoch + 1, 300)["kd"] for epoch in expected}
    assert ramp == pytest.approx(expected, rel=1e-9, abs=1e-300)


class Weight(nn.Module):
    """What the golden average is one of."""

    stages = ("first", "second")

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)


@each_case("PCL")
def test_pcls_averages(case: Case) -> None:
    ema = case["ema"]
    averaged = Peers([Weight(draw(case, "ema.weight", 1, 2) / 2**0.5)], shared=0)
    for step, expected in zip(ema["steps"], ema["averages"], strict=True):
        averaged.follow(Peers([Weight(draw(case, f"weights{step}", 1, 2))], shared=0), averaging(ema["decay"], step))
        assert_golden(averaged.networks[0].weight[0], expected)
