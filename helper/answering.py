"""Students whose answers come from their teachers' classifiers, since a loss has taught them to speak to those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helper import distributed
from helper.average import load_evaluated
from helper.kl import full_precision
from helper.seen import observe

PACE = 0.01
"""How much a step counts in the running mean of the teachers' weights."""


class Heads(nn.Module):
    """Frozen copies of what follows the last map in K teachers, and what each of them counts in the answer.

    Args:
        networks: the teachers.
    """

    shares: Tensor

    def __init__(self, networks: Sequence[Any]) -> None:
        super().__init__()
        self.tails = nn.ModuleList(network.tail().eval().requires_grad_(False) for network in networks)
        device = next((each.device for each in self.parameters()), None)
        self.register_buffer("shares", torch.full((len(networks),), 1 / len(networks), device=device))

    def train(self, mode: bool = True) -> Heads:
        """They stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, weights: Tensor) -> None:
        """Let the shares follow the sizes of a training step's weights, ``[K]``: who was listened to."""
        self.shares.lerp_(distributed.mean(weights).abs().to(self.shares.dtype), PACE)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """K maps ``[B, C_k, H_k, W_k]`` → ``Σ_k w_k·head_k(map_k)``, ``[B, C]``, with w the shares over their sum."""
        tails: Sequence[Any] = list(self.tails)
        return self.together(torch.stack([tail.classify(each) for tail, each in zip(tails, maps, strict=True)]))

    def together(self, logits: Tensor) -> Tensor:
        """The heads' logits ``[K, B, C]`` → ``[B, C]``."""
        logits = full_precision(logits)
        shares = (self.shares / self.shares.sum()).to(logits.dtype)
        return (shares[:, None, None] * logits).sum(0)


class Answering(nn.Module):
    """Images ``[B, 3, H, W]`` → logits ``[B, C]``: the student's maps, what K losses make of them, their heads.

    Args:
        student: the network.
        losses: K losses with ``as_teacher_reads``.
        heads: of their teachers.
    """

    def __init__(self, student: nn.Module, losses: Sequence[Any], heads: Heads) -> None:
        super().__init__()
        self.student, self.losses, self.heads = student, nn.ModuleList(losses), heads

    def forward(self, images: Tensor) -> Tensor:
        losses: Sequence[Any] = list(self.losses)
        reads = losses[0].student
        seen = observe(self.student, images, reads).seen(reads)
        return self.heads([loss.as_teacher_reads(loss.prepare(seen)) for loss in losses])

    def alone(self) -> Answering:
        """Itself, its networks replaced by what exporters can take."""
        self.student = self.student.alone()  # type: ignore[operator]
        self.heads.tails = nn.ModuleList(tail.alone() for tail in self.heads.tails)  # type: ignore[operator]
        return self

    def load(self, state: Mapping[str, Any], first: int) -> None:
        """Take over a checkpoint, whose adapters from number ``first`` are those of the losses, as it was evaluated."""
        adapters = {f"adapters.{first + k}.": loss for k, loss in enumerate(self.losses)}
        for prefix, part in {"network.": self.student, "heads.": self.heads, **adapters}.items():
            load_evaluated(part, state, prefix)
