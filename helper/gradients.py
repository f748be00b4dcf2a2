"""K losses that start from the same tensors: all their gradients in one backward pass, and any weighted sum of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from helper.distributed import gathered

Tensors = tuple[Tensor, ...]


class OnePass:
    """K losses of the same tensors, each through a module of its own.

    A backward pass to the tensors gives every loss's gradient. Weights that are found from these gradients, and are
    constants, turn them into the gradient of the weighted loss, with no second pass: it is linear in them.

    Args:
        start: what the losses are computed from, ``[B, …]`` each.
        modules: K modules, one for each loss; none has parameters of another one.
    """

    def __init__(self, start: Sequence[Tensor], modules: Sequence[nn.Module]) -> None:
        self.start = tuple(start)
        self.aliases: list[Tensors] = [tuple(tensor.view_as(tensor) for tensor in start) for _ in modules]
        """What each loss has to be computed from: the same numbers, but gradients of their own."""
        self._parameters = [[each for each in module.parameters() if each.requires_grad] for module in modules]
        self._slopes: list[Tensors] = []
        self._gradients: list[Tensor | None] = []

    def slopes(self, losses: Tensor, keep: bool) -> list[Tensors]:
        """∂losses_k/∂start, ``[B, …]`` each, for each of the losses ``[K]``; the pass ends at ``start``.

        Without ``keep`` the losses forget what they have computed, so that only :meth:`attach` can follow.
        """
        aliases = list(chain(*self.aliases))
        found = torch.autograd.grad(
            losses.sum(), [*aliases, *chain(*self._parameters)], retain_graph=keep, allow_unused=True
        )
        slopes = (
            torch.zeros_like(alias) if slope is None else slope
            for alias, slope in zip(aliases, found[: len(aliases)], strict=True)
        )
        self._slopes = [tuple(next(slopes) for _ in each) for each in self.aliases]
        self._gradients = list(found[len(aliases) :])
        return self._slopes

    def known(self, weights: Tensor) -> bool:
        """Whether the gradient of the losses weighted by ``weights`` follows from what :meth:`slopes` has found."""
        return bool(self._slopes) and weights.ndim == 1 and not weights.requires_grad

    def attach(self, loss: Tensor, weights: Tensor) -> Tensor:
        """The scalar ``loss``, which is ``Σ_k weights_k·losses_k``, with the gradients already found for its own."""
        counts = [len(each) for each in self._parameters]
        known = (*chain(*self._slopes), *self._gradients)
        parameters = chain(*self._parameters)
        return _Attach.apply(loss.detach(), weights.to(loss.dtype), counts, known, *self.start, *parameters)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, weights: Tensor, counts: list[int], known: tuple[Tensor | None, ...], *inputs: Tensor
    ) -> Tensor:
        ctx.counts, ctx.tensors = counts, len(inputs) - sum(counts)
        ctx.save_for_backward(weights, *known)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        weights, *known = ctx.saved_tensors
        factors = (slope * weights).unbind()
        K, tensors = len(factors), ctx.tensors
        start = (_weighted(factors, known[first : K * tensors : tensors]) for first in range(tensors))
        repeated = [factor for factor, count in zip(factors, ctx.counts, strict=True) for _ in range(count)]
        return None, None, None, None, *start, *_scaled(known[K * tensors :], repeated)


def _weighted(factors: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """``Σ_k factors_k·slopes_k``"""
    total = slopes[0] * factors[0]
    for slope, factor in zip(slopes[1:], factors[1:], strict=True):
        total = total.addcmul_(slope, factor.to(slope.dtype))
    return total


def _scaled(gradients: Sequence[Tensor | None], factors: Sequence[Tensor]) -> Iterator[Tensor | None]:
    for gradient, factor in zip(gradients, factors, strict=True):
        yield None if gradient is None else gradient * factor


def batch_mean(slope: Tensor) -> Tensor:
    """Gradients ``[B, …]`` → their mean, flattened, in float32 or better."""
    dtype = torch.promote_types(slope.dtype, torch.float32)
    if slope.ndim != 4:
        return slope.mean(0, dtype=dtype).flatten()
    # Summed in the order in which they lie in memory, and not in float64: many times faster.
    rows = slope.contiguous(memory_format=torch.channels_last).movedim(1, -1)
    return rows.mean(0, dtype=dtype).movedim(-1, 0).flatten()


def of_all_samples(slope: Tensor) -> Tensor:
    """Gradients ``[B, …]`` → those of the samples of all processes, flattened, in float32 or better."""
    return gathered(slope.to(torch.promote_types(slope.dtype, torch.float32))).flatten()
