"""What a distillation loss reads of a network, and what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
"""One feature without its batch axis: ``(C, H, W)`` of a map, ``(D,)`` of the pooled vector."""


class Reads(NamedTuple):
    """What a loss declares that it reads of one network; nothing else is computed for it.

    Attributes:
        logits: ``[B, C]``.
        maps: which stage outputs, as indices into the features of ``network(x, is_feat=True)``: 0 is the stem's, −2 the
            last one; ``"all"`` of them.
        before_relu: whether those maps are the ones before the ReLU that ends their stage.
        vector: the pooled vector ``[B, D]``.
        head: the network's own classifier, see :attr:`Seen.head`.
    """

    logits: bool = False
    maps: tuple[int, ...] | Literal["all"] = ()
    before_relu: bool = False
    vector: bool = False
    head: bool = False

    @property
    def features(self) -> bool:
        """Whether it is more than logits."""
        return bool(self.maps) or self.vector or self.head


def either(*reads: Reads) -> Reads:
    """What a network has to be asked for, so that each of these is served."""
    maps = {index for each in reads if each.maps != "all" for index in each.maps}
    return Reads(
        logits=True,
        maps="all" if any(each.maps == "all" for each in reads) else tuple(sorted(maps)),
        before_relu=any(each.before_relu for each in reads),
        vector=any(each.vector for each in reads),
        head=any(each.head for each in reads),
    )


class Seen(NamedTuple):
    """What a loss gets of one network on one batch: what it has declared, and nothing else.

    Attributes:
        head: the network: ``head.classify(map)`` and ``head.classify_vector(vector)`` give logits.
    """

    logits: Tensor | None = None
    maps: tuple[Tensor, ...] = ()
    vector: Tensor | None = None
    head: Any = None

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, which gradients are taken with respect to."""
        return tuple(each for each in (self.logits, *self.maps, self.vector) if each is not None)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Seen:
        """The same record of other tensors, in the order of :meth:`tensors`."""
        rest = iter(tensors)
        logits = None if self.logits is None else next(rest)
        maps = tuple(next(rest) for _ in self.maps)
        return Seen(logits, maps, None if self.vector is None else next(rest), self.head)


class Observed(NamedTuple):
    """What a network has made of a batch.

    Attributes:
        logits: ``[B, C]``.
        features: stage outputs and the pooled vector; None for those that nobody asked for.
        network: who.
    """

    logits: Tensor
    features: Sequence[Any] = ()
    network: nn.Module | None = None

    def seen(self, reads: Reads) -> Seen:
        """The part that a loss has declared."""
        maps = self.features[:-1] if reads.maps == "all" else [self.features[index] for index in reads.maps]
        return Seen(
            logits=self.logits if reads.logits else None,
            maps=tuple(maps),
            vector=self.features[-1] if reads.vector else None,
            head=self.network if reads.head else None,
        )


def observe(network: nn.Module, images: Tensor, reads: Reads) -> Observed:
    """Run a network on images ``[B, 3, H, W]`` and keep what ``reads`` asks for, and the logits."""
    if not reads.features:
        return Observed(network(images), (), network)
    settings = {"preact": True} if reads.before_relu else {}
    features, logits = network(images, is_feat=True, **settings)
    last = len(features) - 1
    wanted = set(range(last)) if reads.maps == "all" else {index % (last + 1) for index in reads.maps}
    wanted |= {last} if reads.vector else set()
    return Observed(logits, [each if index in wanted else None for index, each in enumerate(features)], network)


@torch.no_grad()
def feature_shapes(network: nn.Module, images: Tensor) -> list[Shape]:
    """``(C, H, W)`` of each stage output and ``(D,)`` of the pooled vector."""
    training = network.training
    features, _ = network.eval()(images, is_feat=True)
    network.train(training)
    return [tuple(feature.shape[1:]) for feature in features]
