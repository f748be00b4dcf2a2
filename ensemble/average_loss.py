"""AVER-MKD: every teacher counts the same (You et al., Learning from Multiple Teacher Networks, KDD 2017)."""

from __future__ import annotations

import torch

from ensemble.base import EnsembleMethod, TeacherLosses, ensemble_dict


@ensemble_dict.register("AVERAGE_LOSS")
class AverageLoss(EnsembleMethod):
    """``w_k = 1/K``."""

    symmetric = nonnegative = True
    differentiable = False

    def total(self, teacher_num: int) -> float:
        return 1

    def weights(self, teachers: TeacherLosses) -> torch.Tensor:
        losses = teachers.losses
        return torch.full_like(losses[:, 0], 1 / losses.shape[0])
