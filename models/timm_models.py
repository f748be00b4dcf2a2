"""Every classifier of timm, as ``timm/<name>``: stages, maps, vector and head through timm's own interfaces.

timm (``pip install timm``) is asked for only where such a name is. Names may carry the tag of published weights, as
``timm/resnet18.a1_in1k``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helper.errors import UsageError, nearest
from helper.teachers.record import Eyes
from models.base import Builder, global_average, source_dict
from models.wrapped import Plain, Wrapped, agree, first_line, quiet_hub

PREFIX = "timm/"


class Layout(NamedTuple):
    """How what a network's trunk returns is a map.

    Attributes:
        axes: ``"NCHW"``, ``"NHWC"``, or ``"NLC"``: tokens of the pixels.
        prefix: how many tokens, such as a class token, come before those of the pixels.
        moved: whether the classifier reads the first of them: the map is then moved so that its mean is that token.
    """

    axes: str
    prefix: int = 0
    moved: bool = False

    def as_map(self, final: Tensor, height: int) -> Tensor:
        """What the trunk returned → ``[B, C, H, W]``."""
        if self.axes == "NCHW":
            return final
        if self.axes == "NHWC":
            return final.permute(0, 3, 1, 2)
        pixels = final[:, self.prefix :].unflatten(1, (height, -1)).permute(0, 3, 1, 2)
        return pixels + (final[:, 0] - pixels.mean((2, 3)))[..., None, None] if self.moved else pixels

    def as_final(self, maps: Tensor) -> Tensor:
        """A map ``[B, C, H, W]`` → what the head reads; tokens that no pixel has are the pixels' mean."""
        if self.axes == "NCHW":
            return maps
        if self.axes == "NHWC":
            return maps.permute(0, 2, 3, 1)
        pixels = maps.flatten(2).mT  # [B, HW, C]
        return torch.cat([pixels.mean(1, keepdim=True).expand(-1, self.prefix, -1), pixels], 1)


class TimmNetwork(Wrapped):
    """A network with timm's ``forward_intermediates``: a map per entry of its ``feature_info`` or per block.

    The last map is what the head reads, with the norm or convolution that follows the last stage.
    """

    has_maps = True
    _examined = False
    _layout: Layout | None = None
    _reads_vectors = True

    @staticmethod
    def fits(net: nn.Module) -> bool:
        """Whether a network has timm's interfaces."""
        return all(hasattr(net, name) for name in ("forward_intermediates", "forward_head", "get_classifier"))

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        if not self._examined:
            self.on_noise_like(x, self._examine)
        final, (*maps, last) = self.net.forward_intermediates(x, output_fmt="NCHW")
        vector = self.net.forward_head(final, pre_logits=True)
        logits = self.classify_vector(vector) if self._reads_vectors else self.net.forward_head(final)
        if self._layout is not None:
            last = self._layout.as_map(final, last.shape[2])
        return [*maps, last, vector], logits

    def finish(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._layout is None:
            raise self.unreadable("its last map")
        final = self._layout.as_final(x)
        vector = self.net.forward_head(final, pre_logits=True)
        return vector, self.classify_vector(vector) if self._reads_vectors else self.net.forward_head(final)

    def classify_vector(self, vector: Tensor) -> Tensor:
        if not self._reads_vectors:
            raise self.unreadable("a pooled vector")
        return self._heads(vector)

    def _heads(self, vector: Tensor) -> Tensor:
        """A distilled network's two heads are averaged, as timm does."""
        heads = self.net.get_classifier()
        each = [head(vector) for head in (heads if isinstance(heads, tuple) else (heads,))]
        return torch.stack(each).mean(0) if len(each) > 1 else each[0]

    def _examine(self, noise: Tensor) -> None:
        """Find out how the trunk's output is a map, such that the head makes the same of it."""
        final, (*_, last) = self.net.forward_intermediates(noise, output_fmt="NCHW")
        vector, logits = self.net.forward_head(final, pre_logits=True), self.net.forward_head(final)
        try:
            self._reads_vectors = agree(self._heads(vector), logits)
        except (RuntimeError, TypeError, NotImplementedError):  # a convolution, or a list of heads
            self._reads_vectors = False
        for layout in layouts_of(final, last):
            maps, head = layout.as_map(final, last.shape[2]), self.net.forward_head
            again = layout.as_final(maps)
            if agree(head(again, pre_logits=True), vector) and agree(head(again), logits):
                self._layout = layout
                self.reads_means = self._reads_vectors and agree(global_average(maps), vector)
                self.follow_classifier(maps)
                break
        self.reads_maps = self._layout is not None
        self._examined = True


def layouts_of(final: Any, last: Tensor) -> list[Layout]:
    """What the trunk's output may be, judged by the last stage's map ``[B, C, H, W]``."""
    if not isinstance(final, Tensor):
        return []
    size = last.shape[2:]
    if final.ndim == 4:
        return [Layout("NHWC" if final.shape[1:3] == size != final.shape[2:] else "NCHW")]
    prefix = final.shape[1] - size.numel()
    return [Layout("NLC", prefix, moved) for moved in (False, True)] if prefix > 0 else [Layout("NLC")] * (prefix == 0)


def timm_model(
    name: str, num_classes: int, pretrained: bool = False, whole: bool = False, **settings: Any
) -> TimmNetwork | Plain:
    """Build ``timm/<name>``.

    Args:
        name: timm's, with or without a tag.
        num_classes: number of logits.
        pretrained: load the published weights; the last layer is new where ``num_classes`` differs from theirs.
        whole: load them with their last layer, for as many classes as they have.
        settings: of ``timm.create_model``, such as ``img_size=32`` for a transformer of a fixed size.

    Raises:
        UsageError: there are no such weights, or they cannot be fetched.
    """
    import timm

    published = pretrained or whole
    classes = {} if whole else {"num_classes": num_classes}
    try:
        with quiet_hub():
            net = timm.create_model(name, pretrained=published, **classes, **settings)
    except Exception as error:  # of the hub, of HTTP, of files: many kinds mean the same here
        if not published:
            raise
        raise UsageError(f"{PREFIX}{name}: its published weights cannot be had: {first_line(error)}") from None
    kind = TimmNetwork if TimmNetwork.fits(net) else Plain
    network = kind(net.num_classes, net, PREFIX + name)
    network.wants = wanted(net.pretrained_cfg, whole)
    return network


def wanted(config: Mapping[str, Any], whole: bool) -> Eyes:
    """The images of the published weights' training; for other weights the size alone, where it takes no other."""
    size = config["input_size"][-1]
    if whole:
        return Eyes(config["mean"], config["std"], size)
    return Eyes(size=size if config.get("fixed_input_size") else None)


@source_dict.register("timm/<name>")
def source(name: str) -> Builder | None:
    """timm's names."""
    if not name.startswith(PREFIX):
        return None
    if importlib.util.find_spec("timm") is None:
        raise UsageError(f"{name!r} needs the package timm; pip install timm")
    import timm

    given = name.removeprefix(PREFIX)
    arch, _, tag = given.partition(".")
    known = timm.list_pretrained(f"{arch}.*") if tag and timm.is_model(arch) else timm.list_models()
    if given not in known:
        raise UsageError(f"there is no {name!r}{nearest(name, (PREFIX + each for each in known))}")
    return partial(timm_model, given)
