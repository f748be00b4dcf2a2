"""Every classification network of torchvision, as ``torchvision/<name>``.

Convolutional families are cut into stages like this project's own. State names stay torchvision's, so that ImageNet
checkpoints load as they are. Other families (transformers, and any that ``ANATOMY`` does not know) offer logits only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from helper.errors import UsageError, nearest
from helper.teachers.record import Eyes
from models.base import TORCHVISION, Builder, StagedModel, checked_widths, model_dict, source_dict
from models.torchvision_efficientnet import with_channels
from models.wrapped import Wrapped, first_line

IMAGENET_CLASSES = 1000
AUXILIARY = ("aux1", "aux2", "AuxLogits")


@dataclass(frozen=True)
class Anatomy:
    """How a torchvision family gets from images to logits.

    Attributes:
        trunk: children up to the last map, in the order of use; ``features.*`` stands for all children of ``features``.
        head: children from the pooled vector to the logits.
        pool: the child that pools the last map; None where the family averages in its ``forward``.
        head_reads: what the first child of ``head`` takes: the flattened pooled map, the pooled map, or the last map.
        final_relu: whether ``forward`` applies a ReLU to what the trunk returns.
        with_channels: (network, channels that each child of the trunk returns, number of classes) → a network of the
            same depth; None where the family has no other widths.
    """

    trunk: tuple[str, ...]
    head: tuple[str, ...]
    pool: str | None = None
    head_reads: Literal["vector", "pooled", "map"] = "vector"
    final_relu: bool = False
    with_channels: Callable[[nn.Module, Sequence[int], int], nn.Module] | None = None


INCEPTION_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
INCEPTION_MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")

ANATOMY = {
    "AlexNet": Anatomy(("features.*",), ("classifier",), "avgpool"),
    "ConvNeXt": Anatomy(("features.*",), ("classifier",), "avgpool", head_reads="pooled"),
    "DenseNet": Anatomy(("features.*",), ("classifier",), final_relu=True),
    "EfficientNet": Anatomy(("features.*",), ("classifier",), "avgpool", with_channels=with_channels),
    "GoogLeNet": Anatomy(
        (
            *("transform_input", "conv1", "maxpool1", "conv2", "conv3", "maxpool2"),
            *("inception3a", "inception3b", "maxpool3"),
            *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4"),
            *("inception5a", "inception5b"),
        ),
        ("dropout", "fc"),
        "avgpool",
    ),
    "Inception3": Anatomy(
        ("transform_input", *INCEPTION_STEM, "maxpool2", *(f"Mixed_{block}" for block in INCEPTION_MIXED)),
        ("dropout", "fc"),
        "avgpool",
    ),
    "MNASNet": Anatomy(("layers.*",), ("classifier",)),
    "MobileNetV2": Anatomy(("features.*",), ("classifier",)),
    "MobileNetV3": Anatomy(("features.*",), ("classifier",), "avgpool"),
    "RegNet": Anatomy(("stem", "trunk_output.*"), ("fc",), "avgpool"),
    "ResNet": Anatomy(("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"), ("fc",), "avgpool"),
    "ShuffleNetV2": Anatomy(("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"), ("fc",)),
    "SqueezeNet": Anatomy(("features.*",), ("classifier",), head_reads="map"),
    "VGG": Anatomy(("features.*",), ("classifier",), "avgpool"),
}


class InceptionInput(nn.Module):
    """ImageNet normalisation → mean and deviation 0.5 per channel, as the published GoogLeNet and Inception expect.

    Applied whether or not pretrained weights are asked for: a checkpoint does not tell which of the two it was trained
    with. [B, 3, H, W] → the same shape.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
        self.register_buffer("scale", (std / 0.5).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class TorchvisionConvNet(StagedModel):
    """The children of a torchvision network, run stage by stage. A stage ends before the next one halves the map.

    There is no ``preact``: torchvision's blocks apply their last activation themselves.

    Args:
        num_classes: number of logits.
        net: the network; its children become those of this module.
        anatomy: how its family is built.
        name: what it is called here.
    """

    has_preact = False
    unused_weights = tuple(f"{head}." for head in AUXILIARY)

    def __init__(self, num_classes: int, net: nn.Module, anatomy: Anatomy, name: str) -> None:
        if "transform_input" in anatomy.trunk:
            net.transform_input = InceptionInput()
        parts = stage_parts(net, list(trunk_children(net, anatomy)))
        last = list(parts)[-1]
        super().__init__(num_classes, parts, anatomy.head[-1], relu_after=(last,) if anatomy.final_relu else ())
        self.anatomy, self.label = anatomy, name
        if anatomy.with_channels is not None:
            self.widths = published_widths(net, parts)
        self._version = net._version  # MNASNet reads it from the state
        for name, child in net.named_children():
            if name not in AUXILIARY:
                self.add_module(name, child)
        for layer in self.modules():
            if isinstance(layer, nn.Dropout):
                layer.inplace = False  # the pooled vector is a feature

    @property
    def reads_means(self) -> bool:
        pool = self.anatomy.pool
        size = 1 if pool is None else getattr(self.get_submodule(pool), "output_size", None)
        return size in (1, (1, 1)) and self.anatomy.head_reads != "map"

    def finish(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pool = self.anatomy.pool
        pooled = F.adaptive_avg_pool2d(x, 1) if pool is None else self.get_submodule(pool)(x)
        vector = pooled.flatten(1)
        return vector, self._head({"vector": vector, "pooled": pooled, "map": x}[self.anatomy.head_reads])

    def classify_vector(self, vector: Tensor) -> Tensor:
        if self.anatomy.head_reads == "map":
            raise UsageError(f"{self.label}: its classifier reads maps, no pooled vector; choose another network")
        # a pooled map of one pixel, where the head takes one
        return self._head(vector if self.anatomy.head_reads == "vector" else vector[..., None, None])

    def _head(self, out: Tensor) -> Tensor:
        for child in self.anatomy.head:
            out = self.get_submodule(child)(out)
        return out.flatten(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Published checkpoints of GoogLeNet and Inception hold auxiliary heads, which are off here."""
        unused = tuple(prefix + each for each in self.unused_weights)
        for key in [key for key in state_dict if key.startswith(unused)]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


def trunk_children(net: nn.Module, anatomy: Anatomy) -> Iterator[str]:
    """The paths of the trunk's children, ``features.*`` spelt out."""
    for path in anatomy.trunk:
        parent, _, star = path.partition(".")
        if star:
            yield from (f"{parent}.{name}" for name, _ in net.get_submodule(parent).named_children())
        else:
            yield path


def stage_parts(net: nn.Module, children: list[str]) -> dict[str, tuple[str, ...]]:
    """Group the trunk's children into stages: a strided child opens a new one, unless the last has no weights yet."""
    groups: list[list[str]] = [[]]
    for child in children:
        if is_strided(net.get_submodule(child)) and has_weights(net, groups[-1]):
            groups.append([])
        groups[-1].append(child)
    if not has_weights(net, groups[-1]):  # the pooling that ends AlexNet and VGG
        trailing = groups.pop()
        groups[-1] += trailing
    return {next(child for child in group if has_weights(net, [child])): tuple(group) for group in groups}


def has_weights(net: nn.Module, children: list[str]) -> bool:
    """Whether any of the children has parameters."""
    return any(True for child in children for _ in net.get_submodule(child).parameters())


def is_strided(module: nn.Module) -> bool:
    """Whether some convolution or pooling inside ``module`` has a stride."""
    layers = (layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)))
    return any((max(layer.stride) if isinstance(layer.stride, tuple) else layer.stride) > 1 for layer in layers)


def published_widths(net: nn.Module, parts: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
    """Channels that each stage returns."""
    return tuple(channels_of(net, children[-1]) for children in parts.values())


def channels_of(net: nn.Module, child: str) -> int:
    """Channels that a child's last convolution returns."""
    layers = net.get_submodule(child).modules()
    return [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)][-1]


def torchvision_model(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    whole: bool = False,
    widths: Sequence[int] | None = None,
) -> StagedModel:
    """Build ``torchvision/<name>``.

    Args:
        name: torchvision's name.
        num_classes: number of logits.
        pretrained: load torchvision's best ImageNet weights; the last layer is new where ``num_classes`` is not 1000.
        whole: load them with their last layer, for 1000 classes.
        widths: channels that each stage returns, the published ones unless given.

    Raises:
        UsageError: the family has no other widths, or no weights for them, or they cannot be fetched.
    """
    if widths is not None:
        if pretrained or whole:
            raise UsageError(f"{TORCHVISION}{name}: the pretrained weights are those of the published widths")
        return of_other_widths(name, num_classes, widths)
    published = pretrained or whole
    num_classes = IMAGENET_CLASSES if whole else num_classes
    config: dict[str, Any] = {"weights": "DEFAULT"} if published else {"num_classes": num_classes}
    if name in ("googlenet", "inception_v3") and not published:
        # torchvision's defaults but for the heads; not to spell out the initialisation makes it warn
        config |= {"aux_logits": False, "init_weights": True}
    try:
        net = torchvision.models.get_model(name, **config)
    except OSError as error:  # no connection, no space
        if not published:
            raise
        raise UsageError(f"{TORCHVISION}{name}: its published weights cannot be had: {first_line(error)}") from None
    if published and num_classes != IMAGENET_CLASSES:
        replace_last_layer(net, num_classes)
    anatomy, label = ANATOMY.get(type(net).__name__), TORCHVISION + name
    network = TorchvisionConvNet(num_classes, net, anatomy, label) if anatomy else Wrapped(num_classes, net, label)
    if whole:
        seen = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        network.wants = Eyes(seen.mean, seen.std, seen.crop_size[0])
    return network


def of_other_widths(name: str, num_classes: int, widths: Sequence[int]) -> StagedModel:
    """Build ``torchvision/<name>`` with other ``widths``; children inside a stage shrink in proportion."""
    with torch.device("meta"):
        published = torchvision_model(name, num_classes)
    full = published.widths
    if not isinstance(published, TorchvisionConvNet) or published.anatomy.with_channels is None:
        raise published.no_widths()
    channels = [
        max(1, channels_of(published, child) * width // whole)
        for children, width, whole in zip(
            published.parts.values(), checked_widths(widths, len(full)), full, strict=True
        )
        for child in children
    ]
    net = published.anatomy.with_channels(published, channels, num_classes)
    return TorchvisionConvNet(num_classes, net, published.anatomy, published.label)


def replace_last_layer(net: nn.Module, num_classes: int) -> None:
    """Put a new layer with ``num_classes`` outputs in the place of the last linear layer or convolution."""
    path, old = [item for item in net.named_modules() if isinstance(item[1], (nn.Linear, nn.Conv2d))][-1]
    new: nn.Module
    if isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size)  # type: ignore[arg-type]
    else:
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    net.set_submodule(path, new)


for _name in torchvision.models.list_models(module=torchvision.models):
    model_dict.register(TORCHVISION + _name)(partial(torchvision_model, _name))


@source_dict.register("torchvision/<name>")
def source(name: str) -> Builder | None:
    """All of its names are listed above: this one is none of them."""
    if not name.startswith(TORCHVISION):
        return None
    known = [each for each in model_dict if each.startswith(TORCHVISION)]
    raise UsageError(f"unknown value {name!r}{nearest(name, known)}; choose from: {', '.join(known)}")
