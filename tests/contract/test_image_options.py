"""Images as the user wants them: size, normalisation, colours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from dataset import checking, get_loaders, info_of
from dataset.augment import Middle, bytes_kept
from dataset.base import DatasetInfo, MemoryDataset, Split
from dataset.decoded import PictureTrainLoader
from dataset.digits import Digits
from dataset.loader import Loaders, memory_loaders
from dataset.memory import MemoryEvalLoader, MemoryTrainLoader
from dataset.mix import MixedLoader
from dataset.order import ALONE, balanced_order, epoch_crops, epoch_order, mislabelled, of_specialist, split_for_good
from dataset.pictures import grey_picture, grey_pixels
from dataset.stream import StreamLoader
from helper.batch import Batch
from helper.errors import UsageError
from helper.images import AUGMENTATIONS, ImageOptions
from helper.label_loss import label_loss

NO_LOADER = SimpleNamespace(num_images=6, labels=torch.arange(6), set_epoch=lambda *_: None)
SIZES = {"cat": (40, 48), "dog": (64, 40)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 cats and 3 dogs of other shapes to train on, one of each to test on."""
    return make_tree(tmp_path_factory.mktemp("tree"))


def make_tree(folder: Path, train: tuple[int, int] = (6, 3), test: tuple[int, int] = (1, 1)) -> Path:
    random = np.random.RandomState(0)
    for part, counts in (("train", train), ("test", test)):
        for (name, (width, height)), count in zip(SIZES.items(), counts, strict=True):
            for index in range(count):
                path = folder / part / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.randint(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return folder


def load(tree: Path, name: str = "folder", **options: Any) -> Any:
    wanted = {key: options.pop(key) for key in tuple(options) if key in ImageOptions.__dataclass_fields__}
    return get_loaders(name, tree, images=ImageOptions(**wanted), **{"batch_size": 3, "num_workers": 0, **options})


def epoch_of(loader: Any, epoch: int, start: int = 0) -> tuple[Tensor, Tensor]:
    loader.set_epoch(epoch, start)
    images, targets, *_ = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(targets)


def all_of(loader: Any) -> Tensor:
    return torch.cat([batch.images for batch in loader])


def middle(path: Path, size: int) -> Tensor:
    """float [3, H, W] from 0 to 1: the shorter side at ``size``, and the middle of it."""
    with Image.open(path) as file:
        return TF.pil_to_tensor(TF.center_crop(TF.resize(file, [size]), [size, size])) / 255


def test_small_sizes_are_cropped_as_cifar(tree: Path) -> None:
    loaders = load(tree, image_size=32, in_memory="never", mean=(0.0,) * 3, std=(1.0,) * 3)
    info = loaders.info
    assert (info.image_size, info.padding, info.flip, info.mean) == (32, 4, True, (0.0, 0.0, 0.0))
    torch.testing.assert_close(all_of(loaders.test)[1], middle(tree / "test/dog/0.png", 32))
    images, _ = epoch_of(loaders.train, 2)
    order = epoch_order(9, 0, 2)
    top, left, mirrored = epoch_crops(9, 4, True, 0, 2)[order].unbind(1)
    paths = [
        tree / "train" / name for name in (*(f"cat/{i}.png" for i in range(6)), *(f"dog/{i}.png" for i in range(3)))
    ]
    for image, which, y, x, flipped in zip(images, order.tolist(), top, left, mirrored, strict=True):
        expected = TF.crop(TF.pad(middle(paths[which], 32), [4, 4, 4, 4]), int(y), int(x), 32, 32)
        torch.testing.assert_close(image, TF.horizontal_flip(expected) if flipped else expected)


def test_large_sizes_are_cropped_as_imagenet(tree: Path) -> None:
    loaders = load(tree, image_size=112, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert (loaders.info.padding, loaders.info.crop) == (0, "resized_crop")
    with Image.open(tree / "test/cat/0.png") as file:
        expected = TF.pil_to_tensor(TF.center_crop(TF.resize(file, [128]), [112, 112])) / 255
    torch.testing.assert_close(all_of(loaders.test)[0], expected)
    images, again, other = (epoch_of(load(tree, image_size=112).train, epoch)[0] for epoch in (1, 1, 2))
    assert images.shape[1:] == (3, 112, 112)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_normalisation_is_as_told() -> None:
    plain = load(Path("data"), "digits").test
    told = load(Path("data"), "digits", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)).test
    info = info_of("digits")
    pixels = all_of(plain) * torch.tensor(info.std)[:, None, None] + torch.tensor(info.mean)[:, None, None]
    expected = TF.normalize(pixels, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
    torch.testing.assert_close(all_of(told), expected, atol=1e-5, rtol=0)


def test_grey_is_pillows_brightness_three_times(tree: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (50, 40, 3), dtype=np.uint8)
    grey = np.asarray(grey_picture(Image.fromarray(pixels)))
    assert np.array_equal(grey, grey_pixels(torch.from_numpy(pixels)[None])[0].numpy())
    images = all_of(load(tree, channels=1, mean=(0.0,) * 3, std=(1.0,) * 3).test)
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert images.std() > 0.01


def test_other_images_of_the_same_files_have_another_identity(tree: Path) -> None:
    wanted = [{}, {"image_size": 32}, {"image_size": 64}, {"channels": 1}, {"image_size": 32, "channels": 1}]
    identities = [info_of("folder", tree, images=ImageOptions(**each)).identity for each in wanted]  # type: ignore[arg-type]
    assert len({*identities}) == len(wanted)
    assert all(len(each) == 6 for each in identities)
    assert info_of("folder", tree, images=ImageOptions(mean=(0.5,) * 3)).identity == identities[0]  # type: ignore[arg-type]


class Noise(MemoryDataset):
    """Eight images of 32×32."""

    info = DatasetInfo("noise", 2, 32, (0.5,) * 3, (0.25,) * 3, padding=4, flip=True)

    def load(self) -> tuple[Split, Split]:
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=draw)
        return (Split(images, torch.arange(8) % 2),) * 2


def of_noise(**wanted: Any) -> Loaders:
    dataset = Noise(Path("nowhere"))
    dataset.wanted = ImageOptions(**wanted)
    return memory_loaders(dataset, 4, torch.device("cpu"), 0, 0.0, 4, ALONE)


@pytest.mark.parametrize("size", [8, 16, 48])
def test_images_in_memory_are_scaled(size: int) -> None:
    plain, scaled = of_noise(), of_noise(image_size=size)
    assert (scaled.info.image_size, scaled.info.padding, scaled.info.flip) == (size, size // 8, True)
    assert scaled.info.identity not in ("", plain.info.identity)
    expected = F.interpolate(all_of(plain.test), (size, size), mode="bilinear", antialias=True)
    assert (all_of(scaled.test) - expected).abs().max() < 4 * 1.5 / 255, "values are rounded to one of 256"
    assert next(iter(scaled.train)).images.shape == (4, 3, size, size)
    assert scaled.train.views is not None
    assert scaled.train.views.size == 8 * (2 * (size // 8) + 1) ** 2 * 2


def test_images_are_not_scaled_beyond_the_memory() -> None:
    message = r"--image_size: 224 needs about 0\.00241 GB, and --memory_gb is 0\.001; raise it"
    with pytest.raises(UsageError, match=message):
        of_noise(image_size=224, memory_gb=0.001)
    assert of_noise(memory_gb=1e-9).info.image_size == 32, "only what is made larger is looked at"


def test_digits_come_in_any_size() -> None:
    """Their pixels are squares of 4 at 32×32, of 2 at 16×16 and one at 8×8; what is cropped and named goes with it."""
    sizes = {size: get_loaders("digits", images=ImageOptions(image_size=size)) for size in (8, 16, 32)}
    plain = get_loaders("digits")
    assert torch.equal(all_of(sizes[32].test), all_of(plain.test))
    for size, loaders in sizes.items():
        assert next(iter(loaders.train)).images.shape[1:] == (3, size, size)
        assert (loaders.info.image_size, loaders.info.padding, loaders.info.flip) == (size, size // 8, False)
        assert torch.equal(loaders.train.labels, plain.train.labels)
        assert abs(all_of(loaders.test).mean() - all_of(plain.test).mean()) < 0.05
    identities = {loaders.info.identity for loaders in sizes.values()}
    assert len(identities) == 3
    assert plain.info.identity == "" not in identities


# labels, and classes that are left out


def test_a_share_of_the_training_labels_is_another_classs() -> None:
    labels = torch.arange(100).repeat(20)
    wrong = mislabelled(labels, 0.4, 100, seed=3)
    changed = (wrong != labels).nonzero().flatten()
    assert len(changed) == 800
    assert len(wrong[changed].unique()) > 95, "any other class"
    assert len(labels[changed].unique()) > 95, "of any class"
    assert torch.equal(mislabelled(labels, 0.4, 100, seed=3), wrong)
    assert not torch.equal(mislabelled(labels, 0.4, 100, seed=4), wrong)


def test_a_specialist_sees_its_part_of_the_classes_and_few_others() -> None:
    labels = torch.randint(10, (2000,), generator=torch.Generator().manual_seed(0))
    every = labels.bincount(minlength=10)
    parts = [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
    for part, known in enumerate(parts, 1):
        places = of_specialist(labels, f"{part}of3", 0.1, 10, seed=0)
        assert torch.equal(places, places.unique())
        counts = labels[places].bincount(minlength=10)
        for label in range(10):
            assert counts[label] == (every[label] if label in known else round(0.1 * int(every[label])))
    assert set(labels[of_specialist(labels, "1of3", 0, 10, seed=0)].tolist()) == {*parts[0]}


@pytest.mark.parametrize("name", ["digits", "folder", "folder in memory"])
def test_wrong_labels_and_specialists_concern_training_alone(name: str, tree: Path) -> None:
    """The images that are left are shown as ever; what is evaluated stays as it is."""
    dataset, _, held = name.partition(" ")
    options: dict[str, Any] = {"validation": 0.34, "batch_size": 1, "seed": 2}
    if dataset == "folder":
        options |= {"image_size": 32, "in_memory": "always" if held else "never"}
    plain = load(tree, dataset, augment="none", **options)
    images, labels = epoch_of(plain.train, 1)
    for changes in ({"wrong_labels": 0.5}, {"specialist": "1of2", "specialist_others": 0.0}):
        other = load(tree, dataset, augment="none", **options, **changes)
        for part, same in ((other.test, plain.test), (other.validation, plain.validation)):
            assert all(map(torch.equal, everything(part), everything(same)))
        seen, told = epoch_of(other.train, 1)
        assert set(digests(seen)) <= set(digests(images))
        assert numbered(other.train).items() <= numbered(plain.train).items(), "what a cache knows of them"
        if "specialist" in changes:
            assert set(told.tolist()) == set(range((other.info.num_classes + 1) // 2))
            assert other.train.num_images == (labels < (other.info.num_classes + 1) // 2).sum()
        else:
            right = dict(zip(digests(images), labels.tolist(), strict=True))
            wrong = sum(right[image] != label for image, label in zip(digests(seen), told.tolist(), strict=True))
            assert wrong == round(0.5 * len(labels))


def everything(loader: Any) -> tuple[Tensor, Tensor]:
    images, targets, *_ = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(targets)


def numbered(loader: Any) -> dict[bytes, int]:
    """The numbers of the views of an epoch, where they can be counted."""
    batches = list(loader) if loader.views else []
    return {
        image: view
        for batch in batches
        for image, view in zip(digests(batch.images), batch.views.tolist(), strict=True)
    }


def digests(images: Tensor) -> list[bytes]:
    """What tells images apart."""
    return [image.numpy().tobytes() for image in images]


# augmentation


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("name", ["digits", "folder", "folder in memory"])
def test_every_augmentation_is_seeded_for_each_image(
    augment: str, name: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Digits(Path()).load()[0].subset(torch.arange(100))
    monkeypatch.setattr(Digits, "load", lambda _: (few, few))
    size: dict[str, Any] = {"image_size": 32, "in_memory": "always" if "memory" in name else "never"}
    name, _, held = name.partition(" ")
    size = size if name == "folder" else {}
    loaders, again = (load(tree, name, augment=augment, seed=3, **size) for _ in range(2))
    epoch_of(again.train, 1)  # a history must not matter
    torch.manual_seed(0)
    before = torch.get_rng_state()
    images, targets = epoch_of(loaders.train, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert images.shape[1:] == (3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    whole, labels = epoch_of(again.train, 2)
    assert torch.equal(images, whole)
    assert torch.equal(targets, labels)
    assert torch.equal(epoch_of(loaders.train, 2, start=2)[0], images[6:])
    shares = [load(tree, name, augment=augment, seed=3, shard=(rank, 3), **size).train for rank in range(3)]
    parts = [epoch_of(each, 2)[0][:3] for each in shares]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), images[:9])
    assert len(images.flatten(1).unique(dim=0)) > 0.95 * len(images)  # some digits become white
    if augment == "none":
        first, other = (epoch_of(loaders.train, epoch)[0].flatten(1).unique(dim=0) for epoch in (1, 2))
        assert name == "digits" or torch.equal(first, other)  # of digits, another one is dropped in each epoch
    else:
        assert not torch.equal(epoch_of(loaders.train, 3)[0], images)
    assert (loaders.train.views is not None) == (augment in ("crop_flip", "none") and (name == "digits" or held != ""))


def test_what_all_digits_show_is_what_they_are_without_augmentation() -> None:
    loader = load(Path("data"), "digits", augment="none").train
    assert loader.views.size == loader.num_images
    batch = next(iter(loader))
    assert torch.equal(loader.images_of(batch.views), batch.images)
    pixels = loader.pixels[:-1].view(-1, 32, 32, 3)[batch.places]
    assert torch.equal(loader.normalise(pixels), batch.images)


def test_the_datasets_own_augmentation_is_the_default() -> None:
    own, told = (epoch_of(load(Path("data"), "digits", **each).train, 1)[0] for each in ({}, {"augment": "crop_flip"}))
    assert torch.equal(own, told)


def test_policies_distort_what_the_own_crop_gives(tree: Path) -> None:
    for augment in ("randaugment", "trivialaugment"):
        plain, distorted = (
            torch.cat([epoch_of(load(tree, augment=each, image_size=32).train, epoch)[0] for epoch in range(6)])
            for each in ("crop_flip", augment)
        )
        same = (plain == distorted).flatten(1).all(1)
        assert same.sum() < len(same) / 2
        assert augment == "randaugment" or same.any()  # one operation of 14 is the identity


# in memory


def cached() -> list[Path]:
    folder = checking.cache_folder() / "decoded"
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def own_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree that a test may change, and a cache folder of its own."""
    monkeypatch.setattr(checking, "cache_folder", lambda: tmp_path / "cache")
    return make_tree(tmp_path / "tree")


@pytest.mark.parametrize("augment", ["crop_flip", "trivialaugment", "none"])
def test_in_memory_is_the_same_as_from_files(augment: str, own_tree: Path) -> None:
    options: dict[str, Any] = {"image_size": 32, "augment": augment, "validation": 0.34, "channels": 1}
    held, read = (load(own_tree, in_memory=each, **options) for each in ("auto", "never"))
    assert (type(held.train), type(read.train)) == (MemoryTrainLoader, StreamLoader)
    assert held.info == read.info
    assert held.sizes == read.sizes
    for epoch in (1, 2):
        for mine, theirs in zip(epoch_of(held.train, epoch), epoch_of(read.train, epoch), strict=True):
            assert torch.equal(mine, theirs)
    for mine, theirs in ((held.test, read.test), (held.validation, read.validation)):
        assert torch.equal(all_of(mine), all_of(theirs))


def test_any_part_of_pictures_of_any_shape_is_cropped_in_memory(own_tree: Path) -> None:
    loaders = load(own_tree, augment="resized_crop", image_size=20, validation=0.34, in_memory="always")
    assert isinstance(loaders.train, PictureTrainLoader)
    shapes = {tuple(shape) for shape in loaders.train.pictures.shapes.tolist()}
    assert shapes == {(36, 30), (30, 48)}  # of 48 by 40 and 40 by 64; 1.5 times 20 on the shorter side
    images, _ = epoch_of(loaders.train, 1)
    again, _ = epoch_of(load(own_tree, augment="resized_crop", image_size=20, validation=0.34).train, 1)
    assert torch.equal(images, again)
    assert images.shape[1:] == (3, 20, 20)
    read = load(own_tree, augment="resized_crop", image_size=20, validation=0.34, in_memory="never")
    assert torch.equal(all_of(loaders.validation), all_of(read.validation))
    assert loaders.info.identity != read.info.identity  # of pictures of another size
    large = load(own_tree, augment="resized_crop", image_size=40, in_memory="always")
    assert {tuple(shape) for shape in large.train.pictures.shapes.tolist()} == {(48, 40), (40, 64)}  # not enlarged


def test_runs_of_earlier_versions_stay_as_they_were(own_tree: Path) -> None:
    assert isinstance(load(own_tree).train, StreamLoader)
    assert not cached()
    held = load(own_tree, in_memory="always")
    assert isinstance(held.train, PictureTrainLoader)
    assert held.info.identity != info_of("folder", own_tree).identity  # it is drawn otherwise
    assert info_of("digits", images=ImageOptions(in_memory="always")) == info_of("digits")


def test_decoded_once(own_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(own_tree, image_size=32)
    assert len(cached()) == 2
    assert first.notes == (f"folder: 3.4e-05 GB of pixels in memory, kept in {cached()[0].parent}",)
    with monkeypatch.context() as patch:
        patch.setattr(StreamLoader, "read", lambda _: pytest.fail("read again"))
        again = load(own_tree, image_size=32)
    assert torch.equal(epoch_of(first.train, 1)[0], epoch_of(again.train, 1)[0])


def test_stale_and_damaged_files_are_made_anew(own_tree: Path) -> None:
    before = all_of(load(own_tree, image_size=32).test)
    files = cached()
    for damage in (b"", b"not it", files[0].read_bytes()[:-1], files[0].read_bytes()[:-1] + b"?"):
        files[0].write_bytes(damage)
        files[1].write_bytes(damage)
        assert torch.equal(all_of(load(own_tree, image_size=32).test), before)
    pixels = np.full((40, 48, 3), 7, np.uint8)
    Image.fromarray(pixels).save(own_tree / "test" / "dog" / "0.png")
    after = all_of(load(own_tree, image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3).test)
    torch.testing.assert_close(after[1], torch.full_like(after[1], 7 / 255))
    assert cached() == files


def test_what_killed_runs_have_left_is_removed(own_tree: Path) -> None:
    """Once nobody writes to it any more."""
    folder = checking.cache_folder() / "decoded"
    kept, old = folder / "tmpkept", folder / "tmpold"
    for scratch in (kept, old):
        scratch.mkdir(parents=True)
        (scratch / "half.u8").touch()
    for path in (kept, old, old / "half.u8"):
        os.utime(path, (0, 0))
    load(own_tree, image_size=32)
    assert [path for path in folder.iterdir() if path.is_dir()] == [kept]


def test_what_does_not_fit_is_read_or_refused(own_tree: Path) -> None:
    assert isinstance(load(own_tree, image_size=32, memory_gb=1e-5).train, StreamLoader)
    with pytest.raises(UsageError, match=r"--in_memory: always needs about .* GB, and --memory_gb is 1e-05"):
        load(own_tree, image_size=32, memory_gb=1e-5, in_memory="always")
    with pytest.raises(UsageError, match="--in_memory: --dataset digits is no set of image files"):
        info_of("digits", images=ImageOptions(in_memory="never"))


@pytest.mark.parametrize("shape", [(40, 60), (30, 600), (600, 25), (700, 60)])
def test_pictures_count_as_large_as_they_are_kept(shape: tuple[int, int], own_tree: Path) -> None:
    """Of any shape, upright or not: what is said to fit fits, and what does not is refused before it is decoded."""
    for number, path in enumerate(sorted((own_tree / "train").rglob("*.png"))):
        Image.new("RGB", shape, (number,) * 3).save(path)
    options: dict[str, Any] = {"augment": "resized_crop", "image_size": 20}
    paths = tuple(map(str, (own_tree / "train").rglob("*.png")))
    total = bytes_kept(paths, 30) + 2 * 20**2 * 3  # and one to test on of each class
    bound = max(total, 9 * 20**2 * 3 * 3 + 2 * 20**2 * 3) / 1e9
    held = load(own_tree, in_memory="always", memory_gb=bound, **options)
    assert held.train.pictures.pixels.numel() == bytes_kept(paths, 30)
    assert load(own_tree, memory_gb=bound, **options).info == held.info
    shutil.rmtree(checking.cache_folder())
    read = load(own_tree, memory_gb=bound * 0.99, **options)
    assert isinstance(read.train, StreamLoader)
    assert read.info == load(own_tree, in_memory="never", **options).info
    with pytest.raises(UsageError, match=r"--in_memory: always needs about .* GB, and --memory_gb is"):
        load(own_tree, in_memory="always", memory_gb=bound * 0.99, **options)
    assert not cached()


def test_held_out_pictures_are_kept_where_there_is_room_for_them_too(own_tree: Path) -> None:
    options: dict[str, Any] = {"augment": "resized_crop", "image_size": 20}
    bound = (9 * 20**2 * 3 * 3 + 2 * 20**2 * 3) / 1e9
    plain = load(own_tree, memory_gb=bound, **options)
    tight = load(own_tree, memory_gb=bound, validation=0.34, **options)
    assert isinstance(tight.validation, StreamLoader)
    assert len(cached()) == 2, "of the pictures and of the test set"
    roomy = load(own_tree, memory_gb=2 * bound, validation=0.34, **options)
    assert isinstance(roomy.validation, MemoryEvalLoader)
    assert torch.equal(all_of(roomy.validation), all_of(tight.validation))
    assert torch.equal(epoch_of(roomy.train, 1)[0], epoch_of(tight.train, 1)[0])
    assert plain.info == tight.info == roomy.info
    assert sorted(path.stat().st_size for path in cached())[1] == 4096 + 3 * (8 + 20**2 * 3), "no more than held out"
    with pytest.raises(UsageError, match=r"--in_memory: always needs about .* GB, and --memory_gb is"):
        load(own_tree, memory_gb=bound, validation=0.34, in_memory="always", **options)


def test_where_nothing_can_be_kept(own_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(checking, "cache_folder", lambda: tmp_path / "file" / "cache")
    with pytest.raises(UsageError, match=r"--in_memory: .*cannot be written .*; choose never"):
        load(own_tree, image_size=32)


def test_evaluation_alone_decodes_nothing(own_tree: Path) -> None:
    assert isinstance(load(own_tree, image_size=32, test_only=True).test, StreamLoader)
    assert not cached()


@pytest.mark.parametrize("size", [32, 112])
@pytest.mark.parametrize("shape", [(32, 32), (32, 40), (128, 128), (112, 112), (112, 128)])
def test_the_middle_is_what_torchvision_makes_of_it(size: int, shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8))
    middle = v2.Compose([v2.Resize(size if size == 32 else 128), v2.CenterCrop(size)])
    assert np.array_equal(np.array(Middle(size)(image)), np.array(middle(image)))


# parts


def test_a_split_is_stratified_and_the_same_for_every_seed() -> None:
    labels = torch.arange(400) % 4 % 3  # half, quarter, quarter
    train, chosen_on, test = split_for_good(labels, 0.7, 0.2)
    assert [len(each) for each in (train, chosen_on, test)] == [280, 40, 80]
    assert torch.cat([train, chosen_on, test]).sort().values.tolist() == list(range(400))
    for each in (train, chosen_on, test):
        assert labels[each].bincount().tolist() == [len(each) // 2, len(each) // 4, len(each) // 4]
    for shares in ((0.8, None), (None, 0.2), (0.8, 0.2)):
        train, chosen_on, test = split_for_good(labels, *shares)
        assert [len(each) for each in (train, chosen_on, test)] == [320, 0, 80]


@pytest.mark.parametrize("form", ["train", "alone", "list"])
def test_one_part_is_divided(form: str, own_tree: Path) -> None:
    shutil.rmtree(own_tree / "test")
    whole = own_tree
    if form == "alone":
        whole = own_tree / "train"
    elif form == "list":
        whole = own_tree / "mine.csv"
        write_list(whole, own_tree, "train")
    with pytest.raises(UsageError, match="--test_split"):
        load(whole)
    loaders = load(whole, test_split=0.34)
    assert loaders.sizes == "folder: 2 classes, 6 images to train on, 3 to test on"
    assert torch.cat([batch.target for batch in loaders.test]).tolist() == [0, 0, 1]
    assert torch.equal(all_of(load(whole, test_split=0.34, seed=5).test), all_of(loaders.test))
    other = load(whole, test_split=0.34, train_split=0.4)
    expected = "folder: 2 classes, 4 images to train on, 2 to choose the best epoch on (val), 3 to test on"
    assert other.sizes == expected
    assert len({loaders.info.identity, other.info.identity, load(whole, train_split=0.66).info.identity}) == 3
    with pytest.raises(UsageError, match=r"--test_split: 9 images of 2 classes cannot be divided so"):
        load(whole, test_split=0.9)
    with pytest.raises(UsageError, match=r"--test_split: 9 images"):
        load(whole, test_split=0.01)


def test_what_comes_in_parts_is_not_divided(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"--train_split: .*parts already, test, train; leave it out"):
        load(tree, train_split=0.5)
    with pytest.raises(UsageError, match="--test_split: --dataset digits comes in parts already"):
        info_of("digits", images=ImageOptions(test_split=0.5))


def write_list(path: Path, tree: Path, part: str, first: str = "label,path,note") -> None:
    lines = [f"{image.parent.name},{image.relative_to(path.parent)}," for image in (tree / part).rglob("*.png")]
    path.write_text("\n".join([first, *reversed(lines)]) + "\n")


def test_lists_are_what_the_same_tree_is(own_tree: Path) -> None:
    tree = load(own_tree)
    for part in ("train", "test"):
        write_list(own_tree / f"{part}.csv", own_tree, part, "\ufefflabel,path,note")
    lists = load(own_tree)
    assert lists.info == tree.info
    assert lists.sizes == tree.sizes
    assert torch.equal(all_of(lists.test), all_of(tree.test))
    assert torch.equal(epoch_of(lists.train, 1)[0], epoch_of(tree.train, 1)[0])
    shutil.copytree(own_tree / "test", own_tree / "val")
    write_list(own_tree / "val.csv", own_tree, "val")
    assert "2 to choose the best epoch on (val), 2 to test on" in load(own_tree).sizes
    with pytest.raises(UsageError, match=r"--validation: .* has a val to choose the best epoch on, beside test"):
        load(own_tree, validation=0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", "the first line of .*test.csv is 'file,label'; it has to be path,label"),
        ("", "the first line of .*test.csv is ''"),
        ("path,label\na.png\n", "line 2 of .*test.csv has no label"),
        ("path,label\n", "test.csv lists no images"),
        ("path,label\n\0a.png,cat\n", "line 2 of .*test.csv has a zero byte|test.csv cannot be read"),
        ("path,label\na.png,cat\n./a.png,dog\n", "gives ./a.png two labels, cat and dog"),
        ("path,label\n,cat\n", "line 2 of .*test.csv has no path"),
        ("path,label\na.png,owl\n", "test.csv has labels that are not in train: owl"),
        ("path,label\na.png,cat\n", r"1 image cannot be read: a.png \(not there\)"),
        ("path,label\n" + "a" * 200_000 + ",cat\n", "test.csv cannot be read"),
    ],
)
def test_lists_of_another_form(text: str, message: str, own_tree: Path) -> None:
    write_list(own_tree / "train.csv", own_tree, "train")
    (own_tree / "test.csv").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load(own_tree)
    assert "\n" not in str(caught.value)


def repeat(path: Path, times: int) -> None:
    """Every image of a list so often, spelled in two ways."""
    first, *lines = path.read_text().splitlines()
    others = [line.replace(",", ",./", 1) for line in lines]
    path.write_text("\n".join([first, *lines, *others * (times - 1)]) + "\n")


def pictures_in(loader: Any) -> set[bytes]:
    """Which pictures there are, of a loader that shows them as they are evaluated."""
    return {image.numpy().tobytes() for image in all_of(loader)}


@pytest.mark.parametrize("in_memory", ["never", "always"])
def test_an_image_that_comes_several_times_is_on_one_side(in_memory: str, own_tree: Path) -> None:
    path = own_tree / "mine.csv"
    write_list(path, own_tree, "train")
    options = {"test_split": 0.34, "augment": "none", "in_memory": in_memory, "batch_size": 1}
    once = load(path, train_split=0.4, **options)
    repeat(path, 3)
    thrice = load(path, train_split=0.4, **options)
    expected = "folder: 2 classes, 12 images to train on, 6 to choose the best epoch on (val), 9 to test on"
    assert thrice.sizes == expected
    for part in ("train", "validation", "test"):
        assert pictures_in(getattr(thrice, part)) == pictures_in(getattr(once, part))
    held_out = load(path, validation=0.34, **options)
    parts = [pictures_in(each) for each in (held_out.train, held_out.validation, held_out.test)]
    assert [len(each) for each in parts] == [4, 2, 3]
    assert len(set.union(*parts)) == 9
    with pytest.raises(UsageError, match="--validation: --train_split and --test_split leave images to choose"):
        load(path, train_split=0.4, validation=0.3, **options)


@pytest.mark.parametrize("other", ["val", "test"])
def test_an_image_in_two_lists_is_refused(other: str, own_tree: Path) -> None:
    for part in ("train", "test"):
        write_list(own_tree / f"{part}.csv", own_tree, part)
    with (own_tree / f"{other}.csv").open("a" if other == "test" else "w") as file:
        file.write("" if other == "test" else "label,path\n")
        file.writelines(f"cat,{own_tree.absolute()}/test/../train/cat/{number}.png\n" for number in range(2))
    with pytest.raises(UsageError, match=rf"0\.png is in train and in {other} \(2 images are in both\)") as caught:
        load(own_tree)
    assert "\n" not in str(caught.value)


def test_an_image_of_two_labels_is_refused(own_tree: Path) -> None:
    path = own_tree / "mine.csv"
    write_list(path, own_tree, "train")
    with path.open("a") as file:
        file.write("dog,./train/cat/1.png,\ndog,train/cat/2.png,\n")
    refusal = r"mine\.csv gives \./train/cat/1\.png two labels, cat and dog \(2 images have several\)"
    with pytest.raises(UsageError, match=refusal):
        load(path, test_split=0.34)


def test_a_list_of_one_label(own_tree: Path) -> None:
    (own_tree / "mine.csv").write_text("path,label\na.png,cat\n")
    with pytest.raises(UsageError, match="has 1 labels"):
        load(own_tree / "mine.csv", test_split=0.5)
    with pytest.raises(UsageError, match=r"no.csv cannot be read \(No such file"):
        load(own_tree / "no.csv", test_split=0.5)


# balance


def test_every_class_comes_equally_often() -> None:
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 4 + [4] * 6)[torch.randperm(100)]  # none of class 3
    orders = [balanced_order(labels, 0, epoch) for epoch in (1, 2)]
    for order in orders:
        assert order.shape == (100,)
        assert labels[order].bincount().tolist() == [25, 25, 25, 0, 25]
        times = order.bincount(minlength=100)
        for label, (least, most) in {0: (0, 1), 1: (1, 2), 2: (6, 7), 4: (4, 5)}.items():
            assert {*times[labels == label].tolist()} == {least, most}
    assert torch.equal(balanced_order(labels, 0, 1), orders[0])
    assert not torch.equal(*orders)
    assert labels[balanced_order(labels[:97], 0, 1)].bincount().sum() == 97


@pytest.mark.parametrize("held", ["always", "never"])
def test_balanced_batches(held: str, tree: Path) -> None:
    options: dict[str, Any] = {"image_size": 32, "augment": "trivialaugment", "balanced": True, "in_memory": held}
    loader = load(tree, **options).train
    images, targets = epoch_of(loader, 1)
    assert targets.bincount().tolist() in ([5, 4], [4, 5])
    assert len(images.flatten(1).unique(dim=0)) == 9  # dogs come twice, each time as another view
    assert torch.equal(epoch_of(loader, 1, start=1)[0], images[3:])
    shares = [epoch_of(load(tree, shard=(rank, 3), **options).train, 1)[0] for rank in range(3)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), images)
    other = load(tree, **{**options, "in_memory": "never" if held == "always" else "always"}).train
    assert torch.equal(epoch_of(other, 1)[0], images)


# mixtures


def test_mixup_is_the_weighted_sum_of_two_images_and_labels() -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(-1, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    plain = Batch(images, torch.arange(6), torch.arange(6), torch.arange(6) + 10)
    for step in range(20):
        batch = MixedLoader(NO_LOADER, 0.7, 0, seed=1).mixed(plain, step)
        assert batch.views is None
        assert batch.other is not None
        assert batch.share is not None
        assert batch.share.min() >= 0.5
        assert torch.equal(batch.places, batch.target + 10)
        expected = batch.share * batch.target + (1 - batch.share) * batch.other
        torch.testing.assert_close(batch.images[:, 0, 0, 0], expected)
        assert torch.equal(batch.target.sort().values, torch.arange(6))
        logits = torch.randn(6, 6)
        first, second = F.one_hot(batch.target, 6), F.one_hot(batch.other, 6)
        soft = second + batch.share[:, None] * (first - second)
        torch.testing.assert_close(label_loss(logits, batch), F.cross_entropy(logits, soft))
        torch.testing.assert_close(label_loss(logits, batch, "none").mean(), F.cross_entropy(logits, soft))
        halves = [label_loss(some, part) for some, part in zip(logits.split(3), batch.split(2), strict=True)]
        torch.testing.assert_close(torch.stack(halves).mean(), label_loss(logits, batch))


def test_cutmix_is_a_rectangle_of_another_image() -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(-1, 3, 16, 12).contiguous(memory_format=torch.channels_last)
    plain = Batch(images, torch.arange(6), None, torch.arange(6))
    areas = []
    for step in range(30):
        batch = MixedLoader(NO_LOADER, 0, 1.0, seed=1).mixed(plain, step)
        assert batch.other is not None
        assert batch.share is not None
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        of_target = (batch.images == batch.target[:, None, None, None]).float().mean((1, 2, 3))
        mixed = batch.target != batch.other
        torch.testing.assert_close(of_target[mixed], batch.share[mixed])
        areas.append(float(batch.share[0]))
    assert len({*areas}) > 15


def test_both_take_turns() -> None:
    plain = Batch(torch.arange(6.0)[:, None, None, None].expand(-1, 3, 8, 8).contiguous(), torch.arange(6))
    loader = MixedLoader(NO_LOADER, 1.0, 1.0, seed=0)
    cut = [bool((loader.mixed(plain, step).images % 1 == 0).all()) for step in range(40)]
    assert 8 < sum(cut) < 32


@pytest.mark.parametrize("held", ["always", "never"])
def test_mixtures_follow_from_seed_epoch_and_step(held: str, tree: Path) -> None:
    loader, again = (load(tree, image_size=32, mixup=0.4, cutmix=1.0, in_memory=held).train for _ in range(2))
    epoch_of(again, 1)
    images, targets = epoch_of(loader, 2)
    same, labels = epoch_of(again, 2, start=1)
    assert torch.equal(images[3:], same)
    assert torch.equal(targets[3:], labels)
    assert not torch.equal(epoch_of(load(tree, image_size=32).train, 2)[0], images)
    assert loader.views is None


# several views of an image


def views_of(loader: Any, epoch: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """All views [N, V, 3, H, W] and labels."""
    loader.set_epoch(epoch, start)
    batches = list(loader)
    views = [torch.stack([batch.images, *batch.again], 1) for batch in batches]
    return torch.cat(views), torch.cat([batch.target for batch in batches])


@pytest.mark.parametrize(
    "options",
    [{"image_size": 32}, {"augment": "randaugment"}, {"augment": "resized_crop"}, {"mixup": 0.4, "cutmix": 1.0}],
    ids=str,
)
def test_views_are_drawn_apart(options: dict[str, Any], tree: Path) -> None:
    """The first view is what it is alone; all follow from the seed, wherever the pixels are and whoever shares them."""
    options = {"image_size": 48, **options, "in_memory": "always"}
    images, targets = views_of(load(tree, views=3, **options).train, 2)
    assert torch.equal(images[:, 0], epoch_of(load(tree, **options).train, 2)[0])
    assert len(images.flatten(0, 1).flatten(1).unique(dim=0)) == images.shape[0] * 3
    for other, start in (({"in_memory": "never"}, 0), ({}, 1)):
        if options.get("augment") != "resized_crop" or start:  # what is kept in memory was made smaller first
            same, labels = views_of(load(tree, views=3, **{**options, **other}).train, 2, start)
            assert torch.equal(images[3 * start :], same)
            assert torch.equal(targets[3 * start :], labels)
    if "mixup" not in options:  # partners are those of a process
        parts = [views_of(load(tree, views=3, shard=(rank, 3), **options).train, 2)[0] for rank in range(3)]
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), images)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.7, 0), (0, 1.0)])
def test_views_of_an_image_are_mixed_alike(mixup: float, cutmix: float) -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(-1, 3, 16, 12).contiguous(memory_format=torch.channels_last)
    batch = MixedLoader(NO_LOADER, mixup, cutmix, seed=1).mixed(Batch(images, torch.arange(6), again=(2 * images,)), 3)
    torch.testing.assert_close(batch.again[0], 2 * batch.images)
    half = batch.part(3, 6)
    assert torch.equal(half.again[0], batch.again[0][3:])
