"""Folder trees of images as they come from other people: what is data in them, and what is amiss with them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from dataset.base import FileParts, Files, to_labels
from dataset.files import some_of
from helper.errors import UsageError

PARTS = ("train", "val", "test")
KEPT_AS = (
    "images are kept as train/<class>/*, and val/<class>/* or test/<class>/* or both; "
    "--test_split divides those of one part"
)

OF_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "icon\r"}
"""What operating systems leave in folders, beside hidden files."""


def files_of(classes: Sequence[str], images: Mapping[str, Sequence[str]]) -> Files:
    """Each class's images, labelled by its place among ``classes``."""
    paths = tuple(path for name in classes for path in images.get(name, ()))
    return Files(paths, to_labels([label for label, name in enumerate(classes) for _ in images.get(name, ())]))


def is_data(name: str) -> bool:
    """Whether a file or folder is neither hidden nor an operating system's."""
    return not name.startswith(".") and name.lower() not in OF_SYSTEMS


def is_image(name: str) -> bool:
    """Whether a file is called like an image that can be read."""
    return name.lower().endswith(IMG_EXTENSIONS)


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted by their bytes: in the same order whatever the language of the terminal; and as Python sorts UTF-8."""
    return sorted(names, key=os.fsencode)


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder and is data; UsageError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if is_data(entry.name)]
    except OSError as error:
        raise unreadable(error) from None


def unreadable(error: OSError) -> UsageError:
    """The error for a folder that cannot be read."""
    return UsageError(f"--data_dir: {error.filename} cannot be read ({error.strerror})")


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, in order."""
    return in_order(entry.name for entry in entries_of(folder) if entry.is_dir())


def images_below(folder: Path) -> tuple[list[str], Counter[str]]:
    """All images below a folder, folder by folder in order, and the kinds of the other files.

    A folder that is called like an image is listed as one: it will be found to be none.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(error)

    images: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        names += [name for name in folders if is_image(name)]
        folders[:] = [name for name in folders if is_data(name) and not is_image(name)]
        names = [name for name in names if is_data(name)]
        images += [(root, name) for name in names if is_image(name)]
        others.update(kind_of(name) for name in names if not is_image(name))
    images.sort(key=lambda pair: (os.fsencode(pair[0]), os.fsencode(pair[1])))
    return [os.path.join(*pair) for pair in images], others


def kind_of(name: str) -> str:
    """A file's extension, for people."""
    return os.path.splitext(name)[1].lower() or "without extension"


def read_part(folder: Path, classes: Sequence[str]) -> tuple[Files, Counter[str]]:
    """A part's images, labelled by their class's place among ``classes``, and how many files there are of other kinds.

    Raises:
        UsageError: a class has no images.
    """
    images: dict[str, list[str]] = {}
    others = Counter(
        "images outside the class folders" if is_image(entry.name) else kind_of(entry.name)
        for entry in entries_of(folder)
        if not entry.is_dir()
    )
    for name in folders_in(folder):
        images[name], more = images_below(folder / name)
        others += more
    empty = [f"{folder.name}/{name}" for name, paths in images.items() if not paths]
    if empty:
        raise UsageError(
            f"--data_dir: {folder.parent}: no images in {some_of(empty)}; "
            f"remove the class or add some ({' '.join(IMG_EXTENSIONS)})"
        )
    return files_of(classes, images), others


def training_classes(name: str, tree: Path, train: Path | None = None) -> list[str]:
    """The class folders of ``train``, the folder of this name unless given, in label order.

    Raises:
        UsageError: there is no tree, or it has fewer than two classes; with what there is, and what to do.
    """
    train = train or tree / "train"
    if not train.is_dir():
        raise UsageError(f"--dataset {name}: there is no {train}. {hint(tree)}; {KEPT_AS}")
    classes = folders_in(train)
    if not classes:
        loose = sum(is_image(entry.name) for entry in entries_of(train))
        raise UsageError(
            f"--dataset {name}: {train} holds no class folders, but {loose} images by themselves; {KEPT_AS}"
        )
    refuse_too_deep(name, train, classes)
    if len(classes) == 1:
        raise UsageError(
            f"--dataset {name}: {train} holds one class, {classes[0]}, and none to tell it from; {KEPT_AS}"
        )
    return classes


def hint(tree: Path) -> str:
    """What --data_dir may have meant where it leads to no tree."""
    there = (tree if tree.is_dir() else tree.parent).absolute()
    if not there.is_dir():
        return "--data_dir leads nowhere"
    if there.name in PARTS and (there.parent / "train").is_dir():
        return f"point --data_dir to {there.parent}, which holds train"
    folders = folders_in(there)
    below = [there / folder for folder in folders if (there / folder / "train").is_dir()]
    if below:
        return f"point --data_dir to {' or '.join(map(str, below[:3]))}, which holds train"
    return f"--data_dir has to hold train, but {there} holds {some_of(folders) or 'no folders'}"


def refuse_too_deep(name: str, part: Path, folders: Sequence[str]) -> None:
    """UsageError when all class folders lie in a single folder."""
    below = folders_in(part / folders[0]) if len(folders) == 1 else []
    if below and not any(is_image(entry.name) for entry in entries_of(part / folders[0])):
        raise UsageError(
            f"--dataset {name}: the classes lie one level too deep: {part / folders[0]} holds {some_of(below)}; "
            f"move them up into {part}"
        )


def read_tree(name: str, tree: Path) -> FileParts:
    """All images of a tree. With ``val`` and ``test`` the best epoch is chosen on ``val``; else the one is both.

    A ``test`` without labels, as competitions have it, is left out where there is a ``val``.

    Raises:
        UsageError: nothing to test on, other classes there than in ``train``, or a class has no images.
    """
    classes = training_classes(name, tree)
    names = [each for each in PARTS[1:] if (tree / each).is_dir()]
    if not names:
        raise UsageError(
            f"--dataset {name}: {tree} holds {some_of(folders_in(tree))}, but no {tree / 'val'} or "
            f"{tree / 'test'} to test on; rename one, or move a part of the images of every class there, or give "
            "--test_split"
        )
    for each in names:
        refuse_too_deep(name, tree / each, folders_in(tree / each))
    unlabelled = names[1:] if not {*classes} & {*folders_in(tree / names[-1])} else []
    names = names[: len(names) - len(unlabelled)]
    for each in names:
        check_same_classes(name, tree / "train", tree / each)
    files, kinds = zip(*(read_part(tree / each, classes) for each in ("train", *names)), strict=True)
    others = sum(kinds, Counter(f"folder {each} without labels" for each in unlabelled))
    return FileParts(files[0], files[-1], files[1] if len(files) == 3 else None, names[-1], others)


def check_same_classes(name: str, train: Path, test: Path) -> None:
    """UsageError when the two parts do not have the same classes."""
    differing = in_order({*folders_in(train)} ^ {*folders_in(test)})
    if differing:
        there, absent = (train, test) if (train / differing[0]).is_dir() else (test, train)
        raise UsageError(
            f"--dataset {name}: {train} and {test} must have the same classes, "
            f"but {differing[0]!r} is in {there.name} and not in {absent.name} ({len(differing)} differ)"
        )
