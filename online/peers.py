"""Peers of any architecture: whole networks that own their first stages in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from helper.errors import UsageError

Network: TypeAlias = Any
"""A ``models.StagedModel``, which this folder does not import."""


@dataclass
class Outputs:
    """What m peers make of B images.

    Args:
        logits: ``[m, B, C]``.
        vectors: for each peer the pooled vector ``[B, D_j]``; of networks without stages only for methods that read it.
        maps: for each peer the outputs of the stages that are its own, ``[B, C_j, H, W]`` each.
        trunk: the output of the shared stages, ``[B, C, H, W]``; None where the peers share nothing, or where each sees
            images of its own.
        averaged: the averaged peers' logits of the same images, ``[m, B, C]``, without a gradient; None where there are
            no averaged peers.
    """

    logits: Tensor
    vectors: tuple[Tensor, ...]
    maps: tuple[tuple[Tensor, ...], ...]
    trunk: Tensor | None
    averaged: Tensor | None = None
    _computed: dict[Callable[[Outputs], Tensor], Tensor] = field(default_factory=dict, init=False, repr=False)

    def once(self, compute: Callable[[Outputs], Tensor]) -> Tensor:
        """``compute(self)``, the same tensor whenever it is asked for again: mixed images have two labels each.

        For what a method's own modules make of the peers, whose batch statistics would move once for each label.
        """
        if compute not in self._computed:
            self._computed[compute] = compute(self)
        return self._computed[compute]

    @property
    def features(self) -> Tensor:
        """The pooled vectors of peers of the same width, ``[m, B, D]``."""
        return torch.stack(self.vectors)


class Peers(nn.Module):
    """m networks, of which all have the first ``shared`` stages in common: 0 makes them separate.

    The shared stages are the same modules in every network. So each network is complete by itself (its state loads
    into a network of its architecture), ``parameters()`` has every weight once, and ``eval()``, ``to()`` and
    ``state_dict()`` reach all.

    Args:
        networks: constructed networks, with stages if they are to share some; those after the first lose theirs then.
        shared: number of stages in common; the shared stages of all networks are of the same widths.
        first: the number of the first network, of those that the method has.
        whole: parameters of the network that the others are thinner than; None if that is the first.
        features: whether maps and vectors are asked of networks without stages too.

    Raises:
        UsageError: an architecture has no stages to share, or too few for each peer to keep one.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        shared: int,
        first: int = 0,
        whole: int | None = None,
        features: bool = True,
    ) -> None:
        super().__init__()
        self.numbers, self.whole, self.features = range(first, first + len(networks)), whole, features
        leading = networks[0]
        if shared:
            require_stages(leading)
        if not 0 <= shared < max(len(leading.stages), 1):
            raise ValueError(f"{shared} shared stages of {len(leading.stages)}")
        self.shared = leading.stages[:shared]
        self.own = leading.stages[shared:]
        for network in networks[1:]:
            for stage in self.shared:
                for child in leading.parts[stage]:
                    network.set_submodule(child, leading.get_submodule(child))
        self.networks = nn.ModuleList(networks)

    def __len__(self) -> int:
        return len(self.networks)

    def forward(self, images: Tensor | Sequence[Tensor], trunk_gradient: float = 1.0) -> Outputs:
        """What the peers make of images; the shared stages run once for all peers that see the same ones.

        Args:
            images: ``[B, 3, H, W]``, or one such for each peer.
            trunk_gradient: factor of the gradient that enters the shared stages.
        """
        seen = [images] if isinstance(images, Tensor) else list(images)
        trunks = [self.run_trunk(each) for each in seen]
        entries = [
            each if trunk is None else _scaled(trunk, trunk_gradient) for each, trunk in zip(seen, trunks, strict=True)
        ]
        own = entries * len(self.networks) if len(entries) == 1 else entries
        results = [self._run(network, entry) for network, entry in zip(self.networks, own, strict=True)]
        maps, found, logits = zip(*results, strict=True)
        vectors = tuple(each for each in found if each is not None)
        return Outputs(torch.stack(logits), vectors, maps, trunks[0] if len(trunks) == 1 else None)

    @torch.no_grad()
    def follow(self, others: Peers, decay: float) -> None:
        """Move each weight towards that of the same peers ``others``: ``a ← decay·a + (1 − decay)·w``; buffers stay."""
        torch._foreach_lerp_(list(self.parameters()), list(others.parameters()), 1 - decay)

    def run_trunk(self, images: Tensor) -> Tensor | None:
        """Images ``[B, 3, H, W]`` → the output of the shared stages ``[B, C, H, W]``, if there are any."""
        network: Network = self.networks[0]
        return network.run(images, self.shared[0], self.shared[-1]) if self.shared else None

    def _run(self, network: Network, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor]:
        if not self.own:
            return self._run_whole(network, x)
        maps = []
        for stage in self.own:
            x = network.run(x, stage, stage)
            maps.append(x)
        vector, logits = network.finish(x)
        return tuple(maps), vector, logits

    def _run_whole(self, network: Network, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor]:
        if not self.features:
            return (), None, network(x)
        try:
            (*maps, vector), logits = network(x, is_feat=True)
        except UsageError as error:
            raise UsageError(f"--method: reads maps or vectors of its peers: {error}") from None
        return tuple(maps), vector, logits


def require_stages(network: Network, otherwise: str = "") -> None:
    """UsageError where a network has no stages to share; ``otherwise`` says what to choose but another one."""
    if len(network.stages) < 2:
        raise UsageError(f"--model: {network.label} has no stages that peers could share; choose another{otherwise}")


def _scaled(trunk: Tensor, factor: float) -> Tensor:
    """The same, whose gradient is multiplied by ``factor``."""
    if factor == 1 or not trunk.requires_grad:
        return trunk
    scaled: Tensor = _ScaledGradient.apply(trunk, factor)
    return scaled


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
