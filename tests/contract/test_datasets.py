"""What every dataset promises: seeded batches, torchvision's augmentation, nothing lost, one line on errors."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from checkout import own_names
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dataset import DatasetInfo, Loaders, dataset_dict, get_loaders, info_of
from dataset.base import Split
from dataset.cifar import Cifar10
from dataset.digits import bundled_digits
from dataset.files import Source, provide
from dataset.memory import MemoryEvalLoader, MemoryTrainLoader
from dataset.order import epoch_crops, epoch_order, hold_out
from dataset.stl10 import Labelled
from dataset.stream import tells_of_a_loss
from helper.errors import UsageError
from helper.stopping import SIGNALS, ReadersLost, in_readers

CPU = torch.device("cpu")
REAL_DATA = Path(__file__).parents[2] / "data"
INFO = DatasetInfo("noise", 3, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), padding=4, flip=True)


def noise(num_images: int) -> Split:
    """Random images with the classes 0, 1, 2 in turn."""
    images = torch.randint(0, 256, (num_images, 32, 32, 3), generator=torch.Generator().manual_seed(7))
    return Split(images.to(torch.uint8), torch.arange(num_images) % 3)


def epoch_of(loader: Any, epoch: int) -> tuple[Tensor, Tensor]:
    """All images and targets of an epoch."""
    loader.set_epoch(epoch)
    return everything(loader)


def everything(loader: Any) -> tuple[Tensor, Tensor]:
    images, targets, *_ = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(targets)


def message_of(*arguments: Any, **options: Any) -> str:
    """The single line of the UsageError that ``get_loaders`` raises."""
    with pytest.raises(UsageError) as caught:
        get_loaders(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def digits() -> Loaders:
    return get_loaders("digits", batch_size=64, validation=0.2)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def save_image(path: Path, size: tuple[int, int], colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(colour).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 10 and 5 training images and one test image each."""
    tree = tmp_path_factory.mktemp("tree")
    for label, (name, count) in enumerate({"cat": 10, "dog": 5}.items()):
        for index in range(count):
            save_image(tree / "train" / name / f"{index}.png", (48 + index, 40), 100 * label + index)
        save_image(tree / "val" / name / "0.png", (300, 260), 1000 + label)
    return tree


# in memory


def test_batches_have_the_promised_form(digits: Loaders) -> None:
    for loader in (digits.train, digits.validation, digits.test):
        assert loader is not None
        images, target, *_ = next(iter(loader))
        assert images.shape == (64, 3, 32, 32)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert target.shape == (64,)
        assert target.dtype == torch.int64


def test_places_are_those_of_the_labels(digits: Loaders) -> None:
    """What a loss remembers of an image is found again by its place."""
    digits.train.set_epoch(3)
    for batch in digits.train:
        assert batch.places is not None
        assert torch.equal(digits.train.labels[batch.places], batch.target)


