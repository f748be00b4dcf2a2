"""Weights that a network of the method's own finds from the student's logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ensemble.base import EnsembleMethod, TeacherLosses, ensemble_dict
from helper.distributed import gathered
from helper.kl import full_precision


@ensemble_dict.register("LEARNED_WEIGHTS")
class LearnedWeights(nn.Module, EnsembleMethod):
    """``w_kb = softmax_k(W s_b)``; W learns from the student's loss. ``hardest`` is the largest loss of a sample."""

    nonnegative = True
    hardest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hardest", torch.zeros(()))

    def total(self, teacher_num: int) -> float:
        return 1

    def attach(self, teachers: TeacherLosses) -> None:
        assert teachers.student_logits is not None
        self.net = nn.Linear(teachers.student_logits.shape[1], len(teachers.losses))

    def weights(self, teachers: TeacherLosses) -> Tensor:
        assert teachers.student_logits is not None
        return full_precision(self.net(teachers.student_logits.to(self.net.weight.dtype))).T.softmax(0)

    def after_step(self, losses: Tensor) -> None:
        self.hardest = torch.maximum(self.hardest, gathered(losses).max())
