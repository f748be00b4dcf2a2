"""The softened Kullback–Leibler divergence that offline and online distillation share."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def full_precision(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or better: logarithms and sums of half precision numbers lose the small classes."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


COOL = 8.0
"""Above this temperature single precision does not do: log-probabilities differ by less than what rounding adds."""


def softened_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, T: float, eps: float = 0.0) -> torch.Tensor:
    """``T²·KL(softmax(t/T) ‖ softmax(s/T))`` of every sample (Hinton et al. 2015, "Distilling the Knowledge …").

    Args:
        student_logits: ``s``, shape ``[..., B, C]``.
        teacher_logits: ``t``, shape ``[..., B, C]``; leading axes (teachers, peers) broadcast.
        T: the temperature; values and gradients are right from 0.001 to 1e6.
        eps: added to the softened target (1e-7 in the released online methods), which keeps its logarithm finite.

    Returns:
        shape ``[..., B]`` in nats, float32 or better, never negative; finite for logits of ±1e4.
    """
    student, teacher = full_precision(student_logits), full_precision(teacher_logits)
    if T > COOL:
        divergence = _divergence_of_neighbours(student.double() / T, teacher.double() / T, eps)
        return (divergence * T**2).to(torch.promote_types(student.dtype, teacher.dtype))
    log_student = F.log_softmax(student / T, dim=-1)
    target = F.softmax(teacher / T, dim=-1) + eps
    # The released code's order of operations, so that float32 rounds alike; the clamp keeps the gradient with respect
    # to a target that underflowed finite.
    log_target = target.clamp_min(torch.finfo(target.dtype).tiny).log()
    divergence = (target * log_target - target * log_student).sum(-1) * T**2
    # rounding can leave it below 0, which it is not; its gradient stays
    return divergence + (divergence.clamp_min(0) - divergence).detach()


def _divergence_of_neighbours(student: torch.Tensor, teacher: torch.Tensor, eps: float) -> torch.Tensor:
    """``Σ_c p·log(p/q)`` of softened float64 logits ``[..., B, C]`` whose distributions p (+ eps) and q nearly agree.

    Written as ``Σ_c p·(g − 1 + e^−g) + C·eps`` with ``g = log(p/q)``, whose terms are all positive: nothing cancels
    between the classes.
    """
    log_student = F.log_softmax(student, dim=-1)
    target = F.softmax(teacher, dim=-1) + eps
    gap = target.clamp_min(torch.finfo(target.dtype).tiny).log() - log_student
    near = gap.abs() < 1
    small = torch.where(near, gap, 0.0)
    each = torch.where(near, target * (small + torch.expm1(-small)), target * (gap - 1) + log_student.exp())
    return each.sum(-1) + eps * target.shape[-1]
