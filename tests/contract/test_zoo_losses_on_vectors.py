"""What ``rkd``, ``pkt``, ``cc`` and ``srrl`` promise beyond their golden values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo import Distiller, Pair, distill_dict
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.seen import Seen

RELATIONS = ("rkd", "pkt")
B, D, D_T, C = 6, 5, 7, 4
each_relation = pytest.mark.parametrize("name", RELATIONS)
each_loss = pytest.mark.parametrize("name", [*RELATIONS, "cc", "srrl"])


class Head(nn.Module):
    """A teacher's classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, C).double().requires_grad_(False)

    def classify_vector(self, vector: Tensor) -> Tensor:
        return self.fc(vector)


def make(name: str, widths: tuple[int, int] = (D, D_T), **settings: Any) -> Distiller:
    torch.manual_seed(0)
    kind: Any = distill_dict[name]
    loss: Distiller = kind(Pair([(widths[0],)], [(widths[1],)]), **settings)
    return loss.double().train()


def vectors(seed: int, width: int, size: int = B) -> Tensor:
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed)).double()


def values(loss: Distiller, student: Tensor, teacher: Tensor, head: Head | None = None) -> Tensor:
    size = len(student)
    theirs = Seen(vector=teacher) if head is None else Seen(head.classify_vector(teacher), (), teacher, head)
    return loss(Seen(vector=student), theirs, Batch(torch.zeros(size, 3, 8, 8), torch.zeros(size).long()), When(1, 1))


def with_gradient(loss: Distiller, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    found = values(loss, student, teacher)
    (gradient,) = torch.autograd.grad(found.mean(), student)
    return found.detach(), gradient


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(vectors(9, width, width)).Q


@each_relation
def test_rotations_do_not_matter(name: str) -> None:
    loss, student, teacher = make(name), vectors(0, D), vectors(1, D_T)
    rotated = values(loss, student @ rotation(D), teacher @ rotation(D_T))
    torch.testing.assert_close(rotated, values(loss, student, teacher))


def test_rkd_knows_no_scale_and_no_origin() -> None:
    loss, student, teacher = make("rkd"), vectors(0, D), vectors(1, D_T)
    moved = values(loss, 100 * student + vectors(2, D, 1), teacher / 100 - vectors(3, D_T, 1))
    torch.testing.assert_close(moved, values(loss, student, teacher))
    assert values(loss, student, student @ rotation(D) + 1).max() < 1e-12


def test_pkt_knows_no_length() -> None:
    loss, student, teacher = make("pkt"), vectors(0, D), vectors(1, D_T)
    lengths = vectors(2, 1).exp()
    moved = values(loss, lengths * student, teacher / lengths)
    torch.testing.assert_close(moved, values(loss, student, teacher), rtol=1e-4, atol=1e-9)
    assert values(loss, student, lengths * student).abs().max() < 1e-6


@each_relation
def test_samples_may_come_in_any_order(name: str) -> None:
    loss, student, teacher = make(name), vectors(0, D), vectors(1, D_T)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(values(loss, student[order], teacher[order]), values(loss, student, teacher)[order])


@each_relation
def test_relations_are_found_in_single_precision_at_least(name: str) -> None:
    """Autocast would take the products in bfloat16, whose rounding is larger than what is compared."""
    student, teacher = (each.bfloat16() for each in (vectors(0, D).relu(), vectors(1, D_T).relu()))
    with torch.autocast("cpu", torch.bfloat16):
        found = values(make(name), student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), values(make(name), student.double(), teacher.double()), rtol=1e-3, atol=1e-6
    )


@each_relation
@pytest.mark.parametrize("alike", ["two equal", "all equal", "two zero", "all zero", "two nearly equal"])
def test_equal_and_zero_vectors(name: str, alike: str) -> None:
    """The released gradients are 5e10 and NaN."""
    student, teacher = vectors(0, D), vectors(1, D_T)
    part = slice(0, 2) if alike.startswith("two") else slice(None)
    student[part] = 0 if alike.endswith("zero") else student[0].clone()
    student[0] += 1e-10 if "nearly" in alike else 0
    for dtype in (torch.float32, torch.float64):
        found, gradient = with_gradient(make(name), student.to(dtype), teacher.to(dtype))
        assert found.isfinite().all()
        assert gradient.norm() < 100
        assert (gradient[2:].norm() > 1e-6) == alike.startswith("two")


@pytest.mark.parametrize("name", [*RELATIONS, "cc"])
@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_batches(name: str, size: int) -> None:
    found, gradient = with_gradient(make(name), vectors(0, D, size), vectors(1, D_T, size))
    assert found.shape == (size,)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    if size == 1:
        assert not found.abs().gt(1e-12).any()


@each_loss
def test_any_two_widths(name: str) -> None:
    for widths in ((D, D), (D_T, D), (1, D), (D, 1)):
        student, teacher = (vectors(k, width) for k, width in enumerate(widths))
        found = values(make(name, widths), student.requires_grad_(), teacher, Head(widths[1]))
        (gradient,) = torch.autograd.grad(found.mean(), student)
        assert found.shape == (B,)
        assert found.isfinite().all()
        assert gradient.isfinite().all()


def test_cc_multiplies_neighbours() -> None:
    """Each pair counts half for either sample, and the mean is over the pairs."""
    loss, student, teacher = make("cc", feat_dim=3), vectors(0, D), vectors(1, D_T)
    (w, b), (w_t, b_t) = ((layer.weight, layer.bias) for layer in loss.children())
    gap = (F.linear(student, w, b) - F.linear(teacher, w_t, b_t)).abs()
    pairs = torch.stack([gap[i] @ gap[i + 1] for i in range(B - 1)])
    found = values(loss, student, teacher)
    torch.testing.assert_close(found.mean(), pairs.mean())
    torch.testing.assert_close(found[0], pairs[0] / 2 * B / (B - 1))
    torch.testing.assert_close(found[2], (pairs[1] + pairs[2]) / 2 * B / (B - 1))
    found.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters())
    with pytest.raises(UsageError, match=r"^--feat_dim: .*0"):
        make("cc", feat_dim=0)


def test_srrl_asks_the_teachers_classifier() -> None:
    """What it makes of the student's vector counts beside the vector itself."""
    loss, student, teacher, head = make("srrl"), vectors(0, D), vectors(1, D_T).relu(), Head(D_T)
    mine = loss.prepare(Seen(vector=student))
    assert mine.shape == (B, D_T)
    assert (mine >= 0).all()
    assert values(loss, student, mine.detach(), head).max() < 1e-12
    expected = (mine - teacher).square().mean(1) + (head.fc(mine) - head.fc(teacher)).square().mean(1)
    found = values(loss, student, teacher, head)
    torch.testing.assert_close(found, expected)
    found.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in loss.parameters())
    assert all(parameter.grad is None for parameter in head.parameters())
