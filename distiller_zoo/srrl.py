"""Knowledge Distillation via Softmax Regression Representation Learning (Yang et al., ICLR 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from distiller_zoo.base import Distiller, Pair, distill_dict
from helper.batch import Batch, When
from helper.kl import full_precision
from helper.seen import Reads, Seen


@distill_dict.register("srrl")
class SRRL(Distiller):
    """``mean_D (q − p_t)² + mean_C (head_t(q) − t)²``: q is the student's pooled vector in the teacher's space.

    ``q = ReLU(BN(W·p_s))`` is to be the teacher's pooled vector, and to mean the same to the teacher's own classifier,
    which stays as it is. As in SimKD's code.

    Args:
        pair: the widths of both vectors.
    """

    student = Reads(vector=True)
    teacher = Reads(logits=True, vector=True, head=True)
    sums_to_zero = True

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        (width,), (teacher_width,) = pair.student[-1], pair.teacher[-1]
        self.transfer = nn.Sequential(
            nn.Linear(width, teacher_width, bias=False), nn.BatchNorm1d(teacher_width), nn.ReLU()
        )

    def prepare(self, student: Seen) -> Tensor:
        return self.transfer(student.vector)

    def compare(self, prepared: Tensor, teacher: Seen, batch: Batch, when: When) -> Tensor:
        said = teacher.head.classify_vector(prepared)
        return _error(prepared, teacher.vector) + _error(said, teacher.logits)


def _error(mine: Tensor, theirs: Tensor | None) -> Tensor:
    """Mean squared error of each sample: ``[B, D]`` twice → ``[B]``."""
    assert theirs is not None
    return (full_precision(mine) - full_precision(theirs)).square().mean(1)
