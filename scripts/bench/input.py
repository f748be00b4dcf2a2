"""The input pipeline against torchvision's per-sample transforms in two worker processes."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dataset.base import DatasetInfo, Split
from dataset.loader import ALONE, memory_loaders
from helper.machine import device_of
from scripts.bench.subjects import RandomImages
from scripts.bench.timing import Rows, synchronise

TITLE = "input pipeline"
IMAGES, QUICK_IMAGES = 50_000, 1_000
WORKERS, REPEATS = 2, 3


class PerSample(Dataset[tuple[torch.Tensor, int]]):
    """Images as PIL opens them, transformed one by one, as in the released codes."""

    def __init__(self, split: Split, info: DatasetInfo) -> None:
        self.images, self.labels = split.images.numpy(), split.labels.tolist()
        crop, flip = transforms.RandomCrop(info.image_size, padding=info.padding), transforms.RandomHorizontalFlip()
        normalise = transforms.Normalize(info.mean, info.std)
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Rows]:
    """Images per second of both, in alternation."""
    device = device_of(opt)
    images = RandomImages(QUICK_IMAGES if opt.quick else IMAGES)
    split, _ = images.load()
    ours: Any = memory_loaders(images, opt.batch_size, device, 0, 0.0, opt.batch_size, ALONE).train
    few = PerSample(split.subset(torch.arange(len(split.labels) // 5)), images.info)
    pinned = device.type == "cuda"
    speeds: list[tuple[float, float]] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: that is compared
        theirs = DataLoader(few, opt.batch_size, True, drop_last=True, num_workers=WORKERS, pin_memory=pinned)
        for repeat in range(1 if opt.quick else REPEATS):
            ours.set_epoch(repeat)
            speeds.append((speed(ours, opt.batch_size, device), speed(theirs, opt.batch_size, device)))
    mine, other = (median(each) for each in zip(*speeds, strict=True))
    compared = median([other / mine for mine, other in speeds])
    rows = {"ours": {"images_per_s": mine}, "torchvision": {"images_per_s": other, "speed_vs_ours": compared}}
    return {f"CIFAR-100, torchvision with {WORKERS} workers": rows}


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
