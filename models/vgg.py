"""VGG networks with batch norm and a single linear classifier, and one with a three-layer classifier.

Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015. vgg8 has one
convolution per stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from models.base import StagedModel, checked_widths, init_weights, model_dict

WIDTHS = (64, 128, 256, 512, 512)


class PoolLargeMap(nn.MaxPool2d):
    """Halve maps of at least 8 rows; the 4×4 maps that 32×32 images give pass unchanged. [B, C, H, W] → same rank."""

    def __init__(self) -> None:
        super().__init__(kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[2] >= 8 else x


def convolutions(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """``depth`` times convolution and batch norm with ReLUs between them, none at the end. [B, C, H, W], same H, W."""
    layers: list[nn.Module] = []
    for index in range(depth):
        if index:
            layers.append(nn.ReLU(inplace=True))
        layers += [nn.Conv2d(outputs if index else inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers)


class VGG(StagedModel):
    """Five stages with max pooling between them; [B, 3, 32, 32] → maps of 32², 16², 8², 4² and 4² pixels.

    Args:
        num_classes: number of logits.
        depths: convolutions per stage.
        widths: channels per stage.
    """

    def __init__(self, num_classes: int, depths: Sequence[int], widths: Sequence[int] = WIDTHS) -> None:
        parts = {"block0": ("block0",), **{f"block{i}": (f"pool{i - 1}", f"block{i}") for i in range(1, 5)}}
        # of each convolution: itself, its normalisation and, but for the last one's, a ReLU
        norms = {f"block{index}": f"block{index}.{3 * depth - 2}" for index, depth in enumerate(depths)}
        super().__init__(num_classes, parts, head="classifier", norms=norms)
        self.widths = widths = checked_widths(widths, 5)
        for index, (inputs, outputs, depth) in enumerate(zip((3, *widths[:-1]), widths, depths, strict=True)):
            self.add_module(f"block{index}", convolutions(inputs, outputs, depth))
        for index in range(3):
            self.add_module(f"pool{index}", nn.MaxPool2d(kernel_size=2, stride=2))
        self.pool3 = PoolLargeMap()
        self.classifier = nn.Linear(widths[-1], num_classes)
        init_weights(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)


class ThreeLayerVGG(VGG):
    """OKDDip's VGG (released code): a pooling after every stage, and three linear layers on the vector.

    [B, 3, 32, 32] → maps of 32², 16², 8², 4² and 2² pixels. The hidden layers are as wide as the last stage. Dropout
    follows their ReLUs: 0.5 in a branch, none in a network of its own.
    """

    def __init__(self, num_classes: int, depths: Sequence[int], widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(num_classes, depths, widths)
        self.pool3, self.pool4 = nn.MaxPool2d(2, 2), nn.MaxPool2d(2, 2)  # type: ignore[assignment]
        width = self.widths[-1]
        self.classifier = nn.Sequential(  # type: ignore[assignment]
            nn.Identity(),  # where earlier versions had a dropout: the layers keep their names in checkpoints
            *(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Dropout(0.0)),
            *(nn.Linear(width, width), nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.0))),
            nn.Linear(width, num_classes),
        )
        for module in self.classifier.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def become_branch(self) -> None:
        for module in self.classifier.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5

    def embed(self, x: Tensor) -> Tensor:
        return super().embed(self.pool4(x))


for _name, _depths in (
    ("vgg8", (1, 1, 1, 1, 1)),
    ("vgg11", (1, 1, 2, 2, 2)),
    ("vgg13", (2, 2, 2, 2, 2)),
    ("vgg16", (2, 2, 3, 3, 3)),
    ("vgg19", (2, 2, 4, 4, 4)),
):
    model_dict.register(_name)(partial(VGG, depths=_depths))

model_dict.register("vgg16_fc3")(partial(ThreeLayerVGG, depths=(2, 2, 3, 3, 3)))
