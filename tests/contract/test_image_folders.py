"""Image folders as they come from other people: what is read of them, what is left alone, what is said."""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.datasets import FashionMNIST
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from dataset import checking as checking_module
from dataset import get_loaders, info_of
from dataset.checking import cache_folder, damaged_among
from dataset.files import MOST_NAMES
from dataset.pictures import fault_of, read_picture
from dataset.tree import read_tree
from helper.errors import UsageError

GREY = np.arange(48 * 40).reshape(40, 48) % 256  # [H, W], every value of 8 bits


def save(path: Path, pixels: npt.NDArray[Any] | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((24, 20, 3), 90, np.uint8) if pixels is None else pixels).save(path, **options)
    return path


def save_tiff(path: Path, values: npt.NDArray[Any]) -> Path:
    """Grey values of any type, uncompressed, which Pillow itself does not write."""
    height, width = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    entries = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, 1), (273, 8)]
    entries += [(277, 1), (278, height), (279, len(data)), (339, kind)]
    folder = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(entries)) + folder + bytes(4))
    return path


def make_tree(tree: Path, parts: str = "train test", classes: str = "cat dog", count: int = 3) -> Path:
    """A few images of every class in every part."""
    for part in parts.split():
        for name in classes.split():
            for index in range(count):
                save(tree / part / name / f"{index}.png")
    return tree


def load(tree: Path, name: str = "folder", **options: Any) -> Any:
    return get_loaders(name, tree, **{"batch_size": 2, "num_workers": 0, **options})


def refusal(tree: Path, name: str = "folder", **options: Any) -> str:
    """The one line that refuses a tree."""
    with pytest.raises(UsageError) as caught:
        load(tree, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# depth and modes


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint32", "int32", "float32"])
def test_deep_tiffs_keep_their_contrast(kind: str, tmp_path: Path) -> None:
    if kind.startswith("float"):
        values = (GREY / 255).astype(kind)
    else:
        bounds = np.iinfo(kind)
        values = np.round(GREY / 255 * (int(bounds.max) - int(bounds.min)) + int(bounds.min)).astype(kind)
    path = save_tiff(tmp_path / "deep.tif", values)
    assert fault_of(str(path)) is None
    assert np.array_equal(np.asarray(read_picture(str(path))), np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("name", ["16.png", "16.tif", "big-endian.tif", "16.pgm"])
def test_16_bits_in_any_file_keep_their_contrast(name: str, tmp_path: Path) -> None:
    """Pillow opens them as I;16, I;16B or I."""
    values, path = (GREY * 257).astype(np.uint16), tmp_path / name
    if name.endswith("pgm"):
        path.write_bytes(b"P5 48 40 65535\n" + values.astype(">u2").tobytes())
    elif name.startswith("big"):
        Image.frombytes("I;16B", (48, 40), values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)
    assert np.array_equal(np.asarray(read_picture(str(path)))[..., 0], GREY)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (np.linspace(0, 255, 1920, dtype=np.float32).reshape(40, 48), "0 to 255"),
        (np.full((40, 48), -0.5, np.float32), "-0.5"),
        (np.full((40, 48), np.nan, np.float32), "nan"),
        (np.arange(1920, dtype=np.uint32).reshape(40, 48), "0 to 1919"),
    ],
)
def test_values_without_a_place_in_8_bits_are_refused_by_name(
    values: npt.NDArray[Any], word: str, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path)
    save_tiff(tree / "train" / "dog" / "depth.tif", values)
    message = refusal(tree)
    assert "train/dog/depth.tif" in message
    assert word in message


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_other_modes_become_what_pillow_makes_of_them(mode: str, tmp_path: Path) -> None:
    original = Image.fromarray(np.random.RandomState(0).randint(0, 256, (30, 20, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    original.save(path)
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB"))
    assert fault_of(str(path)) is None
    assert np.array_equal(np.asarray(read_picture(str(path))), expected)


def test_transparent_palettes_are_read_without_a_warning(tmp_path: Path) -> None:
    """Warnings are errors here."""
    image = Image.fromarray(GREY.astype(np.uint8)).convert("P")
    image.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert np.array_equal(np.asarray(read_picture(str(tmp_path / "palette.png")))[..., 0], GREY)


def test_depths_that_pillow_does_not_know_are_found(tmp_path: Path) -> None:
    assert "no format that Pillow knows" in str(fault_of(str(save_tiff(tmp_path / "deep.tif", GREY / 255.0))))


# orientation

STORED: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.T,
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).T,
    8: lambda upright: np.rot90(upright, -1),
}
"""EXIF's orientation → how an upright picture is stored."""


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_upright(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation]((GREY * (257 if kind == "uint16" else 1)).astype(kind)))
    path = save(tmp_path / "image.png", stored, exif=exif)
    assert np.array_equal(np.asarray(read_picture(str(path)))[..., 0], GREY)


