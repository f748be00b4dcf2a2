"""What an online method is told, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.errors import UsageError, require_not_negative, require_positive
from helper.kl import full_precision, softened_kl
from helper.recipe import Recipe
from helper.registry import Registry, Unread
from online.peers import Network, Outputs, Peers, require_stages

OKDDIP_RECIPE = Recipe(epochs=300, drops=(150, 225), batch_size=128, learning_rate=0.1, nesterov=True)
"""OKDDip's released command line, which all methods but ONE and BOC share."""

RAMP_UP = 80 / 300
"""The published ramp-up takes 80 of 300 epochs."""

EPS = 1e-7
"""Added to softened targets by the released code of ONE and OKDDip."""

Structure: TypeAlias = Annotated[
    Literal["branches", "networks"],
    "branches share all stages but the last; networks share nothing",
]
PeerCount: TypeAlias = Annotated[int, "number of peers"]
Alpha: TypeAlias = Annotated[float, "weight of the KL between the peers"]
Temperature: TypeAlias = Annotated[float, "temperature of the softened KL"]
OwnViews: TypeAlias = Annotated[bool, "each peer sees an augmentation of its own of every image, not all the same one"]
DetachTargets: TypeAlias = Annotated[bool, "no gradient through the targets of the KL, as in the papers"]


