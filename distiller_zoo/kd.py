"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; 2015)."""

from __future__ import annotations

from torch import Tensor, nn

from distiller_zoo.base import Distiller, Pair, distill_dict
from helper.batch import Batch, When
from helper.kl import softened_kl
from helper.seen import Reads, Seen


class DistillKL(nn.Module):
    """``T²·KL(softmax(t/T) ‖ softmax(s/T))`` per sample.

    Args:
        T: the temperature.

    Example:
        >>> DistillKL(4.0)(torch.zeros(2, 10), torch.zeros(2, 10))
        tensor([0., 0.])
    """

    def __init__(self, T: float) -> None:
        super().__init__()
        self.T = T

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Logits ``[B, C]`` and ``[..., B, C]`` (several teachers at once) → ``[..., B]``."""
        return softened_kl(student_logits, teacher_logits, self.T)


@distill_dict.register("kd")
class KD(Distiller):
    """The softened KL between the logits, see :class:`DistillKL`.

    Args:
        pair: nothing of it is needed.
        kd_T: the temperature.
    """

    student = teacher = Reads(logits=True)
    broadcasts = True

    def __init__(self, pair: Pair = Pair(), *, kd_T: float = 4.0) -> None:  # noqa: B008 a tuple
        super().__init__(pair)
        self.kl = DistillKL(kd_T)

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        return self.kl(prepared.logits, teacher.logits)

    def slopes(self, student: Seen, teacher: Seen) -> Tensor:
        """``∂(mean_b KL_k)/∂s = T·(softmax(s/T) − softmax(t_k/T))/B``; its batch mean, ``[K, C]``."""
        assert student.logits is not None
        assert teacher.logits is not None
        T = self.kl.T
        mine, theirs = (each.detach().double() / T for each in (student.logits, teacher.logits))
        gap = mine.softmax(-1) - theirs.softmax(-1)  # [K, B, C]
        return gap.mean(1) * (T / gap.shape[1])