def test_damaged_exif_spoils_no_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "image.png", GREY.astype(np.uint8), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(read_picture(str(path)))[..., 0], GREY)


# what is data

CLEAN = "9b6917"
"""The identity of a train/ of 10 cats and 5 dogs: earlier runs are found by it."""


@pytest.fixture
def clutter(tmp_path: Path) -> tuple[Path, Path]:
    """A clean tree, and the same as systems, tools and people leave it."""
    clean = make_tree(tmp_path / "clean")
    tree = shutil.copytree(clean, tmp_path / "cluttered")
    for folder in (tree, tree / "train", tree / "train" / "cat", tree / "test", tree / "test" / "dog"):
        for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", "notes.txt"):
            (folder / name).write_bytes(b"\0\5\26\7")
        for name in (".ipynb_checkpoints", ".git", "@eaDir", "__MACOSX"):
            save(folder / name / "0.png")
    (tree / "train" / "dog" / "1.HEIC").write_bytes(b"?")
    (tree / "test" / "dog" / "README").write_bytes(b"?")
    return clean, tree


def test_identity_stays(tmp_path: Path) -> None:
    make_tree(tmp_path, "train", "cat", 10)
    make_tree(tmp_path, "train", "dog", 5)
    assert info_of("folder", tmp_path).identity == CLEAN


def test_what_is_no_image_is_no_data(clutter: tuple[Path, Path]) -> None:
    clean, tree = clutter
    assert info_of("folder", tree) == info_of("folder", clean)
    ours, theirs = load(tree), load(clean)
    assert ours.sizes == theirs.sizes == "folder: 2 classes, 6 images to train on, 6 to test on"
    assert theirs.notes == ()
    assert ours.notes == (f"{tree}: left out: 1 .heic, 4 .txt, 1 without extension",)


def test_images_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    save(tree / "train" / "loose.png")
    assert load(tree).notes == (f"{tree}: left out: 1 images outside the class folders",)


def test_nested_folders_of_a_class_belong_to_it(tmp_path: Path) -> None:
    """In torchvision's order, which the seeds count in."""
    tree = make_tree(tmp_path)
    for name in ("b/0.png", "a.d/9.jpg", "B.png", "a/1.JPEG"):
        save(tree / "train" / "cat" / name)
    expected = make_dataset(tree / "train", extensions=IMG_EXTENSIONS)
    assert list(read_tree("folder", tree).train.paths) == [path for path, _ in expected]


# what is amiss with a tree


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    for part in ("train", "test"):
        (tree / part / "owl").mkdir()
    (tree / "train" / "owl" / "0.txt").touch()
    assert "no images in train/owl" in refusal(tree)
    save(tree / "train" / "owl" / "0.png")
    assert "no images in test/owl" in refusal(tree)


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_trees_of_another_form_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    def moved(source: str, target: str) -> Path:
        tree = make_tree(tmp_path / target.replace("/", "_"), "train test")
        (tree / target).parent.mkdir(parents=True, exist_ok=True)
        (tree / source).rename(tree / target)
        return tree

    deep = moved("train/cat", "train/images/cat")
    (deep / "train" / "dog").rename(deep / "train" / "images" / "dog")
    assert re.search(r"too deep.*images holds cat, dog; move them up", refusal(deep, name))
    deep = moved("test/cat", "test/all/cat")
    (deep / "test" / "dog").rename(deep / "test" / "all" / "dog")
    assert re.search(r"too deep.*all holds cat, dog; move them up", refusal(deep, name))
    alone = make_tree(tmp_path / "alone", classes="cat")
    assert "holds one class, cat" in refusal(alone, name)
    loose = tmp_path / "loose"
    save(loose / "train" / "0.png")
    assert "no class folders, but 1 images by themselves" in refusal(loose, name)
    only = make_tree(tmp_path / "only", "train")
    (only / "valid").mkdir()
    assert re.search(r"holds train, valid, but no .*val or .*test to test on; rename one", refusal(only, name))
    whole = make_tree(tmp_path / "high" / "x")
    assert f"point --data_dir to {whole}, which holds train" in refusal(whole.parent, name)
    assert f"point --data_dir to {whole}, which holds train" in refusal(whole / "train", name)
    unparted = make_tree(tmp_path / "unparted" / "y", "a b") / "a"
    assert re.search(r"has to hold train, but .* holds cat, dog; images are kept as", refusal(unparted, name))
    assert "--data_dir leads nowhere" in refusal(tmp_path / "no" / "where", name)


