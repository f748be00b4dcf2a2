"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32×32."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import datasets

from dataset.base import DatasetInfo, MemoryDataset, Split, dataset_dict, to_labels
from dataset.files import Source, provide, reading

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


class Cifar(MemoryDataset):
    """What the two have in common; ``reader`` is torchvision's class."""

    name: str
    reader: type[datasets.CIFAR10]

    def load(self) -> tuple[Split, Split]:
        source = self.source()
        provide(source, self.data_dir, lambda directory: self.reader(directory, download=True))
        with reading(source, self.data_dir):
            return self.read(self.data_dir, train=True), self.read(self.data_dir, train=False)

    def source(self) -> Source:
        reader = self.reader
        files = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
        return Source(
            self.name,
            reader.base_folder,
            reader.url,
            (reader.filename, reader.tgz_md5),
            tuple((name, md5) for name, md5 in files),
        )

    def read(self, directory: Path, train: bool) -> Split:
        part = self.reader(directory, train=train)
        return Split(torch.from_numpy(part.data).contiguous(), to_labels(part.targets))


@dataset_dict.register("cifar10")
class Cifar10(Cifar):
    """50,000 + 10,000 photographs of 10 kinds of things, 32×32 (Krizhevsky 2009)."""

    name = "cifar10"
    reader = datasets.CIFAR10

    @property
    def info(self) -> DatasetInfo:
        classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        return DatasetInfo("cifar10", 10, 32, mean, std, padding=4, flip=True, classes=classes)


@dataset_dict.register("cifar100")
class Cifar100(Cifar):
    """50,000 + 10,000 photographs of 100 kinds of things, 32×32 (Krizhevsky 2009)."""

    name = "cifar100"
    reader = datasets.CIFAR100

    @property
    def info(self) -> DatasetInfo:
        mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
        return DatasetInfo("cifar100", 100, 32, mean, std, padding=4, flip=True, classes=tuple(FINE_LABELS.split()))
