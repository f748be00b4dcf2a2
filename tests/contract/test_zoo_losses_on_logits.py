"""What ``dkd``, ``ls``, ``dist`` and ``nkd`` promise beyond their golden values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distiller_zoo import Distiller, distill_dict
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.seen import Seen

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *(("dkd", {}), ("dkd", {"kd_T": 1.0, "dkd_beta": 0.5}), ("dist", {}), ("dist", {"kd_T": 1.0})),
    *(("ls", {}), ("ls", {"ls_loss": "dkd"}), ("nkd", {}), ("nkd", {"nkd_T": 2.0})),
]
OF_EACH_SAMPLE = [(name, settings) for name, settings in VARIANTS if name != "dist"]
AGREEMENT_IS_BEST = [(name, settings) for name, settings in VARIANTS if name != "nkd"]  # that has cross-entropies
B, C = 6, 10
each_variant = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)


def make(name: str, **settings: Any) -> Distiller:
    kind: Any = distill_dict[name]
    loss: Distiller = kind(**settings)
    return loss


def logits(seed: int, scale: float = 3, size: int = B, classes: int = C) -> Tensor:
    return scale * torch.randn(size, classes, generator=torch.Generator().manual_seed(seed)).double()


def values(loss: Distiller, student: Tensor, teacher: Tensor) -> Tensor:
    """``[B]``; the targets are the first classes."""
    target = torch.arange(student.shape[-2]) % student.shape[-1]
    batch = Batch(torch.zeros(len(target), 3, 8, 8), target)
    return loss(Seen(logits=student), Seen(logits=teacher), batch, When(1, 1))


def with_gradient(loss: Distiller, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    found = values(loss, student, teacher)
    (gradient,) = torch.autograd.grad(found.mean(), student)
    return found.detach(), gradient


@each_variant
def test_logits_are_known_up_to_a_constant(name: str, settings: dict[str, Any]) -> None:
    loss, student, teacher = make(name, **settings), logits(0), logits(1)
    for shift in (5.0, logits(2, size=B, classes=1)):
        torch.testing.assert_close(values(loss, student + shift, teacher - shift), values(loss, student, teacher))


@each_variant
def test_classes_may_come_in_any_order(name: str, settings: dict[str, Any]) -> None:
    loss, student, teacher = make(name, **settings), logits(0), logits(1)
    order = torch.cat([torch.arange(B), B + torch.randperm(C - B, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(values(loss, student[:, order], teacher[:, order]), values(loss, student, teacher))


@pytest.mark.parametrize(("name", "settings"), OF_EACH_SAMPLE, ids=str)
def test_each_sample_by_itself(name: str, settings: dict[str, Any]) -> None:
    loss, student, teacher = make(name, **settings), logits(0), logits(1)
    plain, others = values(loss, student, teacher), torch.arange(B) != 2
    student[2] += logits(3)[0]
    moved = values(loss, student, teacher)
    torch.testing.assert_close(moved[others], plain[others])
    assert not torch.isclose(moved[2], plain[2])


@pytest.mark.parametrize(("name", "settings"), AGREEMENT_IS_BEST, ids=str)
def test_nothing_is_left_to_learn_from_oneself(name: str, settings: dict[str, Any]) -> None:
    loss, student = make(name, **settings), logits(0)
    found, gradient = with_gradient(loss, student, student)
    torch.testing.assert_close(found.mean(), torch.zeros_like(found[0]), rtol=0, atol=1e-4)
    assert gradient.norm() < 1e-4
    assert values(loss, student, logits(1)).mean() > 0.01


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_decoupled_parts_make_up_kd(T: float) -> None:
    """``KD = TCKD + (1 − p_y)·NCKD``."""
    student, teacher = logits(0), logits(1)
    sure, others = (make("dkd", kd_T=T, dkd_alpha=a, dkd_beta=1.0 - a) for a in (1.0, 0.0))
    left = 1 - (teacher / T).softmax(1).diagonal()  # of the target, which are the first classes
    together = values(sure, student, teacher) + left * values(others, student, teacher)
    torch.testing.assert_close(together, values(make("kd", kd_T=T), student, teacher))


@pytest.mark.parametrize("ls_loss", ["kd", "dkd"])
def test_standardised_logits_have_no_scale(ls_loss: str) -> None:
    loss, student, teacher = make("ls", ls_loss=ls_loss), logits(0), logits(1)
    plain = values(loss, student, teacher)
    scale = logits(2, classes=1).exp()
    torch.testing.assert_close(values(loss, scale * student + 3, teacher / scale), plain, rtol=1e-5, atol=0)
    standard = (each - each.mean(1, keepdim=True) for each in (student, teacher))
    by_hand = (each / (each.square().sum(1, keepdim=True) / (C - 1)).sqrt() for each in standard)
    torch.testing.assert_close(values(make(ls_loss, kd_T=2.0), *by_hand), plain, rtol=1e-5, atol=0)


def test_a_prediction_mixed_with_the_uniform_one_correlates_with_itself() -> None:
    """Pearson correlation knows no scale and shift of the probabilities, of a sample's or of a class's."""
    p = (logits(0) / 4).softmax(1)
    for share in (0.1, 0.9):
        found = values(make("dist"), 4 * ((1 - share) * p + share / C).log(), 4 * p.log())
        assert found.mean() < 1e-3
    shares = torch.linspace(0.1, 0.9, B)[:, None].double()  # another one for each sample
    mixed = 4 * ((1 - shares) * p + shares / C).log()
    assert values(make("dist", dist_gamma=0.0), mixed, 4 * p.log()).abs().max() < 1e-3
    assert values(make("dist", dist_beta=0.0), mixed, 4 * p.log()).mean() > 0.1


def test_dist_of_one_sample_has_its_classes_only() -> None:
    student, teacher = logits(0, size=1), logits(1, size=1)
    found, gradient = with_gradient(make("dist", dist_beta=0.0), student, teacher)
    assert found == 16
    assert not gradient.any()
    assert with_gradient(make("dist"), student, teacher)[1].any()


def test_normalised_kd_by_hand() -> None:
    student, teacher = logits(0), logits(1)
    p, q = teacher.softmax(1), student.softmax(1)
    for y in range(B):
        others = torch.arange(C) != y
        p_hat, q_hat = ((each[y, others] / 2).softmax(0) for each in (teacher, student))
        by_hand = -p[y, y] * q[y, y].log() - 1.5 * 4 * (p_hat * q_hat.log()).sum()
        torch.testing.assert_close(values(make("nkd", nkd_T=2.0), student, teacher)[y], by_hand)


@each_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_logits(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    student = (1e4 * logits(0).sign()).to(dtype)
    for teacher in (-student, student, (1e4 * F.one_hot(torch.arange(B), C)).to(dtype)):
        for mine in (student, (1e4 * F.one_hot(torch.arange(B), C)).to(dtype)):
            found, gradient = with_gradient(make(name, **settings), mine, teacher)
            assert found.isfinite().all()
            assert gradient.isfinite().all()
            assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@each_variant
@pytest.mark.parametrize("gap", [30.0, 120.0, 500.0])
def test_a_student_that_is_sure_learns_in_single_precision(name: str, settings: dict[str, Any], gap: float) -> None:
    """The released ``dkd`` has a gradient of NaN from a gap of 90·T."""
    student, teacher = logits(0) + gap * F.one_hot(torch.arange(B), C), logits(1)
    single = with_gradient(make(name, **settings), student.float(), teacher.float())
    double = with_gradient(make(name, **settings), student, teacher)
    for mine, exact in zip(single, double, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-3, atol=1e-4)


@each_variant
@pytest.mark.parametrize("size", [1, 2, B])
@pytest.mark.parametrize("classes", [2, C])
def test_constant_logits(name: str, settings: dict[str, Any], size: int, classes: int) -> None:
    """As a classifier that starts from zero has them: finite, and no gradient that would blow it up."""
    flat, usual = torch.zeros(size, classes).double() + 2, logits(0, size=size, classes=classes)
    noisy = flat + logits(1, 1e-7, size, classes)
    for student in (flat, noisy, usual):
        for teacher in (flat, noisy, usual):
            found, gradient = with_gradient(make(name, **settings), student, teacher)
            assert found.isfinite().all()
            assert gradient.norm() < 2000
    assert with_gradient(make(name, **settings), flat, usual)[1].any() or name == "dist"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("ls", {"ls_T": 0.0}), ("ls", {"ls_T": math.inf}), ("nkd", {"nkd_T": -1.0}), ("nkd", {"nkd_gamma": -1.0})),
        *(("dkd", {"dkd_beta": math.nan}), ("dist", {"dist_gamma": math.inf})),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(name: str, settings: dict[str, float]) -> None:
    ((option, value),) = settings.items()
    with pytest.raises(UsageError, match=f"^--{option}: expected a number .*, got {value:g}$"):
        make(name, **settings)