# which part is which


def test_val_chooses_and_test_is_reported(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, "train", count=4)
    make_tree(tree, "val", count=2)
    make_tree(tree, "test", count=3)
    loaders = load(tree)
    assert (loaders.validation.num_images, loaders.validation_name) == (4, "val")
    assert (loaders.test.num_images, loaders.test_name) == (6, "test")
    expected = "folder: 2 classes, 8 images to train on, 4 to choose the best epoch on (val), 6 to test on"
    assert loaders.sizes == expected
    assert re.search(r"--validation: .*val.*leave the option out", refusal(tree, validation=0.5))


def test_the_one_that_there_is_keeps_its_name(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, "train val", count=4)
    loaders = load(tree)
    assert (loaders.validation, loaders.test_name) == (None, "val")
    assert loaders.sizes == "folder: 2 classes, 8 images to train on, 8 to test on (val)"
    held_out = load(tree, validation=0.25)
    assert (held_out.validation.num_images, held_out.validation_name, held_out.test_name) == (2, "validation", "val")
    assert "6 images to train on, 2 to choose the best epoch on (validation), 8 to test on (val)" in held_out.sizes


@pytest.mark.parametrize("folder", ["", "unknown"])
def test_a_test_without_labels_is_left_out_beside_val(folder: str, tmp_path: Path) -> None:
    """As competitions distribute it."""
    tree = make_tree(tmp_path, "train val")
    save(tree / "test" / folder / "0.png")
    loaders = load(tree)
    assert (loaders.validation, loaders.test_name) == (None, "val")
    assert loaders.notes == (f"{tree}: left out: 1 folder test without labels",)
    shutil.rmtree(tree / "val")
    assert "must have the same classes" in refusal(tree)


def test_sizes_of_a_dataset_in_memory() -> None:
    assert get_loaders("digits", shard=(1, 2)).sizes == "digits: 10 classes, 1297 images to train on, 500 to test on"


# damaged images


