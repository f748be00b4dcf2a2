"""Peer Collaborative Learning for Online Knowledge Distillation (Wu and Gong; AAAI 2021)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from helper.errors import UsageError
from helper.kl import full_precision
from online.base import (
    RAMP_UP,
    Alpha,
    OnlineMethod,
    OwnViews,
    PeerCount,
    Structure,
    Temperature,
    mean_kl,
    online_dict,
)
from online.peers import Outputs


@online_dict.register("PCL")
class PCL(OnlineMethod):
    """``Σ_i CE(z_i) + CE(e) + λα·Σ_i (KL(e → z_i) + mean_{j≠i} KL(ẑ_j → z_i))``, each peer on its own augmentation.

    ``e`` is a linear layer of all peers' pooled vectors, detached in the KL; ``ẑ_j`` is what peer j's moving average
    says of peer j's images, with the batch's own statistics. Averaged peer 0 is used in the end. No 1e-7 in the KL.

    No code of the authors' is public. A re-implementation, whose losses and recipe these are, divides by 1 in place of
    80 in the ramp-up, so that λ is 1 in epoch 2, then nearly 0 up to epoch 81 (``--ramp_up released``).
    """

    ramps_up = True
    classifier: nn.Linear

    def __init__(
        self,
        *,
        num_branches: PeerCount = 3,
        peers: Structure = "branches",
        alpha: Alpha = 1.0,
        kd_T: Temperature = 3.0,
        ema_decay: Annotated[float, "share of the averaged peers' weights that stays in a step"] = 0.999,
        own_views: OwnViews = True,
        ramp_up: Annotated[
            Literal["paper", "released"], "how the KL's weight grows: as meant, or as released"
        ] = "paper",
    ) -> None:
        super().__init__(num_branches, peers, alpha, kd_T)
        self.own_views, self.ramp_up = own_views, ramp_up
        self.average_decay: float = ema_decay

    def require_valid(self) -> None:
        super().require_valid()
        if not 0 <= self.average_decay < 1:
            raise UsageError(f"--ema_decay: expected at least 0 and below 1, got {self.average_decay:g}")

    def attach(self, outputs: Outputs) -> None:
        width = sum(vector.shape[1] for vector in outputs.vectors)
        self.classifier = nn.Linear(width, outputs.logits.shape[-1])

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        assert outputs.averaged is not None
        logits = full_precision(outputs.logits)  # [m, B, C]
        together = outputs.once(self.together)  # [B, C]
        each = mean_kl(logits[:, None], outputs.averaged[None], self.kd_T, eps=0.0)  # [m, m]: of averaged j to peer i
        others = (each.sum(1) - each.diagonal()) / (len(each) - 1)
        kd = mean_kl(logits, together.detach(), self.kd_T, eps=0.0) + others
        return {"ce": self.cross_entropies(torch.cat([logits, together[None]]), target), "kd": kd}

    def together(self, outputs: Outputs) -> Tensor:
        """What the linear layer makes of all peers' vectors, logits ``[B, C]``."""
        return full_precision(self.classifier(torch.cat(outputs.vectors, 1)))

    def weights(self, epoch: int, epochs: int) -> dict[str, float]:
        if self.ramp_up == "paper":
            return super().weights(epoch, epochs)
        passed = epoch - 1
        ramp = 1.0 if passed > epochs * RAMP_UP else math.exp(-5 * (1 - passed) ** 2)
        return {"ce": 1.0, "kd": self.alpha * ramp}
