"""Image files decoded once: their pixels in one file, mapped into memory, and loaders that take them from there.

The file lies in the user's cache folder: a page with a description as JSON, the pictures' shapes, their pixels one
after the other. It is made anew when an image was changed, added or removed, or when it is damaged.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from dataset import checking
from dataset.augment import distortion, drawing_from, most_kept, whole
from dataset.base import DatasetInfo, FileDataset, Files, Pictures, Split, Transform
from dataset.memory import MemoryTrainLoader
from dataset.order import Purpose, derive_seed
from dataset.stream import Sample, StreamLoader, Unreadable
from dataset.views import view_space
from helper import distributed
from helper.batch import ViewSpace
from helper.errors import UsageError

FORMAT = 1
HEADER = 4096
AT_ONCE = 64
"""Pictures that a worker hands over together."""

ABANDONED = 3600
"""Seconds after which nobody writes any more to what was not finished."""


class PictureTrainLoader(MemoryTrainLoader):
    """What :class:`MemoryTrainLoader` is, of pictures that are cropped to any part of them."""

    def keep(self, split: Split | Pictures) -> None:
        assert isinstance(split, Pictures)
        self.pictures = replace(split, pixels=split.pixels.to(self.device))

    def made(self, rows: Tensor, columns: Tensor) -> Tensor:
        assert self.distortion is not None
        made = []
        for place, _, _, mirrored, draw in rows.tolist():
            image = self.pictures.at(place).permute(2, 0, 1)
            with drawing_from(derive_seed(self.augmentation_seed, Purpose.AUGMENT, self.epoch, draw)):
                made.append(self.distortion(TF.horizontal_flip(image) if mirrored else image))
        return torch.stack(made).permute(0, 2, 3, 1).contiguous()


class Larger:
    """PIL image → the same, scaled down where its shorter side is longer than what is kept of it."""

    def __init__(self, info: DatasetInfo) -> None:
        self.most = most_kept(info)

    def __call__(self, image: Image.Image) -> Image.Image:
        if min(image.size) <= self.most:
            return image
        smaller: Image.Image = TF.resize(image, [self.most])
        return smaller


class Decoder:
    """Decodes parts of a dataset, or finds them decoded.

    Args:
        dataset: of image files.
        info: its description.
        num_workers: processes that read.
    """

    def __init__(self, dataset: FileDataset, info: DatasetInfo, num_workers: int) -> None:
        self.dataset, self.info, self.num_workers = dataset, info, num_workers
        self.folder, self.bytes = checking.cache_folder() / "decoded", 0

    @property
    def note(self) -> str:
        """How much is in memory, in words."""
        return f"{self.info.name}: {self.bytes / 1e9:.2g} GB of pixels in memory, kept in {self.folder}"

    def to_train_on(
        self, files: Files, divide: Callable[[Any], tuple[Any, Any]], beside: Files | None
    ) -> tuple[Split | Pictures, Split | None, ViewSpace | None]:
        """The part to train on, the part that ``divide`` holds out of it, and the views of all, if they are countable.

        Args:
            files: to be divided.
            divide: any form of them → the part to train on and the part that is held out.
            beside: the latter's files, where any part of pictures is cropped; None if there is no room for them.

        Raises:
            UsageError: see :meth:`evaluated`.
        """
        if self.info.crop == "resized_crop":
            kept, _ = divide(self._decoded(files, "train, larger", Larger(self.info)))
            return kept, self.evaluated(beside, f"held out, {name_of(beside)}") if beside else None, None
        split = self.evaluated(files, "train")
        kept, held_out = divide(split)
        return kept, held_out, view_space(split, self.info) if distortion(self.info) is None else None

    def evaluated(self, files: Files, name: str) -> Split:
        """The pictures as they are evaluated; ``name`` is of the part.

        Raises:
            UsageError: they cannot be kept, or one of them cannot be read.
        """
        return self._decoded(files, name, whole(self.dataset)).as_split()

    def _decoded(self, files: Files, name: str, transform: Transform) -> Pictures:
        told = (os.fspath(self.dataset.data_dir.absolute()), name, self.info.name, self.info.image_size)
        how = (self.dataset.wanted.image_size, self.info.channels)
        path = self.folder / f"{sha256(os.fsencode(repr((told, how)))).hexdigest()[:16]}.u8"
        identity, count = identity_of(files), len(files.paths)
        if distributed.from_first(lambda: read(path, identity, count) is None):
            bar = tqdm(
                total=count, desc=f"decoding ({name})", unit=" images", leave=False, disable=not sys.stderr.isatty()
            )
            work = self._write(files, transform, path, identity)
            with bar:
                while (done := distributed.from_first(lambda: next(work, None))) is not None:
                    bar.update(done)
        found = read(path, identity, count)
        if found is None:
            raise UsageError(f"--in_memory: {path} cannot be read by every process; choose never")
        shapes, pixels = found
        lengths = shapes.prod(1) * 3
        self.bytes += len(pixels)
        return Pictures(pixels, lengths.cumsum(0) - lengths, shapes, files.labels)

    def _write(self, files: Files, transform: Transform, path: Path, identity: str) -> Iterator[int]:
        """Decode everything into ``path``, whole or not at all; yields how many pictures have been added."""
        cpu = torch.device("cpu")
        reader = StreamLoader(
            files, self.info, transform, AT_ONCE, cpu, 0, self.num_workers, train=False, collate=joined
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            clear_up(path.parent)
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                partial, check = Path(scratch) / path.name, 0
                shapes = np.zeros((len(files.paths), 2), np.int32)
                with partial.open("wb") as file:
                    file.seek(HEADER + shapes.nbytes)
                    first = 0
                    for pixels, some in reader.read():
                        shapes[first : first + len(some)] = some.numpy()
                        file.write(pixels.numpy())
                        check = zlib.crc32(pixels.numpy().data, check)
                        first += len(some)
                        yield len(some)
                    file.seek(0)
                    about = {"identity": identity, "check": zlib.crc32(shapes.data, check)}
                    file.write(json.dumps(about).encode().ljust(HEADER) + shapes.tobytes())
                os.replace(partial, path)
        except OSError as error:
            raise UsageError(f"--in_memory: {path.parent} cannot be written ({error.strerror}); choose never") from None


def clear_up(folder: Path) -> None:
    """Remove what killed runs have left half written."""
    for scratch in folder.glob(f"{tempfile.gettempprefix()}*"):
        with contextlib.suppress(OSError):  # another run is clearing up too, or has just finished
            newest = max(path.stat().st_mtime for path in (scratch, *scratch.iterdir()))
            if time.time() - newest > ABANDONED:
                shutil.rmtree(scratch)


def joined(samples: list[Sample | Unreadable]) -> tuple[Tensor, Tensor] | Unreadable:
    """The pixels of some pictures, uint8 [bytes], and their shapes [B, 2]; or the first that cannot be read."""
    read = []
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
        read.append(sample[0])
    return torch.cat([pixels.flatten() for pixels in read]), torch.tensor([pixels.shape[:2] for pixels in read])


def name_of(files: Files) -> str:
    """Which files these are: seeds hold out others, which are kept side by side."""
    return sha256(b"\n".join(map(os.fsencode, files.paths))).hexdigest()[:6]


def identity_of(files: Files) -> str:
    """A checksum of the files' paths, sizes and times, and of what reads them."""
    marks = checking.marks_of(files.paths)
    listed = np.array([marks[path] or 0 for path in files.paths], np.uint64).tobytes()
    versions = f"{FORMAT} {PIL.__version__} {torchvision.__version__} "
    return sha256(versions.encode() + listed).hexdigest()


def read(path: Path, identity: str, count: int) -> tuple[Tensor, Tensor] | None:
    """Shapes int64 [N, 2] and pixels uint8 [bytes] of a file that is whole and of these images, else None."""
    try:
        content: npt.NDArray[Any] = np.memmap(path, np.uint8, mode="c")
        about = json.loads(content[:HEADER].tobytes())
        table, pixels = content[HEADER : HEADER + count * 8], content[HEADER + count * 8 :]
        whole = about["identity"] == identity and about["check"] == zlib.crc32(table.data, zlib.crc32(pixels.data))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole:
        return None
    return torch.from_numpy(table.view(np.int32).reshape(count, 2).astype(np.int64)), torch.from_numpy(pixels)
