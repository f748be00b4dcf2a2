"""What a loader hands to the loop, and when a step happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class When(NamedTuple):
    """Where in its run a step is; epochs and steps of an epoch count from 1, micro-batches of a step from 0."""

    epoch: int
    epochs: int
    step: int = 1
    steps: int = 1
    part: int = 0


class Batch(NamedTuple):
    """B images and their labels, on the training device.

    Attributes:
        images: normalised float32 ``[B, 3, H, W]`` in channels_last.
        target: labels, int64 ``[B]``.
        views: which augmented view of which image each one is, int64 ``[B]`` on the host, numbered as
            :class:`ViewSpace` says; None where the views cannot be counted.
        places: where each image stands among those that are trained on, int64 ``[B]``; None in evaluation.
        other, share: of images that are mixed in pairs, the label of the smaller part, int64 ``[B]``, and how large the
            part of ``target`` is, float32 ``[B]``, from 0.5 to 1; ``places`` are those of the larger part.
        again: the same images augmented otherwise, each like ``images``, where more than one view was asked for.
    """

    images: Tensor
    target: Tensor
    views: Tensor | None = None
    places: Tensor | None = None
    other: Tensor | None = None
    share: Tensor | None = None
    again: tuple[Tensor, ...] = ()

    def split(self, parts: int) -> list[Batch]:
        """So many micro-batches of equal size."""
        if parts == 1:
            return [self]
        size = len(self.target) // parts
        return [self.part(first, first + size) for first in range(0, parts * size, size)]

    def part(self, start: int, stop: int) -> Batch:
        """The samples from ``start`` to before ``stop``."""
        kept = {name: each[start:stop] for name, each in self._asdict().items() if isinstance(each, Tensor)}
        return self._replace(**kept, again=tuple(each[start:stop] for each in self.again))


@dataclass(frozen=True)
class ViewSpace:
    """All views that an augmentation of finitely many outcomes can make of a training set.

    Attributes:
        identity: a checksum of the images and of how they are cropped, mirrored and normalised: equal identities mean
            that equal numbers are equal pixels.
        size: how many views there are; they are numbered from 0.
    """

    identity: str
    size: int
