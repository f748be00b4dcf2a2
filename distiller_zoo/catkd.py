"""Class Attention Transfer Based Knowledge Distillation (Guo, Yan, Li, Lin; CVPR 2023)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from distiller_zoo.base import Distiller, Pair, distill_dict
from distiller_zoo.maps import unit
from helper.batch import Batch, When
from helper.errors import require_positive
from helper.kl import full_precision
from helper.seen import Reads, Seen


@distill_dict.register("catkd")
class CATKD(Distiller):
    """Squared error between class activation maps: what the classifiers make of each position of the last maps.

    Each is average-pooled to r × r and scaled to length 1 by class. The released networks are built anew with the
    classifier before the pooling, here any one's is applied to each position. Published with ``-r 1 -a 0``, and scaled
    only where the networks are of different kinds, see docs/methods.md.

    Args:
        pair: nothing of it is needed.
        cam_resolution: r; as released 2, or 4 for ShuffleNets.
        cam_normalize: whether they are scaled.

    Raises:
        UsageError: ``cam_resolution`` is below 1.
    """

    student = teacher = Reads(cam=True)

    def __init__(
        self,
        pair: Pair,
        *,
        cam_resolution: Annotated[int, "class activation maps are pooled to this side"] = 2,
        cam_normalize: Annotated[bool, "scale the class activation maps to length 1"] = True,
    ) -> None:
        super().__init__(pair)
        require_positive(cam_resolution=cam_resolution)
        self.side, self.normalize = cam_resolution, cam_normalize

    def compare(self, prepared: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        return (self._attention(prepared) - self._attention(teacher)).square().flatten(1).mean(1)

    def _attention(self, seen: Seen) -> Tensor:
        """``[B, C, r²]``, of length 1 for each class where they are scaled."""
        assert seen.cam is not None
        pooled = F.adaptive_avg_pool2d(full_precision(seen.cam), self.side).flatten(2)
        return unit(pooled) if self.normalize else pooled
