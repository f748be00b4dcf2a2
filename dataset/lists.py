"""Lists of images: CSV files with the columns ``path`` and ``label``, one for each part, or one of all images."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from dataset.files import some_of
from dataset.tree import PARTS, in_order
from helper.errors import UsageError

COLUMNS = ("path", "label")


def lists_in(data_dir: Path) -> dict[str, Path]:
    """``train``, ``val``, ``test`` → the lists that there are; a list by itself is ``train``; empty for a tree."""
    if data_dir.suffix.lower() == ".csv":
        return {"train": data_dir}
    found = {part: data_dir / f"{part}.csv" for part in PARTS}
    found = {part: path for part, path in found.items() if path.is_file()}
    return found if "train" in found else {}


def read_list(path: Path) -> dict[str, list[str]]:
    """Each class's images, classes and images in the order of their bytes; relative paths start where the list lies.

    Raises:
        UsageError: the list cannot be read, has other columns or no images, a line is incomplete, or an image has two
            labels.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            lines = list(_lines(file, path))
    except (OSError, csv.Error) as error:
        raise UsageError(f"--data_dir: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not lines:
        raise UsageError(f"--data_dir: {path} lists no images; each line below the first has to be one")
    require_one_label(lines, path)
    images: dict[str, list[str]] = {name: [] for name in in_order({label for _, label in lines})}
    for image, label in lines:
        images[label].append(os.path.join(path.parent, image))
    return {name: in_order(paths) for name, paths in images.items()}


def _lines(file: Iterator[str], path: Path) -> Iterator[tuple[str, str]]:
    """Path and label of each line."""
    rows = csv.DictReader(file)
    names = [name.removeprefix("\ufeff").strip() for name in rows.fieldnames or []]  # spreadsheets begin with a mark
    if not {*COLUMNS} <= {*names}:
        raise UsageError(f"--data_dir: the first line of {path} is {','.join(names)!r}; it has to be path,label")
    rows.fieldnames = names
    for row in rows:
        image, label = row["path"], row["label"]
        if not image or not label:
            raise UsageError(f"--data_dir: line {rows.line_num} of {path} has no {'label' if image else 'path'}")
        if "\0" in image:
            raise UsageError(f"--data_dir: line {rows.line_num} of {path} has a zero byte in its path")
        yield image, label


def require_one_label(lines: Iterable[tuple[str, str]], path: Path) -> None:
    """UsageError where lines, of path and label, give an image two labels."""
    labels: dict[str, str] = {}
    twice = {
        image: (first, label)
        for image, label in lines
        if (first := labels.setdefault(os.path.abspath(path.parent / image), label)) != label
    }
    if twice:
        image, (first, label) = next(iter(twice.items()))
        raise UsageError(
            f"--data_dir: {path} gives {image} two labels, {first} and {label} ({len(twice)} images have several)"
        )


def require_apart(parts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """UsageError where images, by part and class, are in several parts."""
    of_parts = {
        part: {os.path.abspath(path): path for paths in images.values() for path in paths}
        for part, images in parts.items()
    }
    for part, other in combinations(of_parts, 2):
        shared = of_parts[part].keys() & of_parts[other].keys()
        if shared:
            first = of_parts[part][min(shared)]
            raise UsageError(f"--data_dir: {first} is in {part} and in {other} ({len(shared)} images are in both)")


def require_same_classes(classes: dict[str, list[str]], others: dict[str, list[str]], path: Path) -> None:
    """UsageError where a list has labels that the one to train on does not have."""
    unknown = in_order({*others} - {*classes})
    if unknown:
        raise UsageError(f"--data_dir: {path} has labels that are not in train: {some_of(unknown)}")