def test_digits_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from its file, since importing it takes a second; by its own reader where the file lies elsewhere."""
    for spec in (find_spec("sklearn"), None):
        monkeypatch.setattr("dataset.digits.find_spec", lambda _, spec=spec: spec)
        pixels, labels = bundled_digits()
        theirs = load_digits()
        assert torch.equal(pixels, torch.as_tensor(theirs.images))
        assert labels == theirs.target.tolist()


def test_digits_are_split_for_good(digits: Loaders) -> None:
    assert digits.validation is not None
    assert digits.train.num_images + digits.validation.num_images == 1297
    assert digits.test.num_images == 500
    other = get_loaders("digits", seed=5)
    assert torch.equal(everything(other.test)[0], everything(digits.test)[0])
    images, target = everything(other.test)
    assert images.mean().abs() < 0.05
    assert abs(images.std() - 1) < 0.05
    assert target.bincount().min() >= 48


def test_same_seed_and_epoch_give_the_same_batches() -> None:
    loaders = [MemoryTrainLoader(noise(100), INFO, 10, CPU, seed) for seed in (3, 3, 4)]
    epoch_of(loaders[1], 0)  # a history must not matter
    images, targets = epoch_of(loaders[0], 2)
    again, targets_again = epoch_of(loaders[1], 2)
    assert torch.equal(images, again)
    assert torch.equal(targets, targets_again)
    for other in (epoch_of(loaders[0], 3), epoch_of(loaders[2], 2)):
        assert not torch.equal(images, other[0])
        assert not torch.equal(targets, other[1])


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_batches_made_together_are_the_same(shard: tuple[int, int]) -> None:
    one, several = (MemoryTrainLoader(noise(100), INFO, 10, CPU, 3, shard=shard) for _ in range(2))
    several.at_once = 4
    for loader in (one, several):
        loader.set_epoch(1, start=1)
    batches = list(zip(one, several, strict=True))
    assert len(batches) == 9
    for mine, other in batches:
        assert torch.equal(mine.images, other.images)
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(mine.target, other.target)


def test_neighbouring_seeds_and_epochs_share_no_order() -> None:
    orders = {tuple(epoch_order(20, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_a_folder_is_known_by_its_images_wherever_it_lies(image_tree: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(image_tree, moved)
    identity = info_of("folder", image_tree).identity
    assert len(identity) == 6
    assert info_of("folder", moved).identity == identity
    (moved / "train" / "cat" / "3.png").unlink()
    assert info_of("folder", moved).identity != identity
    assert info_of("digits", Path()).identity == ""


def test_some_classes_of_imagenet_are_told_from_others_and_from_all(tmp_path: Path) -> None:
    def identity(name: str, first: int, last: int) -> str:
        for number in range(first, last):
            folder = tmp_path / name / "train" / f"n{number:08}"
            folder.mkdir(parents=True)
            (folder / "0.JPEG").touch()
        return info_of("imagenet", tmp_path / name).identity

    subsets = {identity("a", 0, 100), identity("b", 100, 200), identity("c", 0, 50), identity("d", 0, 999)}
    assert len(subsets) == 4
    assert {len(each) for each in subsets} == {6}
    assert identity("all", 0, 1000) == ""


def test_global_generators_are_left_alone(image_tree: Path) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    for name, data_dir in (("digits", Path("data")), ("folder", image_tree)):
        loaders = get_loaders(name, data_dir, batch_size=4, validation=0.3, num_workers=0)
        for loader in (loaders.train, loaders.validation, loaders.test):
            assert loader is not None
            everything(loader)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # type: ignore[index]


def test_global_seed_changes_nothing(image_tree: Path) -> None:
    for name, data_dir in (("digits", Path("data")), ("folder", image_tree)):
        batches = []
        for global_seed in (1, 2):
            torch.manual_seed(global_seed)
            batches.append(everything(get_loaders(name, data_dir, batch_size=4, num_workers=0).train)[0])
        assert torch.equal(*batches)


@pytest.mark.parametrize("flip", [False, True])
def test_crop_flip_and_normalise_as_torchvision(flip: bool) -> None:
    split = noise(1)
    loader = MemoryTrainLoader(split, INFO, 1, CPU, 0)
    padded = TF.pad(split.images[0].permute(2, 0, 1), [4, 4, 4, 4])  # black, uint8 [3, 40, 40]
    top, left = torch.cartesian_prod(torch.arange(9), torch.arange(9)).unbind(1)
    zeros = torch.zeros(81, dtype=torch.int64)
    ours = loader.normalise(loader.crop(zeros, top, left, zeros + int(flip)))
    for image, row, column in zip(ours, top.tolist(), left.tolist(), strict=True):
        theirs = TF.crop(padded, row, column, 32, 32)
        theirs = TF.horizontal_flip(theirs) if flip else theirs
        theirs = TF.normalize(TF.to_dtype(theirs, torch.float32, scale=True), list(INFO.mean), list(INFO.std))
        torch.testing.assert_close(image, theirs, atol=1e-6, rtol=0)


def test_crops_are_uniform_over_all_views() -> None:
    count = 81 * 2 * 500
    top, left, mirrored = epoch_crops(count, 4, True, seed=0, epoch=0).unbind(1)
    views = ((top * 9 + left) * 2 + mirrored).bincount(minlength=162).double()
    assert len(views) == 162
    chi_squared = ((views - 500) ** 2 / 500).sum()  # 161 degrees of freedom: mean 161, deviation 18
    assert 161 - 5 * 18 < chi_squared < 161 + 5 * 18
    assert not epoch_crops(count, 4, False, seed=0, epoch=0)[:, 2].any()


def test_loader_applies_the_crops_of_the_epoch() -> None:
    split = noise(30)
    loader = MemoryTrainLoader(split, INFO, 10, CPU, 1)
    images, targets = epoch_of(loader, 4)
    order = epoch_order(30, 1, 4)
    top, left, mirrored = epoch_crops(30, 4, True, 1, 4)[order].unbind(1)
    torch.testing.assert_close(images, loader.normalise(loader.crop(order, top, left, mirrored)))
    assert torch.equal(targets, split.labels[order])


def test_training_drops_the_last_batch_and_nothing_else() -> None:
    still = DatasetInfo("noise", 3, 32, INFO.mean, INFO.std, padding=0, flip=False)
    split = noise(103)
    loader = MemoryTrainLoader(split, still, 10, CPU, 0)
    batches = list(loader)
    assert len(batches) == len(loader) == 10
    assert all(len(target) == 10 for _, target, *_ in batches)
    seen = torch.cat([images for images, *_ in batches]).flatten(1)
    assert len(seen.unique(dim=0)) == 100


def test_evaluation_keeps_everything_in_order() -> None:
    split = noise(103)
    loader = MemoryEvalLoader(split, INFO, 10, CPU)
    images, targets = everything(loader)
    assert len(loader) == 11
    assert torch.equal(targets, split.labels)
    expected = TF.normalize(split.images.permute(0, 3, 1, 2).float() / 255, list(INFO.mean), list(INFO.std))
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)


def test_grey_images_that_are_expanded_to_three_channels() -> None:
    grey = noise(12).images[..., :1].contiguous()
    spread = Split(grey.expand(-1, -1, -1, 3), torch.arange(12))
    solid = Split(grey.repeat(1, 1, 1, 3), torch.arange(12))
    assert torch.equal(*(epoch_of(MemoryTrainLoader(split, INFO, 4, CPU, 0), 1)[0] for split in (spread, solid)))
    assert torch.equal(*(everything(MemoryEvalLoader(split, INFO, 5, CPU))[0] for split in (spread, solid)))


# holding out


def test_held_out_part_is_disjoint_stratified_and_seeded() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[
        torch.randperm(100, generator=torch.Generator().manual_seed(0))
    ]
    kept, held = hold_out(labels, 0.1, seed=0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(100))
    assert labels[held].bincount().tolist() == [5, 3, 2]
    assert torch.equal(hold_out(labels, 0.1, seed=0)[1], held)
    assert not torch.equal(hold_out(labels, 0.1, seed=1)[1], held)


def test_share_of_each_class_is_right_to_within_one_image() -> None:
    labels = torch.arange(997) % 13
    for fraction in (0.01, 0.1, 0.37, 0.9):
        held = hold_out(labels, fraction, seed=2)[1]
        assert len(held) == round(fraction * 997)
        assert ((labels[held].bincount(minlength=13) - fraction * labels.bincount()).abs() <= 1).all()


def test_validation_is_taken_from_the_training_set_without_augmentation(digits: Loaders) -> None:
    assert digits.validation is not None
    assert digits.validation.num_images == round(0.2 * 1297)
    assert torch.equal(everything(digits.validation)[0], everything(digits.validation)[0])
    assert get_loaders("digits").validation is None


# options


def test_names_fold_case_and_unknown_ones_list_the_choices() -> None:
    assert get_loaders("DIGITS").info.name == "digits"
    message = message_of("cifar1000")
    assert "did you mean 'cifar100'" in message
    assert all(name in message for name in dataset_dict)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_validation_out_of_range(value: float) -> None:
    message = message_of("digits", validation=value)
    assert "--validation" in message
    assert str(value) in message


@pytest.mark.parametrize("value", [1e-5, 0.99999])
def test_validation_that_leaves_an_empty_part(value: float) -> None:
    assert re.search(r"--validation.*empty", message_of("digits", validation=value))


def test_batch_larger_than_the_training_set(image_tree: Path) -> None:
    assert re.search(r"--batch_size.*2000.*1297", message_of("digits", batch_size=2000))
    assert re.search(r"--batch_size.*16.*15", message_of("folder", image_tree, batch_size=16))
    assert re.search(r"--batch_size.*1297.*1167", message_of("digits", batch_size=1297, validation=0.1))


def test_numbers_that_are_too_small() -> None:
    for option, value in (("batch_size", 0), ("eval_batch_size", 0), ("num_workers", -1)):
        assert f"--{option}: must be at least" in message_of("digits", **{option: value})


@pytest.mark.parametrize("name", [name for name in dataset_dict if name not in ("folder", "imagenet")])
def test_info_needs_no_files(name: str, tmp_path: Path) -> None:
    info = info_of(name, tmp_path)
    assert info.name == name
    assert info.classes is None or len(info.classes) == info.num_classes
    assert not list(tmp_path.iterdir())
    if name in own_names(dataset_dict):  # ours are augmented as everyone does it
        assert info.flip == (name not in ("digits", "mnist", "svhn"))
        assert info.padding == info.image_size // 8


# missing and damaged files

DOWNLOADED = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "svhn": "svhn",
    "stl10": "stl10_binary",
    "tinyimagenet": "tiny-imagenet-200",
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", DOWNLOADED)
def test_missing_files_say_what_to_put_where(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = tmp_path / "data"
    message = message_of(name, data_dir)
    assert str(data_dir / DOWNLOADED[name]) in message
    assert "--data_dir" in message
    assert "http" in message
    assert "no route to host" in message
    assert not data_dir.exists()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", DOWNLOADED)
def test_incomplete_folders_are_named_and_kept(name: str, tmp_path: Path) -> None:
    folder = tmp_path / DOWNLOADED[name]
    folder.mkdir()
    (folder / "junk").write_bytes(b"?")
    message = message_of(name, tmp_path)
    assert re.search(rf"{re.escape(str(folder))}\S* is missing", message)
    assert f"delete {folder}" in message
    assert (folder / "junk").exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("contents", [b"", b"\x80\x04truncated"])
def test_damaged_file_is_named(contents: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(contents)
    assert f"{folder / 'train'} is damaged" in message_of("cifar100", tmp_path)


@pytest.mark.usefixtures("offline")
def test_damaged_files_without_a_checksum(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"\0\0\x08\x03")
    assert f"{tmp_path / 'MNIST'} cannot be read" in message_of("mnist", tmp_path)


@pytest.mark.usefixtures("offline")
def test_damaged_archive_is_named_and_kept(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half an archive")
    assert f"{archive} is damaged" in message_of("cifar10", tmp_path)
    assert archive.read_bytes() == b"half an archive"


def test_interrupted_download_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    source = Source("noise", "noise", "http://example.org", None, ())
    full = False

    def download(directory: Path) -> None:
        (directory / "noise").mkdir()
        (directory / "noise" / "first").write_bytes(b"1")
        if not full:
            raise RuntimeError("File not found\nor corrupted.")
        print("torchvision likes to talk")
        (directory / "noise" / "second").write_bytes(b"2")

    with pytest.raises(UsageError, match="File not found or corrupted"):
        provide(source, tmp_path, download)
    assert not list(tmp_path.iterdir())
    full = True
    provide(source, tmp_path, download)
    assert [path.name for path in tmp_path.iterdir()] == ["noise"]
    assert sorted(path.name for path in (tmp_path / "noise").iterdir()) == ["first", "second"]


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A data folder with an archive in CIFAR-10's form, of 50 + 10 images, and checksums to match."""
    reader = Cifar10.reader
    random = np.random.RandomState(0)
    names = [name for name, _ in [*reader.train_list, *reader.test_list]]
    contents = {
        name: pickle.dumps({"data": random.randint(0, 256, (10, 3072)).astype(np.uint8), "labels": list(range(10))})
        for name in names
    }
    contents["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    archive = tmp_path / reader.filename
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{reader.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(reader, "train_list", [[name, md5[name]] for name in names[:5]])
    monkeypatch.setattr(reader, "test_list", [[name, md5[name]] for name in names[5:]])
    monkeypatch.setattr(reader, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]})
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return tmp_path


