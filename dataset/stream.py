"""Loaders for datasets that are read from image files by worker processes.

Workers decode, crop and mirror; batches travel as uint8 and are normalised on the training device. The random numbers
of an image depend on (seed, epoch, image) alone, so the number of workers does not change a batch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.data
from PIL import Image
from torch import Tensor

from dataset.augment import Augmentation, drawing_from
from dataset.base import DatasetInfo, Files, Transform
from dataset.files import one_line
from dataset.memory import Normalise
from dataset.order import (
    ALONE,
    Purpose,
    Shard,
    augmentation_seed,
    batches_of,
    derive_seed,
    epoch_crops,
    epoch_draws,
    generator,
)
from dataset.pictures import grey_picture, read_picture
from helper.batch import Batch, ViewSpace
from helper.errors import InputError
from helper.machine import cores
from helper.stopping import ReadersLost, in_readers, starting_readers

Place = tuple[int, int, int]  # epoch, image, draw: the epoch travels with the index, since workers outlive epochs
Sample = tuple[Tensor, int, int]  # pixels of one view or more, label, and place among the images
Samples = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Unreadable:
    """Handed on by a worker in place of a batch, so that the error is raised, on one line, by the main process."""

    path: str
    reason: str


class ImageFiles(torch.utils.data.Dataset[Sample | Unreadable]):
    """(epoch, image, what its random numbers follow from) → uint8 [H, W, 3], label and place.

    Of several views of an image the pixels are [V, H, W, 3]. Without ``draws`` nothing is drawn, so that nothing has to
    be seeded.
    """

    def __init__(
        self, files: Files, info: DatasetInfo, transform: Transform | Augmentation, seed: int, views: int, draws: bool
    ) -> None:
        # an array of bytes rather than a tuple: it is not copied into each worker by reference counting
        self.paths = np.array([os.fsencode(path) for path in files.paths])
        self.labels = files.labels.numpy()
        self.info, self.transform, self.draws = info, transform, draws
        self.seeds = [augmentation_seed(seed, view) for view in range(views)]
        self._crops: tuple[int, list[Tensor]] = (-1, [])  # of an epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: Place) -> Sample | Unreadable:
        epoch, index, draw = place
        path = os.fsdecode(self.paths[index])
        try:
            image = read_picture(path)
            image = grey_picture(image) if self.info.channels == 1 else image
        except Exception as error:  # Pillow raises many kinds for damaged files
            return Unreadable(path, one_line(error))
        views = [self.view(image, epoch, draw, view) for view in range(len(self.seeds))]
        return torch.stack(views) if len(views) > 1 else views[0], int(self.labels[index]), index

    def view(self, image: Image.Image, epoch: int, draw: int, view: int) -> Tensor:
        """One view of an image, uint8 [H, W, 3]."""
        seed = derive_seed(self.seeds[view], Purpose.AUGMENT, epoch, draw) if self.draws else None
        # the transforms know no other generator than the global one
        with contextlib.nullcontext() if seed is None else drawing_from(seed):
            if isinstance(self.transform, Augmentation):
                return self.transform(image, self.crops(epoch)[view][draw])
            return torch.from_numpy(np.array(self.transform(image)))

    def crops(self, epoch: int) -> list[Tensor]:
        """Top, left and mirrored of every image in an epoch, int64 [N, 3] for each view."""
        if self._crops[0] != epoch:
            padding, flip = self.info.padding, self.info.flip
            self._crops = epoch, [epoch_crops(len(self), padding, flip, seed, epoch) for seed in self.seeds]
        return self._crops[1]


class EpochSampler(torch.utils.data.Sampler[list[Place]]):
    """Batches of places: this process's part of each, shuffled and complete; or all images as they are."""

    def __init__(
        self, labels: Tensor, seed: int, batch_size: int, shuffle: bool, shard: Shard, balanced: bool = False
    ) -> None:
        self.labels, self.num_images, self.seed, self.batch_size = labels, len(labels), seed, batch_size
        self.shuffle, self.shard, self.balanced = shuffle, shard, balanced
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return len(self._parts(0))

    def __iter__(self) -> Iterator[list[Place]]:
        order = draws = torch.arange(self.num_images)
        if self.shuffle:
            order, draws = epoch_draws(self.labels, self.seed, self.epoch, self.balanced)
        pairs = torch.stack([order, draws], 1)  # [N, 2]
        return ([(self.epoch, *pair) for pair in pairs[part].tolist()] for part in self._parts(self.start))

    def _parts(self, start: int) -> list[slice]:
        if self.shuffle:
            return batches_of(self.num_images, self.batch_size, self.shard, start)
        return [slice(first, first + self.batch_size) for first in range(0, self.num_images, self.batch_size)]


