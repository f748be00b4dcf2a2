"""SVHN (Netzer et al. 2011): 73,257 + 26,032 colour images of house numbers, 32×32, label = digit."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import datasets

from dataset.base import DatasetInfo, MemoryDataset, Split, dataset_dict, to_labels
from dataset.files import Source, provide, reading


@dataset_dict.register("svhn")
class Svhn(MemoryDataset):
    """73,257 + 26,032 house numbers, 32×32 (Netzer et al. 2011)."""

    @property
    def info(self) -> DatasetInfo:
        mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
        return DatasetInfo("svhn", 10, 32, mean, std, padding=4, flip=False, classes=tuple("0123456789"))

    def load(self) -> tuple[Split, Split]:
        files = tuple((datasets.SVHN.split_list[part][1], datasets.SVHN.split_list[part][2]) for part in PARTS)
        source = Source("svhn", "svhn", "http://ufldl.stanford.edu/housenumbers", None, files)
        provide(source, self.data_dir, download)
        with reading(source, self.data_dir):
            return read(self.data_dir / source.folder, "train"), read(self.data_dir / source.folder, "test")


PARTS = ("train", "test")


def download(directory: Path) -> None:
    """Fetch both parts into ``directory``."""
    for part in PARTS:
        datasets.SVHN(directory / "svhn", part, download=True)


def read(folder: Path, part: str) -> Split:
    """One part, ``train`` or ``test``."""
    data = datasets.SVHN(folder, part)
    images = torch.from_numpy(data.data)  # uint8 [N, 3, 32, 32]
    return Split(images.permute(0, 2, 3, 1).contiguous(), to_labels(data.labels))