@pytest.mark.usefixtures("offline")
def test_archive_in_the_data_folder_spares_the_download(small_cifar: Path) -> None:
    loaders = get_loaders("cifar10", small_cifar, batch_size=10)
    assert loaders.train.num_images == 50
    assert everything(loaders.test)[1].tolist() == list(range(10))
    assert sorted(path.name for path in small_cifar.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_as_distributed(name: str, folder: str, tmp_path: Path) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    grey = np.random.RandomState(0).randint(0, 256, (10, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        header = b"".join(size.to_bytes(4, "big") for size in (0x803, 10, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + grey.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x0a" + bytes(range(10)))
    loaders = get_loaders(name, tmp_path, batch_size=5)
    images, target = everything(loaders.test)
    assert target.tolist() == list(range(10))
    black = TF.pad(torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1), [2, 2, 2, 2]) / 255
    expected = TF.normalize(black, list(loaders.info.mean), list(loaders.info.std))
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    assert everything(loaders.train)[0].shape == (10, 3, 32, 32)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["svhn", "stl10"])
def test_channel_first_files_as_distributed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = info_of(name).image_size
    pixels = np.random.RandomState(0).randint(0, 256, (10, size, size, 3), dtype=np.uint8)  # [N, H, W, 3]
    if name == "svhn":
        (tmp_path / "svhn").mkdir()
        for part in ("train", "test"):
            arrays = {"X": pixels.transpose(1, 2, 3, 0), "y": np.arange(1, 11)[:, None]}  # the digit 0 is labelled 10
            scipy.io.savemat(tmp_path / "svhn" / f"{part}_32x32.mat", arrays)
            entry = ["", f"{part}_32x32.mat", None]
            monkeypatch.setitem(torchvision.datasets.SVHN.split_list, part, entry)
    else:
        folder = tmp_path / "stl10_binary"
        folder.mkdir()
        for part in ("train", "test"):
            (folder / f"{part}_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())  # column by column
            (folder / f"{part}_y.bin").write_bytes(bytes(range(1, 11)))
            monkeypatch.setattr(Labelled, f"{part}_list", [[f"{part}_X.bin", None], [f"{part}_y.bin", None]])
    loaders = get_loaders(name, tmp_path, batch_size=5)
    images, target = everything(loaders.test)
    assert target.tolist() == ([*range(1, 10), 0] if name == "svhn" else list(range(10)))
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    expected = TF.normalize(scaled, list(loaders.info.mean), list(loaders.info.std))
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    assert everything(loaders.train)[0].shape == (10, 3, size, size)


# image files


def test_folder_reads_classes_and_images(image_tree: Path) -> None:
    assert info_of("folder", image_tree).classes == ("cat", "dog")
    loaders = get_loaders("folder", image_tree, batch_size=4, num_workers=0)
    assert loaders.info.num_classes == 2
    assert (len(loaders.train), loaders.train.num_images) == (3, 15)
    images, target, *_ = next(iter(loaders.train))
    assert images.shape == (4, 3, 224, 224)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert target.dtype == torch.int64
    images, target = everything(loaders.test)
    assert target.tolist() == [0, 1]
    with Image.open(image_tree / "val" / "cat" / "0.png") as file:
        picture = TF.center_crop(TF.resize(file, [256]), [224, 224])
    expected = TF.normalize(TF.pil_to_tensor(picture) / 255, list(loaders.info.mean), list(loaders.info.std))
    torch.testing.assert_close(images[0], expected, atol=1e-6, rtol=0)


def test_folder_holds_out_in_proportion(image_tree: Path) -> None:
    loaders = get_loaders("folder", image_tree, batch_size=4, validation=0.2, num_workers=0)
    assert loaders.validation is not None
    assert everything(loaders.validation)[1].tolist() == [0, 0, 1]
    assert loaders.train.num_images == 12


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_number_of_workers_changes_no_batch(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.stream.cores", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)  # torch warns of too many workers
    runs = []
    for workers in (0, 2):
        train = get_loaders("folder", image_tree, batch_size=4, num_workers=workers).train
        runs.append([epoch_of(train, epoch) for epoch in (0, 1, 0)])  # the workers outlive the epochs
    for (images, target), (images_too, target_too) in zip(*runs, strict=True):
        assert torch.equal(images, images_too)
        assert torch.equal(target, target_too)
    first, second, again = (images for images, _ in runs[0])
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_imagenet_is_found_below_or_at_the_data_folder(image_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "imagenet").symlink_to(image_tree)
    for data_dir in (tmp_path, image_tree):
        assert get_loaders("imagenet", data_dir, batch_size=4, num_workers=0).info.num_classes == 2


@pytest.fixture
def own_tree(image_tree: Path, tmp_path: Path) -> Path:
    """A tree that a test may spoil."""
    shutil.copytree(image_tree, tmp_path / "tree")
    return tmp_path / "tree"


def test_folder_without_a_tree(tmp_path: Path) -> None:
    for name in ("folder", "imagenet"):
        message = message_of(name, tmp_path)
        assert "--data_dir" in message
        assert "train" in message
    with pytest.raises(UsageError, match="--data_dir"):
        info_of("folder", tmp_path)
    (tmp_path / "train").mkdir()
    assert "no class folders" in message_of("folder", tmp_path)


def test_folder_with_classes_that_differ(own_tree: Path) -> None:
    save_image(own_tree / "val" / "owl" / "0.png", (40, 40), 0)
    assert "'owl' is in val and not in train" in message_of("folder", own_tree)
    shutil.rmtree(own_tree / "val")
    assert f"{own_tree / 'val'} or {own_tree / 'test'}" in message_of("folder", own_tree)


def test_folder_with_an_empty_class(own_tree: Path) -> None:
    for index in range(5):
        (own_tree / "train" / "dog" / f"{index}.png").unlink()
    assert "dog" in message_of("folder", own_tree)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_readers_leave_signals_to_the_run(image_tree: Path) -> None:
    """But for the SIGTERM with which torch ends one that hangs; and nothing is raised when one ends."""
    before = signal.getsignal(signal.SIGCHLD)
    loader = get_loaders("folder", image_tree, batch_size=4, num_workers=1).train
    batches = iter(loader)
    next(batches)
    (reader,) = multiprocessing.active_children()
    assert reader.pid is not None
    for number in SIGNALS:
        subprocess.run(["kill", f"-{number.value}", str(reader.pid)], check=True)
    assert len(list(batches)) == len(loader) - 1
    assert reader.is_alive()
    reader.terminate()
    reader.join(60)
    assert reader.exitcode == 0
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_reader_is_one_line(image_tree: Path) -> None:
    batches = iter(get_loaders("folder", image_tree, batch_size=1, num_workers=1).train)
    next(batches)
    (reader,) = multiprocessing.active_children()
    reader.kill()
    reader.join()
    message = ""
    try:  # as below
        list(batches)
    except ReadersLost as error:
        message = str(error)
    assert "--num_workers" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),  # it was just handing a batch over
        (EOFError(), True),
        (RuntimeError("shapes differ"), False),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0."), False),
    ],
)
def test_what_torch_makes_of_a_lost_reader(error: Exception, lost: bool) -> None:
    assert tells_of_a_loss(error) == lost


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_cannot_be_read(own_tree: Path, workers: int) -> None:
    """One that is damaged after all have been checked."""
    loader = get_loaders("folder", own_tree, batch_size=4, num_workers=workers).test
    spoilt = own_tree / "val" / "dog" / "0.png"
    spoilt.write_bytes(spoilt.read_bytes()[:1000])
    message = ""
    try:  # pytest.raises would keep the frames, and with them the workers, alive in a cycle: slow to collect
        everything(loader)
    except UsageError as error:
        message = str(error)
    assert f"{spoilt} cannot be read" in message
    assert "\n" not in message


@pytest.fixture
def tiny_tree(tmp_path: Path) -> Path:
    """Tiny ImageNet as distributed, with two images per class and one to test on for every tenth."""
    tree = tmp_path / "tiny-imagenet-200"
    names = [f"n{index:08}" for index in range(199, -1, -1)]
    for index, name in enumerate(names):
        for number in range(2):
            save_image(tree / "train" / name / "images" / f"{name}_{number}.JPEG", (64, 64), index)
    (tree / "wnids.txt").write_text("\n".join(names) + "\n")
    lines = [f"val_{index}.JPEG\t{names[index]}\t0\t0\t9\t9\n" for index in range(0, 200, 10)]
    for index in range(0, 200, 10):
        save_image(tree / "val" / "images" / f"val_{index}.JPEG", (64, 64), index)
    (tree / "val" / "val_annotations.txt").write_text("".join(lines))
    return tree


@pytest.mark.usefixtures("offline")
def test_tiny_imagenet_as_distributed(tiny_tree: Path) -> None:
    loaders = get_loaders("tinyimagenet", tiny_tree.parent, batch_size=50, num_workers=0)
    assert (loaders.train.num_images, loaders.test.num_images) == (400, 20)
    images, target = everything(loaders.train)
    assert images.shape == (400, 3, 64, 64)
    assert target.bincount().tolist() == [2] * 200
    assert sorted(everything(loaders.test)[1].tolist()) == list(range(9, 200, 10))
    (tiny_tree / "val" / "images" / "val_0.JPEG").unlink()
    assert "1 of 20 images are missing from val/images" in message_of("tinyimagenet", tiny_tree.parent)
    shutil.rmtree(tiny_tree / "train" / "n00000007")
    assert "n00000007" in message_of("tinyimagenet", tiny_tree.parent)
    (tiny_tree / "wnids.txt").write_text("n00000001\n")
    assert "200 classes" in message_of("tinyimagenet", tiny_tree.parent)


# the real thing


@pytest.mark.skipif(not (REAL_DATA / "cifar-100-python").is_dir(), reason="CIFAR-100 is not there")
def test_real_cifar100() -> None:
    loaders = get_loaders("CIFAR100", REAL_DATA, validation=0.1)
    assert loaders.validation is not None
    assert (loaders.train.num_images, loaders.validation.num_images, loaders.test.num_images) == (45000, 5000, 10000)
    assert (len(loaders.train), len(loaders.validation), len(loaders.test)) == (703, 79, 157)
    assert everything(loaders.validation)[1].bincount().tolist() == [50] * 100
    images, target = everything(loaders.test)
    assert target.bincount().tolist() == [100] * 100
    assert images.mean().abs() < 0.02
    assert abs(images.std() - 1) < 0.02


# ---- parts of batches, for several processes and for resuming


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_share_every_batch_without_overlap(size: int, image_tree: Path) -> None:
    for name, data_dir, batch_size in (("digits", Path("data"), 6), ("folder", image_tree, 6)):
        whole = list(get_loaders(name, data_dir, batch_size, num_workers=0).train)
        parts = [
            list(get_loaders(name, data_dir, batch_size, num_workers=0, shard=(rank, size)).train)
            for rank in range(size)
        ]
        assert {len(part) for part in parts} == {len(whole)}
        for step, batch in enumerate(whole[:5]):
            shares = [part[step] for part in parts]
            assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
            assert torch.equal(torch.cat([share.target for share in shares]), batch.target)
            if batch.views is not None:
                assert torch.equal(torch.cat([share.views for share in shares]), batch.views)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_test_set_without_overlap(size: int, image_tree: Path) -> None:
    for name, data_dir in (("digits", Path("data")), ("folder", image_tree))[: 4 - size]:  # the tree has two images
        whole = everything(get_loaders(name, data_dir, 4, num_workers=0).test)
        shards = [(rank, size) for rank in range(size)]
        loaders = [get_loaders(name, data_dir, 6, num_workers=0, shard=shard, eval_batch_size=4) for shard in shards]
        parts = [everything(each.test) for each in loaders]
        assert torch.equal(torch.cat([images for images, _ in parts]), whole[0])
        assert torch.equal(torch.cat([target for _, target in parts]), whole[1])
        assert max(each.test.num_images for each in loaders) - min(each.test.num_images for each in loaders) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_begin_in_its_middle(workers: int, image_tree: Path) -> None:
    for name, data_dir in (("digits", Path("data")), ("folder", image_tree)):
        loader = get_loaders(name, data_dir, 4, num_workers=workers).train
        loader.set_epoch(3)
        whole = list(loader)
        loader.set_epoch(3, start=2)
        rest = list(loader)
        assert len(rest) == len(whole) - 2
        for batch, same in zip(rest, whole[2:], strict=True):
            assert torch.equal(batch.images, same.images)
            assert torch.equal(batch.target, same.target)
        loader.set_epoch(3, start=len(loader))
        assert not list(loader)


class Faulty(torch.utils.data.Dataset[int]):
    """Reports what a thread of a worker may meet."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: int) -> int:
        for error in (ConnectionResetError("nobody takes it"), EOFError(), ValueError("a fault of its own")):
            sys.excepthook(type(error), error, None)
        return place


def test_readers_are_quiet_about_a_run_that_has_ended(capfd: pytest.CaptureFixture[str]) -> None:
    """Their tensors have no taker then; what else goes wrong is said."""
    list(torch.utils.data.DataLoader(Faulty(), num_workers=1, worker_init_fn=in_readers()))
    assert capfd.readouterr().err == "ValueError: a fault of its own\n"
