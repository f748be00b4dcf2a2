"""Online Knowledge Distillation via Collaborative Learning (Guo et al.; CVPR 2020)."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from helper.errors import UsageError
from helper.kl import full_precision
from helper.recipe import Recipe
from online.base import (
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


@online_dict.register("KDCL")
class KDCL(OnlineMethod):
    """``Σ_i (1 − α)·CE(z_i) + α·KL(target → z_i)``, each peer on its own augmentation, no ramp-up, no 1e-7.

    The target is detached: for each class the least of the peers' ``z − z_y`` (the paper's MinLogit), the logits of the
    peer with the least cross-entropy on the sample (its Naive), or the mean of the logits. No code of the authors' is
    public: the losses' weights and the recipe are those of a re-implementation, whose target is the mean. The paper's
    General, which weighs the peers by their errors on validation images, is left out.
    """

    reads_features = False

    recipe = Recipe(learning_rate=0.05)

    def __init__(
        self,
        *,
        num_branches: PeerCount = 2,
        peers: Structure = "networks",
        alpha: Alpha = 0.5,
        kd_T: Temperature = 4.0,
        target: Annotated[
            Literal["minlogit", "naive", "mean"],
            "what the peers learn from: class by class the least logit above the label's, the best peer's, or the mean",
        ] = "minlogit",
        own_views: OwnViews = True,
    ) -> None:
        super().__init__(num_branches, peers, alpha, kd_T)
        self.target, self.own_views = target, own_views

    def require_valid(self) -> None:
        super().require_valid()
        if self.alpha > 1:
            raise UsageError(f"--alpha: KDCL weighs the cross-entropy by 1 − α; expected at most 1, got {self.alpha:g}")

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        logits = full_precision(outputs.logits)
        kd = mean_kl(logits, self.targets(logits.detach(), target), self.kd_T, eps=0.0)
        return {"ce": self.cross_entropies(logits, target), "kd": kd}

    def targets(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits ``[m, B, C]`` and labels ``[B]`` → the target's logits ``[B, C]``."""
        if self.target == "mean":
            return logits.mean(0)
        if self.target == "minlogit":
            return (logits - logits.gather(-1, target.expand(len(logits), -1)[..., None])).amin(0)
        best = self.sample_cross_entropies(logits, target).argmin(0)  # [B]
        return logits.gather(0, best[None, :, None].expand(1, *logits.shape[1:])).squeeze(0)

    def weights(self, epoch: int, epochs: int) -> dict[str, float]:
        return {"ce": 1 - self.alpha, "kd": self.alpha}
