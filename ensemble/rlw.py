"""Reasonable Effectiveness of Random Weighting (Lin, Ye, Zhang, Tsang; TMLR 2022)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ensemble.base import EnsembleMethod, TeacherLosses, ensemble_dict


@ensemble_dict.register("RLW")
class RLW(EnsembleMethod):
    """``w = softmax(z)``, z K standard normals, drawn anew in each step: what every other weighting has to beat.

    The draws follow from seed, epoch and step: they are alike in all processes and in a run that is resumed.
    """

    nonnegative = True
    differentiable = False

    def __init__(self) -> None:
        self.seed = torch.initial_seed()

    def total(self, teacher_num: int) -> float:
        return 1

    def weights(self, teachers: TeacherLosses) -> Tensor:
        when, losses = teachers.when, teachers.losses
        # torch's generator on the host takes 32 bits of a seed: numpy mixes them of these three numbers
        (mixed,) = np.random.SeedSequence((self.seed, when.epoch, when.step)).generate_state(1)
        source = torch.Generator().manual_seed(int(mixed))
        return torch.randn(len(losses), generator=source).softmax(0).to(losses.device, non_blocking=True)
