"""The input pipeline against torchvision's per-sample transforms in two worker processes."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dataset.base import DatasetInfo, Split
from dataset.loader import ALONE, memory_loaders
from helper.recipe import device_of
from scripts.bench.subjects import RandomImages
from scripts.bench.timing import median, synchronise

Figures = dict[str, Any]

IMAGES, QUICK_IMAGES = 50_000, 1_000
WORKERS = 2
REPEATS = 3


class PerSample(Dataset[tuple[torch.Tensor, int]]):
    """Images as PIL opens them, transformed one by one, as in the released codes."""

    def __init__(self, split: Split, info: DatasetInfo) -> None:
        self.images, self.labels = split.images.numpy(), split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(info.image_size, padding=info.padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(info.mean, info.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def measure(opt: argparse.Namespace) -> Figures:
    """Images per second of both, in alternation, and the bytes that the resident images take."""
    device = device_of(opt)
    images = RandomImages(QUICK_IMAGES if opt.quick else IMAGES)
    info, (split, _) = images.info, images.load()
    ours: Any = memory_loaders(images, opt.batch_size, device, 0, 0.0, opt.batch_size, ALONE).train
    few = split.subset(torch.arange(len(split.labels) // 5))  # the median of three such epochs is steady enough
    theirs = per_sample_loader(few, info, opt.batch_size, pin_memory=device.type == "cuda")
    speeds: dict[str, list[float]] = {"ours": [], "torchvision": []}
    for repeat in range(1 if opt.quick else REPEATS):
        ours.set_epoch(repeat)
        speeds["ours"].append(speed(ours, opt.batch_size, device))
        speeds["torchvision"].append(speed(theirs, opt.batch_size, device))
    return {
        **{name: median(values) for name, values in speeds.items()},
        "ratio": median([mine / other for mine, other in zip(speeds["ours"], speeds["torchvision"], strict=True)]),
        "bytes_per_value": resident_bytes(ours) / split.images.numel(),
    }


def per_sample_loader(split: Split, info: DatasetInfo, batch_size: int, pin_memory: bool) -> DataLoader[Any]:
    """Shuffled batches made by worker processes."""
    with quiet():
        return DataLoader(
            PerSample(split, info), batch_size, shuffle=True, drop_last=True, num_workers=WORKERS, pin_memory=pin_memory
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No word about more workers than cores: two is what is compared with."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def speed(loader: Iterable[Any], batch_size: int, device: torch.device) -> float:
    """Images per second of an epoch on the device, without the start of the workers."""
    with quiet():
        batches = iter(loader)
    next(batches)
    synchronise(device)
    started, count = time.perf_counter(), 0
    for batch in batches:
        batch[0].to(device, non_blocking=True)
        count += batch_size
    synchronise(device)
    return count / (time.perf_counter() - started)


def resident_bytes(loader: Any) -> int:
    """What the pixels that a loader holds take, in the form in which it holds them."""
    held = [value for value in vars(loader).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in held if tensor.dtype == torch.uint8)


def text(figures: Figures) -> list[str]:
    """For people."""
    return [
        f"ours {figures['ours']:,.0f} images/s; torchvision per sample, {WORKERS} workers: "
        f"{figures['torchvision']:,.0f} images/s; {figures['ratio']:.1f}×",
        f"resident images: {figures['bytes_per_value']:.2f} bytes per channel and pixel",
    ]
