"""A dataset's name → its loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from dataset.augment import Augmentation, described, distortion, fits, require_memory, whole
from dataset.base import (
    Dataset,
    DatasetInfo,
    FileDataset,
    FileParts,
    Files,
    MemoryDataset,
    Pictures,
    Split,
    dataset_dict,
)
from dataset.checking import damaged_among, listed
from dataset.decoded import Decoder, PictureTrainLoader
from dataset.memory import MemoryEvalLoader, MemoryTrainLoader, ViewsLoader
from dataset.mix import MixedLoader
from dataset.order import ALONE, Shard, apart, hold_out, mislabelled, of_specialist
from dataset.pictures import grey_pixels, scaled_pixels
from dataset.stream import StreamLoader
from dataset.views import view_space
from helper.batch import Batch, ViewSpace
from helper.errors import UsageError
from helper.images import PLAIN, ImageOptions

Part = TypeVar("Part", Split, Files, Pictures)


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
    """What a run reads.

    ``validation``: what the best epoch is chosen on, a part of its own or held out of the training set; None where that
    is ``test``. ``test_name``, ``validation_name``: what people call them. ``sizes``: one line that says how many
    classes and images there are; ``notes``: lines about images that are left out.
    """

    info: DatasetInfo
    train: TrainLoader
    validation: Loader | None
    test: Loader
    test_name: str = "test"
    validation_name: str = "validation"
    sizes: str = ""
    notes: tuple[str, ...] = ()


def find(name: str, data_dir: Path | str, skip_damaged: bool = False, images: ImageOptions = PLAIN) -> Dataset:
    """The dataset called ``name`` in any case, of which ``skip_damaged`` leaves out the images that cannot be read.

    Raises:
        UsageError: the name is not registered.
    """
    dataset = dataset_dict[name.lower()](Path(data_dir))
    dataset.wanted = images
    if skip_damaged and isinstance(dataset, FileDataset):
        dataset.damaged = damaged_among(dataset.parts().paths, dataset.data_dir)
    return dataset


def info_of(
    name: str, data_dir: Path | str = "data", skip_damaged: bool = False, images: ImageOptions = PLAIN
) -> DatasetInfo:
    """The description of a dataset, without reading its images.

    Raises:
        UsageError: unknown name, the classes are read from a folder tree and it is not there, or the images cannot be
            as they are wanted.
    """
    return described(find(name, data_dir, skip_damaged, images))


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
    skip_damaged: bool = False,
    test_only: bool = False,
    images: ImageOptions = PLAIN,
    views: int = 1,
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
        skip_damaged: leave out image files that cannot be read, instead of refusing.
        test_only: the other parts are not asked for, so that their image files need not be looked at.
        images: how they are wanted.
        views: how many augmented views of each training image a batch has.

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
    dataset = find(name, data_dir, skip_damaged, images)
    if isinstance(dataset, FileDataset):
        parts, notes = readable(dataset, skip_damaged, test_only)
        loaders = file_loaders(
            dataset,
            parts,
            batch_size,
            device,
            seed,
            validation,
            num_workers,
            eval_batch_size,
            shard,
            notes,
            test_only,
            views,
        )
    elif isinstance(dataset, MemoryDataset):
        loaders = memory_loaders(dataset, batch_size, device, seed, validation, eval_batch_size, shard, views)
    else:
        raise TypeError(f"{type(dataset).__name__} must derive from MemoryDataset or FileDataset")
    if images.mixup or images.cutmix:
        return replace(loaders, train=MixedLoader(loaders.train, images.mixup, images.cutmix, seed, shard))
    return loaders


def check_at_least(option: str, value: int, least: int) -> None:
    """UsageError when an option is too small."""
    if value < least:
        raise UsageError(f"{option}: must be at least {least}, got {value}")


def readable(dataset: FileDataset, skip_damaged: bool, test_only: bool) -> tuple[FileParts, tuple[str, ...]]:
    """A dataset's images, and lines about those that are left out.

    Raises:
        UsageError: images cannot be read and are not to be skipped, or none are left of a class.
    """
    parts, tree = dataset.parts(), dataset.data_dir
    notes = []
    if parts.others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(parts.others.items()))
        notes.append(f"{tree}: left out: {kinds}")
    if not skip_damaged:
        damaged = damaged_among(parts.test.paths if test_only else parts.paths, tree)
        if damaged:
            raise UsageError(
                f"--data_dir: {tree}: {listed(damaged, tree)}; mend or remove them, or --skip_damaged goes on without"
            )
    elif dataset.damaged:
        notes.append(f"{tree}: --skip_damaged leaves out what is damaged: {listed(dataset.damaged, tree)}")
        parts = parts.without(dataset.damaged)
        left = parts.train.labels.bincount(minlength=dataset.info.num_classes)
        if not left.all() or not all(len(part.paths) for part in parts.all):
            raise UsageError(
                f"--skip_damaged: {tree}: nothing is left of a class or part; {listed(dataset.damaged, tree)}"
            )
    return parts, tuple(notes)


def memory_loaders(
    dataset: MemoryDataset,
    batch_size: int,
    device: torch.device,
    seed: int,
    validation: float,
    eval_batch_size: int,
    shard: Shard,
    views: int = 1,
) -> Loaders:
    """Loaders that hold the images on ``device``."""
    info = described(dataset)
    train, test = of_size(dataset.load(), info.image_size, dataset.wanted)
    if info.channels == 1:
        train, test = (replace(part, images=grey_pixels(part.images)) for part in (train, test))
    train = replace(train, whole=None)  # its views are numbered from 0, wherever it was cut from
    space = view_space(train, info) if distortion(info) is None else None
    train, held_out = divide(train, validation, seed, batch_size, info, dataset.wanted)
    loader = MemoryTrainLoader(train, info, batch_size, device, seed, space, shard, dataset.wanted.balanced)
    return Loaders(
        info=info,
        train=ViewsLoader(loader, views) if views > 1 else loader,
        validation=MemoryEvalLoader(part_of(held_out, shard), info, eval_batch_size, device) if held_out else None,
        test=MemoryEvalLoader(part_of(test, shard), info, eval_batch_size, device),
        sizes=sizes(info, train, held_out, "validation", test, "test"),
    )


def of_size(parts: Sequence[Split], size: int, wanted: ImageOptions) -> Sequence[Split]:
    """The images brought to ``size``×``size``.

    Raises:
        UsageError: all of them together take more memory than ``wanted`` allows.
    """
    if all(part.images.shape[1] == size for part in parts):
        return parts
    require_memory(sum(len(part.labels) for part in parts), size, wanted)
    return [replace(part, images=scaled_pixels(part.images, size)) for part in parts]


def file_loaders(
    dataset: FileDataset,
    parts: FileParts,
    batch_size: int,
    device: torch.device,
    seed: int,
    validation: float,
    num_workers: int,
    eval_batch_size: int,
    shard: Shard,
    notes: tuple[str, ...],
    test_only: bool,
    views: int,
) -> Loaders:
    """Loaders of image files: held in memory, or read by worker processes."""
    info, transform, balanced = described(dataset), whole(dataset), dataset.wanted.balanced
    if parts.validation is not None and validation:
        shares = dataset.wanted.train_split, dataset.wanted.test_split
        has = f"{dataset.data_dir} has a val" if None in shares else "--train_split and --test_split leave images"
        raise UsageError(f"--validation: {has} to choose the best epoch on, beside test; leave the option out")
    numbers = parts.train.numbers if validation else None

    def divided(part: Part) -> tuple[Part, Part | None]:
        return divide(part, validation, seed, batch_size, info, dataset.wanted, numbers)

    kept, held_out = divided(parts.train)
    chosen_on, chosen_name = (held_out, "validation") if parts.validation is None else (parts.validation, "val")
    train: TrainLoader

    def streamed(files: Files, _: str) -> Loader:
        files = part_of(files, shard)
        return StreamLoader(files, info, transform, eval_batch_size, device, seed, num_workers, train=False)

    in_order: Callable[[Files, str], Loader] = streamed
    if fits(info, parts, dataset.wanted) and not test_only:
        decoder = Decoder(dataset, info, num_workers)
        beside = held_out if held_out and fits(info, parts, dataset.wanted, len(held_out.paths)) else None
        pictures, held_out_pictures, space = decoder.to_train_on(parts.train, divided, beside)
        kind = PictureTrainLoader if isinstance(pictures, Pictures) else MemoryTrainLoader
        loader = kind(pictures, info, batch_size, device, seed, space, shard, balanced)
        train = ViewsLoader(loader, views) if views > 1 else loader

        def kept_in_memory(files: Files, name: str) -> Loader:
            split = held_out_pictures if files is held_out else decoder.evaluated(files, name)
            if split is None:
                return streamed(files, name)
            return MemoryEvalLoader(part_of(split, shard), info, eval_batch_size, device)

        in_order = kept_in_memory
    else:
        decoder, augmentation = None, Augmentation(info, transform) if info.crop else dataset.train_transform()
        train = StreamLoader(
            kept,
            info,
            augmentation,
            batch_size,
            device,
            seed,
            num_workers,
            train=True,
            shard=shard,
            balanced=balanced,
            views=views,
        )

    return Loaders(
        info=info,
        train=train,
        validation=in_order(chosen_on, chosen_name) if chosen_on else None,
        test=in_order(parts.test, "test"),
        test_name=parts.test_name,
        validation_name=chosen_name,
        sizes=sizes(info, kept, chosen_on, chosen_name, parts.test, parts.test_name),
        notes=(*notes, decoder.note) if decoder else notes,
    )


def sizes(info: DatasetInfo, train: Part, chosen_on: Part | None, chosen_name: str, test: Part, test_name: str) -> str:
    """``cifar100: 100 classes, 50000 images to train on, 10000 to test on``; parts of other names with their names."""
    counts = [f"{info.num_classes} classes", f"{len(train.labels)} images to train on"]
    if chosen_on is not None:
        counts.append(f"{len(chosen_on.labels)} to choose the best epoch on ({chosen_name})")
    counts.append(f"{len(test.labels)} to test on" + (f" ({test_name})" if test_name != "test" else ""))
    return f"{info.name}: {', '.join(counts)}"


def part_of(part: Part, shard: Shard) -> Part:
    """The images that a process evaluates: consecutive, and nearly as many in each process."""
    rank, size = shard
    count = len(part.labels)
    return part.subset(torch.arange(count * rank // size, count * (rank + 1) // size)) if size > 1 else part


def divide(
    train: Part,
    validation: float,
    seed: int,
    batch_size: int,
    info: DatasetInfo,
    wanted: ImageOptions,
    numbers: Tensor | None = None,
) -> tuple[Part, Part | None]:
    """The part to train on, of the images and labels that are ``wanted``, and the held-out part as it is.

    The latter is None for ``validation`` 0. ``numbers``, int64 [N], tell which images are the same; None if none are.
    UsageError when one of the parts is too small.
    """
    total = len(train.labels)
    held_out = None
    if validation > 0:
        images = torch.arange(total) if numbers is None else numbers
        kept_indices, held_indices = apart(train.labels, images, lambda labels: hold_out(labels, validation, seed))
        if not len(kept_indices) or not len(held_indices):
            part = "held-out" if len(kept_indices) else "training"
            raise UsageError(f"--validation: {validation} of {total} training images leaves the {part} part empty")
        train, held_out = train.subset(kept_indices), train.subset(held_indices)
    if wanted.specialist:
        places = of_specialist(train.labels, wanted.specialist, wanted.specialist_others, info.num_classes, seed)
        train = train.subset(places)
    if wanted.wrong_labels:
        train = replace(train, labels=mislabelled(train.labels, wanted.wrong_labels, info.num_classes, seed))
    if batch_size > len(train.labels):
        raise UsageError(f"--batch_size: {batch_size} is larger than the training set of {len(train.labels)} images")
    return train, held_out
