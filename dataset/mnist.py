"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28×28."""

from __future__ import annotations

import torch.nn.functional as F
from torchvision import datasets

from dataset.base import DatasetInfo, Split, dataset_dict
from dataset.files import DownloadedDataset, Source


class GreyImages(DownloadedDataset):
    """What the two have in common: black borders to 32×32 and three equal channels."""

    reader: type[datasets.MNIST]

    @property
    def source(self) -> Source:
        # the published checksums are those of the archives, which are not kept
        files = tuple((f"raw/{archive.removesuffix('.gz')}", None) for archive, _ in self.reader.resources)
        return Source(self.info.name, self.reader.__name__, self.reader.mirrors[0], None, files)

    def read(self, train: bool) -> Split:
        part = self.reader(self.data_dir, train=train)
        grey = F.pad(part.data, (2, 2, 2, 2))  # uint8 [N, 32, 32]
        return Split(grey[..., None].expand(-1, -1, -1, 3), part.targets)


@dataset_dict.register("mnist")
class Mnist(GreyImages):
    """60,000 + 10,000 handwritten digits (LeCun et al. 1998)."""

    reader = datasets.MNIST

    @property
    def info(self) -> DatasetInfo:
        mean, std = (0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)  # of the 28×28 images, as everywhere
        return DatasetInfo("mnist", 10, 32, mean, std, padding=4, flip=False, classes=tuple("0123456789"))


@dataset_dict.register("fashion_mnist")
class FashionMnist(GreyImages):
    """60,000 + 10,000 pictures of clothes (Xiao et al. 2017)."""

    reader = datasets.FashionMNIST

    @property
    def info(self) -> DatasetInfo:
        classes = tuple(datasets.FashionMNIST.classes)
        mean, std = (0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530)  # of the 28×28 images, as everywhere
        return DatasetInfo("fashion_mnist", 10, 32, mean, std, padding=4, flip=True, classes=classes)
