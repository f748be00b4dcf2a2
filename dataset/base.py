"""What a dataset is: its description, and one of two ways to hand out its images."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor

from helper.images import PLAIN, ImageOptions
from helper.registry import Registry

Transform = Callable[[Image.Image], Image.Image]

dataset_dict: Registry[type[Dataset]] = Registry("--dataset")


@dataclass(frozen=True)
class DatasetInfo:
    """What the scripts need to know before any pixel is read.

    ``padding``: black pixels added on each side before the random crop (0: the transform crops by itself).
    ``flip``: whether training images are mirrored at random. ``classes``: their names in label order, where known.
    ``identity``: tells apart different images under one name; empty for a dataset that is the same everywhere.
    ``crop``: ``crop_flip``, ``resized_crop`` or ``none``; empty for the dataset's own transforms. ``policy``: one of
    :data:`dataset.augment.POLICIES`, which comes after the crop, or empty.
    ``channels``: 1 where all three are the same grey.
    """

    name: str
    num_classes: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: int
    flip: bool
    classes: tuple[str, ...] | None = None
    identity: str = ""
    crop: str = ""
    policy: str = ""
    channels: int = 3


@dataclass(frozen=True)
class Split:
    """A part of a dataset in memory: ``images`` uint8 [N, H, W, 3], ``labels`` int64 [N].

    ``whole``: where its images stand in the whole training or test set, ascending int64 [N]; None for all of it.
    """

    images: Tensor
    labels: Tensor
    whole: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images, but {len(self.labels)} labels")

    @property
    def positions(self) -> Tensor:
        """Where the images stand in the whole set, int64 [N]."""
        return torch.arange(len(self.labels)) if self.whole is None else self.whole

    def subset(self, indices: Tensor) -> Split:
        """The images at these places, ascending."""
        return Split(self.images[indices], self.labels[indices], self.positions[indices])


@dataclass(frozen=True)
class Pictures:
    """Pictures of any shape in memory: ``pixels`` uint8 [bytes], ``starts`` int64 [N], ``shapes`` int64 [N, 2]."""

    pixels: Tensor
    starts: Tensor
    shapes: Tensor
    labels: Tensor

    def subset(self, indices: Tensor) -> Pictures:
        return Pictures(self.pixels, self.starts[indices], self.shapes[indices], self.labels[indices])

    @property
    def positions(self) -> Tensor:
        """Of no use where views cannot be numbered."""
        return torch.arange(len(self.labels))

    def at(self, index: int) -> Tensor:
        """One picture, uint8 [H, W, 3]."""
        (height, width), start = self.shapes[index].tolist(), int(self.starts[index])
        return self.pixels[start : start + height * width * 3].view(height, width, 3)

    def as_split(self) -> Split:
        """The same, where all have one shape."""
        height, width = self.shapes[0].tolist()
        return Split(self.pixels.view(-1, height, width, 3), self.labels)


@dataclass(frozen=True)
class Files:
    """A part of a dataset on disk: ``paths`` of N image files and ``labels`` int64 [N]."""

    paths: tuple[str, ...]
    labels: Tensor

    @property
    def numbers(self) -> Tensor:
        """Of the distinct images, counted in the order in which they first come, int64 [N]: a list may repeat some."""
        numbers: dict[str, int] = {}
        return to_labels([numbers.setdefault(os.path.abspath(path), len(numbers)) for path in self.paths])

    def subset(self, indices: Tensor) -> Files:
        return Files(tuple(self.paths[index] for index in indices.tolist()), self.labels[indices])

    def without(self, paths: Collection[str]) -> Files:
        """All but these."""
        return self.subset(torch.tensor([i for i, path in enumerate(self.paths) if path not in paths]).long())


@dataclass(frozen=True)
class FileParts:
    """The parts of a dataset on disk.

    Attributes:
        train: the images to train on.
        test: those that accuracies are reported for.
        validation: those that the best epoch is chosen on; None where that is up to --validation.
        test_name: what the reported part calls itself.
        others: how many files of which kinds lie there and are no images.
    """

    train: Files
    test: Files
    validation: Files | None = None
    test_name: str = "test"
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def all(self) -> tuple[Files, ...]:
        """Those that there are."""
        return tuple(part for part in (self.train, self.test, self.validation) if part is not None)

    @property
    def paths(self) -> list[str]:
        """Where all images lie."""
        return [path for part in self.all for path in part.paths]

    def without(self, paths: Collection[str]) -> FileParts:
        """All but these images."""
        validation = self.validation.without(paths) if self.validation else None
        return replace(self, train=self.train.without(paths), test=self.test.without(paths), validation=validation)


class Dataset(ABC):
    """A dataset below ``data_dir``. Making one reads nothing; ``info`` reads no pixels.

    ``wanted``: how the user wants the images, which others than the dataset itself see to.
    """

    wanted: ImageOptions = PLAIN

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    @property
    @abstractmethod
    def info(self) -> DatasetInfo:
        """The description. Raises UsageError where it depends on files that are not there."""


class MemoryDataset(Dataset):
    """A dataset that fits in memory: its loaders crop, flip and normalise whole batches on the training device."""

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """The training and the test part, square images. Raises UsageError when the files are missing or damaged."""


class FileDataset(Dataset):
    """A dataset that is read from image files by worker processes.

    The two transforms may draw from torch's global generator, which the loader seeds for each image and restores.

    ``damaged``: images that are left out, and what is wrong with them; ``info`` describes the others.
    """

    damaged: Mapping[str, str] = MappingProxyType({})
    splits: bool = False
    """Whether it sees to --train_split and --test_split."""

    @abstractmethod
    def load(self) -> FileParts | tuple[Files, Files]:
        """All images, ``damaged`` ones too; to train and to test on. Raises UsageError when files are missing."""

    def parts(self) -> FileParts:
        """What :meth:`load` returns, in full."""
        loaded = self.load()
        return FileParts(*loaded) if isinstance(loaded, tuple) else loaded

    @abstractmethod
    def train_transform(self) -> Transform:
        """PIL image → PIL image of ``info.image_size``, augmented."""

    @abstractmethod
    def test_transform(self) -> Transform:
        """PIL image → PIL image of ``info.image_size``."""


def to_labels(labels: Sequence[int]) -> Tensor:
    """Labels as int64 [N]."""
    return torch.as_tensor(labels, dtype=torch.int64)
