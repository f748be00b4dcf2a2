"""Image files → 8-bit RGB, whatever depth, palette or orientation they come in; and what is wrong with a file."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dataset.files import one_line

BITS_PER_SAMPLE, SAMPLE_FORMAT, SIGNED = 258, 339, 2
"""TIFF tags, and a value of the second."""

ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "WEBP": b""}
"""How whole files end; Pillow opens no part of a WebP file. The files of other formats have to be read to the end."""

TAIL = 64
"""Last bytes of a file, among which the end is looked for: some programs pad with zeros."""


def read_picture(path: str) -> Image.Image:
    """The picture in a file, upright, in RGB.

    Raises:
        Exception: of many kinds, where the file is damaged or its values have no place in 8 bits.
    """
    with Image.open(path) as image:
        return to_rgb(image)


def size_of(path: str) -> tuple[int, int]:
    """Width and height of the picture in a file, as its header has them; (0, 0) where it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow raises many kinds; what is wrong is said where images are looked at for damage
        return 0, 0


def grey_picture(image: Image.Image) -> Image.Image:
    """Brightness three times."""
    return image.convert("L").convert("RGB")


def grey_pixels(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] → the same, as :func:`grey_picture` has it."""
    parts = images.int() * torch.tensor([19595, 38470, 7471], dtype=torch.int32)  # Pillow's, of 65536
    return ((parts.sum(-1, keepdim=True) + 32768) >> 16).to(torch.uint8).expand(images.shape)


def scaled_pixels(images: Tensor, size: int) -> Tensor:
    """uint8 [N, H, H, 3] → [N, size, size, 3], between the pixels where they grow and their mean where they shrink."""
    scaled = TF.resize_image(images.permute(0, 3, 1, 2), [size, size], antialias=True)  # bilinear, rounded
    return scaled.permute(0, 2, 3, 1).contiguous()


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image file → its picture: upright as EXIF says, deep ones scaled to 8 bits, transparency left aside.

    Raises:
        ValueError: the values have no place in 8 bits, see :func:`eight_bits`; other errors where it is damaged.
    """
    image.load()
    with contextlib.suppress(Exception):  # EXIF that cannot be read, beside pixels that can
        ImageOps.exif_transpose(image, in_place=True)
    if is_deep(image):
        image = Image.fromarray(eight_bits(image))
    image.info.pop("transparency", None)  # of a palette: else Pillow warns that it is lost
    return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits, which Pillow would clip."""
    return image.mode.startswith(("I", "F"))


def eight_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Deep grey values → uint8 [H, W]: the range of their type becomes 0…255, for floating point 0…1 does.

    Which of Pillow's modes a file of 16 bits comes in depends on its version and on the format.

    Raises:
        ValueError: floating point beyond 0…1, or 32-bit values that would all become one grey.
    """
    bits, signed = depth_of(image)
    values: npt.NDArray[np.float64] = np.asarray(image).astype(np.float64)
    if image.mode == "I" and bits == 32 and not signed:
        values %= 2**32  # Pillow holds them as signed
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if image.mode == "F":
        low, high = 0.0, 1.0
    least, most = values.min(), values.max()
    if not (low <= least and most <= high):  # nor NaN
        raise ValueError(f"its floating-point values, {least:g} to {most:g}, are not within 0 to 1: convert it")
    grey = ((values - low) * (255 / (high - low))).round().astype(np.uint8)
    if bits == 32 and least < most and grey.min() == grey.max():
        raise ValueError(f"its 32-bit values, {least:g} to {most:g}, are a single grey in 8 bits: convert it")
    return grey


def depth_of(image: Image.Image) -> tuple[int, bool]:
    """Bits per value of a deep image, and whether they are signed."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return tags.get(BITS_PER_SAMPLE, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these have no more than 16, read into 32
        return 32, True
    return 16, False


def fault_of(path: str) -> str | None:
    """Why an image file cannot be read, as a look at its header and its end tells; None where nothing is wrong."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if not size:
                return "empty"
            file.seek(max(0, size - TAIL))
            end = file.read().rstrip(b"\0")
            file.seek(0)
            with Image.open(file) as image:
                if is_deep(image) or not end.endswith(ENDS.get(image.format or "", b"no mark")):
                    to_rgb(image)
    except UnidentifiedImageError:
        return "no image, or of no format that Pillow knows"
    except FileNotFoundError:
        return "a link to nothing" if os.path.islink(path) else "not there"
    except Exception as error:  # Pillow raises many kinds
        return getattr(error, "strerror", None) or one_line(error)
    return None
