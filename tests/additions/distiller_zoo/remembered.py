"""A memory bank: what each teacher has said of an image so far counts too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distiller_zoo.base import Distiller, Pair, distill_dict
from helper.batch import Batch, When
from helper.distributed import gathered
from helper.seen import Reads, Seen


@distill_dict.register("remembered")
class Remembered(Distiller):
    """Squared error of an embedded vector to the teacher's, and to the running mean of those of the same image.

    Args:
        pair: the widths of both vectors, and how many images there are.
    """

    student = teacher = Reads(vector=True)
    bank: Tensor

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        width, (teacher_width,) = pair.student[-1][0], pair.teacher[-1]
        self.embed = nn.Linear(width, teacher_width)
        self.register_buffer("bank", torch.zeros(0 if pair.labels is None else len(pair.labels), teacher_width))

    def prepare(self, student: Seen) -> Tensor:
        return self.embed(student.vector)

    def compare(self, prepared: Tensor, teacher: Seen, batch: Batch, when: When) -> Tensor:
        assert teacher.vector is not None
        assert batch.places is not None
        now, before = teacher.vector.to(self.bank.dtype), self.bank[batch.places]
        errors = (prepared.to(now.dtype) - now).square() + (prepared.to(now.dtype) - before).square()
        if self.training:
            places = gathered(batch.places)  # every process remembers all
            self.bank.index_copy_(0, places, (self.bank[places] + gathered(now)) / 2)
        return errors.mean(1)