def spoil(tree: Path) -> dict[str, str]:
    """Damage images in every way that is found; returns which, and a word of what is said."""
    whole, folder = tree / "train" / "cat" / "0.png", tree / "train" / "dog"
    data = whole.read_bytes()
    (folder / "empty.png").touch()
    (folder / "half.png").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("<html>404</html>")
    for suffix in ("jpg", "webp", "bmp", "tif", "ppm"):
        path = save(folder / f"cut.{suffix}")
        path.write_bytes(path.read_bytes()[:-40])
    (folder / "link.png").symlink_to(tree / "nowhere.png")
    (folder / "folder.png").mkdir()
    (tree / "test" / "cat" / "gone.png").touch()
    said = {f"train/dog/cut.{suffix}": "" for suffix in ("jpg", "webp", "bmp", "tif", "ppm")}
    said |= {"train/dog/half.png": "", "train/dog/text.png": "no image", "train/dog/link.png": "link to nothing"}
    return said | {
        "train/dog/folder.png": "directory",
        "train/dog/empty.png": "empty",
        "test/cat/gone.png": "empty",
    }


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_all_damaged_images_are_named_at_once(name: str, tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    said = spoil(tree)
    message = refusal(tree, name)
    assert f"{len(said)} images cannot be read" in message
    assert "--skip_damaged" in message
    for path, word in said.items():
        assert re.search(rf"{re.escape(path)} \([^)]*{word}", message), path


def test_images_of_absurd_size_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path)
    save(tree / "train" / "dog" / "large.png", np.zeros((100, 100, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert re.search(r"1 image cannot be read: train/dog/large.png \(.*10000 pixels", refusal(tree))


def test_files_without_permission_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(path: Any, *arguments: Any) -> Any:
        if str(path).endswith("2.png"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *arguments)

    monkeypatch.setattr("dataset.pictures.open", locked, raising=False)
    assert "train/dog/2.png (Permission denied)" in refusal(make_tree(tmp_path))


def test_a_message_names_so_many_and_no_more(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    for index in range(30):
        (tree / "train" / "dog" / f"damaged{index:02}.png").touch()
    message = refusal(tree)
    assert message.count("damaged") == MOST_NAMES + 1  # and --skip_damaged
    assert "and 10 more" in message


def test_damaged_images_can_be_left_out(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    identity = info_of("folder", tree).identity
    said = spoil(tree)
    assert info_of("folder", tree).identity != identity
    assert info_of("folder", tree, skip_damaged=True).identity == identity  # what is trained on is the same
    loaders = load(tree, skip_damaged=True)
    assert loaders.sizes == "folder: 2 classes, 6 images to train on, 6 to test on"
    (note,) = loaders.notes
    assert f"{len(said)} images cannot be read: " in note
    assert sum(len(batch.target) for batch in loaders.train) == 6
    for index in range(3):
        (tree / "train" / "cat" / f"{index}.png").write_bytes(b"")
    assert "nothing is left of a class" in refusal(tree, skip_damaged=True)


def test_damaged_training_images_matter_to_no_test(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    (tree / "train" / "cat" / "0.png").write_bytes(b"")
    assert load(tree, test_only=True).test.num_images == 6
    (tree / "test" / "cat" / "0.png").write_bytes(b"")
    assert "1 image cannot be read: test/cat/0.png" in refusal(tree, test_only=True)


@pytest.mark.parametrize("ending", [b"\0" * 20, b"trailing notes", b""])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_whole_images_with_odd_ends_are_none_of_them(suffix: str, ending: bytes, tmp_path: Path) -> None:
    path = save(tmp_path / f"image.{suffix}", GREY.astype(np.uint8))
    path.write_bytes(path.read_bytes() + ending)
    assert fault_of(str(path)) is None


def test_a_second_look_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "tree")
    before = sorted(path for path in tree.rglob("*"))
    looked: list[str] = []
    monkeypatch.setattr(checking_module, "fault_of", lambda path: looked.append(path))
    monkeypatch.setattr(checking_module, "cache_folder", lambda: tmp_path / "cache")
    load(tree)
    assert len(looked) == 12
    load(tree)
    assert len(looked) == 12
    os.utime(tree / "train" / "cat" / "1.png", (1, 1))
    (tree / "test" / "dog" / "2.png").write_bytes(b"longer")
    load(tree)
    assert sorted(looked[12:]) == [str(tree / "test" / "dog" / "2.png"), str(tree / "train" / "cat" / "1.png")]
    assert sorted(path for path in tree.rglob("*")) == before
    for damage in (b"", b"not numpy's"):
        (memory,) = (tmp_path / "cache" / "images").iterdir()
        memory.write_bytes(damage)
        load(tree)
    assert len(looked) == 14 + 24


def test_where_nothing_can_be_kept_the_next_run_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(checking_module, "cache_folder", lambda: tmp_path / "file" / "cache")
    assert load(make_tree(tmp_path / "tree")).train.num_images == 6


def test_the_cache_is_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "ensemble-distillation"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere" / "ensemble-distillation"


def test_among_several_processes_the_first_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("another process has looked")

    answers = iter([{"a.png": "empty"}, {}, {"b.png": "empty"}, None])
    monkeypatch.setattr(checking_module, "fault_of", refuse)
    monkeypatch.setattr(checking_module.distributed, "from_first", lambda function: next(answers))
    assert damaged_among(["a.png", "b.png", "c.png"], tmp_path) == {"a.png": "empty", "b.png": "empty"}


# class names


def test_class_names_in_label_order() -> None:
    cifar = info_of("cifar100").classes
    assert cifar is not None
    assert (len({*cifar}), list(cifar)) == (100, sorted(cifar))
    assert (cifar[0], cifar[47], cifar[99]) == ("apple", "maple_tree", "worm")
    assert info_of("mnist").classes == tuple("0123456789")
    assert info_of("fashion_mnist").classes == tuple(FashionMNIST.classes)


def test_class_names_of_tiny_imagenet_are_those_of_its_files(tmp_path: Path) -> None:
    assert info_of("tinyimagenet", tmp_path).classes is None
    names = [f"n{index:08}" for index in range(199, -1, -1)]
    (tmp_path / "tiny-imagenet-200").mkdir()
    (tmp_path / "tiny-imagenet-200" / "wnids.txt").write_text("\n".join(names))
    assert info_of("tinyimagenet", tmp_path).classes == tuple(sorted(names))


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    """Labels follow the bytes of the names, in any language of the terminal; the names are in no message's way."""
    names = ["b", "é", "\udcff", "猫"]
    tree = make_tree(tmp_path / "\udce9", classes=" ".join(names))
    assert info_of("folder", tree).classes == ("b", "é", "猫", "\udcff")
    assert load(tree).train.num_images == 12
    (tree / "train" / "\udcff" / "\udce9.png").touch()
    assert "\udcff/\udce9.png (empty)" in refusal(tree)
    assert torch.load(_saved(info_of("folder", tree).classes, tmp_path), weights_only=True)["classes"][3] == "\udcff"


def _saved(classes: object, folder: Path) -> Path:
    torch.save({"classes": classes}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"
