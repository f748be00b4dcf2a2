"""The input pipeline against torchvision's per-sample transforms in two worker processes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dataset import info_of
from dataset.base import DatasetInfo, Split
from dataset.memory import MemoryTrainLoader
from helper.recipe import device_of
from scripts.bench.subjects import DATASET, random_split
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
    device, info = device_of(opt), info_of(DATASET)
    split = random_split(QUICK_IMAGES if opt.quick else IMAGES, info.image_size, info.num_classes)
    ours = MemoryTrainLoader(split, info, opt.batch_size, device, seed=0)
    few = split.subset(torch.arange(len(split.labels) // 5))  # the median of three such epochs is steady enough
    theirs = DataLoader(
        PerSample(few, info),
        opt.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        pin_memory=device.type == "cuda",
    )
    speeds: dict[str, list[float]] = {"ours": [], "torchvision": []}
    for repeat in range(1 if opt.quick else REPEATS):
        ours.set_epoch(repeat)
        speeds["ours"].append(speed(ours, opt.batch_size, device))
        speeds["torchvision"].append(speed(theirs, opt.batch_size, device))
    return {
        **{name: median(values) for name, values in speeds.items()},
        "ratio": median([mine / other for mine, other in zip(speeds["ours"], speeds["torchvision"], strict=True)]),
        "bytes_per_value": ours.pixels.nbytes / split.images.numel(),
    }


def speed(loader: Iterable[Any], batch_size: int, device: torch.device) -> float:
    """Images per second of an epoch on the device, without the start of the workers."""
    batches = iter(loader)
    next(batches)
    synchronise(device)
    started, count = time.perf_counter(), 0
    for batch in batches:
        batch[0].to(device, non_blocking=True)
        count += batch_size
    synchronise(device)
    return count / (time.perf_counter() - started)


def text(figures: Figures) -> list[str]:
    """For people."""
    return [
        f"ours {figures['ours']:,.0f} images/s; torchvision per sample, {WORKERS} workers: "
        f"{figures['torchvision']:,.0f} images/s; {figures['ratio']:.1f}×",
        f"resident images: {figures['bytes_per_value']:.2f} bytes per channel and pixel",
    ]
