"""The softened divergence at any temperature, against arithmetic of 60 digits."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

from helper.kl import COOL, softened_kl

TEMPERATURES = (0.001, 0.05, 1.0, 4.0, COOL, 8.001, 20.0, 1e3, 1e6)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
temperatures = pytest.mark.parametrize("T", TEMPERATURES)


def softmax(logits: Tensor, T: float) -> list[mpmath.mpf]:
    powers = [mpmath.exp(mpmath.mpf(value) / mpmath.mpf(T)) for value in logits.tolist()]
    return [power / mpmath.fsum(powers) for power in powers]


def exact(student: Tensor, teacher: Tensor, T: float, eps: float) -> tuple[float, list[float]]:
    """The divergence of one sample and its gradient with respect to the student's logits."""
    with mpmath.workdps(60):
        q, p = softmax(student, T), [each + mpmath.mpf(eps) for each in softmax(teacher, T)]
        value = T**2 * mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))
        slope = [T * (b * mpmath.fsum(p) - a) for a, b in zip(p, q, strict=True)]
        return float(value), [float(each) for each in slope]


def pair(dtype: torch.dtype, distance: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits of 5 samples and 10 classes."""
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(5, 10, generator=generator, dtype=torch.float64)
    student = teacher + distance * torch.randn(5, 10, generator=generator, dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


@dtypes
@temperatures
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_value_and_gradient(T: float, dtype: torch.dtype, eps: float) -> None:
    student, teacher = pair(dtype)
    values = softened_kl(student, teacher, T, eps)
    assert values.dtype == dtype
    values.sum().backward()
    expected = [exact(s, t, T, eps) for s, t in zip(student, teacher, strict=True)]
    close = {"rtol": 2e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(values, torch.tensor([value for value, _ in expected], dtype=dtype), **close)
    slopes = torch.tensor([slope for _, slope in expected], dtype=torch.float64)
    assert student.grad is not None
    difference = (student.grad.double() - slopes).norm() / slopes.norm()
    assert difference < (1e-5 if dtype == torch.float32 else 1e-8)


@dtypes
@temperatures
@pytest.mark.parametrize("distance", [0.0, 1e-7, 1e-5, 1e-3])
def test_never_negative(T: float, dtype: torch.dtype, distance: float) -> None:
    student, teacher = pair(dtype, distance)
    values = softened_kl(student, teacher, T)
    assert (values >= 0).all()
    values.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    if distance > 1e-4 and T > 0.01:  # also where the value was rounded to 0
        assert student.grad.norm() > 0


@temperatures
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_finite_for_large_logits(T: float, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, 0.0, -1e4]], dtype=dtype, requires_grad=True)
    values = softened_kl(student, teacher, T)
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is not None
    assert teacher.grad.isfinite().all()
