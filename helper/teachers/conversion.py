"""The same view for all: a batch as the dataset's loader hands it out → as one network wants it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.errors import UsageError
from helper.teachers.record import Eyes

LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in brightness (ITU-R BT.601), as Pillow has it."""


@dataclass(frozen=True)
class Conversion:
    """Images ``[B, 3, H, W]``, normalised as ``shown`` → ``[B, channels, size, size]`` as ``wanted``.

    Attributes:
        wanted, shown: complete, and in the form of :meth:`Eyes.checked`.
        device: of the images.
        channels: 3, or 1 for a network that takes brightness alone.
    """

    wanted: Eyes
    shown: Eyes
    device: torch.device
    channels: int = 3

    @property
    def keeps_shape(self) -> bool:
        """Whether images stay ``[B, 3, H, W]``."""
        return self.channels == 3 and self.wanted.size == self.shown.size

    def __call__(self, images: Tensor) -> Tensor:
        size = self.wanted.size
        assert size is not None
        if size < images.shape[-1]:  # colours change while there are few pixels
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        if self._luma is not None:
            images = (images * self._luma).sum(1, keepdim=True)
        elif self.wanted.channels == "BGR":
            images = images.flip(1)
        if self._affine is not None:
            images = torch.addcmul(self._affine[0], images, self._affine[1])
        if size > images.shape[-1]:
            images = F.interpolate(images, (size, size), mode="bilinear")
        return images.contiguous(memory_format=torch.channels_last)

    @cached_property
    def _luma(self) -> Tensor | None:
        """What brightness, less that of the mean, takes of each normalised channel: ``[3, 1, 1]``."""
        if self.wanted.channels != 1:
            return None
        return (_column(LUMA) * _column(self.shown.std)).float().to(self.device)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor] | None:
        """Shift and scale ``[channels, 1, 1]``: ``(x·std + mean − wanted mean)/wanted std``."""
        mean, std = (_column(each) for each in (self.shown.mean, self.shown.std))
        if self.wanted.channels == "BGR":
            mean, std = mean.flip(0), std.flip(0)
        elif self.wanted.channels == 1:
            mean, std = (_column(LUMA) * mean).sum(), torch.ones_like(std)
        shift, scale = (mean - _column(self.wanted.mean)) / _column(self.wanted.std), std / _column(self.wanted.std)
        if self.wanted.channels != 1 and not shift.any() and (scale == 1).all():
            return None
        shift, scale = (each[: self.channels].float().to(self.device) for each in (shift, scale))
        return shift, scale


def _column(three: object) -> Tensor:
    """Three numbers → float64 ``[3, 1, 1]``."""
    return torch.tensor(three, dtype=torch.float64).view(3, 1, 1)


def conversion_for(network: nn.Module, wanted: Eyes, shown: Eyes, images: Tensor, what: str) -> Conversion | None:
    """What a network needs to see the dataset's images as it wants them; None where they are so already.

    Args:
        network: on the device of the images.
        wanted: what is said of it.
        shown: complete: how images are handed out.
        images: ``[B, 3, H, W]`` of any content.
        what: begins the line of an error.

    Raises:
        UsageError: it takes a single channel, of which nobody says how it is normalised.
    """
    if wanted.channels == "BGR":  # what is not said of it is the dataset's, in its order
        assert isinstance(shown.mean, tuple)
        assert isinstance(shown.std, tuple)
        complete = wanted.over(replace(shown, mean=shown.mean[::-1], std=shown.std[::-1]))
    else:
        complete = wanted.over(shown)
    channels = 3
    assert complete.size is not None
    if complete.channels == 1 and takes_one_channel(network, images, complete.size):
        channels = 1
        if any(len(set(each)) > 1 for each in (complete.mean, complete.std) if isinstance(each, tuple)):
            raise UsageError(f"{what}: channels: it takes one; say its mean and std, a number each")
    if complete == shown and channels == 3:
        return None
    return Conversion(complete, shown, images.device, channels)


@torch.no_grad()
def takes_one_channel(network: nn.Module, images: Tensor, size: int) -> bool:
    """Whether a network takes images of one channel and this size."""
    try:
        network.eval()(F.interpolate(images[:, :1], (size, size)))
    except (RuntimeError, AssertionError, ValueError):  # torch's own, timm's and transformers'
        return False
    return True


def narrowed(network: nn.Module) -> bool:
    """Whether a network's first convolution took three channels; then it takes one from now on, with new weights."""
    found = ((name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d))
    name, first = next(found, ("", None))
    if first is None or first.in_channels != 3:
        return False
    alike: dict[str, Any] = {
        each: getattr(first, each) for each in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    with torch.random.fork_rng(devices=[]):
        one = nn.Conv2d(1, first.out_channels, bias=first.bias is not None, **alike)
    network.set_submodule(name, one.to(first.weight.device))
    return True
