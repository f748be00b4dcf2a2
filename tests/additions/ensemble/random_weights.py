"""Random Loss Weighting (Lin et al., TMLR 2022): weights drawn anew in each step."""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble.base import EnsembleMethod, TeacherLosses, ensemble_dict


@ensemble_dict.register("RANDOM_WEIGHTS")
class RandomWeights(EnsembleMethod):
    """The softmax of K standard normals, which follow from epoch and step: alike in all processes and when resumed."""

    def weights(self, teachers: TeacherLosses) -> Tensor:
        when, losses = teachers.when, teachers.losses
        source = torch.Generator().manual_seed(when.epoch * 1_000_003 + when.step)
        return torch.randn(len(losses), generator=source).softmax(0).to(losses.device, non_blocking=True)
