"""From Knowledge Distillation to Self-Knowledge Distillation: NKD (Yang, Zeng, Li, Zhang, Yuan, Li; ICCV 2023)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from distiller_zoo.base import Distiller, Pair, distill_dict, logits_of
from distiller_zoo.dkd import apart
from helper.batch import Batch, When
from helper.errors import require_not_negative, require_positive
from helper.seen import Reads, Seen


@distill_dict.register("nkd")
class NKD(Distiller):
    """``−p_y·log q_y − γT²·Σ_{c≠y} p̂_c·log q̂_c``; hats: softmax over all but the target y, at temperature T.

    Cross-entropies, so that they are not 0 where student and teacher agree. The first has temperature 1.

    Args:
        pair: nothing of it is needed.
        nkd_T: the temperature.
        nkd_gamma: weight of the other classes' part.
    """

    student = teacher = Reads(logits=True)
    broadcasts = True

    def __init__(
        self,
        pair: Pair = Pair(),  # noqa: B008 a tuple
        *,
        nkd_T: Annotated[float, "temperature of the classes other than the target"] = 1.0,
        nkd_gamma: Annotated[float, "weight of the classes other than the target"] = 1.5,
    ) -> None:
        super().__init__(pair)
        require_positive(nkd_T=nkd_T)
        require_not_negative(nkd_gamma=nkd_gamma)
        self.T, self.gamma = nkd_T, nkd_gamma

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        (mine, my_others), (theirs, their_others) = (apart(each, batch.target) for each in logits_of(prepared, teacher))
        log_q = F.logsigmoid(mine - my_others.logsumexp(-1, keepdim=True))  # [..., B, 1]
        p = (theirs - their_others.logsumexp(-1, keepdim=True)).sigmoid()
        others = (their_others / self.T).softmax(-1) * (my_others / self.T).log_softmax(-1)
        return -(p * log_q).squeeze(-1) - self.gamma * self.T**2 * others.sum(-1)
