"""The moving average of what is trained: ``--ema``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from helper.batch import When

STATISTICS = ("running_mean", "running_var")


class Average:
    """The exponential moving average of the weights, and of the statistics that batch normalisation has kept.

    In update n a share of ``min(decay, (1 + n)/(10 + n))`` of it stays, so that the first weights are soon forgotten
    (as in TensorFlow's ``ExponentialMovingAverage``); n follows from the epoch and the step.

    Args:
        trained: what is trained.
        decay: 0: there is no average, and all that is asked of it does nothing.
        state: of an average that was saved.
    """

    def __init__(self, trained: nn.Module, decay: float, state: Mapping[str, Tensor] | None = None) -> None:
        self.decay = decay
        named = {**dict(trained.named_parameters()), **dict(trained.named_buffers())}
        self.live = {name: each for name, each in named.items() if decay and moves(name, each)}
        start = {name: each for name, each in (state or {}).items() if name in self.live}
        self.values = {name: start.get(name, each.detach()).clone() for name, each in self.live.items()}
        for name, each in self.live.items():
            self.values[name] = self.values[name].to(each.device)

    @torch.no_grad()
    def update(self, when: When) -> None:
        """Take in the weights after a step."""
        if not self.live:
            return
        updates = (when.epoch - 1) * when.steps + when.step
        stays = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(self.values.values()), [each.detach() for each in self.live.values()], 1 - stays)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Within, the average is what the networks hold."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, each in self.live.items():
            each.data, self.values[name] = self.values[name], each.data

    def state(self) -> dict[str, dict[str, Tensor]]:
        """For a checkpoint."""
        return {"average": dict(self.values)} if self.live else {}


def load_evaluated(network: nn.Module, state: Mapping[str, Any], prefix: str = "") -> None:
    """Let a network be what was evaluated: what is under ``trained``, with ``average`` in its place where there is one.

    The average has one name for each tensor, however many share it, so that it comes second.

    Args:
        network: all that is trained, or a part of it.
        state: a checkpoint.
        prefix: what stands before the names of the part.

    Raises:
        RuntimeError: the checkpoint is of another network.
    """
    for key in ("trained", "average"):
        named = {name: each for name, each in state.get(key, {}).items() if name.startswith(prefix)}
        named = {name.removeprefix(prefix): each for name, each in named.items()}
        network.load_state_dict(named, strict=key == "trained")


def moves(name: str, value: Tensor) -> bool:
    """Whether training changes a weight, or a statistic that belongs to the weights."""
    return value.requires_grad or name.endswith(STATISTICS)
