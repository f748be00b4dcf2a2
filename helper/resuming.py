"""How far a run is, and whatever a resumed one needs to go on bitwise as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

import torch

from helper import distributed
from helper.meters import Means


class Position(TypedDict):
    """A place within an epoch.

    ``step``: so many are done. ``means``, ``generators``: of each process. ``speed``: in images per second, where all
    steps are done and the epoch is not evaluated.
    """

    step: int
    means: list[Any]
    generators: list[list[torch.Tensor]]
    speed: float


@dataclass
class Progress:
    """What ``last.pth`` holds beside weights and optimizer.

    Attributes:
        epoch: the last one that is trained and evaluated.
        seconds: that the run has taken.
        accuracy: of that epoch, on what the best one is chosen on.
        best: ``epoch`` and ``accuracy`` of the best one.
        per_class: of these two, the accuracy of each class, where it is that of the test set.
        position: within the next epoch.
        drops: after which epochs the learning rate drops.
        begun_for: so many epochs the run was to have when it began; it may have been extended.
    """

    drops: Sequence[int]
    epoch: int = 0
    seconds: float = 0.0
    accuracy: float = 0.0
    best: dict[str, Any] | None = None
    position: Position | None = None
    per_class: dict[str, Any] = field(default_factory=dict)
    begun_for: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any] | None, epochs: int, drops: Sequence[int]) -> Progress:
        """From a checkpoint, or at the start; ``epochs`` and ``drops`` are what the options ask for."""
        if state is None:
            return cls(drops, begun_for=epochs)
        before = state.get("drops", drops)  # not always those of so many epochs: the run may have been extended
        position = state.get("position")
        begun = state["epoch"] + (position is not None)
        now = before if state["epochs"] == epochs else rescaled_drops(before, drops, begun)
        return cls(
            now,
            state["epoch"],
            state["seconds"],
            state["accuracy"],
            state["best"],
            position,
            state.get("per_class", {}),
            state.get("begun_for", state["epochs"]),
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def take(self, epoch: int, accuracy: float, per_class: Mapping[str, Any]) -> bool:
        """Count an epoch that is done; whether it is the best so far. ``per_class`` is of its test scores."""
        self.per_class = {**self.per_class, "last": per_class}
        self.epoch, self.accuracy, self.position = epoch, accuracy, None
        is_best = self.best is None or accuracy > self.best["accuracy"]
        if is_best:
            self.best = {"epoch": epoch, "accuracy": accuracy}
            self.per_class["best"] = per_class
        return is_best

    def stand(self, step: int, means: Means, device: torch.device, speed: float) -> None:
        """Remember a place within the next epoch; all processes have to."""
        self.position = {
            "step": step,
            "means": distributed.gather(means.state()),
            "generators": distributed.gather(get_generators(device)),
            "speed": speed,
        }

    def begin(self, seed: int, epoch: int, device: torch.device) -> tuple[int, Means]:
        """Seed an epoch, or go on within it: how many steps are done, and the sums over them."""
        means = Means()
        seed_everything(seed, epoch)
        if self.position is None:
            return 0, means
        states, sums = self.position["generators"], self.position["means"]
        if len(states) == distributed.size():
            set_generators(states[distributed.rank()], device)
            sums = [sums[distributed.rank()]]
        elif not distributed.is_first():
            sums = []
        means.restore(sums, device)
        return self.position["step"], means

    @property
    def where(self) -> str:
        """Up to where the run is saved, in words; empty where it is not."""
        if self.position:
            return f"step {self.position['step']} of epoch {self.epoch + 1}"
        return f"epoch {self.epoch}" if self.epoch else ""

    @property
    def kept(self) -> str:
        """What is not lost, in words."""
        return f"the checkpoint of {self.where} is kept" if self.where else "there is no checkpoint yet"


def rescaled_drops(old: Sequence[int], new: Sequence[int], epoch: int) -> list[int]:
    """Where the learning rate drops when the number of epochs has changed in or after ``epoch``.

    Drops that have taken effect stay; the others go where the new number of epochs puts them, at once if that has
    passed.
    """
    passed = sum(drop < epoch for drop in old)
    return [*old[:passed], *(max(drop, epoch) for drop in new[passed:])]


OWN = 2_147_483_647
"""How far apart the seeds of two processes are."""


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed torch's generators for one epoch, so that a resumed run draws what an undisturbed one would.

    Before the first epoch all processes draw the same, the initial weights; then each draws its own.
    """
    process = distributed.rank() if epoch else 0
    torch.manual_seed((seed * 1_000_003 + epoch + process * OWN) % 2**63)


def shared_seed() -> int:
    """What torch's generators were seeded with for this epoch in the first process, in all of them."""
    return (torch.initial_seed() - distributed.rank() * OWN) % 2**63


def get_generators(device: torch.device) -> list[torch.Tensor]:
    """The states of torch's generators, of the host and of the device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_generators(states: Sequence[torch.Tensor], device: torch.device) -> None:
    """Go on from what :func:`get_generators` returned; the device's is left alone where the run was on another one."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
