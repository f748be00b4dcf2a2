"""STL-10 (Coates et al. 2011): 5,000 + 8,000 labelled colour images of 96×96."""

from __future__ import annotations

import torch
from torchvision import datasets

from dataset.base import DatasetInfo, Split, dataset_dict, to_labels
from dataset.files import DownloadedDataset, Source


class Labelled(datasets.STL10):
    """Without the unlabelled images: 2.6 GB that are not used, and whose checksum takes long."""

    train_list = datasets.STL10.train_list[:2]


@dataset_dict.register("stl10")
class Stl10(DownloadedDataset):
    """5,000 + 8,000 labelled photographs of 10 kinds of things, 96×96 (Coates et al. 2011)."""

    reader = Labelled

    @property
    def info(self) -> DatasetInfo:
        classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
        mean, std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
        return DatasetInfo("stl10", 10, 96, mean, std, padding=12, flip=True, classes=classes)

    @property
    def source(self) -> Source:
        files = tuple((name, md5) for name, md5 in [*Labelled.train_list, *Labelled.test_list])
        return Source("stl10", Labelled.base_folder, Labelled.url, (Labelled.filename, Labelled.tgz_md5), files)

    def read(self, train: bool) -> Split:
        part = Labelled(self.data_dir, "train" if train else "test")
        images = torch.from_numpy(part.data)  # uint8 [N, 3, 96, 96]
        return Split(images.permute(0, 2, 3, 1).contiguous(), to_labels(part.labels))
