"""Online Ensemble Model Compression using Knowledge Distillation (Walawalkar, Shen, Savvides; ECCV 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn, stack

from helper.cost import parameter_count
from helper.errors import UsageError
from helper.kl import full_precision
from helper.recipe import Recipe
from helper.registry import Unread
from online.base import OnlineMethod, mean_kl, online_dict
from online.peers import Network, Outputs, Peers

OTHERS = "others"

DEEP = Recipe(
    epochs=350,
    drops=(200, 300),
    batch_size=128,
    learning_rate=1e-3,
    weight_decay=1e-5,
    optimizer="adam",
    settings={"ratios": "0.7,0.15,0.15", "kd_T": 2.0},
)
SHALLOW = Recipe(
    epochs=400,
    drops=(100, 180, 240, 350),
    batch_size=64,
    learning_rate=1e-3,
    weight_decay=1e-5,
    optimizer="adam",
    settings={"ratios": "0.4,0.3,0.3", "kd_T": 3.0},
)
SGD = Recipe(
    epochs=400,
    drops=(50, 130, 220, 270),
    batch_size=128,
    learning_rate=0.1,
    weight_decay=1e-4,
    settings={"ratios": "0.4,0.3,0.3", "kd_T": 3.0},
)
# Released: T and the weight decay of all of these; all of resnet20 (0.1 is its single students' learning rate; its
# ensemble file says 0.01), of resnet32 and of DenseNet-BC 100-12. Chosen here: DenseNet-BC 100-12's recipe for 40-12,
# and resnet32's for what has none. The released file of resnet110 belongs to the end of a resumed run (learning rate
# 0.001), and is not followed.
SGD_RESNET20 = replace(SGD, drops=(100, 180, 250, 350), settings={"ratios": "0.4,0.2,0.4", "kd_T": 3.0})
EVEN = {"ratios": "1,1,1", "kd_T": 3.0}
SGD_DENSENET = replace(SGD, epochs=350, drops=(170, 250), batch_size=48, settings=EVEN)
# EfficientNet-B0 on ImageNet; its file has no ratios, and 1 for each is the released loss's own default.
IMAGENET = Recipe(
    epochs=100,
    drops=(50, 70, 90),
    batch_size=128,
    learning_rate=1e-3,
    lr_decay_rate=0.5,
    weight_decay=1e-4,
    optimizer="adam",
    settings=EVEN,
)

RECIPES: dict[str, dict[str, Recipe]] = {
    "cifar100": {"resnet20": SHALLOW, OTHERS: DEEP},
    "cifar10": {
        "resnet20": SGD_RESNET20,
        "densenetd40k12": SGD_DENSENET,
        "densenetd100k12": SGD_DENSENET,
        OTHERS: SGD,
    },
    "imagenet": {OTHERS: IMAGENET},
}
"""What the authors' configurations hold for a dataset's networks; other datasets are trained as CIFAR-100."""


@online_dict.register("BOC")
class BOC(OnlineMethod):
    """``c0·Σ_i CE(z_i) + c1·Σ_blocks Σ_{j≥1} MSE(F_0, adapter_j(F_j)) + c2·Σ_i KL(z_T → z_i)``.

    S students share the stem; student j has ``(S − j)/S`` of the channels (rounded down) of the last ``num_blocks``
    stages, and 1×1 convolutions that adapt its maps to student 0's. ``z_T`` is the mean of the students' logits; it and
    ``F_0`` are detached. The adapters train at half the learning rate, from the first step on (the released code leaves
    them out of the first epoch). No 1e-7 in the KL.

    The released CIFAR-100 runs do not normalise the images; here they are normalised, as for every other method and as
    in the released CIFAR-10 runs.
    """

    rate = 0.5
    unread: ClassVar[Unread] = dict.fromkeys(
        ("ratios", "kd_T", "adapters"), ("single_student", lambda j: j is not None)
    )
    adapters: nn.ModuleList

    def __init__(
        self,
        *,
        num_students: Annotated[int, "students S; student j keeps (S − j)/S of the channels"] = 5,
        num_blocks: Annotated[int, "how many of the last stages are narrowed and compared"] = 3,
        ratios: Annotated[str | None, "c0,c1,c2 of cross-entropy, maps and KL; the recipe's, unless given"] = None,
        kd_T: Annotated[float | None, "temperature of the softened KL; BOC's is the recipe's"] = None,
        adapters: Annotated[bool, "compare the students' maps with student 0's"] = True,
        single_student: Annotated[int | None, "train this student alone, as a baseline"] = None,
    ) -> None:
        settings = DEEP.settings
        super().__init__(num_students, "branches", kd_T=settings["kd_T"] if kd_T is None else kd_T)
        self.num_blocks, self.adapts, self.single = num_blocks, adapters, single_student
        self.ratios = parse_ratios(settings["ratios"] if ratios is None else ratios)

    @classmethod
    def published(cls, model: str, dataset: str) -> Recipe:
        recipes = RECIPES.get(dataset, RECIPES["cifar100"])
        return recipes.get(model, recipes[OTHERS])

    def require_valid(self) -> None:
        if self.num_branches < 2:
            raise UsageError(f"--num_students: BOC needs at least 2, got {self.num_branches}")
        if self.num_blocks < 1:
            raise UsageError(f"--num_blocks: expected a whole number of at least 1, got {self.num_blocks}")
        if self.single is not None and not 0 <= self.single < self.num_branches:
            raise UsageError(
                f"--single_student: there are students 0 to {self.num_branches - 1}, got {self.single}; "
                "see --num_students"
            )
        super().require_valid()

    def make_peers(self, build: Callable[..., Network]) -> Peers:
        """Students 0 to S − 1, or the single one, with the stem in common.

        Raises:
            UsageError: a student would be too thin for its architecture, or that takes no widths.
        """
        full = build()
        stages = len(full.stages) - 1
        if self.num_blocks > stages > 0:
            raise UsageError(f"--num_blocks: the network has {stages} stages after its stem, got {self.num_blocks}")
        chosen = range(self.num_branches) if self.single is None else [self.single]
        students = [full if j == 0 else self.student(build, full, j) for j in chosen]
        return Peers(students, shared=1, first=chosen[0], whole=parameter_count(full))

    def student(self, build: Callable[..., Network], full: Network, j: int) -> Network:
        """Student j, of student 0's architecture."""
        widths = self.widths(full, j)
        try:
            return build(widths=widths)
        except UsageError as error:  # dense stages have to grow, others have units
            raise UsageError(f"--num_students: student {j} of {self.num_branches} cannot be built; {error}") from None

    def widths(self, full: Network, j: int) -> tuple[int, ...]:
        """Channels of the stages of student j."""
        widths = full.thinner_widths(self.num_branches - j, self.num_branches, self.num_blocks)
        if min(widths) < 1:
            raise UsageError(f"--num_students: student {j} of {self.num_branches} would be left without channels")
        return widths

    def attach(self, outputs: Outputs) -> None:
        """One adapter for every narrowed stage of every student but student 0."""
        self.adapters = nn.ModuleList()
        for maps in outputs.maps[1:] if self.adapts else ():
            pairs = list(zip(maps, outputs.maps[0], strict=True))[-self.num_blocks :]
            self.adapters.append(nn.ModuleList(nn.Conv2d(mine.shape[1], full.shape[1], 1) for mine, full in pairs))

    def losses(self, outputs: Outputs, target: Tensor) -> dict[str, Tensor]:
        logits = full_precision(outputs.logits)
        losses = {"ce": self.cross_entropies(logits, target)}
        if len(logits) > 1:
            losses["kd"] = mean_kl(logits, logits.mean(0).detach(), self.kd_T, eps=0.0)
        if len(self.adapters):
            losses["map"] = outputs.once(self.map_losses)
        return losses

    def map_losses(self, outputs: Outputs) -> Tensor:
        """MSE between student 0's maps and each other student's adapted ones, summed over blocks: ``[S − 1]``."""
        full = [map_.detach() for map_ in outputs.maps[0][-self.num_blocks :]]
        each = []
        for maps, adapters in zip(outputs.maps[1:], self.adapters, strict=True):
            triples = zip(full, maps[-self.num_blocks :], adapters, strict=True)  # type: ignore[call-overload]
            each.append(stack([F.mse_loss(adapter(mine), goal) for goal, mine, adapter in triples]).sum())
        return stack(each)

    def weights(self, epoch: int, epochs: int) -> dict[str, float]:
        if self.single is not None:
            return {"ce": 1.0}
        ce, maps, kd = self.ratios
        return {"ce": ce, "map": maps, "kd": kd}


def parse_ratios(text: str) -> tuple[float, float, float]:
    """``0.7,0.15,0.15`` → three numbers.

    Raises:
        UsageError: there are not three, or one is not a number of at least 0.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(0 <= number < math.inf for number in numbers) or not any(numbers):
        raise UsageError(f"--ratios: expected three numbers of at least 0 such as 0.7,0.15,0.15, got {text!r}")
    return numbers[0], numbers[1], numbers[2]
