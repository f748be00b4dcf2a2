"""Tiny ImageNet (Stanford CS231n): 200 classes of 500 + 50 colour images, 64×64, as distributed."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from torchvision.datasets.folder import make_dataset
from torchvision.datasets.utils import download_and_extract_archive
from torchvision.transforms import v2

from dataset.base import DatasetInfo, FileDataset, FileParts, Files, Transform, dataset_dict, to_labels
from dataset.files import Source, provide, reading
from dataset.tree import is_data, is_image

SIZE, PADDING, NUM_CLASSES = 64, 8, 200
ARCHIVE, ARCHIVE_MD5 = "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"
ADDRESS = f"http://cs231n.stanford.edu/{ARCHIVE}"
FILES = (("wnids.txt", None), ("val/val_annotations.txt", None))
SOURCE = Source("tinyimagenet", "tiny-imagenet-200", ADDRESS, (ARCHIVE, ARCHIVE_MD5), FILES)


@dataset_dict.register("tinyimagenet")
class TinyImageNet(FileDataset):
    """Trained on ``train``, tested on ``val`` (the labels of ``test`` are not public); labels by sorted WordNet id."""

    @property
    def info(self) -> DatasetInfo:
        mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
        return DatasetInfo("tinyimagenet", NUM_CLASSES, SIZE, mean, std, PADDING, flip=True, classes=self.classes())

    def classes(self) -> tuple[str, ...] | None:
        """WordNet ids in label order; None where the files are not there, or others."""
        try:
            return tuple(read_labels(self.data_dir / SOURCE.folder))
        except (OSError, ValueError):
            return None

    def load(self) -> FileParts:
        unpack = partial(download_and_extract_archive, ADDRESS, filename=ARCHIVE, md5=ARCHIVE_MD5)
        provide(SOURCE, self.data_dir, unpack)
        folder = self.data_dir / SOURCE.folder
        with reading(SOURCE, self.data_dir):
            labels = read_labels(folder)
            return FileParts(train_images(folder, labels), test_images(folder, labels), test_name="val")

    def train_transform(self) -> Transform:
        return v2.Compose([v2.RandomCrop(SIZE, padding=PADDING), v2.RandomHorizontalFlip()])

    def test_transform(self) -> Transform:
        return v2.CenterCrop(SIZE)


def read_labels(folder: Path) -> dict[str, int]:
    """WordNet id → label; ValueError when there are not 200 of them."""
    names = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())
    if len(set(names)) != NUM_CLASSES:
        raise ValueError(f"{folder / 'wnids.txt'} must list {NUM_CLASSES} classes, but lists {len(set(names))}")
    return {name: label for label, name in enumerate(names)}


def train_images(folder: Path, labels: dict[str, int]) -> Files:
    """``train/<id>/images/*``; FileNotFoundError when a class has none."""
    images = make_dataset(
        folder / "train", labels, is_valid_file=lambda path: is_data(os.path.basename(path)) and is_image(path)
    )
    return Files(tuple(path for path, _ in images), to_labels([label for _, label in images]))


def test_images(folder: Path, labels: dict[str, int]) -> Files:
    """``val/images/*``, labelled by lines of file, id and box; FileNotFoundError when one is missing."""
    lines = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    annotations = sorted(tuple(line.split("\t")[:2]) for line in lines if line)
    present = {path.name for path in (folder / "val" / "images").iterdir()}
    missing = [name for name, _ in annotations if name not in present]
    if missing or not annotations:
        raise FileNotFoundError(f"{len(missing)} of {len(annotations)} images are missing from val/images")
    paths = tuple(str(folder / "val" / "images" / name) for name, _ in annotations)
    return Files(paths, to_labels([labels[name] for _, name in annotations]))
