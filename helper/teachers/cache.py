"""What teachers said of a view, kept on disk: computed once, then read by later epochs, runs, seeds and methods."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from helper.batch import ViewSpace
from helper.errors import UsageError
from helper.saying import say

FORMAT = 1
"""Raised whenever a teacher's logits for the same view would no longer be computed alike."""

HEADER = 4096
"""Bytes before the first slot: one page with the description, as JSON, padded with spaces."""

LONG = 128
"""Letters of an entry of the description, above which its checksum stands for it where the page is too small."""

LOWEST = float(np.finfo(np.float16).min)
RECOUNT = 128
"""After so many commits the folder's size is read again: other runs write to it too."""

Words = np.ndarray[Any, Any]
Compute = Callable[[torch.Tensor], torch.Tensor]


def header_of(about: Mapping[str, Any]) -> bytes:
    """The description as the page before the first slot."""
    text = json.dumps(about, sort_keys=True).encode()
    if len(text) >= HEADER:  # shorter ones stay as they are, for the sake of files that there are
        entries = {name: json.dumps(value).encode() for name, value in about.items()}
        checksums = {name: sha256(entry).hexdigest() for name, entry in entries.items() if len(entry) > LONG}
        text = json.dumps({**about, **checksums}, sort_keys=True).encode()
    return text.ljust(HEADER - 1) + b"\n"


