"""The offline losses and weightings against values of the authors' released code (``tests/data/losses.json``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distiller_zoo import KD, DistillKL, Inter, Pair
from ensemble import EnsembleMethod, TeacherLosses, combine, ensemble_dict, weigh
from helper.batch import Batch, When
from helper.seen import Observed
from train_student import Term

CASES = json.loads((Path(__file__).parents[1] / "data" / "losses.json").read_text())
ROWS = [(case, row) for case in CASES for row in case["aekd"] if row["feasible"]]
Case = dict[str, Any]
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"K{case['K']}")


def tensor(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def single(values: Any) -> Tensor:
    """float32, as the authors ran it: in a small KL, their own rounding is 2e-5."""
    return tensor(values, torch.float32)


def assert_golden(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual.double(), tensor(expected), rtol=1e-5, atol=1e-12)


def unused() -> Tensor:
    raise AssertionError("computed although nobody asked for it")


def logit_level(case: Case) -> TeacherLosses:
    losses = DistillKL(case["T"])(single(case["student"]), single(case["teachers"]))
    return TeacherLosses(losses, torch.tensor(case["target"]), "logit", lambda: single(case["teachers"]), unused)


def released_loss(method: EnsembleMethod, teachers: TeacherLosses) -> Tensor:
    return combine(weigh(method, teachers, "released"), teachers.losses)


@by_case
def test_kd_of_each_sample(case: Case) -> None:
    student, target_logits = single(case["student"]), single(case["teachers"])
    kl = DistillKL(case["T"])
    assert_golden(kl(student, target_logits), case["kd_per_sample"])
    one_by_one = torch.stack([kl(student, one) for one in target_logits])
    torch.testing.assert_close(one_by_one, kl(student, target_logits))


@by_case
def test_average(case: Case) -> None:
    assert_golden(released_loss(ensemble_dict["AVERAGE_LOSS"](), logit_level(case)), case["average_loss"])


@by_case
def test_ebkd(case: Case) -> None:
    method, teachers = ensemble_dict["EBKD"](), logit_level(case)
    assert_golden(method.weights(teachers), case["ebkd_weights"])
    assert_golden(released_loss(method, teachers), case["ebkd_loss"])


@by_case
def test_camkd_of_logits(case: Case) -> None:
    method, teachers = ensemble_dict["CAMKD"](), logit_level(case)
    assert_golden(method.weights(teachers), case["camkd_logit_weights"])
    assert_golden(released_loss(method, teachers), case["camkd_logit_loss"])


@by_case
def test_camkd_of_features(case: Case) -> None:
    golden = case["camkd_feature"]
    mine, theirs = single(golden["student_features"]), single(golden["teacher_features"])  # [K, B, C, H, W]
    shapes = [tuple(mine.shape[2:]), (mine.shape[2],)]
    distance = Inter(Pair(shapes, shapes)).distance
    losses = torch.stack([distance(*pair) for pair in zip(mine, theirs, strict=True)])
    heads = single(golden["teacher_head_logits"])
    teachers = TeacherLosses(losses, torch.tensor(case["target"]), "feature", lambda: heads, unused)
    method = ensemble_dict["CAMKD"]()
    assert_golden(method.weights(teachers), golden["weights"])
    assert_golden(released_loss(method, teachers), golden["loss"])


def autograd_gradients(student: Tensor, teachers: Tensor, T: float) -> Tensor:
    """``[K, C]``: ∂(batch-mean KL)/∂s, averaged over the batch, the way the released code goes about it."""
    leaf = student.clone().requires_grad_()
    losses = DistillKL(T)(leaf, teachers).mean(1)
    return torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0].mean(0) for loss in losses])


def logit_loss(method: EnsembleMethod, case: Case, T: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted KL of a case, and what is reported of it."""
    student, theirs = tensor(case["student"]), tensor(case["teachers"])
    term = Term([KD(kd_T=T) for _ in theirs], method, "released", "logit")
    target = torch.tensor(case["target"])
    batch = Batch(torch.zeros(len(target), 3, 8, 8), target)
    loss, _, report = term(Observed(student), [Observed(each) for each in theirs], theirs, batch, When(1, 1))
    return loss, report


@pytest.mark.parametrize(
    ("case", "row"), ROWS, ids=lambda value: f"{value.get('C')}-{value.get('norm', value.get('K'))}"
)
def test_aekd(case: Case, row: dict[str, Any]) -> None:
    """The whole logit level: closed-form gradients, Gram matrix, solver, combination."""
    student, theirs = tensor(case["student"]), tensor(case["teachers"])
    method = ensemble_dict["AEKD"](C=row["C"], svm_norm=row["norm"])
    loss, report = logit_loss(method, case, case["T"])
    weights = torch.stack([report[f"weight_{k}"] for k in range(case["K"])])
    gradients = autograd_gradients(student, theirs, case["T"])
    combined = (weights @ gradients).norm()

    assert_golden(combined, row["combined_gradient_norm"])
    torch.testing.assert_close(report["combined_gradient"], combined)
    surplus = (combined.square() - row["combined_gradient_norm"] ** 2) / 2
    assert surplus.abs() <= 1e-6 * gradients.square().sum(1).max()
    torch.testing.assert_close(
        loss, (weights[:, None] * tensor(case["kd_per_sample"])).mean(1).sum(), rtol=1e-5, atol=0
    )


@by_case
@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_closed_form_gradients_are_autograds(case: Case, T: float) -> None:
    class Listener(EnsembleMethod):
        def weights(self, teachers: TeacherLosses) -> Tensor:
            self.gradients = teachers.gradients
            return torch.full_like(teachers.losses[:, 0], 1)

    student, theirs = tensor(case["student"]), tensor(case["teachers"])
    listener = Listener()
    logit_loss(listener, case, T)
    torch.testing.assert_close(listener.gradients, autograd_gradients(student, theirs, T), rtol=1e-9, atol=1e-12)
