"""Deep Mutual Learning (Zhang, Xiang, Hospedales, Lu; CVPR 2018), as released with OKDDip."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from online.base import (
    Alpha,
    DetachTargets,
    OnlineMethod,
    PeerCount,
    Structure,
    Temperature,
    mean_kl,
    mean_of_others,
    online_dict,
)
from online.peers import Outputs


@online_dict.register("DML")
class DML(OnlineMethod):
    """``Σ_i CE(z_i) + α·KL(mean of the others → z_i)``, no ramp-up.

    The paper takes the mean of the KLs to each other peer (``--pairwise``) and sends no gradient through the
    targets (``--detach_targets``); the released code that OKDDip compares with does neither.
    """

    reads_features = False

    def __init__(
        self,
        *,
        num_branches: PeerCount = 4,
        peers: Structure = "networks",
        alpha: Alpha = 1.0,
        kd_T: Temperature = 3.0,
        pairwise: Annotated[bool, "mean of the KLs to each other peer, instead of the KL to their mean"] = False,
        detach_targets: DetachTargets = False,
    ) -> None:
        super().__init__(num_branches, peers, alpha, kd_T)
        self.pairwise, self.detach_targets = pairwise, detach_targets

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        logits = outputs.logits
        sources = logits.detach() if self.detach_targets else logits
        if self.pairwise:
            each = mean_kl(logits[:, None], sources[None], self.kd_T)  # [m, m]: of peer i to peer j
            kd = (each.sum(1) - each.diagonal()) / (len(each) - 1)
        else:
            kd = mean_kl(logits, mean_of_others(sources), self.kd_T)
        return {"ce": self.cross_entropies(logits, target), "kd": kd}
