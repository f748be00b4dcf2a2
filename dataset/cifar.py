"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32×32."""

from __future__ import annotations

import torch
from torchvision import datasets

from dataset.base import DatasetInfo, Split, dataset_dict, to_labels
from dataset.files import DownloadedDataset, Source

FINE_LABELS = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
"""CIFAR-100's classes in label order."""


class Cifar(DownloadedDataset):
    """What the two have in common."""

    reader: type[datasets.CIFAR10]

    @property
    def source(self) -> Source:
        reader = self.reader
        files = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
        checksums = tuple((name, md5) for name, md5 in files)
        archive = (reader.filename, reader.tgz_md5)
        return Source(self.info.name, reader.base_folder, reader.url, archive, checksums)

    def read(self, train: bool) -> Split:
        part = self.reader(self.data_dir, train=train)
        return Split(torch.from_numpy(part.data).contiguous(), to_labels(part.targets))


@dataset_dict.register("cifar10")
class Cifar10(Cifar):
    """50,000 + 10,000 photographs of 10 kinds of things, 32×32 (Krizhevsky 2009)."""

    reader = datasets.CIFAR10

    @property
    def info(self) -> DatasetInfo:
        classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        return DatasetInfo("cifar10", 10, 32, mean, std, padding=4, flip=True, classes=classes)


@dataset_dict.register("cifar100")
class Cifar100(Cifar):
    """50,000 + 10,000 photographs of 100 kinds of things, 32×32 (Krizhevsky 2009)."""

    reader = datasets.CIFAR100

    @property
    def info(self) -> DatasetInfo:
        mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
        return DatasetInfo("cifar100", 100, 32, mean, std, padding=4, flip=True, classes=tuple(FINE_LABELS.split()))
