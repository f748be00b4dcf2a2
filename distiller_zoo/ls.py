"""Logit Standardization in Knowledge Distillation (Sun, Ren, Li, Wang, Cao; CVPR 2024)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from torch import Tensor

from distiller_zoo.base import Distiller, Pair, distill_dict, logits_of
from distiller_zoo.dkd import DKD
from distiller_zoo.kd import KD
from helper.batch import Batch, When
from helper.errors import require_not_negative, require_positive
from helper.registry import Unread
from helper.seen import Reads, Seen

FLAT = 0.01
"""Logits that spread by less count as ones that spread so much: the gradient for constant ones would be 6e5."""


@distill_dict.register("ls")
class LS(Distiller):
    """Another loss on logits of ``z = (s − mean(s))/std(s)``, so that their scale and shift do not matter.

    Args:
        pair: nothing of it is needed.
        ls_loss: which loss.
        ls_T: its temperature.
        dkd_alpha, dkd_beta: of ``dkd``, see there; the paper multiplies both by 9, which is ``-a 9``.
        distill_warmup: over so many epochs the weight ``-a`` rises; as for the chosen loss, unless given.
    """

    student = teacher = Reads(logits=True)
    broadcasts = True
    unread: ClassVar[Unread] = dict.fromkeys(("dkd_alpha", "dkd_beta"), ("ls_loss", lambda loss: loss == "kd"))

    def __init__(
        self,
        pair: Pair = Pair(),  # noqa: B008 a tuple
        *,
        ls_loss: Annotated[Literal["kd", "dkd"], "which loss gets the standardised logits"] = "kd",
        ls_T: Annotated[float, "temperature of the standardised logits"] = 2.0,
        dkd_alpha: float = 1.0,
        dkd_beta: float = 8.0,
        distill_warmup: int | None = None,
    ) -> None:
        super().__init__(pair)
        require_positive(ls_T=ls_T)
        of_dkd = DKD(kd_T=ls_T, dkd_alpha=dkd_alpha, dkd_beta=dkd_beta)
        self.loss: Distiller = KD(kd_T=ls_T) if ls_loss == "kd" else of_dkd
        self.warmup = self.loss.warmup if distill_warmup is None else distill_warmup
        require_not_negative(distill_warmup=self.warmup)

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        mine, theirs = (Seen(logits=_standardised(each)) for each in logits_of(prepared, teacher))
        return self.loss.compare(mine, theirs, batch, when)


def _standardised(logits: Tensor) -> Tensor:
    """Mean 0 and unbiased standard deviation 1 over the classes, ``[..., C]``."""
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True).clamp_min(FLAT) + 1e-7)
