"""Images mixed in pairs: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), on the training device.

What is drawn follows from the seed, the epoch and the step; partners come from the same process's part of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dataset.order import ALONE, Purpose, Shard, derive_seed
from helper.batch import Batch, ViewSpace

Rectangle: TypeAlias = "tuple[slice, slice]"


class MixedLoader:
    """The batches of another loader, mixed; all views of an image with those of the same partner.

    Args:
        loader: of training images.
        mixup, cutmix: both parameters of the beta distribution of an image's share; 0 for none. With both, one of them
            is drawn for each batch.
        seed: of what is drawn.
        shard: this process.
    """

    views: ViewSpace | None = None

    def __init__(self, loader: Any, mixup: float, cutmix: float, seed: int, shard: Shard = ALONE) -> None:
        self.loader, self.mixup, self.cutmix, self.seed, self.rank = loader, mixup, cutmix, seed, shard[0]
        self.num_images, self.labels = loader.num_images, loader.labels
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration runs through, and how many of its first batches are left out."""
        self.epoch, self.start = epoch, start
        self.loader.set_epoch(epoch, start)

    def __iter__(self) -> Iterator[Batch]:
        return (self.mixed(batch, step) for step, batch in enumerate(self.loader, self.start))

    def mixed(self, batch: Batch, step: int) -> Batch:
        """Each image with its partner; the label of the larger share comes first."""
        key = (self.seed, Purpose.MIX, self.epoch, step)
        # NumPy promises that this legacy generator never changes
        draws, partners = (np.random.RandomState(derive_seed(*each) % 2**32) for each in (key, (*key, self.rank)))
        order = torch.from_numpy(partners.permutation(len(batch.target)))  # [B]
        if batch.images.device.type == "cuda":
            order = order.pin_memory()
        order = order.to(batch.images.device, non_blocking=True)
        cuts = bool(self.cutmix) and (not self.mixup or draws.random_sample() < 0.5)
        both = self.cutmix if cuts else self.mixup
        share = draws.beta(both, both)
        where, left = rectangle(batch.images.shape[2:], share, draws) if cuts else (None, share)
        images, *again = (paired(view, order, left, where) for view in (batch.images, *batch.again))
        places = None if batch.places is None else batch.places.index_select(0, order)
        first, second = (batch.target, batch.places), (batch.target.index_select(0, order), places)
        if left < 0.5:
            first, second, left = second, first, 1 - left
        return Batch(
            images,
            first[0],
            places=first[1],
            other=second[0],
            share=torch.full(batch.target.shape, left, device=images.device),
            again=tuple(again),
        )


def paired(images: Tensor, order: Tensor, share: float, where: Rectangle | None) -> Tensor:
    """Each image [B, 3, H, W] with its partner's pixels in a rectangle, or blended with them where there is none."""
    theirs = images.index_select(0, order)
    if where is None:
        return torch.lerp(theirs, images, share).contiguous(memory_format=torch.channels_last)
    mixed = images.clone()
    mixed[:, :, where[0], where[1]] = theirs[:, :, where[0], where[1]]
    return mixed.contiguous(memory_format=torch.channels_last)


def rectangle(size: Sequence[int], share: float, draws: np.random.RandomState) -> tuple[Rectangle, float]:
    """Rows and columns of area ``1 − share`` around any point, as far as they lie within; what share is left."""
    edges = []
    for length in size:
        half, middle = round(length * (1 - share) ** 0.5) // 2, draws.randint(length)
        edges.append(slice(max(middle - half, 0), min(middle + half, length)))
    (top, bottom), (left, right) = ((edge.start, edge.stop) for edge in edges)
    return (edges[0], edges[1]), 1 - (bottom - top) * (right - left) / (size[0] * size[1])
