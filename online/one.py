"""Knowledge Distillation by On-the-Fly Native Ensemble (Lan, Zhu, Gong; NeurIPS 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.kl import full_precision
from helper.recipe import Recipe
from online.base import (
    Alpha,
    DetachTargets,
    OnlineMethod,
    PeerCount,
    Structure,
    Temperature,
    mean_kl,
    online_dict,
)
from online.peers import Outputs


class Gate(nn.Module):
    """``softmax(ReLU(BN(FC(avgpool(trunk)))))`` (released code): ``[B, C, H, W]`` → weights ``[B, m]``."""

    def __init__(self, channels: int, num_branches: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_branches)
        self.bn = nn.BatchNorm1d(num_branches)

    def forward(self, trunk: Tensor) -> Tensor:
        return F.relu(self.bn(self.fc(trunk.mean((2, 3))))).softmax(-1)


@online_dict.register("ONE")
class ONE(OnlineMethod):
    """``Σ_i CE(z_i) + CE(z_e) + λα·Σ_i KL(z_e → z_i)`` with the gate's ensemble ``z_e = Σ_i g_i z_i``.

    The target of the KL is detached: the gate learns from CE(z_e) alone. ``network`` is branch 0 (the paper's ONE),
    ``one_e`` the ensemble (ONE-E). The original recipe has no Nesterov momentum and other drops than OKDDip's.

    The ONE that OKDDip's code compares with has OKDDip's recipe, 4 branches, and a gradient through the target:
    ``--num_branches 4 --no-detach_targets --nesterov --wd 5e-4 --schedule 150 225``.
    """

    recipe = Recipe(epochs=300, drops=(151, 225), batch_size=128, learning_rate=0.1, weight_decay=1e-4)
    structures = ("branches",)
    ramps_up = True
    ensemble = "one_e"
    gate: Gate

    def __init__(
        self,
        *,
        num_branches: PeerCount = 3,
        peers: Structure = "branches",
        alpha: Alpha = 1.0,
        kd_T: Temperature = 3.0,
        detach_targets: DetachTargets = True,
    ) -> None:
        super().__init__(num_branches, peers, alpha, kd_T)
        self.detach_targets = detach_targets

    def attach(self, outputs: Outputs) -> None:
        assert outputs.trunk is not None
        self.gate = Gate(outputs.trunk.shape[1], self.num_branches)

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        ensemble = outputs.once(self.mixed)
        ce = self.cross_entropies(torch.cat([full_precision(outputs.logits), ensemble[None]]), target)  # [m + 1]
        target_logits = ensemble.detach() if self.detach_targets else ensemble
        return {"ce": ce, "kd": mean_kl(outputs.logits, target_logits, self.kd_T)}

    def mixed(self, outputs: Outputs) -> Tensor:
        """The gate's ensemble, logits ``[B, C]``."""
        return mix(self.gate(outputs.trunk), outputs.logits)

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        plain = super().predictions(outputs)
        return {"network": plain.pop("network"), "one_e": self.mixed(outputs), **plain}


def mix(gate: Tensor, logits: Tensor) -> Tensor:
    """``Σ_i g_i z_i`` of weights ``[B, m]`` and logits ``[m, B, C]``: ``[B, C]``."""
    # no matrix product, which autocast would round to half precision
    return (full_precision(gate).T[..., None] * full_precision(logits)).sum(0)
