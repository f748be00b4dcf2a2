"""Feature Fusion for Online Mutual Knowledge Distillation (Kim, Hyun, Chung, Kwak; ICPR 2020)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.errors import require_not_negative
from helper.kl import full_precision
from online.base import (
    OKDDIP_RECIPE,
    Alpha,
    OnlineMethod,
    PeerCount,
    Structure,
    Temperature,
    mean_kl,
    online_dict,
)
from online.peers import Outputs


class Fusion(nn.Module):
    """Last maps of m peers ``[B, D, H, W]`` each → logits ``[B, C]``.

    Depthwise 3×3 and 1×1 convolution (mD → D), each with BatchNorm and ReLU, then the mean and a linear layer.
    """

    def __init__(self, channels: int, num_branches: int, num_classes: int) -> None:
        super().__init__()
        together = num_branches * channels
        self.depthwise = nn.Conv2d(together, together, 3, padding=1, groups=together, bias=False)
        self.bn1 = nn.BatchNorm2d(together)
        self.pointwise = nn.Conv2d(together, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for convolution in (self.depthwise, self.pointwise):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(torch.cat(maps, 1))))
        x = F.relu(self.bn2(self.pointwise(x)))
        return full_precision(self.fc(x.mean((2, 3))))


@online_dict.register("FFL")
class FFL(OnlineMethod):
    """``Σ_i CE(z_i) + CE(f) + λα·(Σ_i KL(f → z_i) + KL(mean of z → f))``, with f of a fusion of the last maps.

    Targets are detached. ``network`` is branch 0 (the paper's FFL-S), ``fused`` the fusion's answer. The fusion has a
    weight decay of its own.
    """

    recipe = replace(OKDDIP_RECIPE, weight_decay=1e-4)
    ramps_up = True
    ensemble = "fused"
    fusion: Fusion

    def __init__(
        self,
        *,
        num_branches: PeerCount = 2,
        peers: Structure = "branches",
        alpha: Alpha = 1.0,
        kd_T: Temperature = 3.0,
        fusion_weight_decay: Annotated[float, "L2 penalty of the fusion's weights"] = 1e-5,
    ) -> None:
        super().__init__(num_branches, peers, alpha, kd_T)
        self.weight_decay: float = fusion_weight_decay

    def require_valid(self) -> None:
        super().require_valid()
        require_not_negative(fusion_weight_decay=self.weight_decay)

    def attach(self, outputs: Outputs) -> None:
        self.fusion = Fusion(outputs.maps[0][-1].shape[1], self.num_branches, outputs.logits.shape[-1])

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        logits, fused = full_precision(outputs.logits), outputs.once(self.fused)[None]  # [m, B, C], [1, B, C]
        kd = [
            mean_kl(logits, fused.detach(), self.kd_T),
            mean_kl(fused, logits.mean(0).detach(), self.kd_T),
        ]
        return {"ce": self.cross_entropies(torch.cat([logits, fused]), target), "kd": torch.cat(kd)}

    def fused(self, outputs: Outputs) -> Tensor:
        """The fusion's logits ``[B, C]``."""
        return self.fusion([maps[-1] for maps in outputs.maps])

    def predictions(self, outputs: Outputs) -> dict[str, Tensor]:
        plain = super().predictions(outputs)
        return {"network": plain.pop("network"), "fused": self.fused(outputs), **plain}
