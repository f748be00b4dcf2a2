"""Training steps as the released codes take them, for comparison only.

Written from the papers and their description: float32, NCHW, teachers as they were trained, K backward passes for K
gradients, a support vector machine on the host for AEKD, an optimizer that is not fused, peers one by one, and
``.item()`` of whatever is logged in each step. What is learned is the same, see tests/contract/test_bench.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo import KD, Distiller, DistillKL, FeatureDistiller
from ensemble import EnsembleMethod, TeacherLosses, combine, weigh
from helper.meters import accuracy
from online import OnlineMethod, Peers
from online.peers import Outputs

RATE, MOMENTUM, DECAY = 1e-3, 0.9, 5e-4


def plain(module: Any) -> Any:
    """A copy in float32 and NCHW."""
    return copy.deepcopy(module).to(dtype=torch.float32, memory_format=torch.contiguous_format)


def plain_sgd(module: nn.Module) -> torch.optim.SGD:
    """A loop over the parameters."""
    how = {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY, "nesterov": True, "fused": False, "foreach": False}
    return torch.optim.SGD(module.parameters(), **how)  # type: ignore[arg-type]


def has_released_form(kind: type[Distiller]) -> bool:
    """Whether a loss is built like those of the released code: on logits, or on one map of either side."""
    return issubclass(kind, (KD, FeatureDistiller))


class ReleasedDistillation:
    """``CE + KL``, and ``b`` times the feature loss where there are adapters.

    Args:
        student, teachers, adapters: copied, so that nothing is shared with the networks that are given.
        method: weighs the teachers.
        T: temperature of the KL.
        b: weight of the feature loss.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        adapters: Sequence[FeatureDistiller],
        method: EnsembleMethod,
        T: float,
        b: float,
    ) -> None:
        self.student: Any = plain(student).train()
        self.teachers = [plain(teacher).eval() for teacher in teachers]
        self.adapters = nn.ModuleList([plain(adapter).train() for adapter in adapters])
        self.method, self.kl, self.b = method, DistillKL(T), b
        self.optimizer = plain_sgd(nn.ModuleList([self.student, self.adapters]))

    def step(self, images: Tensor, target: Tensor) -> dict[str, float]:
        """Images ``[B, 3, H, W]`` in float32 and NCHW, labels ``[B]`` → what is logged."""
        with torch.no_grad():
            outputs = [teacher(images, is_feat=True) for teacher in self.teachers]
        features, logits = self.student(images, is_feat=True)
        teacher_logits = torch.stack([each for _, each in outputs])  # [K, B, C]

        cross_entropy = F.cross_entropy(logits, target)
        losses = torch.stack([self.kl(logits, each) for each in teacher_logits])  # [K, B]
        kd = self.weighted(losses, target, "logit", logits, teacher_logits)
        parts = {"loss_ce": cross_entropy, "loss_kd": kd}
        loss = cross_entropy + kd
        if self.adapters:
            parts["loss_feature"] = self.feature_loss(features, [maps for maps, _ in outputs], teacher_logits, target)
            loss = loss + self.b * parts["loss_feature"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        parts |= {"loss": loss, "accuracy": accuracy(logits, target), "accuracy5": accuracy(logits, target, top=5)}
        return {name: value.item() for name, value in parts.items()}

    def feature_loss(
        self, features: Sequence[Tensor], teacher_features: Sequence[Sequence[Tensor]], own: Tensor, target: Tensor
    ) -> Tensor:
        """Stage outputs of the student and of teachers whose logits are ``own`` → the weighted distance of the maps."""
        adapters: list[Any] = list(self.adapters)
        (layer,) = adapters[0].student.maps
        adapted = [adapter.adapt(features[layer]) for adapter in adapters]
        distances = [
            adapter.distance(mine, theirs[layer])
            for adapter, mine, theirs in zip(adapters, adapted, teacher_features, strict=True)
        ]
        logits = own
        if adapters[0].as_teacher_reads(adapted[0]) is not None:
            readers: list[Any] = self.teachers
            logits = torch.stack([teacher.classify(maps) for teacher, maps in zip(readers, adapted, strict=True)])
        return self.weighted(torch.stack(distances), target, "feature", features[layer], logits, own)

    def weighted(
        self, losses: Tensor, target: Tensor, level: Any, place: Tensor, logits: Tensor, own: Tensor | None = None
    ) -> Tensor:
        """Losses ``[K, B]`` → their weighted sum; ``place`` is the student's tensor that gradients are wanted of."""

        def gradients() -> Tensor:
            place.retain_grad()
            return torch.stack([self.gradient(loss, place) for loss in losses.mean(1)])

        described = TeacherLosses(losses, target, level, lambda: logits, gradients, own_logits=own)
        return combine(weigh(self.method, described, "released"), losses)

    def gradient(self, loss: Tensor, place: Tensor) -> Tensor:
        """A whole backward pass for the batch mean of the gradient at ``place``, of which the rest is thrown away."""
        place.grad = None
        loss.backward(retain_graph=True)
        assert place.grad is not None
        return place.grad.mean(0).flatten().clone()


class ReleasedPeers:
    """The objective of an online method, its peers run one after the other.

    Args:
        peers, method: copied; ``method`` has its modules.
        epoch, epochs: for the ramp-up.
    """

    def __init__(self, peers: Peers, method: OnlineMethod, epoch: int, epochs: int) -> None:
        self.peers, self.method = plain(peers).train(), plain(method).train()
        self.weights = method.weights(epoch, epochs)
        self.optimizer = plain_sgd(nn.ModuleList([self.peers, self.method]))
        self.averaged = None if method.average_decay is None else plain(peers).train().requires_grad_(False)

    def step(self, images: Tensor, target: Tensor, *again: Tensor) -> dict[str, float]:
        """Images ``[B, 3, H, W]`` in float32 and NCHW, labels ``[B]``, further views → what is logged."""
        outputs = self.outputs(self.peers, (images, *again))
        if self.averaged is not None:
            outputs.averaged = self.outputs(self.averaged, (images, *again)).logits
        parts = {name: each.sum() for name, each in self.method.losses(outputs, target).items()}
        loss = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.averaged is not None and self.method.average_decay is not None:
            for average, weight in zip(self.averaged.parameters(), self.peers.parameters(), strict=True):
                average.data.mul_(self.method.average_decay).add_(weight.data, alpha=1 - self.method.average_decay)
        for j, logits in enumerate(outputs.logits):
            parts |= {f"accuracy_{j}": accuracy(logits, target), f"accuracy5_{j}": accuracy(logits, target, top=5)}
        return {name: value.item() for name, value in {"loss": loss, **parts}.items()}

    def outputs(self, peers: Any, views: Sequence[Tensor]) -> Outputs:
        """The shared stages once for each view, then each peer's own."""
        trunks = [self.trunk(peers, images) for images in views] if peers.shared else list(views)
        entries = trunks if len(trunks) > 1 else trunks * len(peers)
        each = (self.branch(peers, network, entry) for network, entry in zip(peers.networks, entries, strict=True))
        maps, vectors, logits = zip(*each, strict=True)
        return Outputs(torch.stack(logits), vectors, maps, trunks[0] if peers.shared and len(trunks) == 1 else None)

    def trunk(self, peers: Any, images: Tensor) -> Tensor:
        """What the shared stages make of the images."""
        entry: Tensor = peers.networks[0].run(images, peers.shared[0], peers.shared[-1])
        if entry.requires_grad:
            entry = entry.view_as(entry)
            entry.register_hook(lambda gradient: gradient * self.method.trunk_gradient)
        return entry

    def branch(self, peers: Any, network: Any, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """One peer's maps, pooled vector and logits."""
        maps = []
        for stage in peers.own:
            x = network.run(x, stage, stage)
            maps.append(x)
        return tuple(maps), *network.finish(x)