class StreamLoader:
    """Batches of image files.

    Args:
        files: the images.
        info: their description.
        transform: PIL image → PIL image of ``info.image_size``, or what makes training images of it.
        batch_size: images per batch.
        device: where the batches are wanted.
        seed: of order and augmentation.
        num_workers: processes; no more than there are processors, 0 to read in this process.
        train: shuffle, and drop the last incomplete batch.
        shard: this process's part of each training batch.
        collate: what makes a batch of samples, for :meth:`read`.
        balanced: see :func:`dataset.order.balanced_order`.
        views: how many augmented views of each image a batch has.

    Raises:
        InputError: while iterating, when an image cannot be read.
        ReadersLost: likewise, when a worker was killed.
    """

    views: ViewSpace | None = None  # crops of any size and place

    def __init__(
        self,
        files: Files,
        info: DatasetInfo,
        transform: Transform | Augmentation,
        batch_size: int,
        device: torch.device,
        seed: int,
        num_workers: int,
        train: bool,
        shard: Shard = ALONE,
        collate: Callable[[list[Sample | Unreadable]], Any] | None = None,
        balanced: bool = False,
        views: int = 1,
    ) -> None:
        self.num_images, self.device, self.labels = len(files.paths), device, files.labels
        self.sampler = EpochSampler(files.labels, seed, batch_size, train, shard, balanced)
        self.normalise = Normalise(info, device)
        workers = min(num_workers, cores())
        self.batches = torch.utils.data.DataLoader(
            ImageFiles(files, info, transform, seed, views, draws=train),
            batch_sampler=self.sampler,
            collate_fn=collate or stacked,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=generator(seed, Purpose.WORKERS),  # else the loader draws from the global one
            worker_init_fn=in_readers(),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration runs through, and how many of its first batches are left out."""
        self.sampler.epoch, self.sampler.start = epoch, start

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.read():
            images, target, places = (part.to(self.device, non_blocking=True) for part in batch)
            first, *again = map(self.normalise, images.unbind(1) if images.ndim == 5 else (images,))
            yield Batch(first, target, places=places, again=tuple(again))

    def read(self) -> Iterator[Any]:
        """Batches as ``collate`` has made them, on the host."""
        try:
            with starting_readers():
                batches = iter(self.batches)
            for batch in batches:
                if isinstance(batch, Unreadable):
                    raise InputError(f"--data_dir: {batch.path} cannot be read ({batch.reason})")
                yield batch
        except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
            if not tells_of_a_loss(error):
                raise
            hint = "the memory may be full: try a smaller --num_workers"
            raise ReadersLost(f"a process that reads images was killed ({hint})") from None


def tells_of_a_loss(error: Exception) -> bool:
    """Whether a worker has ended, by what torch makes of it: sooner or later it finds out, or it misses its sockets."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    return "DataLoader worker process" not in str(error)  # what is raised in one that lives


def stacked(samples: list[Sample | Unreadable]) -> Samples | Unreadable:
    """uint8 [B, H, W, 3], labels and places int64 [B], or the first image that cannot be read."""
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
    images, labels, places = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64), torch.tensor(places, dtype=torch.int64)