class OnlineMethod(nn.Module):
    """How peers are built, what they learn from each other, and which of them is used in the end.

    Keyword-only arguments of a subclass's constructor are its hyperparameters: the command line offers them as flags.
    A subclass answers :meth:`losses`; the rest has defaults. Modules that a method trains besides the peers (a gate,
    attention, adapters) become its attributes in :meth:`attach`.

    Attributes:
        name: the name on the command line, for messages; the registry's.
        num_branches: number of peers m.
        peers: ``branches`` or ``networks``.
        alpha: weight of the losses named ``kd``.
        kd_T: temperature T.
        own_views: whether each peer sees an augmentation of its own of each image.
        average_decay: share that stays, in a step, of the averaged peers' weights; None: there are none. Where there
            are, ``Outputs.averaged`` has what they say in training, and they are what is evaluated and used in the end.
        weight_decay: of the method's own modules; None: that of ``--weight_decay``.
    """

    recipe: ClassVar[Recipe] = OKDDIP_RECIPE
    fewest: ClassVar[int] = 2
    """The least number of peers that makes sense."""
    structures: ClassVar[tuple[str, ...]] = ("branches", "networks")
    reads_features: ClassVar[bool] = True
    """Whether it looks at the peers' maps or vectors; else separate peers may be networks of logits only."""
    ramps_up: ClassVar[bool] = False
    """Whether the weight of the KL grows over the first epochs."""
    inference: ClassVar[int] = 0
    """Index of the peer that is used in the end."""
    ensemble: ClassVar[str] = "ensemble"
    """Which of :meth:`predictions` is the peers' joint one."""
    unread: ClassVar[Unread] = {}
    """Of hyperparameters: another option, and at which of its values it is no use to type them."""
    rate: ClassVar[float] = 1.0
    """Factor of the learning rate of the method's own modules."""
    label_smoothing: float = 0.0
    """Of ``--label_smoothing``."""
    own_views: bool = False
    average_decay: float | None = None
    weight_decay: float | None = None

    def __init__(self, num_branches: int, peers: str, alpha: float = 1.0, kd_T: float = 3.0) -> None:
        super().__init__()
        self.num_branches, self.peers, self.alpha, self.kd_T = num_branches, peers, alpha, kd_T

    @classmethod
    def published(cls, model: str, dataset: str) -> Recipe:
        """The recipe that the method's authors used for this network and dataset."""
        return cls.recipe

    @property
    def trunk_gradient(self) -> float:
        """Factor of the gradient that enters the shared stages."""
        return 1.0

    @property
    def views(self) -> int:
        """How many augmented views of each image a batch has to have."""
        return self.num_branches if self.own_views else 1

    def require_valid(self) -> None:
        """Refuse hyperparameters that make no sense, before anything is built.

        Raises:
            UsageError: naming the option, its value and the valid ones.
        """
        name = type(self).__name__
        if self.num_branches < self.fewest:
            raise UsageError(f"--num_branches: {name} needs at least {self.fewest}, got {self.num_branches}")
        if self.peers not in self.structures:
            raise UsageError(f"--peers: {name} works on a shared trunk; choose {'|'.join(self.structures)}")
        require_positive(kd_T=self.kd_T)
        require_not_negative(alpha=self.alpha)

    def make_peers(self, build: Callable[..., Network]) -> Peers:
        """The peers; ``build(widths=…)`` constructs one network of the chosen architecture."""
        networks = [build() for _ in range(self.num_branches)]
        if self.peers == "networks":
            return Peers(networks, shared=0, features=self.reads_features)
        require_stages(networks[0], " or --peers networks" if "networks" in self.structures else "")
        for network in networks:
            network.become_branch()
        return Peers(networks, len(networks[0].stages) - 1)

    def attach(self, outputs: Outputs) -> None:
        """Build the modules whose shapes depend on the peers' ``outputs``; called once, before training."""

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        """Named loss vectors ``[n]``, n losses of one kind (such as one per peer), each a batch mean.

        Args:
            outputs: of all peers, in training mode.
            target: the labels ``[B]``.
        """
        raise NotImplementedError

    def cross_entropies(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits ``[m, B, C]`` and labels ``[B]`` → the batch mean of each peer's cross-entropy ``[m]``."""
        return self.sample_cross_entropies(logits, target).mean(1)

    def sample_cross_entropies(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits ``[m, B, C]`` and labels ``[B]`` → each peer's cross-entropy on each sample ``[m, B]``."""
        peers, batch, _ = logits.shape
        logits, target = full_precision(logits).flatten(0, 1), target.repeat(peers)
        each = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)
        return each.view(peers, batch)

    def weights(self, epoch: int, epochs: int) -> dict[str, float]:
        """What the losses of each name are multiplied by in ``epoch``, counted from 1.

        ``epochs`` are those that the run was begun for; one that was extended goes on beyond them.
        """
        ramp = ramp_up(epoch, epochs * RAMP_UP) if self.ramps_up else 1.0
        return {"ce": 1.0, "kd": self.alpha * ramp}

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        """Names → logits ``[B, C]``, of several peers ``[m, B, C]``, or a measure of each image ``[B]``.

        The first, ``network``, is the peer that is used in the end.
        """
        logits = full_precision(outputs.logits)
        return {
            "network": logits[self.inference],
            "peer": logits,
            "ensemble": logits.mean(0),
            "diversity": diversity(logits),
        }


online_dict: Registry[type[OnlineMethod]] = Registry("--method")


def ramp_up(epoch: int, length: float) -> float:
    """``exp(−5(1 − e/length)²)`` for e < length, then 1; e = ``epoch`` − 1 (Tarvainen and Valpola 2017; released code).

    Args:
        epoch: counted from 1.
        length: in epochs.
    """
    passed = epoch - 1
    return math.exp(-5 * (1 - passed / length) ** 2) if passed < length else 1.0


def averaging(decay: float, done: int) -> float:
    """``min(1 − 1/(done + 1), decay)``: the true mean while that is shorter than the moving one (mean teacher).

    Args:
        decay: share of the average that stays in the end.
        done: how many steps came before.
    """
    return min(1 - 1 / (done + 1), decay)


def mean_kl(logits: Tensor, targets: Tensor, T: float, eps: float = EPS) -> Tensor:
    """Logits and targets ``[…, B, C]`` → the batch mean of ``T²·KL(target → logits)``, shape ``[…]``."""
    return softened_kl(logits, targets, T, eps).mean(-1)


def mean_of_others(logits: Tensor) -> Tensor:
    """Logits ``[m, B, C]`` → for each peer the mean of the other peers' logits, ``[m, B, C]``."""
    logits = full_precision(logits)
    return (logits.sum(0) - logits) / (len(logits) - 1)


def diversity(logits: Tensor) -> Tensor:
    """Mean L2 distance between the softmax outputs of two different peers (OKDDip): ``[m, B, C]`` → ``[B]``.

    0 for a single peer.
    """
    p = full_precision(logits).softmax(-1)
    gaps = [(one - other).norm(dim=-1) for one, other in combinations(p, 2)]
    return torch.stack(gaps).mean(0) if gaps else torch.zeros_like(p[0, :, 0])
