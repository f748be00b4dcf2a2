"""Contrastive Representation Distillation (Tian, Krishnan, Isola; ICLR 2020)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.base import Distiller, Pair, distill_dict
from helper import distributed
from helper.batch import Batch, When
from helper.errors import UsageError, require_positive
from helper.kl import full_precision
from helper.resuming import shared_seed
from helper.seen import Reads, Seen

EPS = 1e-7


@distill_dict.register("crd")
class CRD(Distiller):
    """Tells an image's own entry in a memory from those of ``nce_k`` images of other classes; both ways, summed.

    Of each side a linear layer and a projection onto the unit sphere make e ``[B, feat_dim]``; a bank has the running
    one of every training image. With ``x_j = exp(e_s·bank_t,j/nce_t)/Z_s`` and ``m = nce_k/N`` the loss is
    ``−log(x_0/(x_0 + m)) − Σ_k log(m/(x_k + m))`` (eq. 17 and 18), and the same of e_t and the student's bank, which
    trains the teacher's layer. Z is N times the mean exponential of the first batch. Then the rows of the batch become
    the unit vectors of ``nce_m·row + (1 − nce_m)·e``.

    Images of other classes are drawn anew for each sample, none twice; all there are, if fewer. The draw follows from
    seed, epoch, step, micro-batch and place in that of all processes, each of which remembers all.

    Args:
        pair: the widths of both vectors, and the labels of the N training images.
        feat_dim: width of the embeddings.
        nce_k: images of other classes for each sample.
        nce_t: temperature.
        nce_m: how much of a row stays.

    Raises:
        UsageError: a hyperparameter makes no sense, the labels are not known, or all images are of one class.
    """

    student = teacher = Reads(vector=True)
    labels: Tensor
    student_bank: Tensor
    teacher_bank: Tensor
    usual: Tensor

    def __init__(
        self,
        pair: Pair,
        *,
        feat_dim: Annotated[int, "width that both pooled vectors are embedded in"] = 128,
        nce_k: Annotated[int, "images of other classes that each one is told from"] = 16384,
        nce_t: Annotated[float, "temperature of the similarities"] = 0.07,
        nce_m: Annotated[float, "how much of an image's entry stays when it is seen again"] = 0.5,
    ) -> None:
        super().__init__(pair)
        require_positive(feat_dim=feat_dim, nce_k=nce_k, nce_t=nce_t)
        if not 0 <= nce_m < 1:
            raise UsageError(f"--nce_m: expected a number from 0 to below 1, got {nce_m:g}")
        if pair.labels is None or pair.labels.unique().numel() < 2:
            raise UsageError("--distill: crd tells images of several classes apart; choose another loss or dataset")
        images = len(pair.labels)
        others = images - int(pair.labels.bincount().max())  # what every class has
        self.negatives, self.temperature, self.momentum = min(nce_k, others), nce_t, nce_m
        self.embed_student = nn.Linear(pair.student[-1][0], feat_dim)
        self.embed_teacher = nn.Linear(pair.teacher[-1][0], feat_dim)
        self.register_buffer("labels", pair.labels, persistent=False)
        bound = 1 / math.sqrt(feat_dim / 3)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(images, feat_dim).uniform_(-bound, bound))
        self.register_buffer("usual", torch.zeros(2))  # mean score of the student, and of the teacher; 0: unknown

    def prepare(self, student: Seen) -> Tensor:
        return _unit(self.embed_student(student.vector))

    def compare(self, prepared: Tensor, teacher: Seen, batch: Batch, when: When) -> Tensor:
        assert batch.places is not None
        mine, theirs = prepared, _unit(self.embed_teacher(teacher.vector))
        chosen = torch.cat([batch.places[:, None], self.draw(batch.target, when)], 1)  # [B, 1 + negatives]
        sides = ((mine, self.teacher_bank), (theirs, self.student_bank))
        scores = [self.scores(*side, chosen) for side in sides]
        fresh = distributed.mean(torch.stack([each.detach().mean() for each in scores]))
        usual = torch.where(self.usual > 0, self.usual, fresh.to(self.usual.dtype))
        if self.training:
            places, self.usual = distributed.gathered(batch.places), usual
            self.student_bank = self.remembered(self.student_bank, places, mine)
            self.teacher_bank = self.remembered(self.teacher_bank, places, theirs)
        of_student, of_teacher = (each / (z * len(self.labels)) for each, z in zip(scores, usual, strict=True))
        return self.contrast(of_student) + self.contrast(of_teacher)

    def draw(self, target: Tensor, when: When) -> Tensor:
        """Labels ``[B]`` → numbers of images of other classes ``[B, negatives]``, the same for all teachers."""
        number = when.step + when.part * when.steps  # no other micro-batch of the epoch has it
        return drawn(self.labels, target, self.negatives, number, shared_seed())

    def scores(self, embedded: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
        """Embeddings ``[B, feat_dim]``, a bank, and rows of it ``[B, n]`` → exponentials of their similarities."""
        with torch.autocast(embedded.device.type, enabled=False):
            return (embedded @ bank.to(embedded.dtype).T / self.temperature).gather(1, chosen).exp()

    def contrast(self, x: Tensor) -> Tensor:
        """``[B, 1 + negatives]``, the right one first → ``[B]``."""
        right, wrong, m = x[:, 0], x[:, 1:], self.negatives / len(self.labels)
        return ((right + m + EPS) / right).log() + ((wrong + m + EPS) / m).log().sum(1)

    def remembered(self, bank: Tensor, places: Tensor, embedded: Tensor) -> Tensor:
        """The bank after a batch; another tensor, since gradients still need the one before."""
        fresh = distributed.gathered(embedded).to(bank.dtype)
        return bank.index_copy(0, places, _unit(self.momentum * bank[places] + (1 - self.momentum) * fresh))


@lru_cache(maxsize=1)  # of the same two tensors: all teachers of a step draw the same
def drawn(labels: Tensor, target: Tensor, count: int, draw: int, seed: int) -> Tensor:
    """Labels of all images ``[N]`` and of the batch ``[B]`` → numbers of images of other classes, ``[B, count]``."""
    first, number = distributed.rank() * len(target), distributed.size() * len(target)
    source = torch.Generator(target.device).manual_seed((seed * 1_000_003 + draw) % 2**63)
    keys = torch.rand(number, len(labels), generator=source, device=target.device)[first : first + len(target)]
    return keys.masked_fill(labels == target[:, None], -1.0).topk(count, sorted=False).indices


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(full_precision(vectors))
