"""STL-10 (Coates et al. 2011): 5,000 + 8,000 labelled colour images of 96×96."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import datasets

from dataset.base import DatasetInfo, MemoryDataset, Split, dataset_dict, to_labels
from dataset.files import Source, provide, reading


class Labelled(datasets.STL10):
    """Without the unlabelled images: 2.6 GB that are not used, and whose checksum takes long."""

    train_list = datasets.STL10.train_list[:2]


@dataset_dict.register("stl10")
class Stl10(MemoryDataset):
    """5,000 + 8,000 labelled photographs of 10 kinds of things, 96×96 (Coates et al. 2011)."""

    @property
    def info(self) -> DatasetInfo:
        classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
        mean, std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
        return DatasetInfo("stl10", 10, 96, mean, std, padding=12, flip=True, classes=classes)

    def load(self) -> tuple[Split, Split]:
        files = tuple((name, md5) for name, md5 in [*Labelled.train_list, *Labelled.test_list])
        archive = (Labelled.filename, Labelled.tgz_md5)
        source = Source("stl10", Labelled.base_folder, Labelled.url, archive, files)
        provide(source, self.data_dir, lambda directory: Labelled(directory, download=True))
        with reading(source, self.data_dir):
            return read(self.data_dir, "train"), read(self.data_dir, "test")


def read(directory: Path, part: str) -> Split:
    """One labelled part, ``train`` or ``test``."""
    data = Labelled(directory, part)
    images = torch.from_numpy(data.data)  # uint8 [N, 3, 96, 96]
    return Split(images.permute(0, 2, 3, 1).contiguous(), to_labels(data.labels))
