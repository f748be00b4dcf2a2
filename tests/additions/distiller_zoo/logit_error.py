"""Do Deep Nets Really Need to be Deep? (Ba, Caruana; NeurIPS 2014): squared error of the logits."""

from __future__ import annotations

from torch import Tensor

from distiller_zoo.base import Distiller, distill_dict
from helper.batch import Batch, When
from helper.kl import full_precision
from helper.seen import Reads, Seen


@distill_dict.register("logit_error")
class LogitError(Distiller):
    """``½‖s − t‖²/C``."""

    student = teacher = Reads(logits=True)

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        assert prepared.logits is not None
        assert teacher.logits is not None
        return (full_precision(prepared.logits) - full_precision(teacher.logits)).square().mean(1) / 2
