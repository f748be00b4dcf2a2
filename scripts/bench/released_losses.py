"""Distillation losses as the released codes compute them, for comparison only: one teacher, the mean of the batch.

Written from the papers and from what the released codes do with memory: which tensors they build, at which size and in
which order. Only those that cost something else than ours: ``hint``, ``inter``, ``srrl``, ``ft``, ``simkd``, ``semckd``
and ``catkd`` are the same layers and expressions there. Layers are those of our own loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distiller_zoo.reviewkd import from_the_vector
from helper.batch import Batch
from helper.registry import Registry

Released = Callable[[Any, Any, Any, Batch], Tensor]
"""Our loss, what it sees of student and teacher, and the batch → a scalar."""

released_losses: Registry[Released] = Registry("--distill")


def kl(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    """``T²·KL`` between logits ``[B, C]``."""
    return F.kl_div((student / T).log_softmax(1), (teacher / T).softmax(1), reduction="batchmean") * T**2


def to_smaller(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller one's height."""
    height = min(mine.shape[2], theirs.shape[2])
    return F.adaptive_avg_pool2d(mine, height), F.adaptive_avg_pool2d(theirs, height)


@released_losses.register("kd")
def _kd(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    return kl(student.logits, teacher.logits, loss.kl.T)


@released_losses.register("ls")
def _ls(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    mine, theirs = (
        (each - each.mean(1, True)) / (1e-7 + each.std(1, keepdim=True)) for each in (student.logits, teacher.logits)
    )
    return kl(mine, theirs, loss.loss.kl.T)


@released_losses.register("dkd")
def _dkd(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Probabilities times a mask and their logarithms; −1000 at the target."""
    T, mask = loss.T, F.one_hot(batch.target, student.logits.shape[1])
    two = []
    for logits in (student.logits, teacher.logits):
        p = (logits / T).softmax(1)
        two.append(torch.cat([(p * mask).sum(1, keepdim=True), (p * (1 - mask)).sum(1, keepdim=True)], 1))
    target = F.kl_div(two[0].log(), two[1], reduction="batchmean") * T**2
    others = kl(student.logits - 1000 * T * mask, teacher.logits - 1000 * T * mask, T)
    return loss.alpha * target + loss.beta * others


@released_losses.register("dist")
def _dist(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    def lacking(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1, True), b - b.mean(1, True)
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    p, q = ((each.logits / loss.T).softmax(1) for each in (student, teacher))
    return loss.T**2 * (loss.beta * lacking(p, q) + loss.gamma * lacking(p.T, q.T))


@released_losses.register("nkd")
def _nkd(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """The other classes are picked out by a mask of booleans."""
    s, t, target = student.logits, teacher.logits, batch.target[:, None]
    kept = torch.ones_like(s).scatter_(1, target, 0).bool()
    first = -(t.softmax(1).gather(1, target) * s.log_softmax(1).gather(1, target)).mean()
    others = [each[kept].view(len(s), -1) / loss.T for each in (s, t)]
    return first - loss.gamma * loss.T**2 * (others[0].log_softmax(1) * others[1].softmax(1)).sum(1).mean()


@released_losses.register("at")
def _at(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    pairs = [to_smaller(*maps) for maps in zip(student.maps, teacher.maps, strict=True)]
    energies = [[F.normalize(maps.pow(2).mean(1).flatten(1)) for maps in pair] for pair in pairs]
    return torch.stack([(mine - theirs).pow(2).mean() for mine, theirs in energies]).sum()


@released_losses.register("sp")
def _sp(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    flat = [each.maps[0].flatten(1) for each in (student, teacher)]
    mine, theirs = (F.normalize(each @ each.t()) for each in flat)
    return (theirs - mine).pow(2).sum() / len(mine) ** 2


@released_losses.register("nst")
def _nst(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Every product of two channels, pixel by pixel: ``[B, C, C', H·W]``."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x[:, None] * y[:, :, None]).sum(-1).pow(2).mean()

    total = torch.zeros(())
    for maps in zip(student.maps, teacher.maps, strict=True):
        s, t = (F.normalize(each.flatten(2), dim=2) for each in to_smaller(*maps))
        total = total + kernel(t, t).detach() + kernel(s, s) - 2 * kernel(s, t)
    return total


@released_losses.register("fsp")
def _fsp(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Likewise between neighbouring stages."""

    def flow(bottom: Tensor, top: Tensor) -> Tensor:
        lower, upper = (each.flatten(2) for each in to_smaller(bottom, top))
        return (lower[:, None] * upper[:, :, None]).mean(-1)

    flows = [[flow(*each) for each in pairwise(seen.maps)] for seen in (student, teacher)]
    return torch.stack([(mine - theirs).pow(2).mean() for mine, theirs in zip(*flows, strict=True)]).sum()


@released_losses.register("rkd")
def _rkd(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """All differences of vectors ``[B, B, D]``; distances over the mean of those that are picked out as positive."""

    def relations(vectors: Tensor) -> tuple[Tensor, Tensor]:
        squares = vectors.pow(2).sum(1)
        distances = (squares[:, None] + squares - 2 * vectors @ vectors.t()).clamp(min=1e-12).sqrt()
        distances = distances * (1 - torch.eye(len(vectors), device=vectors.device))
        directions = F.normalize(vectors[None] - vectors[:, None], dim=2)
        return distances / distances[distances > 0].mean(), torch.bmm(directions, directions.transpose(1, 2)).flatten()

    with torch.no_grad():
        theirs = relations(teacher.vector)
    distance, angle = (F.smooth_l1_loss(*each) for each in zip(relations(student.vector), theirs, strict=True))
    return loss.distance * distance + loss.angle * angle


@released_losses.register("pkt")
def _pkt(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    def neighbours(vectors: Tensor) -> Tensor:
        unit = vectors / (vectors.pow(2).sum(1, keepdim=True).sqrt() + 1e-7)
        unit[unit.isnan()] = 0
        likeness = (unit @ unit.t() + 1) / 2
        return likeness / likeness.sum(1, keepdim=True)

    mine, theirs = neighbours(student.vector), neighbours(teacher.vector)
    return (theirs * ((theirs + 1e-7) / (mine + 1e-7)).log()).mean()


@released_losses.register("cc")
def _cc(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    gaps = (loss.embed_student(student.vector) - loss.embed_teacher(teacher.vector)).abs()
    return (gaps[:-1] * gaps[1:]).sum(1).mean()


@cache
def others(labels: Tensor) -> list[Tensor]:
    """Of each class the numbers of all images of other classes."""
    return [(labels != label).nonzero().flatten() for label in range(int(labels.max()) + 1)]


@released_losses.register("crd")
def _crd(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """The rows that each sample is compared with are copied out of the banks: ``[B, 1 + nce_k, feat_dim]``."""
    n, m = len(loss.labels), loss.negatives / len(loss.labels)
    drawn = []  # in the data loader there, one image after the other
    for label in batch.target.tolist():
        among = others(loss.labels)[label]
        drawn.append(among[torch.randperm(len(among), device=among.device)[: loss.negatives]])
    assert batch.places is not None
    rows = torch.cat([batch.places[:, None], torch.stack(drawn)], 1)
    mine, theirs = F.normalize(loss.embed_student(student.vector)), F.normalize(loss.embed_teacher(teacher.vector))
    total = torch.zeros((), device=rows.device)
    for embedded, bank in ((mine, loss.teacher_bank), (theirs, loss.student_bank)):
        weights = bank.index_select(0, rows.flatten()).view(*rows.shape, -1)
        x = (torch.bmm(weights, embedded[..., None]) / loss.temperature).exp()
        x = x / (x.mean() * n).detach()
        right, wrong = x[:, 0], x[:, 1:]
        likely = (right / (right + m + 1e-7)).log().sum() + (m / (wrong + m + 1e-7)).log().sum()
        total = total - likely / len(rows)
    with torch.no_grad():
        for embedded, bank in ((mine, loss.student_bank), (theirs, loss.teacher_bank)):
            kept = bank[batch.places] * loss.momentum + embedded * (1 - loss.momentum)
            bank.index_copy_(0, batch.places, F.normalize(kept))
    return total


@released_losses.register("vid")
def _vid(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Divided by the variance at every pixel."""
    total = torch.zeros((), device=batch.target.device)
    for level, maps in enumerate(zip(student.maps, teacher.maps, strict=True)):
        mine, theirs = to_smaller(*maps)
        mean, variance = loss.stages[level](mine)
        variance = variance[:, None, None]
        total = total + (0.5 * ((mean - theirs) ** 2 / variance + variance.log())).mean()
    return total


@released_losses.register("ab")
def _ab(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Both cases at every position, each times its mask."""
    total = torch.zeros((), device=batch.target.device)
    for connect, s, t in zip(loss.stages, student.before_relu, teacher.before_relu, strict=True):
        s = connect(s)
        low, high = ((s + 1) ** 2) * ((s > -1) & (t <= 0)).float(), ((s - 1) ** 2) * ((s <= 1) & (t > 0)).float()
        total = total / 2 + (low + high).sum() / len(s) * 3 / 1000
    return total


@released_losses.register("ofd")
def _ofd(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """The squared error at every position, times its mask."""
    total = torch.zeros((), device=batch.target.device)
    maps = zip(loss.connectors, loss.margins, student.before_relu, teacher.before_relu, strict=True)
    for connect, margin, s, t in maps:
        s, t = connect(s), torch.max(F.adaptive_avg_pool2d(t, s.shape[2:]), margin.mean.view(1, -1, 1, 1))
        counts = ((s > t) | (t > 0)).float()
        total = total / 2 + (F.mse_loss(s, t, reduction="none") * counts).sum() / len(s)
    return total


@released_losses.register("reviewkd")
def _reviewkd(loss: Any, student: Any, teacher: Any, batch: Batch) -> Tensor:
    """Both maps are pooled to each size before they are compared."""
    total, residual = torch.zeros((), device=batch.target.device), None
    for fuse, s, theirs in zip(loss.levels, from_the_vector(student), from_the_vector(teacher), strict=True):
        mine, residual = fuse(s, residual, theirs.shape[2:])
        value, weights, weight = F.mse_loss(mine, theirs), 1.0, 1.0
        for side in (4, 2, 1):
            if side < mine.shape[2]:
                weight /= 2
                small = F.mse_loss(F.adaptive_avg_pool2d(mine, side), F.adaptive_avg_pool2d(theirs, side))
                value, weights = value + weight * small, weights + weight
        total = total + value / weights
    return total
