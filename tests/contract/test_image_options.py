"""Images as the user wants them: size, normalisation, colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dataset import get_loaders, info_of
from dataset.order import epoch_crops, epoch_order
from dataset.pictures import grey_picture, grey_pixels
from helper.errors import UsageError
from helper.images import AUGMENTATIONS, ImageOptions

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
    loaders = load(tree, image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
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


def test_images_in_memory_keep_their_size() -> None:
    with pytest.raises(UsageError, match=r"--image_size: --dataset digits is no set of image files.*32 pixels"):
        info_of("digits", images=ImageOptions(image_size=16))


# augmentation


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("name", ["digits", "folder"])
def test_every_augmentation_is_seeded_for_each_image(augment: str, name: str, tree: Path) -> None:
    size = {"image_size": 32} if name == "folder" else {}
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
    assert (loaders.train.views is not None) == (name == "digits" and augment in ("crop_flip", "none"))


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
