"""How a user wants the images: their size, numbers and colours."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, fields
from typing import Any

from helper.errors import UsageError
from helper.options import Flatten, Options, fraction, one_of, positive_float, positive_int, weight

AUGMENTATIONS = ("crop_flip", "resized_crop", "randaugment", "trivialaugment", "none")


@dataclass(frozen=True)
class ImageOptions:
    """The options of :func:`add_images`; the defaults leave a dataset as it is.

    ``mean``, ``std``: of the three channels, of values from 0 to 1. ``channels``: 1 for grey images.
    ``augment``: one of ``AUGMENTATIONS``; None for the dataset's own. ``in_memory``: whether image files are decoded
    once and kept, where that takes no more than ``memory_gb``. ``train_split``, ``test_split``: shares of a tree that
    comes in one part. ``balanced``: whether all classes are trained on equally often. ``mixup``,
    ``cutmix``: parameters of how much of another image training images have; 0 for nothing. ``wrong_labels``: share of
    the training images that have another class's label. ``specialist``: ``1of3`` trains on the classes of the first
    third, and on the share ``specialist_others`` of the other images.
    """

    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channels: int = 3
    augment: str | None = None
    in_memory: str = "auto"
    memory_gb: float = 4.0
    train_split: float | None = None
    test_split: float | None = None
    balanced: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0
    wrong_labels: float = 0.0
    specialist: str | None = None
    specialist_others: float = 0.1

    @classmethod
    def of(cls, opt: argparse.Namespace) -> ImageOptions:
        """Those of a command line."""
        given: dict[str, Any] = {each.name: getattr(opt, each.name, each.default) for each in fields(cls)}
        for name in ("mean", "std"):
            given[name] = tuple(given[name] * 3)[:3] if given[name] else None
        return cls(**given)


PLAIN = ImageOptions()


def numbers(text: str) -> list[float]:
    """``0.5`` or ``0.5,0.4,0.3``."""
    return [weight(part) for part in re.split(r"[,\s]+", text.strip())]


def share(text: str) -> float:
    """A number between 0 and 1."""
    if not fraction(text):
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, got {text!r}")
    return fraction(text)


def specialist(text: str) -> str:
    """``1of3``: a part of the classes, and how many there are."""
    found = re.fullmatch(r"([1-9]\d*)of([1-9]\d*)", text)
    if not found or not int(found[1]) <= int(found[2]) > 1:
        raise argparse.ArgumentTypeError(f"expected KofN, as 1of3, with K from 1 to N, got {text!r}")
    return text


def add_images(options: Options) -> None:
    """Add the options to the command line."""
    add = options.section("images")
    add(
        "--image_size",
        type=positive_int,
        default=None,
        help="side in pixels that images are brought to; the dataset's own, unless given",
    )
    for name, what in (("mean", "subtracted from"), ("std", "which divides")):
        add(
            f"--{name}",
            type=numbers,
            nargs="+",
            action=Flatten,
            default=None,
            metavar="X",
            help=f"{what} pixel values from 0 to 1: one number, or three; the dataset's own, unless given",
        )
    add(
        "--channels",
        type=lambda text: int(one_of("--channels", ("1", "3"))(text)),
        default=3,
        metavar="1|3",
        help="1 makes the images grey; networks see the one channel three times",
    )
    add(
        "--augment",
        type=one_of("--augment", AUGMENTATIONS),
        default=None,
        metavar="|".join(AUGMENTATIONS),
        help="what is done to training images; the dataset's own, unless given, which also comes before the policies",
    )
    for name, what in (("train", "train on"), ("test", "test on")):
        add(
            f"--{name}_split",
            type=share,
            default=None,
            help=f"share of the images to {what}, where a folder comes in one part; the best epoch is chosen on what "
            "both shares leave",
        )
    add(
        "--in_memory",
        type=one_of("--in_memory", ("auto", "always", "never")),
        default=PLAIN.in_memory,
        metavar="auto|always|never",
        named=False,
        help="decode image files once and keep them; auto does so where --image_size or --augment is given and "
        "--memory_gb is enough",
    )
    add(
        "--balanced",
        action="store_true",
        help="train on every class equally often, on images of small classes more than once in an epoch",
    )
    for name, what in (("mixup", "the weighted sum of two images"), ("cutmix", "a rectangle of another image in each")):
        add(
            f"--{name}",
            type=weight,
            default=0.0,
            metavar="A",
            help=f"{what}, on the training device; the shares are from Beta(A, A), 0 for none; the labels mix likewise",
        )
    add(
        "--wrong_labels",
        type=fraction,
        default=0.0,
        help="share of the training images that get another class's label, the same in all epochs: a bad teacher",
    )
    add(
        "--specialist",
        type=specialist,
        default=None,
        metavar="KofN",
        help="1of3 trains on the images of the first third of the classes, and few others: a teacher that knows a part",
    )
    add(
        "--specialist_others",
        type=fraction,
        default=PLAIN.specialist_others,
        help="share of the images of the other classes that it is shown",
    )
    add("--memory_gb", type=positive_float, default=PLAIN.memory_gb, named=False, help="of decoded images, at most")


def require_sound_images(opt: argparse.Namespace) -> None:
    """Refuse values that cannot be meant.

    Raises:
        UsageError: naming the option.
    """
    for name in ("mean", "std"):
        given = getattr(opt, name)
        if given is not None and len(given) not in (1, 3):
            raise UsageError(f"--{name}: takes one number or three, not {len(given)}")
        if given and max(given) > 1:
            raise UsageError(f"--{name}: {max(given):g} is above 1; it is of pixel values from 0 to 1: divide by 255")
    if (opt.train_split or 0) + (opt.test_split or 0) > 1 + 1e-9:
        raise UsageError(
            f"--train_split and --test_split: {opt.train_split:g} and {opt.test_split:g} are more than all"
        )
    if opt.specialist is None and opt.specialist_others != PLAIN.specialist_others:
        raise UsageError("--specialist_others: is of the images that a --specialist does not know; give that too")
    if opt.std and min(opt.std) == 0:
        raise UsageError("--std: 0 divides the pixel values; choose numbers above 0")
