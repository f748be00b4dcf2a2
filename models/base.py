"""What all networks have in common: stages, features, classifier, and the registry that names them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from itertools import chain, pairwise
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.errors import UsageError, unknown
from helper.pointwise import subsample_first
from helper.registry import Registry
from helper.teachers.record import Eyes

TORCHVISION = "torchvision/"

Output: TypeAlias = "Tensor | tuple[list[Tensor], Tensor]"


class StagedModel(nn.Module):
    """A classifier cut into stages: a stem, the stages of its trunk, then pooling and a linear classifier.

    A family describes itself by data: which children each stage applies in order, and after which stages a ReLU
    follows. Features, pre-activations, partial runs and the classifier are derived from that here, once. A stage bears
    the name of its first child with weights.

    Args:
        num_classes: number of logits C.
        parts: stage → its children, in the order they are applied; submodule paths such as ``blocks.1`` are fine.
        head: the child that maps the pooled vector to the logits.
        relu_after: the stages whose children are followed by a ReLU; default all of them.
        norms: stage → the batch normalisation that its map before the ReLU comes from. Where that is the first one of
            the next stage, which normalises and then rectifies, that map is what it makes of the stage's.

    Attributes:
        stages: the names of the stages, from the stem to the last one.
        has_maps: whether the network offers feature maps; False means logits only.
        has_preact: whether ``preact=True`` is offered.
        reads_maps: whether :meth:`classify` is offered.
        widths: channels per stage as given to the constructor; empty where it takes none.
        width_unit: the widths have to be multiples of this.
        label: what messages call the network.
        wants: the images of its weights' training, as far as that is known where they come from.
        class_names: what its logits stand for, where that is known there.
        own_spelling: whether they may be names that a dataset spells otherwise.
        unused_weights: what the names of weights begin with that checkpoints have and the network does without.
    """

    wants = Eyes()
    class_names: Sequence[str] | None = None
    own_spelling = False
    unused_weights: tuple[str, ...] = ()
    has_maps = True
    has_preact = True
    reads_maps = True
    widths: tuple[int, ...] = ()
    width_unit = 1

    def __init__(
        self,
        num_classes: int,
        parts: Mapping[str, tuple[str, ...]],
        head: str,
        relu_after: Collection[str] | None = None,
        norms: Mapping[str, str] = {},
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.label = type(self).__name__
        self.parts = dict(parts)
        self.head = head
        self.relu_after = frozenset(self.parts if relu_after is None else relu_after)
        self.norms = dict(norms)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.parts)

    @property
    def reads_means(self) -> bool:
        """Whether the classifier reads the mean of the last map over its positions."""
        return type(self).embed is StagedModel.embed

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool | Literal["both"] = False) -> Output:
        """Classify images ``x`` [B, 3, H, W].

        Returns:
            logits [B, C]; with ``is_feat`` ``(features, logits)``: one map [B, C_i, H_i, W_i] per stage, then the
            pooled vector [B, D]. With ``preact`` the maps are those before the ReLU that ends their stage, or begins
            the next one, see ``norms``; ``"both"`` gives all of those, then all after it.
        """
        if not is_feat:
            return self.classify(self.run(x, self.stages[0], self.stages[-1]))
        if preact and not self.has_preact:
            raise UsageError(f"{type(self).__name__} does not offer features before the activation (preact)")
        before, after = [], []
        for name in self.stages:
            earlier, x = self._stage(name, x)
            before.append(self._normalised(name, earlier) if preact else earlier)
            after.append(x)
        pooled, logits = self.finish(x)
        maps = [*before, *after] if preact == "both" else before if preact else after
        return [*maps, pooled], logits

    def run(self, x: Tensor, first: str, last: str) -> Tensor:
        """Apply the stages ``first`` to ``last``, both included, to what the stage before ``first`` returned."""
        start, stop = self._position(first), self._position(last)
        if start > stop:
            raise ValueError(f"stage {first!r} comes after stage {last!r}")
        for name in self.stages[start : stop + 1]:
            _, x = self._stage(name, x)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """The last map [B, C_f, H, W] (not its pre-activation) → logits [B, C]."""
        return self.finish(x)[1]

    def finish(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last map [B, C_f, H, W] → the pooled vector [B, D] and the logits [B, C]."""
        pooled = self.embed(x)
        return pooled, self.classify_vector(pooled)

    def classify_vector(self, vector: Tensor) -> Tensor:
        """The pooled vector [B, D] → logits [B, C].

        Raises:
            UsageError: the classifier reads maps.
        """
        logits: Tensor = self.get_submodule(self.head)(vector)
        return logits

    def tail(self) -> StagedModel:
        """A copy of what follows the last stage; it can ``classify`` and nothing else."""
        twin = copy.deepcopy(self)
        for path in chain(*self.parts.values()):
            parent, _, child = path.rpartition(".")
            delattr(twin.get_submodule(parent), child)
        return twin

    def class_activation_maps(self, x: Tensor) -> Tensor:
        """The last map [B, C_f, H, W] → what the classifier makes of each position alone [B, C, H, W].

        Raises:
            UsageError: the classifier does not read the mean of these positions.
        """
        if not self.reads_means:
            raise UsageError(f"--distill: {self.label} has no class activation maps; choose another loss or network")
        batch, _, height, width = x.shape
        logits = self.classify_vector(x.movedim(1, -1).flatten(0, 2))  # [B·H·W, C]
        return logits.view(batch, height, width, -1).movedim(-1, 1)

    def embed(self, x: Tensor) -> Tensor:
        """The last map [B, C_f, H, W] → the pooled vector [B, D] that the classifier reads."""
        return global_average(x)

    def alone(self) -> nn.Module:
        """The same for exporters, where no attribute may have the name of a child: it can be called, and classify."""
        return self

    def thinner_widths(self, kept: int, of: int, stages: int) -> tuple[int, ...]:
        """``widths`` with ``kept``/``of`` of the channels in the last ``stages`` stages, rounded down; the stem stays.

        Raises:
            UsageError: the constructor takes no widths.
        """
        if not self.widths:
            raise self.no_widths()
        first = max(1, len(self.widths) - stages)
        narrow = (width * kept // of // self.width_unit * self.width_unit for width in self.widths[first:])
        return (*self.widths[:first], *narrow)

    def become_branch(self) -> None:
        """Be one of several networks that share all stages but the last: some are regularised otherwise there."""

    def no_widths(self) -> UsageError:
        """What to tell whoever asks for other widths of a network that has none."""
        return UsageError(
            f"--model: {self.label} cannot be made thinner, since its constructor takes no widths; choose one of this "
            f"project's own networks or {TORCHVISION}efficientnet_…"
        )

    def _stage(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """One stage's output before and after its last ReLU; the same tensor where no ReLU follows."""
        for child in self.parts[name]:
            x = self.get_submodule(child)(x)
        # not in place: the map before the ReLU may be a feature
        return x, F.relu(x) if name in self.relu_after else x

    def _normalised(self, name: str, x: Tensor) -> Tensor:
        """A stage's output as the next one normalises it first, if it does; the running statistics stay."""
        norm = self.norms.get(name, "")
        if not norm or norm.startswith(self.parts[name]):
            return x
        module: Any = self.get_submodule(norm)
        if not module.training:
            return module(x)
        return F.batch_norm(x, None, None, module.weight, module.bias, training=True, eps=module.eps)

    def _position(self, name: str) -> int:
        if name not in self.parts:
            raise unknown("stage", name, self.stages)
        return self.stages.index(name)


class ReluBetween(nn.Sequential):
    """Blocks that return their pre-activation: a ReLU follows each one but the last, whose ReLU is the stage's."""

    def forward(self, x: Tensor) -> Tensor:
        *blocks, last = self
        for block in blocks:
            x = F.relu(block(x), inplace=True)
        return last(x)


def global_average(maps: Tensor) -> Tensor:
    """Maps ``[B, C, H, W]`` → their mean over the pixels ``[B, C]``.

    Its gradient lies in memory as the maps do. That of ``adaptive_avg_pool2d`` never lies in channels_last, so that the
    ReLU before it takes twenty times as long on a CPU.
    """
    if maps.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
    return F.adaptive_avg_pool2d(maps, 1).flatten(1)


Builder: TypeAlias = Callable[..., StagedModel]
"""``build(num_classes)``; where weights are published it takes ``pretrained``, and ``whole``: their last layer too."""

Source: TypeAlias = Callable[[str], "Builder | None"]
source_dict: Registry[Source] = Registry("source")
"""Where networks come from whose names cannot all be listed, by the form of these names.

A source gets a name and returns what builds that network, or None for a name of another form; nothing is run yet. It
raises UsageError, without an option's name in front, for a name of its form that means nothing.
"""


def from_outside(build: Builder, run_name: Callable[[], str] | None = None) -> Builder:
    """Mark a builder that reads or runs more than this installation: a person may ask for it, no checkpoint of others.

    Args:
        build: a function with some of its arguments filled in.
        run_name: gives what the names of runs call the network, which is to change with its files; its name by default.
    """
    vars(build).update(outside=True, run_name=run_name)
    return build


class ModelRegistry(Registry[Builder]):
    """The registry of networks: what it builds can be trained in any layout on any device.

    Names that are not registered are asked of the sources. An unknown one is answered with what its source knows.
    """

    def __getitem__(self, name: str) -> Builder:
        if name not in self:
            raise self.unknown(name)
        build = self._find(name)
        assert build is not None

        @wraps(build)
        def checked(*arguments: Any, **settings: Any) -> StagedModel:
            return subsample_first(build(*arguments, **settings))

        return checked

    def __contains__(self, name: object) -> bool:
        try:
            return self._find(str(name)) is not None
        except UsageError:
            return False

    def run_name(self, name: str) -> str:
        """What the names of runs call a network."""
        run_name = getattr(self[name], "run_name", None)
        return run_name() if run_name else name

    def refusal(self, name: str) -> UsageError | None:
        try:
            self._find(name)
        except UsageError as error:
            return error
        return None

    def unknown(self, name: str, option: str | None = None) -> UsageError:
        option, why = option or self.option, self.refusal(name)
        if why is not None:
            return UsageError(f"{option}: {why}")
        return unknown(option, name, [*(each for each in self if not each.startswith(TORCHVISION)), *source_dict])

    def _find(self, name: str) -> Builder | None:
        """What builds it; None for a name of no form. Raises UsageError where its source does."""
        if super().__contains__(name):
            return super().__getitem__(name)
        return next((build for source in source_dict.values() if (build := source(name)) is not None), None)


model_dict = ModelRegistry("model")


def checked_widths(widths: Sequence[int], count: int, multiple: int = 1, growing: bool = False) -> tuple[int, ...]:
    """``widths`` (channels per stage) as a tuple, if an architecture can have them.

    Raises:
        UsageError: there are not ``count`` widths, one is not a positive multiple of ``multiple``, or one is not larger
            than the one before although it has to be (``growing``).
    """
    widths = tuple(widths)
    grows = all(before < after for before, after in pairwise(widths))
    if len(widths) != count or any(width <= 0 or width % multiple for width in widths) or (growing and not grows):
        kind = f"{count}{' growing' if growing else ''} positive multiples of {multiple}"
        raise UsageError(f"widths: expected {kind}, the channels of each stage, got {widths}")
    return widths


def init_weights(model: nn.Module) -> None:
    """He initialisation of all convolutions (normal with variance 2 / fan-out) and identity batch normalisation."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
