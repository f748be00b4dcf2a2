"""Online Knowledge Distillation with Diverse Peers (Chen, Mei, Wang, Feng, Chen; AAAI 2020)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from helper.kl import full_precision
from online.base import Alpha, OnlineMethod, PeerCount, Structure, Temperature, mean_kl, online_dict
from online.peers import Outputs


class Attention(nn.Module):
    """``α_ab = softmax_b((W_q h_a)·(W_k h_b))``: ``[m, B, D]`` → ``[B, m, m]``.

    The projections are bias-free, D → D/8; there is no division by √d, and a peer attends to itself too.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, max(1, width // 8), bias=False)
        self.key = nn.Linear(width, max(1, width // 8), bias=False)

    def forward(self, features: Tensor) -> Tensor:
        query, key = self.query(features), self.key(features)  # [m, B, D/8]
        # here and in `mixed` no matrix product, which autocast would round to half precision
        scores = (full_precision(query)[:, None] * full_precision(key)).sum(-1)  # [m, m, B]
        return scores.permute(2, 0, 1).softmax(-1)


@online_dict.register("OKDDip")
class OKDDip(OnlineMethod):
    """``Σ CE(z) + λα·(Σ_a KL(Σ_b α_ab z_b → z_a) + KL(mean of the peers → leader))``.

    The last of the m peers is the group leader, which is used in the end; the others are the auxiliary peers. No target
    is detached: the attention has no other gradient. The released code mixes logits (default), the paper softened
    probabilities (``--mix probabilities``).
    """

    fewest = 3
    ramps_up = True
    inference = -1
    attention: Attention

    def __init__(
        self,
        *,
        num_branches: PeerCount = 4,
        peers: Structure = "branches",
        alpha: Alpha = 1.0,
        kd_T: Temperature = 3.0,
        mix: Annotated[Literal["logits", "probabilities"], "what the attention weighs: released code or paper"] = (
            "logits"
        ),
    ) -> None:
        super().__init__(num_branches, peers, alpha, kd_T)
        self.mix = mix

    def attach(self, outputs: Outputs) -> None:
        self.attention = Attention(outputs.features.shape[-1])

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        peers, leader = full_precision(outputs.logits[:-1]), outputs.logits[-1:]
        attention = outputs.once(self.attended)  # [B, m − 1, m − 1]
        even = torch.full_like(attention[:, :1], 1 / len(peers))  # [B, 1, m − 1]
        kd = [
            mean_kl(peers, self.mixed(attention, peers), self.kd_T),
            mean_kl(leader, self.mixed(even, peers), self.kd_T),
        ]
        return {"ce": self.cross_entropies(outputs.logits, target), "kd": torch.cat(kd)}

    def attended(self, outputs: Outputs) -> Tensor:
        """How much each auxiliary peer attends to each, ``[B, m − 1, m − 1]``."""
        return self.attention(outputs.features[:-1])

    def mixed(self, weights: Tensor, logits: Tensor) -> Tensor:
        """Weights ``[B, n, m]`` and logits ``[m, B, C]`` → the logits of n mixtures, ``[n, B, C]``."""
        if self.mix == "logits":
            return (weights.permute(1, 2, 0)[..., None] * logits).sum(1)
        softened = (logits / self.kd_T).log_softmax(-1)  # [m, B, C]
        weights = weights.clamp_min(torch.finfo(weights.dtype).tiny)  # the logarithm of 0 has no finite gradient
        mixtures = weights.log().permute(1, 2, 0)[..., None] + softened  # [n, m, B, C]
        # logits whose softmax at T is the mixture of probabilities
        return mixtures.logsumexp(1) * self.kd_T

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        """The leader, and accuracy, ensemble and diversity of the auxiliary peers."""
        peers = Outputs(outputs.logits[:-1], outputs.vectors[:-1], outputs.maps[:-1], outputs.trunk)
        return super().predictions(peers) | {"network": full_precision(outputs.logits[-1])}
