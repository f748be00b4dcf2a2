"""What a loader hands to the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B images and their labels, on the training device.

    Attributes:
        images: normalised float32 ``[B, 3, H, W]`` in channels_last.
        target: labels, int64 ``[B]``.
        views: which augmented view of which image each one is, int64 ``[B]`` on the host, numbered as
            :class:`ViewSpace` says; None where the views cannot be counted.
    """

    images: Tensor
    target: Tensor
    views: Tensor | None = None

    def split(self, parts: int) -> list[Batch]:
        """So many micro-batches of equal size."""
        if parts == 1:
            return [self]
        views = [None] * parts if self.views is None else self.views.chunk(parts)
        return [Batch(*each) for each in zip(self.images.chunk(parts), self.target.chunk(parts), views, strict=True)]


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
