"""How pictures become training images: resized, cropped, mirrored, distorted.

A crop is drawn for a whole epoch at once (:func:`dataset.order.epoch_crops`); what torchvision's transforms draw, they
draw from torch's global generator, which the caller has seeded for the image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from dataset.base import Dataset, DatasetInfo, FileDataset, FileParts, Transform
from dataset.pictures import size_of
from helper.errors import UsageError
from helper.images import PLAIN, ImageOptions

SMALL = 96
"""Images up to this side are cropped in a border, as CIFAR's are; larger ones to any part of them, as ImageNet's."""

POLICIES: Mapping[str, Callable[[], torch.nn.Module]] = {
    "randaugment": v2.RandAugment,  # Cubuk et al. 2020, torchvision's defaults: 2 operations of magnitude 9 of 30
    "trivialaugment": v2.TrivialAugmentWide,  # Müller and Hutter 2021
}

LARGER = 1.5
"""Of a picture that is cropped to any part of it, the shorter side is kept at so many times ``info.image_size``."""

ASPECT = 4 / 3
"""Longer over shorter side of most pictures: what their size is estimated with, before they are measured."""

OF_IDENTITY = ("image_size", "channels", "train_split", "test_split")
"""Options that make other images of the same files."""


def described(dataset: Dataset) -> DatasetInfo:
    """What a dataset is once it is as the user wants it.

    Raises:
        UsageError: it cannot be.
    """
    info, wanted, from_files = dataset.info, dataset.wanted, isinstance(dataset, FileDataset)
    for option in ("train_split", "test_split"):
        if getattr(wanted, option) is not None and not getattr(dataset, "splits", False):
            raise UsageError(f"--{option}: --dataset {info.name} comes in parts already")
    if wanted.in_memory == "never" and not from_files:
        raise UsageError(f"--in_memory: --dataset {info.name} is no set of image files, and always in memory")
    asked = bool(wanted.image_size or wanted.augment)
    if asked or (from_files and wanted.in_memory == "always"):
        info = augmented(info, wanted, from_files)
    changed = [f"{name}={getattr(wanted, name)}" for name in OF_IDENTITY if differs(wanted, name)]
    if isinstance(dataset, FileDataset) and (info.crop == "resized_crop" or (info.crop and not asked)):
        changed += ["in_memory"] * fits(info, dataset.parts(), wanted)  # of a kept size, or drawn otherwise than before
    identity = sha256(" ".join([info.identity, *changed]).encode()).hexdigest()[:6] if changed else info.identity
    return replace(
        info,
        mean=wanted.mean or info.mean,
        std=wanted.std or info.std,
        channels=wanted.channels,
        identity=identity,
    )


def augmented(info: DatasetInfo, wanted: ImageOptions, from_files: bool) -> DatasetInfo:
    """The description with another size or augmentation than the dataset's own."""
    size, chosen = wanted.image_size or info.image_size, wanted.augment
    in_border = size <= SMALL if wanted.image_size else bool(info.padding) or not from_files
    policy = chosen if chosen and chosen in POLICIES else ""
    crop = chosen if chosen and not policy else "crop_flip" if in_border else "resized_crop"
    border = info.padding if info.padding and not wanted.image_size else size // 8
    padding, flip = border if crop == "crop_flip" else 0, info.flip and crop != "none"
    return replace(info, image_size=size, crop=crop, policy=policy, padding=padding, flip=flip)


def differs(wanted: ImageOptions, name: str) -> bool:
    """Whether the user has said something of this option."""
    return getattr(wanted, name) != getattr(PLAIN, name)


def whole(dataset: FileDataset) -> Transform:
    """The picture as it is evaluated: the middle of it, of ``info.image_size``."""
    size = dataset.wanted.image_size
    if size is None:
        return dataset.test_transform()
    return Middle(size)


class Middle:
    """PIL image → the middle of it, ``size``×``size``, once its shorter side has been brought to that or a bit more."""

    def __init__(self, size: int) -> None:
        self.size, self.shorter = size, size if size <= SMALL else round(size * 256 / 224)
        self.cut = v2.Compose([v2.Resize(self.shorter), v2.CenterCrop(size)])

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size == (self.shorter, self.shorter) == (self.size, self.size):
            return image  # to ask the transforms takes as long as to decode a small one
        cut: Image.Image = self.cut(image)
        return cut


