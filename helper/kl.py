"""The softened Kullback–Leibler divergence that offline and online distillation share."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def full_precision(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or better: logarithms and sums of half precision numbers lose the small classes."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def softened_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, T: float, eps: float = 0.0) -> torch.Tensor:
    """``T²·KL(softmax(t/T) ‖ softmax(s/T))`` of every sample (Hinton et al. 2015, "Distilling the Knowledge …").

    Args:
        student_logits: ``s``, shape ``[..., B, C]``.
        teacher_logits: ``t``, shape ``[..., B, C]``; leading axes (teachers, peers) broadcast.
        T: the temperature.
        eps: added to the softened target (1e-7 in the released online methods), which keeps its logarithm finite.

    Returns:
        shape ``[..., B]`` in nats, float32 or better; finite for logits of ±1e4.
    """
    log_student = F.log_softmax(full_precision(student_logits) / T, dim=-1)
    target = F.softmax(full_precision(teacher_logits) / T, dim=-1) + eps
    # The released code's order of operations, so that float32 rounds alike; the clamp keeps the gradient with respect
    # to a target that underflowed finite.
    log_target = target.clamp_min(torch.finfo(target.dtype).tiny).log()
    return (target * log_target - target * log_student).sum(-1) * T**2
