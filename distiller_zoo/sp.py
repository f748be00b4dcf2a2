"""Similarity-Preserving Knowledge Distillation (Tung, Mori; ICCV 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distiller_zoo.base import Distiller, distill_dict
from distiller_zoo.maps import product, unit
from helper.batch import Batch, When
from helper.distributed import gathered, size
from helper.kl import full_precision
from helper.seen import Reads, Seen


@distill_dict.register("sp")
class SP(Distiller):
    """Squared error between the samples' similarities: ``Σ_j (G_s − G_t)²_bj / B`` of sample b.

    ``G`` is ``F Fᵀ`` of the flattened last maps, each row scaled to length 1. Row b is sample b's loss; it reads the
    others' maps, those of all processes among them: B is the whole batch, of a micro-batch under ``--accumulate``.
    Published with ``-r 1 -a 0 -b 3000``.
    """

    student = teacher = Reads(maps=(-2,))

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        return (similarities(prepared.maps[0]) - similarities(teacher.maps[0])).square().mean(1)


def similarities(maps: Tensor) -> Tensor:
    """Maps ``[b, C, H, W]`` → how each sample relates to those of all processes, ``[b, B]``, rows of length 1."""
    return unit(gram(maps))


def gram(maps: Tensor) -> Tensor:
    """Inner products of the maps ``[b, C, H, W]`` with those of all processes: ``[b, B]``."""
    last = maps.is_contiguous(memory_format=torch.channels_last)
    flat = full_precision((maps.movedim(1, 3) if last else maps).flatten(1))  # in any order: without copying
    if size() > 1:
        return product(flat, gathered(flat, gradient=True).T)
    with torch.autocast(flat.device.type, enabled=False):
        found: Tensor = _Gram.apply(flat)
        return found


class _Gram(torch.autograd.Function):
    """``x·xᵀ``, whose gradient is one product instead of one for each factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.T

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return product(slope + slope.T, x)
