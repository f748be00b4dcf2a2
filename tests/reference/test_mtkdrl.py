"""MTKD-RL: the released agent's weights, reward and gradient, and what either policy can learn."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ensemble import TeacherLosses, combine
from ensemble.base import unit_sum
from ensemble.mtkdrl import MTKDRL, RATE, released_loss, reward_loss, standardised
from helper.kl import softened_kl

CASES = json.loads((Path(__file__).parents[1] / "data" / "weightings.json").read_text())["mtkd_rl"]
LEVELS = {"logit": "logit", "feature": "feature"}
each_case = pytest.mark.parametrize("case", CASES, ids=[str(case["seed"]) for case in CASES])
each_variant = pytest.mark.parametrize("variant", ["fixed", "dynamic"])


def draw(case: dict, name: str, *shape: int) -> Tensor:
    seed = zlib.crc32(f"{case['seed']}:{name}".encode())
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def numbers(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Released:
    """A case's student and teachers, and our method at both levels with the case's agent."""

    def __init__(self, case: dict, variant: str) -> None:
        B, C, K, T = case["B"], case["C"], case["K"], case["T"]
        self.case, self.expected = case, case[variant]
        seed = zlib.crc32(f"{case['seed']}:target".encode())
        self.target = torch.from_numpy(np.random.RandomState(seed).randint(0, C, B))
        self.student, teachers = (
            draw(case, "student", B, C) * case["scale"],
            draw(case, "teachers", K, B, C) * case["scale"],
        )
        dims = list(enumerate(case["dims"]))
        mine = [draw(case, f"adapted_map{k}", B, width, 4, 4) for k, width in dims]
        theirs = [draw(case, f"teacher_map{k}", B, width, 4, 4) for k, width in dims]
        vectors = [draw(case, f"teacher_vector{k}", B, width) for k, width in dims]
        distances = [(a - b).square().flatten(1).mean(1) for a, b in zip(mine, theirs, strict=True)]
        self.losses = {"logit": softened_kl(self.student, teachers, T), "feature": torch.stack(distances)}
        self.told, self.methods = {}, {}
        for level, losses in self.losses.items():
            self.told[level] = TeacherLosses(
                losses,
                self.target,
                "logit" if level == "logit" else "feature",
                lambda: teachers,
                lambda: losses,  # noqa: B023
                student_logits=self.student,
                vectors=[(a.mean((2, 3)), b) for a, b in zip(mine, vectors, strict=True)],
            )
            self.methods[level] = self.method(level, variant)

    def method(self, level: str, variant: str) -> MTKDRL:
        method = MTKDRL(dynamic=variant == "dynamic", kd_T=self.case["T"])
        method.attach(self.told[level])
        method.double()
        width, K = sum(self.case["state_width"]), self.case["K"]
        state = {
            "steam.weight": draw(self.case, "policy.steam.0.weight", 128, width) / width**0.5,
            "head.weight": draw(self.case, f"policy.{level}_head.weight", K, 128) / 128**0.5,
            "head.bias": draw(self.case, f"policy.{level}_head.bias", K) / 10,
            "factors": numbers(self.expected.get(f"{level}_factors", [1, 1, 1])),
        }
        method.pupil.load_state_dict(state)
        method.taught.fill_(True)
        method.after_epoch()
        return method

    def sample_losses(self, weights: dict[str, Tensor]) -> Tensor:
        kd, feature = ((weights[level] * self.losses[level]).sum(0) for level in LEVELS)
        return F.cross_entropy(self.student, self.target, reduction="none") + kd + self.case["feature_weight"] * feature


@each_case
@each_variant
def test_golden_weights_and_losses(case: dict, variant: str) -> None:
    released = Released(case, variant)
    seen = released.methods["feature"].look(released.told["feature"])
    torch.testing.assert_close(seen.state[0, :6], numbers(case["first_state_of_teacher_0"]), rtol=1e-9, atol=1e-10)
    for level, losses in released.losses.items():
        weights = released.methods[level].weights(released.told[level])
        torch.testing.assert_close(weights, numbers(released.expected[f"{level}_weights"]), rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(weights.sum(0), torch.ones(case["B"], dtype=torch.float64))
        expected = released.expected["kd" if level == "logit" else "feature"]
        size = 1 if level == "logit" else case["feature_weight"]
        assert size * combine(weights, losses).item() == pytest.approx(expected, rel=1e-10)


@each_case
@each_variant
def test_golden_reward_and_step_of_the_agent(case: dict, variant: str) -> None:
    """Both heads of the released agent share the first layer: its gradient is the sum of ours."""
    released = Released(case, variant)
    weights = {level: method.weights(released.told[level]) for level, method in released.methods.items()}
    losses = released.sample_losses(weights)
    reward = standardised(-losses).clamp(0, 1)
    torch.testing.assert_close(reward, numbers(released.expected["reward"]), rtol=1e-9, atol=1e-10)
    loss = sum(released_loss(each.T, losses).item() for each in weights.values())
    assert loss == pytest.approx(released.expected["agent_loss"], rel=1e-9)
    shared, squares = torch.zeros(()), 0.0
    for method in released.methods.values():
        method.after_step(losses)
        before, after = dict(method.agent.named_parameters()), dict(method.pupil.named_parameters())
        slopes = {name: (before[name] - after[name]) / RATE for name in before}
        shared = shared + slopes.pop("steam.weight")
        squares += sum(slope.square().sum().item() for slope in slopes.values())
    norm = (shared.square().sum().item() + squares) ** 0.5
    assert norm == pytest.approx(released.expected["agent_gradient_norm"], rel=1e-9)


def taught(policy: str, epochs: int = 40) -> tuple[Tensor, Tensor]:
    """Weights ``[K, B]`` before and after an agent has learned, of teachers whose second suits the student best."""
    torch.manual_seed(0)
    K, B, C = 3, 16, 5
    student, logits, target = torch.randn(B, C), torch.randn(K, B, C), torch.arange(B) % C
    losses = torch.rand(K, B) + torch.tensor([2.0, 0.0, 1.0]).unsqueeze(1)
    told = TeacherLosses(losses, target, "logit", lambda: logits, lambda: losses, student_logits=student)
    method = MTKDRL(policy="reward" if policy == "reward" else "released")
    method.attach(told)
    first = method.agent(*method.look(told)[:3]).T
    for _ in range(epochs):
        weights = method.weights(told)
        method.after_step((weights * losses).sum(0))
        method.after_epoch()
    return first, method.weights(told)


def test_only_the_agent_that_is_rewarded_for_its_weights_finds_the_best_teacher() -> None:
    before, after = taught("reward")
    assert after[1].mean() > before[1].mean() + 0.1
    before, after = taught("released")
    assert abs(after[1].mean() - before[1].mean()) < 0.05
    assert after.log().mean() > before.log().mean()  # it is largest, -log K, for equal weights


def test_the_released_agent_cannot_tell_what_its_weights_have_done() -> None:
    """Equal ones are best whatever the reward, and whose loss was large makes no difference."""
    draw = torch.Generator().manual_seed(0)
    losses = torch.rand(16, generator=draw)
    best = released_loss(torch.full((16, 3), 1 / 3), losses)
    assert all(released_loss(torch.rand(16, 3, generator=draw).softmax(1), losses) > best for _ in range(20))
    each = torch.rand(16, 3, generator=draw)
    favoured = F.one_hot(each.argmin(1), 3).float()
    assert reward_loss(favoured, each) < reward_loss(torch.full((16, 3), 1 / 3), each)
    torch.testing.assert_close(reward_loss(favoured, each + losses.unsqueeze(1)), reward_loss(favoured, each))


def test_the_agent_acts_from_its_second_epoch_on() -> None:
    released = Released(CASES[0], "fixed")
    method, told = MTKDRL(), released.told["feature"]
    method.attach(told)
    initial = {name: value.clone() for name, value in method.agent.state_dict().items()}
    method.after_step(torch.rand(8))  # nothing seen: the loss on maps has not begun
    method.after_epoch()
    for _ in range(2):
        weights = method.weights(told)
        assert torch.equal(weights, torch.ones_like(weights))
        torch.testing.assert_close(unit_sum(weights), weights / len(weights))
        method.after_step(torch.rand(8))
        assert all(torch.equal(value, initial[name]) for name, value in method.agent.state_dict().items())
    method.after_epoch()
    assert not torch.equal(method.agent.steam.weight, initial["steam.weight"])
    weights = method.weights(told)
    torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))


def test_micro_batches_teach_as_their_batch_does() -> None:
    released = Released(CASES[0], "dynamic")
    whole, parts = (released.method("feature", "dynamic") for _ in range(2))
    told, losses = released.told["feature"], torch.rand(8, dtype=torch.float64)
    whole.weights(told)
    for part in (slice(0, 4), slice(4, 8)):
        parts.weights(
            TeacherLosses(
                told.losses[:, part],
                told.target[part],
                "feature",
                lambda: told.logits[:, part],  # noqa: B023
                told.gradients_of,
                student_logits=released.student[part],
                vectors=[(mine[part], theirs[part]) for mine, theirs in told.vectors],
            )
        )
    for method in (whole, parts):
        method.after_step(losses)
    for name, value in whole.pupil.state_dict().items():
        torch.testing.assert_close(parts.pupil.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_equal_losses_and_a_single_sample_teach_nothing_wrong() -> None:
    assert not standardised(torch.ones(4)).any()
    assert not standardised(torch.ones(1)).any()
