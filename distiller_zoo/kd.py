"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; 2015)."""

from __future__ import annotations

import torch

from distiller_zoo.base import Distiller, distill_dict
from helper.kl import softened_kl


@distill_dict.register("kd")
class DistillKL(Distiller):
    """``T²·KL(softmax(t/T) ‖ softmax(s/T))`` per sample.

    Args:
        T: the temperature.

    Example:
        >>> DistillKL(4.0)(torch.zeros(2, 10), torch.zeros(2, 10))
        tensor([0., 0.])
    """

    def __init__(self, T: float) -> None:
        super().__init__()
        self.T = T

    def forward(self, student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, C]`` and ``[..., B, C]`` (several teachers at once) → ``[..., B]``."""
        return softened_kl(student_logits, teacher_logits, self.T)
