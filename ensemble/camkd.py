"""Confidence-Aware Multi-Teacher Knowledge Distillation (Zhang, Chen, Wang; ICASSP 2022)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F

from ensemble.base import NOWHERE, EnsembleMethod, TeacherLosses, ensemble_dict
from helper.kl import full_precision
from helper.registry import Unread


@ensemble_dict.register("CAMKD")
class CAMKD(EnsembleMethod):
    """``w_kb = (1 − softmax_k(CE(t_kb, y_b))) / (K − 1)``: teachers that are right count more (eq. 3 and 5).

    The weights sum to 1; the released code divides by K once more. At the feature level the cross-entropy is that of
    the teacher's own classifier on the student's embedded map, and the gradient flows through the weights (released).

    Args:
        detach_weights: they are constants, as the paper has them.
    """

    released_division = True
    symmetric = nonnegative = differentiable = True
    unread: ClassVar[Unread] = {"detach_weights": ("beta", lambda b: not b)}

    def __init__(
        self,
        *,
        detach_weights: Annotated[bool, "no gradient flows to the student through the weights of maps"] = False,
    ) -> None:
        self.detach_weights, self.differentiable = detach_weights, not detach_weights

    def total(self, teacher_num: int) -> float:
        return 1

    def weights(self, teachers: TeacherLosses) -> torch.Tensor:
        logits = full_precision(teachers.logits)  # [K, B, C]
        teacher_num = len(logits)
        target = teachers.target.expand(teacher_num, -1)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        # of a teacher that does not know the class it says nothing, and takes no part of the others'
        compared = teachers.where_known(cross_entropy.view_as(target), -NOWHERE)
        weights = (1 - compared.softmax(0)) / (teacher_num - 1)
        return weights.detach() if self.detach_weights else weights
