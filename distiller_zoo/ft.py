"""Paraphrasing Complex Network: Network Compression via Factor Transfer (Kim, Park, Kwak; NeurIPS 2018)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from distiller_zoo.base import FeatureDistiller, Pair, distill_dict
from distiller_zoo.maps import energy, smaller
from helper.errors import require_not_negative
from helper.kl import full_precision
from helper.seen import Seen

SLOPE = 0.1
"""Of all leaky ReLUs."""


@distill_dict.register("ft")
class FT(FeatureDistiller):
    """``⟨|A(translator(s)) − A(paraphraser(t))|⟩_HW`` of the last maps, with ``A(f) = unit(⟨f²⟩_channels)``.

    Before the student is trained, the paraphraser learns to make of the teacher's map a factor of half as many
    channels, from which its decoder can reconstruct it; then it stays. That the factors' energies are compared, at the
    smaller size of both maps, is the released code's way; the paper compares the normalised factors.

    Args:
        pair: the networks' shapes.
        init_epochs: epochs in which the paraphraser learns, before all others; None: 30 for the published 240, and as
            large a share of fewer.

    Raises:
        UsageError: the number of epochs is below 0.
    """

    def __init__(
        self,
        pair: Pair,
        *,
        init_epochs: Annotated[int | None, "epochs for the paraphraser before the first; an eighth of --epochs"] = None,
    ) -> None:
        super().__init__(pair)
        require_not_negative(init_epochs=init_epochs or 0)
        self.init_epochs = init_epochs
        width, teacher_width = self.student_shape[0], self.teacher_shape[0]
        half = max(1, teacher_width // 2)
        self.encoder = _three(nn.Conv2d, (teacher_width, teacher_width, half, half))
        self.decoder = _three(nn.ConvTranspose2d, (half, half, teacher_width, teacher_width))
        self.translator = _three(nn.Conv2d, (width, width, half, half), normalised=True)
        self.encoder.requires_grad_(False)
        self.decoder.requires_grad_(False)

    def first_epochs(self, epochs: int) -> int:
        return -(-epochs // 8) if self.init_epochs is None else self.init_epochs

    def first_loss(self, teacher: Seen) -> Tensor:
        """Mean squared error of the reconstruction."""
        (maps,) = teacher.maps
        return F.mse_loss(full_precision(self.decoder(self.encoder(maps))), full_precision(maps))

    def adapt(self, student_map: Tensor) -> Tensor:
        return self.translator(student_map)

    def distance(self, adapted: Tensor, teacher_map: Tensor) -> Tensor:
        mine, theirs = (energy(each) for each in smaller(adapted, self.encoder(teacher_map)))
        return (mine - theirs).abs().mean(1)


def _three(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: tuple[int, ...], normalised: bool = False
) -> nn.Sequential:
    """3×3 convolutions from width to width, each with a leaky ReLU, before it BN or nothing."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        norm = [nn.BatchNorm2d(outputs)] if normalised else []
        layers += [kind(inputs, outputs, 3, padding=1), *norm, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)
