"""A dataset's name → its loaders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from dataset.base import Dataset, DatasetInfo, FileDataset, Files, MemoryDataset, Split, dataset_dict
from dataset.memory import MemoryEvalLoader, MemoryTrainLoader
from dataset.order import ALONE, Shard, hold_out
from dataset.stream import StreamLoader
from dataset.views import view_space
from helper.batch import Batch, ViewSpace
from helper.errors import UsageError

Part = TypeVar("Part", Split, Files)


class Loader(Protocol):
    """Yields batches on the device."""

    num_images: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class TrainLoader(Loader, Protocol):
    """A loader whose order and augmentation follow from the seed and the epoch.

    ``views``: all views that the augmentation can make; None where they cannot be counted.
    """

    views: ViewSpace | None

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration runs through, and how many of its first batches are left out."""


@dataclass(frozen=True)
class Loaders:
    """``validation`` is the held-out part of the training set, None when nothing is held out."""

    info: DatasetInfo
    train: TrainLoader
    validation: Loader | None
    test: Loader


def find(name: str, data_dir: Path | str) -> Dataset:
    """The dataset called ``name`` in any case; UsageError for a name that is not registered."""
    return dataset_dict[name.lower()](Path(data_dir))


def info_of(name: str, data_dir: Path | str = "data") -> DatasetInfo:
    """The description of a dataset, without reading its images.

    Raises:
        UsageError: unknown name, or the classes are read from a folder tree and it is not there.
    """
    return find(name, data_dir).info


def get_loaders(
    name: str,
    data_dir: Path | str = "data",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    seed: int = 0,
    validation: float = 0.0,
    num_workers: int = 4,
    eval_batch_size: int | None = None,
    shard: Shard = ALONE,
) -> Loaders:
    """Make the loaders of a dataset, downloading it when it is not there.

    Args:
        name: a name in ``dataset_dict``, in any case.
        data_dir: where datasets are kept.
        batch_size: of training, that of all processes together; the last incomplete batch is dropped.
        device: where the batches are wanted.
        seed: with the epoch it determines order, crops and mirroring, and alone it determines what is held out.
        validation: fraction of the training set to hold out.
        num_workers: processes that read images; datasets in memory need none.
        eval_batch_size: of validation and test; as ``batch_size`` when None.
        shard: this process's number and how many there are; each gets its part of every batch and of the test set.

    Raises:
        UsageError: unknown name, missing or damaged files, ``batch_size`` or ``validation`` out of range.
    """
    eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
    check_at_least("--batch_size", batch_size, 1)
    check_at_least("--eval_batch_size", eval_batch_size, 1)
    check_at_least("--num_workers", num_workers, 0)
    if not 0 <= validation < 1:
        raise UsageError(f"--validation: must be at least 0 and below 1, got {validation}")
    device = torch.device(device)
    dataset = find(name, data_dir)
    if isinstance(dataset, FileDataset):
        return file_loaders(dataset, batch_size, device, seed, validation, num_workers, eval_batch_size, shard)
    if isinstance(dataset, MemoryDataset):
        return memory_loaders(dataset, batch_size, device, seed, validation, eval_batch_size, shard)
    raise TypeError(f"{type(dataset).__name__} must derive from MemoryDataset or FileDataset")


def check_at_least(option: str, value: int, least: int) -> None:
    """UsageError when an option is too small."""
    if value < least:
        raise UsageError(f"{option}: must be at least {least}, got {value}")


def memory_loaders(
    dataset: MemoryDataset,
    batch_size: int,
    device: torch.device,
    seed: int,
    validation: float,
    eval_batch_size: int,
    shard: Shard,
) -> Loaders:
    """Loaders that hold the images on ``device``."""
    info = dataset.info
    train, test = dataset.load()
    train = replace(train, whole=None)  # its views are numbered from 0, wherever it was cut from
    views = view_space(train, info)
    train, held_out = divide(train, validation, seed, batch_size)
    return Loaders(
        info=info,
        train=MemoryTrainLoader(train, info, batch_size, device, seed, views, shard),
        validation=MemoryEvalLoader(part_of(held_out, shard), info, eval_batch_size, device) if held_out else None,
        test=MemoryEvalLoader(part_of(test, shard), info, eval_batch_size, device),
    )


def file_loaders(
    dataset: FileDataset,
    batch_size: int,
    device: torch.device,
    seed: int,
    validation: float,
    num_workers: int,
    eval_batch_size: int,
    shard: Shard,
) -> Loaders:
    """Loaders that read image files in worker processes."""
    info, transform = dataset.info, dataset.test_transform()
    train, test = dataset.load()
    train, held_out = divide(train, validation, seed, batch_size)

    def in_order(files: Files) -> StreamLoader:
        files = part_of(files, shard)
        return StreamLoader(files, info, transform, eval_batch_size, device, seed, num_workers, train=False)

    return Loaders(
        info=info,
        train=StreamLoader(
            train, info, dataset.train_transform(), batch_size, device, seed, num_workers, train=True, shard=shard
        ),
        validation=in_order(held_out) if held_out else None,
        test=in_order(test),
    )


def part_of(part: Part, shard: Shard) -> Part:
    """The images that a process evaluates: consecutive, and nearly as many in each process."""
    rank, size = shard
    count = len(part.labels)
    return part.subset(torch.arange(count * rank // size, count * (rank + 1) // size)) if size > 1 else part


def divide(train: Part, validation: float, seed: int, batch_size: int) -> tuple[Part, Part | None]:
    """The part to train on and the held-out part, None for ``validation`` 0; UsageError when one is too small."""
    total = len(train.labels)
    held_out = None
    if validation > 0:
        kept_indices, held_indices = hold_out(train.labels, validation, seed)
        if not len(kept_indices) or not len(held_indices):
            part = "held-out" if len(kept_indices) else "training"
            raise UsageError(f"--validation: {validation} of {total} training images leaves the {part} part empty")
        train, held_out = train.subset(kept_indices), train.subset(held_indices)
    if batch_size > len(train.labels):
        raise UsageError(f"--batch_size: {batch_size} is larger than the training set of {len(train.labels)} images")
    return train, held_out
