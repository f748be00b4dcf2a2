"""Decoupled Knowledge Distillation (Zhao, Cui, Song, Qiu, Liang; CVPR 2022)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from distiller_zoo.base import Distiller, Pair, distill_dict, logits_of
from helper.batch import Batch, When
from helper.errors import require_not_negative
from helper.kl import softened_kl
from helper.seen import Reads, Seen


@distill_dict.register("dkd")
class DKD(Distiller):
    """``α·T²·KL((p_y, 1−p_y) ‖ (q_y, 1−q_y)) + β·T²·KL(p̂ ‖ q̂)``; hats: softmax over all but the target y.

    With α = 1 and β = 1 − p_y it would be ``kd``. The released code takes logarithms of summed
    probabilities, which are infinite where the student is very sure; here all is log-sum-exp.

    Args:
        pair: nothing of it is needed.
        kd_T: the temperature; 1 on ImageNet.
        dkd_alpha: weight of the target's part.
        dkd_beta: weight of the other classes' part; published for CIFAR-100: 8 for the teachers resnet32x4 and ResNet50
            and for wrn_40_2 → ShuffleV1, 6 for vgg13 and wrn_40_2, 2 for resnet56 and resnet110; ImageNet 0.5 and 2.
        distill_warmup: over so many epochs the weight ``-a`` rises from nearly 0; 1 on ImageNet.
    """

    student = teacher = Reads(logits=True)
    broadcasts = True

    def __init__(
        self,
        pair: Pair = Pair(),  # noqa: B008 a tuple
        *,
        kd_T: float = 4.0,
        dkd_alpha: Annotated[float, "weight of how sure teacher and student are of the target"] = 1.0,
        dkd_beta: Annotated[float, "weight of what they say of the other classes"] = 8.0,
        distill_warmup: Annotated[int, "epochs over which the weight of the loss rises to -a or -b"] = 20,
    ) -> None:
        super().__init__(pair)
        require_not_negative(dkd_alpha=dkd_alpha, dkd_beta=dkd_beta, distill_warmup=distill_warmup)
        self.T, self.alpha, self.beta, self.warmup = kd_T, dkd_alpha, dkd_beta, distill_warmup

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        mine, theirs = (apart(each, batch.target) for each in logits_of(prepared, teacher))
        target = softened_kl(_two_classes(*mine, self.T), _two_classes(*theirs, self.T), self.T)
        others = softened_kl(mine[1], theirs[1], self.T)
        return self.alpha * target + self.beta * others


def apart(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[..., B, C]`` → those of the targets ``[..., B, 1]`` and those of all others ``[..., B, C − 1]``."""
    places = torch.arange(logits.shape[-1] - 1, device=target.device)
    others = places + (places >= target[:, None])  # [B, C - 1]
    leading = logits.shape[:-1]
    return logits.gather(-1, target[:, None].expand(*leading, 1)), logits.gather(-1, others.expand(*leading, -1))


def _two_classes(target: Tensor, others: Tensor, T: float) -> Tensor:
    """Logits ``[..., B, 2]`` of the target and of all others taken together."""
    return torch.cat([target, T * (others / T).logsumexp(-1, keepdim=True)], -1)
