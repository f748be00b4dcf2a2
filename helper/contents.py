"""What ``last.pth`` and ``best.pth`` hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from helper.average import Average
from helper.resuming import Progress
from helper.task import Task


class Contents:
    """The weights of a run and all that belongs to them.

    Args:
        task: what is trained.
        optimizer: of its weights.
        progress: how far the run is.
        ema: of ``--ema``.
        about: what every checkpoint says beside weights and progress.
        state: of ``last.pth``, which is put back.

    Attributes:
        average: of the weights; it is what ``model`` is, and all of ``best.pth``.
    """

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        ema: float,
        about: Mapping[str, Any],
        state: Mapping[str, Any] | None,
    ) -> None:
        self.task, self.optimizer, self.progress, self.about = task, optimizer, progress, about
        if state is not None:
            task.trained.load_state_dict(state["trained"])
            optimizer.load_state_dict(state["optimizer"])
        self.average = Average(task.trained, ema, state and state.get("average"))

    def last(self, seconds: float) -> dict[str, Any]:
        """Of ``last.pth``: the network, and what going on needs; ``seconds`` that the run has taken."""
        learned = {"trained": self.task.trained.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**self._network(), **learned, **self.average.state(), **self.progress.state(), "seconds": seconds}

    def best(self) -> dict[str, Any]:
        """Of ``best.pth``: the network, and all of the task if more is used in the end."""
        with self.average.shown():
            everything = {"trained": self.task.trained.state_dict()} if self.task.keep_all else {}
        return {**self._network(), **everything}

    def put_best_back(self, state: Mapping[str, Any]) -> None:
        """The weights of ``best.pth``, to be used as they are."""
        self.average = Average(self.task.trained, 0)
        if self.task.keep_all:
            self.task.trained.load_state_dict(state["trained"])
        else:
            self.task.trained["network"].load_state_dict(state["model"])

    def _network(self) -> dict[str, Any]:
        with self.average.shown():
            weights = self.task.trained["network"].state_dict()
        now = {"epoch": self.progress.epoch, "accuracy": self.progress.accuracy}
        return {**self.about, "model": weights, **now}
