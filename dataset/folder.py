"""Image folders: ``train/<class>/*`` and ``val/<class>/*`` or ``test/<class>/*``, and ImageNet in that form; lists."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from torchvision.transforms import v2

from dataset.base import DatasetInfo, FileDataset, FileParts, Transform, dataset_dict
from dataset.lists import lists_in, read_list, require_apart, require_same_classes
from dataset.order import apart, split_for_good
from dataset.tree import PARTS, files_of, images_below, read_tree, training_classes
from helper.errors import UsageError
from helper.names import recorded

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000


@dataset_dict.register("folder")
class Folder(FileDataset):
    """Any images at 224×224; ``data_dir`` is the tree, whose folder names are the classes, or has or is a list.

    With ``--train_split`` or ``--test_split`` it comes in a single part, which is divided: ``train`` or, without it,
    class folders alone.
    """

    name = "folder"
    splits = True

    def tree(self) -> Path:
        """The folder that holds ``train``."""
        return self.data_dir

    @property
    def info(self) -> DatasetInfo:
        images = self.training_images()
        classes = tuple(recorded(name) for name in images)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        return DatasetInfo(self.name, len(classes), 224, mean, std, 0, True, classes, self.identity(images))

    @property
    def divided(self) -> bool:
        """Whether there is one part, which is to be divided."""
        return self.wanted.train_split is not None or self.wanted.test_split is not None

    def training_folder(self) -> Path:
        """The folder that holds the class folders."""
        tree = self.tree()
        return tree if self.divided and not (tree / "train").is_dir() else tree / "train"

    def training_images(self) -> dict[str, list[str]]:
        """Each class's images in label order: those to train on, or all that are to be divided.

        Raises:
            UsageError: there are none, fewer than two classes, or parts where one is to be divided.
        """
        lists, tree = lists_in(self.tree()), self.tree()
        parts = {*lists} if lists else {part for part in PARTS if (tree / part).is_dir()}
        if self.divided and len(parts) > 1:
            option = "--train_split" if self.wanted.test_split is None else "--test_split"
            raise UsageError(f"{option}: {tree} comes in parts already, {', '.join(sorted(parts))}; leave it out")
        if not lists:
            folder = self.training_folder()
            return {name: images_below(folder / name)[0] for name in training_classes(self.name, tree, folder)}
        images = read_list(lists["train"])
        if len(images) < 2:
            raise UsageError(f"--data_dir: {lists['train']} has {len(images)} labels; there must be two or more")
        return images

    def identity(self, images: Mapping[str, Sequence[str]]) -> str:
        """Six letters of a checksum of the classes and of how many training images each has, wherever they lie."""
        counts = {name: sum(path not in self.damaged for path in paths) for name, paths in images.items()}
        lines = [b"%s %d" % (os.fsencode(name), count) for name, count in counts.items()]
        return sha256(b"\n".join(lines)).hexdigest()[:6]

    def load(self) -> FileParts:
        lists = lists_in(self.tree())
        if self.divided:
            return self.divide(self.training_images())
        return self.listed(lists) if lists else read_tree(self.name, self.tree())

    def listed(self, lists: Mapping[str, Path]) -> FileParts:
        """The images of lists.

        Raises:
            UsageError: there is one alone, a label that is not trained on, or an image in several.
        """
        images = {part: self.training_images() if part == "train" else read_list(path) for part, path in lists.items()}
        if len(images) == 1:
            raise UsageError(
                f"--data_dir: {lists['train']} is all there is; give --test_split, or lists train.csv and test.csv"
            )
        require_apart(images)
        classes = list(images["train"])
        for part, path in lists.items():
            require_same_classes(images["train"], images[part], path)
        files = {part: files_of(classes, each) for part, each in images.items()}
        last = [part for part in PARTS if part in files][-1]
        return FileParts(files["train"], files[last], files["val"] if len(files) == 3 else None, last)

    def divide(self, images: Mapping[str, Sequence[str]]) -> FileParts:
        """One part in two, or in three where the shares leave something; UsageError where one would be empty."""
        everything = files_of(list(images), images)
        shares = self.wanted.train_split, self.wanted.test_split
        places = apart(everything.labels, everything.numbers, lambda labels: split_for_good(labels, *shares))
        train, chosen_on, test = map(everything.subset, places)
        if not train.labels.bincount(minlength=len(images)).all() or not test.paths:
            option = "--train_split" if self.wanted.test_split is None else "--test_split"
            raise UsageError(
                f"{option}: {len(everything.paths)} images of {len(images)} classes cannot be divided so; a part or a "
                "class to train on would be empty"
            )
        return FileParts(train, test, chosen_on if chosen_on.paths else None)

    def train_transform(self) -> Transform:
        return v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()])

    def test_transform(self) -> Transform:
        return v2.Compose([v2.Resize(256), v2.CenterCrop(224)])


@dataset_dict.register("imagenet")
class ImageNet(Folder):
    """ImageNet (Russakovsky et al. 2015) or some of its classes, in ``<data_dir>/imagenet`` or ``data_dir`` itself."""

    name = "imagenet"

    def identity(self, images: Mapping[str, Sequence[str]]) -> str:
        """None of all classes, whose name says which images they are."""
        return "" if len(images) == IMAGENET_CLASSES else super().identity(images)

    def tree(self) -> Path:
        below = self.data_dir / "imagenet"
        return below if below.is_dir() or not (self.data_dir / "train").is_dir() else self.data_dir
