"""Losses that branch off from one tensor: their gradients in one backward pass, and any weighted sum of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Branches:
    """K branches of one tensor, each through a module of its own to a loss of its own.

    A backward pass through the branches gives every loss's gradient. Weights that are found from these gradients, and
    are constants, turn them into the gradient of the weighted loss, with no second pass: it is linear in them.

    Args:
        trunk: ``[B, …]``, where the branches begin.
        modules: K modules, one for each branch; none has parameters of another one.
    """

    def __init__(self, trunk: Tensor, modules: Sequence[nn.Module]) -> None:
        self.trunk = trunk
        self.aliases = [trunk.view_as(trunk) for _ in modules]
        """What each branch has to start from: the same numbers, but a gradient of its own."""
        self._parameters = [list(module.parameters()) for module in modules]
        self._slopes: list[Tensor] = []
        self._gradients: list[Tensor] = []

    def slopes(self, losses: Tensor, keep: bool) -> list[Tensor]:
        """∂losses_k/∂trunk ``[B, …]`` for each of the losses ``[K]``; the pass ends at the trunk.

        Without ``keep`` the branches forget what they have computed, so that only :meth:`attach` can follow.
        """
        parameters = [parameter for each in self._parameters for parameter in each]
        found = torch.autograd.grad(losses.sum(), [*self.aliases, *parameters], retain_graph=keep)
        self._slopes, self._gradients = list(found[: len(losses)]), list(found[len(losses) :])
        return self._slopes

    def known(self, weights: Tensor) -> bool:
        """Whether the gradient of the losses weighted by ``weights`` follows from what :meth:`slopes` has found."""
        return bool(self._slopes) and weights.ndim == 1 and not weights.requires_grad

    def attach(self, loss: Tensor, weights: Tensor) -> Tensor:
        """The scalar ``loss``, which is ``Σ_k weights_k·losses_k``, with the gradients already found for its own."""
        counts = [len(each) for each in self._parameters]
        parameters = [parameter for each in self._parameters for parameter in each]
        known = (*self._slopes, *self._gradients)
        return _Attach.apply(loss.detach(), weights.to(loss.dtype), counts, known, self.trunk, *parameters)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, weights: Tensor, counts: list[int], known: tuple[Tensor, ...], *inputs: Tensor
    ) -> Tensor:
        ctx.counts = counts
        ctx.save_for_backward(weights, *known)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        weights, *known = ctx.saved_tensors
        K = len(weights)
        factors = (slope * weights).unbind()
        trunk = known[0] * factors[0]
        for each, factor in zip(known[1:K], factors[1:], strict=True):
            trunk = trunk.addcmul_(each, factor.to(each.dtype))
        repeated = [factor for factor, count in zip(factors, ctx.counts, strict=True) for _ in range(count)]
        return None, None, None, None, trunk, *(each * factor for each, factor in zip(known[K:], repeated, strict=True))
