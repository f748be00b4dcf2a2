"""Peers that learn from the labels alone: the baseline of OKDDip (Chen et al., AAAI 2020), "Ind"."""

from __future__ import annotations

from torch import Tensor

from online.base import OnlineMethod, PeerCount, Structure, online_dict
from online.peers import Outputs


@online_dict.register("IND")
class IND(OnlineMethod):
    """``Σ_i CE(z_i)``: what branches, or separate networks, reach without teaching each other."""

    reads_features = False

    def __init__(self, *, num_branches: PeerCount = 4, peers: Structure = "branches") -> None:
        super().__init__(num_branches, peers)

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        return {"ce": self.cross_entropies(outputs.logits, target)}
