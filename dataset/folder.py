"""Image folders: ``train/<class>/*`` and ``val/<class>/*`` or ``test/<class>/*``, and ImageNet in that form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
from torchvision.transforms import v2

from dataset.base import DatasetInfo, FileDataset, Files, Transform, dataset_dict, to_labels
from dataset.files import one_line
from helper.errors import UsageError

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
        classes = tuple(class_names(self.name, part_of(self.name, self.tree(), ("train",))))
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        return DatasetInfo(self.name, len(classes), 224, mean, std, 0, True, classes, self.identity(classes))

    def identity(self, classes: Sequence[str]) -> str:
        """Six letters of a checksum of the classes and of how many training images each has, wherever they lie."""
        train = self.tree() / "train"
        counts = [f"{name} {sum(1 for _ in os.scandir(train / name))}" for name in classes]
        return sha256("\n".join(counts).encode()).hexdigest()[:6]

    def load(self) -> tuple[Files, Files]:
        train = part_of(self.name, self.tree(), ("train",))
        test = part_of(self.name, self.tree(), ("val", "test"))
        check_same_classes(self.name, train, test)
        return list_images(self.name, train), list_images(self.name, test)

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


def part_of(name: str, tree: Path, choices: tuple[str, ...]) -> Path:
    """The first of the folders ``choices`` that the tree has; UsageError when it has none of them."""
    for choice in choices:
        if (tree / choice).is_dir():
            return tree / choice
    missing = " or ".join(str(tree / choice) for choice in choices)
    raise UsageError(
        f"--dataset {name}: no folder {missing}. "
        "point --data_dir to images that are kept as train/<class>/* and val/<class>/*"
    )


def class_names(name: str, part: Path) -> list[str]:
    """The classes of a part in label order; UsageError when there are none."""
    try:
        return find_classes(part)[0]
    except FileNotFoundError as error:
        raise UsageError(f"--dataset {name}: {part} holds no class folders") from error


def check_same_classes(name: str, train: Path, test: Path) -> None:
    """UsageError when the two parts do not have the same classes."""
    differing = set(class_names(name, train)) ^ set(class_names(name, test))
    if differing:
        first = min(differing)
        there, absent = (train, test) if (train / first).is_dir() else (test, train)
        raise UsageError(
            f"--dataset {name}: {train} and {test} must have the same classes, "
            f"but {first!r} is in {there.name} and not in {absent.name} ({len(differing)} differ)"
        )


def list_images(name: str, part: Path) -> Files:
    """All images of a part, sorted by class and path; UsageError when a class has none."""
    try:
        images = make_dataset(part, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise UsageError(f"--dataset {name}: {part}: {one_line(error)}") from error
    return Files(tuple(path for path, _ in images), to_labels([label for _, label in images]))