def most_kept(info: DatasetInfo) -> int:
    """Of a picture that is cropped to any part of it, the longest shorter side that is kept as it is."""
    return round(LARGER * info.image_size)


@lru_cache(maxsize=1)  # asked several times in a run
def bytes_kept(paths: tuple[str, ...], most: int) -> int:
    """What pictures take once their shorter sides are no longer than ``most``, by the headers of their files."""
    total = 0
    for path in paths:
        shorter, longer = sorted(size_of(path))
        total += shorter * longer * 3 if shorter <= most else most * int(most * longer / shorter) * 3
    return total


def fits(info: DatasetInfo, parts: FileParts, wanted: ImageOptions, held_out: int = 0) -> bool:
    """Whether the images are to be held in memory.

    Args:
        info, parts, wanted: of the dataset.
        held_out: so many of the training images are evaluated; where any part of pictures is cropped, they are held
            for that beside the pictures.

    Raises:
        UsageError: they have to be, and are too large.
    """
    if wanted.in_memory == "never" or not info.crop:  # as earlier versions did it: their runs stay what they are
        return False
    square, any_part, count = info.image_size**2 * 3, info.crop == "resized_crop", len(parts.train.paths)
    each = square * LARGER**2 * ASPECT if any_part else square
    others = sum(len(part.paths) for part in parts.all) - count + held_out * any_part
    size = (count * each + others * square) / 1e9
    if any_part and size <= wanted.memory_gb:  # as far as can be told without a look at them
        size = (bytes_kept(parts.train.paths, most_kept(info)) + others * square) / 1e9
    if size > wanted.memory_gb and wanted.in_memory == "always":
        raise UsageError(
            f"--in_memory: always needs about {size:.3g} GB, and --memory_gb is {wanted.memory_gb:g}; raise it"
        )
    return size <= wanted.memory_gb


def require_memory(count: int, size: int, wanted: ImageOptions) -> None:
    """Refuse so many images of ``size``×``size`` that they take more than the user has allowed.

    Raises:
        UsageError: they do.
    """
    needed = count * size**2 * 3 / 1e9
    if needed > wanted.memory_gb:
        raise UsageError(
            f"--image_size: {size} needs about {needed:.3g} GB, and --memory_gb is {wanted.memory_gb:g}; raise it"
        )


@contextlib.contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """torch's global generator starts from ``seed`` in here, and goes on afterwards as if nothing had been."""
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)


def distortion(info: DatasetInfo) -> v2.Compose | None:
    """What is drawn for each image by itself once it is in memory, uint8 [3, H, W] → the same; None for nothing."""
    steps = [v2.RandomResizedCrop(info.image_size)] if info.crop == "resized_crop" else []
    steps += [POLICIES[info.policy]()] if info.policy else []
    return v2.Compose(steps) if steps else None


class Augmentation:
    """PIL image, and top, left and mirrored of its crop, int64 [3] → uint8 [H, W, 3].

    Args:
        info: of the dataset.
        evaluated: PIL image → PIL image of ``info.image_size``, what is not cropped otherwise.
    """

    def __init__(self, info: DatasetInfo, evaluated: Transform) -> None:
        self.padding, self.size = info.padding, info.image_size
        self.first = v2.RandomResizedCrop(self.size) if info.crop == "resized_crop" else evaluated
        self.policy = POLICIES[info.policy]() if info.policy else None

    def __call__(self, image: Image.Image, crop: Tensor) -> Tensor:
        top, left, mirrored = crop.tolist()
        pixels = TF.pil_to_tensor(self.first(image))
        pixels = TF.crop(pixels, top - self.padding, left - self.padding, self.size, self.size)  # black outside
        pixels = TF.horizontal_flip(pixels) if mirrored else pixels
        pixels = self.policy(pixels) if self.policy else pixels
        return pixels.permute(1, 2, 0).contiguous()
