"""Image folders: ``train/<class>/*`` and ``val/<class>/*`` or ``test/<class>/*``, and ImageNet in that form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from torchvision.transforms import v2

from dataset.base import DatasetInfo, FileDataset, FileParts, Transform, dataset_dict
from dataset.tree import images_below, read_tree, training_classes
from helper.names import recorded

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataset_dict.register("folder")
class Folder(FileDataset):
    """Any images at 224×224; ``data_dir`` itself is the tree, and its folder names are the classes."""

    name = "folder"

    def tree(self) -> Path:
        """The folder that holds ``train``."""
        return self.data_dir

    @property
    def info(self) -> DatasetInfo:
        folders = training_classes(self.name, self.tree())
        classes = tuple(recorded(name) for name in folders)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        return DatasetInfo(self.name, len(classes), 224, mean, std, 0, True, classes, self.identity(folders))

    def identity(self, folders: Sequence[str]) -> str:
        """Six letters of a checksum of the classes and of how many training images each has, wherever they lie."""
        train = self.tree() / "train"
        counts = {name: sum(path not in self.damaged for path in images_below(train / name)[0]) for name in folders}
        lines = [b"%s %d" % (os.fsencode(name), count) for name, count in counts.items()]
        return sha256(b"\n".join(lines)).hexdigest()[:6]

    def load(self) -> FileParts:
        return read_tree(self.name, self.tree())

    def train_transform(self) -> Transform:
        return v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()])

    def test_transform(self) -> Transform:
        return v2.Compose([v2.Resize(256), v2.CenterCrop(224)])


@dataset_dict.register("imagenet")
class ImageNet(Folder):
    """ImageNet (Russakovsky et al. 2015) or some of its classes, in ``<data_dir>/imagenet`` or ``data_dir`` itself."""

    name = "imagenet"

    def identity(self, classes: Sequence[str]) -> str:
        return ""

    def tree(self) -> Path:
        below = self.data_dir / "imagenet"
        return below if below.is_dir() or not (self.data_dir / "train").is_dir() else self.data_dir
