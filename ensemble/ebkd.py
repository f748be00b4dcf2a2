"""Adaptive Knowledge Distillation Based on Entropy (Kwon et al., ICASSP 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ensemble.base import EnsembleMethod, TeacherLosses, ensemble_dict
from helper.kl import full_precision


@ensemble_dict.register("EBKD")
class EBKD(EnsembleMethod):
    """``w_kb = 1 − H_kb / Σ_j H_jb``, H the entropy of softmax(t_k) at T = 1: certain teachers count more.

    The weights sum to K − 1; the code released with CA-MKD divides by K. Feature maps that a teacher's classifier can
    read are weighted by the entropy of what it makes of them, as a constant: a gradient through it would teach the
    student to sway the weights.
    """

    released_division = True
    symmetric = nonnegative = True
    differentiable = False

    def total(self, teacher_num: int) -> float:
        return teacher_num - 1

    def weights(self, teachers: TeacherLosses) -> torch.Tensor:
        log_p = F.log_softmax(full_precision(teachers.logits.detach()), dim=-1)  # [K, B, C]
        # of those that know the class: what others say of it is no measure of certainty
        entropy = teachers.where_known(-(log_p.exp() * log_p).sum(-1), 0.0)  # [K, B]
        total = entropy.sum(0)
        # Teachers that are all perfectly certain have no entropy to share out: equal parts.
        share = torch.where(total > 0, entropy / total, 1 / len(entropy))
        return 1 - share