class LogitsFile:
    """One teacher's logits, a file that only grows at its end.

    After the header come slots of equal size: ``view`` (its number), ``left`` (how many slots of the same step still
    follow), ``check`` (a checksum of the slot) and ``logits`` (float16 ``[C]``, minus their maximum). A step's slots
    count only when all of them are there and whole, so that a write that was cut off leaves nothing behind. Writers
    hold an exclusive lock; what two of them computed at once, the first has written.

    Args:
        path: made if it is not there.
        about: describes what is stored; a file with another description is set aside.
        num_views, num_classes: sizes of the data.
        room: how many bytes may still be written.
    """

    def __init__(self, path: Path, about: dict[str, Any], num_views: int, num_classes: int, room: Room) -> None:
        self.path, self.room = path, room
        self.slot = np.dtype(
            [
                ("view", "<u4"),
                ("left", "<u4"),
                ("check", "<u4"),
                ("logits", "<f2", (num_classes,)),
                ("even", "<u2", (num_classes % 2,)),
            ]
        )
        odd = np.random.default_rng(FORMAT).integers(0, 2**31, self.slot.itemsize // 4, dtype=np.uint32) * 2 + 1
        odd[2] = 0  # the checksum does not check itself
        self.weights = odd
        self.index = np.full(num_views, -1, np.int32)  # view → slot
        self.read_up_to = 0  # slots
        self.table = np.empty(0, self.slot)  # a read-only mapping of the file
        self._open(header_of(about))
        self.catch_up()

    def _open(self, header: bytes) -> None:
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with self._locked():
            stored = os.pread(self.file, HEADER, 0)
            if len(stored) < HEADER:  # new, or its maker was killed
                stored = header
                os.pwrite(self.file, header, 0)
                self.room.left -= HEADER
        if stored != header:
            aside = self.path.with_suffix(".damaged")
            say(f"teacher cache: {self.path} is damaged; it is kept as {aside.name}, a new one is begun")
            self.path.replace(aside)
            self.close()
            self._open(header)

    def close(self) -> None:
        """Give the file back."""
        os.close(self.file)

    def find(self, views: Words) -> Words:
        """Slots of the views, int32 ``[B]``; -1 where there is none. Looks for what others have written if need be."""
        slots = self.index[views]
        if (slots < 0).any() and self.catch_up():
            slots = self.index[views]
        return slots

    def read(self, slots: Words) -> Words:
        """Logits of slots that :meth:`find` found, float16 ``[B, C]``."""
        if len(slots) and slots.max() >= len(self.table):
            self._map()
        return self.table["logits"][slots]

    def commit(self, views: Words, logits: Words) -> Words:
        """Store logits ``[B, C]`` of views that were not found, all or none of them.

        Returns:
            what later readers get: the same, but where another writer was first, its logits.
        """
        with self._locked():
            self._take_in()
            found = self.index[views]
            new = found < 0
            if new.any():
                self._append(views[new], logits[new])
        if new.all():
            return logits
        stored = logits.copy()
        stored[~new] = self.read(found[~new])
        return stored

    def _append(self, views: Words, logits: Words) -> None:
        """Called with the lock held, after everything before has been taken in."""
        views, first = np.unique(views, return_index=True)  # a view can come twice in a batch that spans two epochs
        slots = np.zeros(len(views), self.slot)
        slots["view"], slots["logits"] = views, logits[first]
        slots["left"] = np.arange(len(views))[::-1]
        slots["check"] = self._checks(slots)
        if not self.room.take(slots.nbytes):
            return
        start = HEADER + self.read_up_to * self.slot.itemsize
        try:
            if os.fstat(self.file).st_size > start:
                os.ftruncate(self.file, start)  # what a killed writer has left
            written = os.pwrite(self.file, slots.tobytes(), start)
        except OSError as error:
            written, reason = 0, error.strerror
        else:
            reason = "the disk is full"
        if written < slots.nbytes:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file, start)
            self.room.give_up(f"{self.path} cannot grow ({reason})")
            return
        self.index[views] = np.arange(self.read_up_to, self.read_up_to + len(views))
        self.read_up_to += len(views)

    def catch_up(self) -> bool:
        """Take in what has been written to the file since; False if nothing has."""
        if self._slots_in_file() <= self.read_up_to:
            return False
        with self._locked():
            return self._take_in()

    def _take_in(self) -> bool:
        last = self._slots_in_file()
        if last <= self.read_up_to:
            return False
        self._map()
        start = self.read_up_to
        while start < last:  # in pieces: memory stays bounded
            slots = self.table[start : start + 65536]
            ends = np.flatnonzero(slots["left"] == 0)
            if not len(ends):
                break
            slots = slots[: ends[-1] + 1]
            whole = self._whole(slots, ends)
            self.index[slots["view"][whole]] = start + np.flatnonzero(whole)
            start += len(slots)
        self.read_up_to, advanced = start, start > self.read_up_to
        return advanced

    def _whole(self, slots: Words, ends: Words) -> Words:
        """Which slots belong to steps that are complete and undamaged, bool ``[n]``; ``ends``: where steps end."""
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        to_end = np.repeat(ends, lengths) - np.arange(len(slots))
        good = (slots["left"] == to_end) & (slots["check"] == self._checks(slots)) & (slots["view"] < len(self.index))
        return np.repeat(np.logical_and.reduceat(good, starts), lengths)

    def _checks(self, slots: Words) -> Words:
        """A checksum of each slot, uint32 ``[n]``; of a slot of zeros it is not 0."""
        words = np.ascontiguousarray(slots).view(np.uint32).reshape(len(slots), -1)  # [n, words]
        return (words * self.weights).sum(1, dtype=np.uint32) + np.uint32(FORMAT)

    def _slots_in_file(self) -> int:
        return (os.fstat(self.file).st_size - HEADER) // self.slot.itemsize

    def _map(self) -> None:
        slots = self._slots_in_file()
        mapping = mmap.mmap(self.file, HEADER + slots * self.slot.itemsize, access=mmap.ACCESS_READ)
        self.table = np.frombuffer(mapping, self.slot, slots, HEADER)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self.file, fcntl.LOCK_EX)  # the kernel lets go of it when the process ends, however it ends
        try:
            yield
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)


