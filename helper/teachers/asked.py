"""What frozen teachers say of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helper.seen import Observed, Reads, observe
from helper.teachers.cache import Compute, TeacherCache
from helper.teachers.classes import Chosen, Known
from helper.teachers.conversion import Conversion
from helper.teachers.frozen import lowered


class Teachers:
    """K trained networks that stay as they are: in eval mode, without gradients of their own.

    Args:
        networks: K networks on one device, of any architectures.
        conversions: what the dataset's images go through for each, one object for those that want the same; None: they
            stay as they are.
        known: the classes that each knows, whose logits it has in their order; None: all know all.
        identities: of each the architecture, a checksum of its weights as they were loaded, and what else its logits
            depend on.
    """

    # torch.inference_mode would gain nothing that can be measured over no_grad, and a loss that saves one of these
    # tensors for its backward pass would fail.

    def __init__(
        self,
        networks: Sequence[nn.Module],
        conversions: Sequence[Conversion | None] = (),
        known: Known | None = None,
        identities: Sequence[tuple[str, str, dict[str, Any]]] = (),
    ) -> None:
        self.networks = [network.eval().requires_grad_(False) for network in networks]
        self.conversions = list(conversions) or [None] * len(networks)
        self.known, self.identities = known, list(identities)
        self.cache: TeacherCache | None = None

    def __len__(self) -> int:
        return len(self.networks)

    def lower(self, precision: str) -> None:
        """From float32 to what ``--precision`` says, see :func:`helper.teachers.frozen.freeze`."""
        for network in self.networks:
            lowered(network, precision)

    @property
    def usual(self) -> bool:
        """Whether all have logits of the dataset's classes in their order, and take images of its size and channels."""
        plain = all(each is None or each.keeps_shape for each in self.conversions)
        return self.known is None and plain and not any(isinstance(each, Chosen) for each in self.networks)

    def shown(self, images: Tensor) -> list[Tensor]:
        """Images ``[B, 3, H, W]`` as the dataset has them → as each network takes them."""
        made: dict[Conversion | None, Tensor] = {}
        for each in self.conversions:
            if each not in made:
                made[each] = as_autocast(each(images) if each else images)
        return [made[each] for each in self.conversions]

    @torch.no_grad()
    def logits(self, images: Tensor, views: Tensor | None = None) -> Tensor:
        """Images ``[B, 3, H, W]`` → ``[K, B, C]``; from the cache, if there is one, where ``views`` numbers them."""
        return self._together(self._logits(images, views))

    @torch.no_grad()
    def observe(
        self, images: Tensor, reads: Reads | Sequence[Reads], views: Tensor | None = None
    ) -> tuple[list[Observed], Tensor]:
        """Images ``[B, 3, H, W]`` → what each teacher makes of them, and all logits ``[K, B, C]``.

        Each one's own are those of the classes that it knows. From the cache where logits are all that is read;
        ``views``: see :meth:`logits`.

        Args:
            reads: of all teachers, or K of them.
        """
        each = [reads] * len(self) if isinstance(reads, Reads) else reads
        if any(one.features for one in each):
            seen = zip(self.networks, self.shown(images), each, strict=True)
            observed = [observe(network, images, one) for network, images, one in seen]
            return observed, self._together([one.logits for one in observed])
        logits = self._logits(images, views)
        observed = [Observed(own, (), network) for own, network in zip(logits, self.networks, strict=True)]
        return observed, self._together(logits)

    def _logits(self, images: Tensor, views: Tensor | None) -> Sequence[Tensor] | Tensor:
        """Of each teacher ``[B, C_k]``."""
        if self.cache is not None and views is not None:
            asked = zip(self.networks, self.conversions, strict=True)
            return self.cache.logits(images, views, [_asking(*each) for each in asked])
        return [network(seen) for network, seen in zip(self.networks, self.shown(images), strict=True)]

    def _together(self, logits: Sequence[Tensor] | Tensor) -> Tensor:
        if self.known is not None:
            return self.known.spread(logits)
        return logits if isinstance(logits, Tensor) else torch.stack(list(logits))


def _asking(network: nn.Module, conversion: Conversion | None) -> Compute:
    """The dataset's images → a network's logits."""
    return lambda images: network(as_autocast(conversion(images) if conversion else images))


def as_autocast(images: Tensor) -> Tensor:
    """``images`` in the type that autocast would convert them to for each network anew."""
    kind = images.device.type
    return images.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else images


def ensemble_logits(logits: Tensor) -> Tensor:
    """The teachers' joint opinion: the logarithm of their mean probability, ``[K, B, C]`` → ``[B, C]``."""
    return logits.float().log_softmax(-1).logsumexp(0)
