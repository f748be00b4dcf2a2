"""What is said of a teacher, as in ``setting.py``; only the standard library is needed to say it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from helper.errors import UsageError

Channels: TypeAlias = "Literal['RGB', 'BGR', 1, 3]"
CHANNELS = ("RGB", "BGR", 1, 3)
Classes: TypeAlias = "Sequence[str | int] | Mapping[str | int, int]"


@dataclass(frozen=True)
class Eyes:
    """How a network wants its images; None: as the dataset has them. A network may have one as its ``wants``.

    Attributes:
        mean, std: of the pixel values from 0 to 1, in the order of its channels: it sees ``(value − mean)/std``. For
            one that takes values from 0 to 255 they are 0 and 1/255.
        size: side in pixels.
        channels: ``"RGB"``, which is 3, ``"BGR"``, or 1: brightness, three times for a network that takes 3 channels.
    """

    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    size: int | None = None
    channels: Channels | None = None

    def said(self) -> dict[str, Any]:
        """What it says."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def over(self, other: Eyes) -> Eyes:
        """These; the other where they say nothing."""
        return replace(other, **self.said())

    def checked(self, what: str) -> Eyes:
        """The same in one form: mean and std as three numbers, channels 3 as ``"RGB"``.

        Raises:
            UsageError: a value makes no sense; ``what`` begins its line.
        """
        if self.size is not None and not (type(self.size) is int and self.size > 0):
            raise UsageError(f"{what}: size: {self.size!r} is no number of pixels; choose a whole number above 0")
        if self.channels is not None and self.channels not in CHANNELS:
            raise UsageError(f"{what}: channels: unknown value {self.channels!r}; choose from 'RGB', 'BGR', 1 and 3")
        mean, std = (_three(f"{what}: {name}", getattr(self, name)) for name in ("mean", "std"))
        if std is not None and min(std) <= 0:
            raise UsageError(f"{what}: std: {self.std!r} divides the pixel values; choose numbers above 0")
        return replace(self, mean=mean, std=std, channels="RGB" if self.channels == 3 else self.channels)

    def __str__(self) -> str:
        """As a person reads it."""
        parts = [f"{self.size}×{self.size} pixels"] if self.size else []
        parts += [str(self.channels).replace("1", "grey")] if self.channels else []
        for name in ("mean", "std"):
            numbers = _three(name, getattr(self, name)) or ()
            shown = numbers[:1] if len({*numbers}) == 1 else numbers
            parts += [" ".join([name, *(f"{each:.4g}" for each in shown)])] if shown else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Teacher:
    """A teacher in ``setting.py``: ``Teacher("resnet56", "x.pth", mean=0.5, std=0.5, size=48)``.

    Attributes:
        arch: its architecture.
        path: its checkpoint, with ``@KEY`` behind it where that holds several.
        mean, std, size, channels: how it wants its images, see :class:`Eyes`.
        classes: which of the dataset's classes its logits stand for, unless it is all of them in their order: a list of
            names or numbers, one for each logit; or the number of its logit for each class that it is to teach,
            ``{"cat": 281, "goldfish": 1}``.
    """

    arch: str
    path: str | Path | None = None
    _: KW_ONLY
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    size: int | None = None
    channels: Channels | None = None
    classes: Classes | None = None


def _three(what: str, given: Any) -> tuple[float, float, float] | None:
    """One number or three → three; UsageError for all else."""
    if given is None:
        return None
    numbers = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    sound = all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers)
    if not sound or len(numbers) not in (1, 3):
        raise UsageError(f"{what}: {given!r} is neither a number nor three of them")
    if max(numbers) > 1:
        raise UsageError(f"{what}: {max(numbers):g} is above 1; it is of pixel values from 0 to 1: divide it by 255")
    red, green, blue = map(float, numbers * (3 // len(numbers)))
    return red, green, blue
