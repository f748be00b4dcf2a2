"""The input pipeline against torchvision's per-sample transforms: of images in memory, and of a folder of files."""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dataset import checking
from dataset.base import DatasetInfo, Split
from dataset.loader import ALONE, get_loaders, memory_loaders
from helper.images import ImageOptions
from helper.machine import cores, device_of
from scripts.bench.subjects import RandomImages
from scripts.bench.timing import Rows, synchronise

TITLE = "input pipeline"
IMAGES, QUICK_IMAGES = 50_000, 1_000
FILES = 60_000
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
    """Images per second, in memory and of files."""
    return {**in_memory(opt), **of_files(opt, say)}


def write_folder(folder: Path, images: int) -> None:
    """Noise of 32×32 as PNG files, in ten classes; every tenth to test on."""
    pixels = torch.randint(0, 256, (images, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for index, each in enumerate(pixels.numpy()):
        path = folder / ("train" if index // 10 % 10 else "test") / str(index % 10) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(path)


def of_files(opt: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Rows]:
    """The first epoch of a folder, which decodes it, and later ones, beside torchvision's and CIFAR's loaders."""
    device, count = device_of(opt), 1_000 if opt.quick else FILES
    size, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
    steps = [size, flip, transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    used = min(WORKERS, cores())
    own_folder, ratios = checking.cache_folder, []
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        folder = Path(scratch) / "images"
        say(f"{count} PNG files")
        write_folder(folder, count)
        checking.cache_folder = lambda: Path(scratch) / "cache"  # nothing of the user's
        try:
            wanted = ImageOptions(image_size=32)
            started = time.perf_counter()
            held: Any = get_loaders("folder", folder, opt.batch_size, device, num_workers=WORKERS, images=wanted).train
            first = count / (time.perf_counter() - started)  # all files are looked at, decoded, written
        finally:
            checking.cache_folder = own_folder
        theirs = DataLoader(
            ImageFolder(folder / "train", transforms.Compose(steps)), opt.batch_size, True, num_workers=WORKERS
        )
        other = speed(theirs, opt.batch_size, device)
        cifar: Any = memory_loaders(
            RandomImages(held.num_images), opt.batch_size, device, 0, 0.0, opt.batch_size, ALONE
        ).train
        for repeat in range(1 if opt.quick else REPEATS):
            for each in (held, cifar):
                each.set_epoch(repeat)
            ratios.append((speed(held, opt.batch_size, device), speed(cifar, opt.batch_size, device)))
    later, in_cifar = (median(each) for each in zip(*ratios, strict=True))
    rows: Rows = {
        "ours, decoding": {"images_per_s": first, "images_per_s_and_core": first / used},
        "torchvision's ImageFolder": {"images_per_s": other, "images_per_s_and_core": other / used},
        "ours, later epochs": {"images_per_s": later, "speed_vs_cifar": median(a / b for a, b in ratios)},
        "CIFAR's loader": {"images_per_s": in_cifar},
    }
    return {f"folder of {count} PNG files of 32×32, {WORKERS} workers": rows}


def in_memory(opt: argparse.Namespace) -> dict[str, Rows]:
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
