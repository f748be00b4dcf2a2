"""Collaborative Learning for Deep Neural Networks (Song and Chai, NeurIPS 2018), as released with OKDDip."""

from __future__ import annotations

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


@online_dict.register("CLILR")
class CLILR(OnlineMethod):
    """``Σ_i CE(z_i) + λα·KL(mean of the others → z_i)``; the gradient that enters the shared trunk is divided by m.

    The division is the paper's intermediate-level representation sharing with backpropagation rescaling.
    The released code sends a gradient through the targets, the paper does not (``--detach_targets``).
    """

    structures = ("branches",)
    ramps_up = True

    def __init__(
        self,
        *,
        num_branches: PeerCount = 4,
        peers: Structure = "branches",
        alpha: Alpha = 1.0,
        kd_T: Temperature = 3.0,
        detach_targets: DetachTargets = False,
    ) -> None:
        super().__init__(num_branches, peers, alpha, kd_T)
        self.detach_targets = detach_targets

    @property
    def trunk_gradient(self) -> float:
        return 1 / self.num_branches

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        logits = outputs.logits
        targets = mean_of_others(logits.detach() if self.detach_targets else logits)
        return {"ce": self.cross_entropies(logits, target), "kd": mean_kl(logits, targets, self.kd_T)}
