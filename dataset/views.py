"""Numbers for augmented images: crop-and-flip makes only (2·padding + 1)²·2 views of an image, 162 at padding 4."""

from __future__ import annotations

import hashlib
import zlib

import torch
from torch import Tensor

from dataset.base import DatasetInfo, Split
from helper.batch import ViewSpace


def views_per_image(info: DatasetInfo) -> int:
    """In how many ways an image is cropped and mirrored."""
    return (2 * info.padding + 1) ** 2 * (2 if info.flip else 1)


def view_space(split: Split, info: DatasetInfo) -> ViewSpace:
    """All views of a whole training set."""
    pixels = zlib.crc32(split.images.contiguous().numpy().data)
    how = (info.name, tuple(split.images.shape), pixels, info.mean, info.std, info.padding, info.flip)
    return ViewSpace(hashlib.sha256(repr(how).encode()).hexdigest(), len(split.labels) * views_per_image(info))


def numbers_of(positions: Tensor, crops: Tensor, info: DatasetInfo) -> Tensor:
    """The views' numbers: image by image, then by top, left, mirrored.

    Args:
        positions: of the images in the whole training set, int64 [N].
        crops: top, left, mirrored of each, as :func:`dataset.order.epoch_crops` draws them, int64 [N, 3].

    Returns:
        int64 [N].
    """
    top, left, mirrored = crops.unbind(1)
    place = top * (2 * info.padding + 1) + left
    return positions * views_per_image(info) + (place * 2 + mirrored if info.flip else place)


def crops_of(numbers: Tensor, info: DatasetInfo) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`numbers_of`: int64 [N] → positions [N] and crops [N, 3]."""
    per_image = views_per_image(info)
    positions, view = numbers // per_image, numbers % per_image
    place, mirrored = (view // 2, view % 2) if info.flip else (view, torch.zeros_like(view))
    side = 2 * info.padding + 1
    return positions, torch.stack([place // side, place % side, mirrored], dim=1)