class Room:
    """How much a cache folder may still grow."""

    def __init__(self, folder: Path, gigabytes: float) -> None:
        self.folder, self.gigabytes = folder, gigabytes
        self.closed = False
        self._takes = 0
        self._count()

    def _count(self) -> None:
        self.left = self.gigabytes * 1e9
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                self.left -= entry.stat().st_size

    def take(self, size: int) -> bool:
        """Whether so many bytes may be written; the first refusal is printed."""
        if self.closed:
            return False
        self._takes += 1
        if self._takes % RECOUNT == 0:
            self._count()
        if size > self.left:
            self.give_up(f"{self.folder} has reached --teacher_cache_gb {self.gigabytes:g}")
            return False
        self.left -= size
        return True

    def give_up(self, reason: str) -> None:
        """Write nothing from now on, and say why."""
        self.closed = True
        say(f"teacher cache: {reason}; what is in it is used, nothing is added")


class TeacherCache:
    """The logits of K teachers for views of one training set.

    A view that is not there is computed, rounded as it is stored, and stored; so it makes no difference to a run
    whether it fills the cache or reads it.

    Args:
        folder: made if it is not there; caches of other teachers and datasets lie there too.
        gigabytes: the folder's largest size.
        views: all views of the training set.
        teachers: architecture and checksum of the weights of each, and what else its logits depend on, such as
            ``classes``, how many it has, if they are not as many as the dataset's.
        precision: what they are computed with.
        num_classes: C.

    Raises:
        UsageError: the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: Path,
        gigabytes: float,
        views: ViewSpace,
        teachers: Sequence[tuple[str, str, Mapping[str, Any]]],
        precision: str,
        num_classes: int,
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            room = Room(folder, gigabytes)
            self.files = []
            for arch, checksum, special in teachers:
                about: dict[str, Any] = {
                    "format": FORMAT,
                    "images": views.identity,
                    "views": views.size,
                    "arch": arch,
                    "weights": checksum,
                    "precision": precision,
                    "classes": num_classes,
                    **special,
                }
                key = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
                path = folder / f"{arch.replace('/', '.')}-{precision}-{key}.logits"
                self.files.append(LogitsFile(path, about, views.size, about["classes"], room))
        except OSError as error:
            raise UsageError(f"--teacher_cache: {folder} cannot be written ({error.strerror})") from None

    @property
    def full(self) -> bool:
        """Whether something could not be stored, so that nothing is from now on."""
        return self.files[0].room.closed

    def logits(
        self, images: torch.Tensor, views: torch.Tensor, teachers: Sequence[Compute]
    ) -> torch.Tensor | list[torch.Tensor]:
        """What each teacher says, float32 ``[K, B, C]``, or a list where they have different numbers of classes.

        Args:
            images: ``[B, 3, H, W]``, as they are handed to ``teachers`` where need be.
            views: their numbers, int64 ``[B]`` on the host.
            teachers: images → logits ``[B, C_k]`` of each.
        """
        numbers = views.numpy()
        each = [self._of(file, images, numbers, compute) for file, compute in zip(self.files, teachers, strict=True)]
        if len({logits.shape for logits in each}) == 1:
            return self._to(images.device, np.stack(each))
        return [self._to(images.device, logits) for logits in each]

    @staticmethod
    def _to(device: torch.device, logits: Words) -> torch.Tensor:
        stored = torch.from_numpy(logits)
        if device.type == "cuda":
            stored = stored.pin_memory()
        return stored.to(device, non_blocking=True).float()

    @staticmethod
    def _of(file: LogitsFile, images: torch.Tensor, views: Words, compute: Compute) -> Words:
        """One teacher's logits, float16 ``[B, C]`` on the host."""
        slots = file.find(views)
        missing = np.flatnonzero(slots < 0)
        if not len(missing):
            return file.read(slots)
        where = torch.from_numpy(missing).to(images.device)
        new = compute(images if len(missing) == len(views) else images.index_select(0, where))
        new = new.float()
        rounded = (new - new.amax(1, keepdim=True)).clamp_min(LOWEST).half()
        stored = file.commit(views[missing], rounded.cpu().numpy())
        if len(missing) == len(views):
            return stored
        logits = np.empty((len(views), stored.shape[1]), np.float16)
        known = slots >= 0
        logits[known], logits[missing] = file.read(slots[known]), stored
        return logits


def weights_checksum(network: nn.Module) -> str:
    """A checksum of everything that a network computes with."""
    digest = sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
