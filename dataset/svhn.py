"""SVHN (Netzer et al. 2011): 73,257 + 26,032 colour images of house numbers, 32×32, label = digit."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import datasets

from dataset.base import DatasetInfo, Split, dataset_dict, to_labels
from dataset.files import DownloadedDataset, Source

PARTS = ("train", "test")


@dataset_dict.register("svhn")
class Svhn(DownloadedDataset):
    """73,257 + 26,032 house numbers, 32×32 (Netzer et al. 2011)."""

    @property
    def info(self) -> DatasetInfo:
        mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
        return DatasetInfo("svhn", 10, 32, mean, std, padding=4, flip=False, classes=tuple("0123456789"))

    @property
    def source(self) -> Source:
        files = tuple((datasets.SVHN.split_list[part][1], datasets.SVHN.split_list[part][2]) for part in PARTS)
        return Source("svhn", "svhn", "http://ufldl.stanford.edu/housenumbers", None, files)

    def download(self, directory: Path) -> None:
        for part in PARTS:
            datasets.SVHN(directory / "svhn", part, download=True)

    def read(self, train: bool) -> Split:
        part = datasets.SVHN(self.data_dir / "svhn", "train" if train else "test")
        images = torch.from_numpy(part.data)  # uint8 [N, 3, 32, 32]
        return Split(images.permute(0, 2, 3, 1).contiguous(), to_labels(part.labels))
