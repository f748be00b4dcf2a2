"""What a distillation loss reads of a network, and what it gets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from helper.errors import UsageError
from helper.machine import uncompiled

Shape = tuple[int, ...]
"""One feature without its batch axis: ``(C, H, W)`` of a map, ``(D,)`` of the pooled vector."""

Which: TypeAlias = "tuple[int, ...] | Literal['all', 'stages']"
"""Maps, see :attr:`Reads.maps`."""


class Reads(NamedTuple):
    """What a loss declares that it reads of one network; nothing else is computed for it.

    Attributes:
        logits: ``[B, C]``.
        maps: which stage outputs, as indices into the features of ``network(x, is_feat=True)``: 0 is the stem's, −2 the
            last one; ``"all"`` of them; ``"stages"``: all but the stem's, or the only one.
        before_relu: likewise, which of the maps before the ReLU that ends their stage.
        vector: the pooled vector ``[B, D]``.
        cam: the class activation maps ``[B, C, H, W]``: what the network's classifier makes of each position of the
            last map.
        head: the network's own classifier, see :attr:`Seen.head`.
        named: the outputs of which children, by their names in the network; in :attr:`Seen.maps` they come last.
    """

    logits: bool = False
    maps: Which = ()
    before_relu: Which = ()
    vector: bool = False
    cam: bool = False
    head: bool = False
    named: tuple[str, ...] = ()

    @property
    def staged(self) -> bool:
        """Whether the network has to offer features of its own."""
        return bool(self.maps or self.before_relu) or self.vector or self.cam or self.head

    @property
    def features(self) -> bool:
        """Whether it is more than logits."""
        return self.staged or bool(self.named)


NOTHING = Reads()
Item = TypeVar("Item")


def chosen(which: Which, features: Sequence[Item]) -> list[Item]:
    """Those of a network's maps, or of their shapes, that ``which`` asks for; behind the maps comes the vector."""
    if which == "all" or which == "stages":
        return list(features[which == "stages" and len(features) > 2 : -1])
    return [features[index] for index in which]


def _indices(which: Which, count: int) -> set[int]:
    """Of so many maps and the vector behind them, counted from 0."""
    return set(chosen(which, range(count + 1)))


def _both(one: Which, other: Which) -> Which:
    if one == other or not other:
        return one
    if not one:
        return other
    if isinstance(one, tuple) and isinstance(other, tuple):
        return tuple(sorted({*one, *other}))
    return "all"


def either(*reads: Reads) -> Reads:
    """What a network has to be asked for, so that each of these is served."""
    return Reads(
        logits=True,
        maps=reduce(_both, (each.maps for each in reads), ()),
        before_relu=reduce(_both, (each.before_relu for each in reads), ()),
        vector=any(each.vector for each in reads),
        cam=any(each.cam for each in reads),
        head=any(each.head for each in reads),
        named=tuple(sorted({name for each in reads for name in each.named})),
    )


class Seen(NamedTuple):
    """What a loss gets of one network on one batch: what it has declared, and nothing else.

    Attributes:
        head: the network: ``head.classify(map)`` and ``head.classify_vector(vector)`` give logits. For the teacher's:
            what the student's own classifier would learn that way is not counted.
    """

    logits: Tensor | None = None
    maps: tuple[Tensor, ...] = ()
    vector: Tensor | None = None
    head: Any = None
    before_relu: tuple[Tensor, ...] = ()
    cam: Tensor | None = None

    def of_classes(self, numbers: Tensor) -> Seen:
        """The same of some classes alone, int64 ``[C_k]``."""
        logits, cam = (each if each is None else each.index_select(1, numbers) for each in (self.logits, self.cam))
        return self._replace(logits=logits, cam=cam)

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, which gradients are taken with respect to."""
        each = (self.logits, *self.maps, *self.before_relu, self.vector, self.cam)
        return tuple(tensor for tensor in each if tensor is not None)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Seen:
        """The same record of other tensors, in the order of :meth:`tensors`."""
        rest = iter(tensors)
        return Seen(
            logits=None if self.logits is None else next(rest),
            maps=tuple(next(rest) for _ in self.maps),
            before_relu=tuple(next(rest) for _ in self.before_relu),
            vector=None if self.vector is None else next(rest),
            cam=None if self.cam is None else next(rest),
            head=self.head,
        )


class Observed(NamedTuple):
    """What a network has made of a batch.

    Attributes:
        logits: ``[B, C]``.
        features: stage outputs and the pooled vector; None for those that nobody asked for.
        network: who.
        before: the stage outputs before their last ReLU, and the pooled vector; likewise.
        cam: ``[B, C, H, W]``, if it is asked for.
        named: the outputs of children.
    """

    logits: Tensor
    features: Sequence[Any] = ()
    network: nn.Module | None = None
    before: Sequence[Any] = ()
    cam: Tensor | None = None
    named: Mapping[str, Tensor] = {}

    def seen(self, reads: Reads) -> Seen:
        """The part that a loss has declared."""
        return Seen(
            logits=self.logits if reads.logits else None,
            maps=(*chosen(reads.maps, self.features), *(self.named[name] for name in reads.named)),
            before_relu=tuple(chosen(reads.before_relu, self.before)),
            vector=self.features[-1] if reads.vector else None,
            cam=self.cam if reads.cam else None,
            head=self.network if reads.head else None,
        )


def observe(network: Any, images: Tensor, reads: Reads) -> Observed:
    """Run a network on images ``[B, 3, H, W]`` and keep what ``reads`` asks for, and the logits."""
    if not reads.features:
        return Observed(network(images), (), network)
    if reads.named:
        with uncompiled(True), outputs_of(network, reads.named) as named:  # compiled code would not call the hooks
            return _staged(network, images, reads)._replace(named=named)
    return _staged(network, images, reads)


def _staged(network: Any, images: Tensor, reads: Reads) -> Observed:
    if not reads.staged:
        return Observed(network(images), (), network)
    if reads.before_relu:
        (*both, vector), logits = network(images, is_feat=True, preact="both")
        half = len(both) // 2
        before, features = [*both[:half], vector], [*both[half:], vector]
    else:
        features, logits = network(images, is_feat=True)
        before = []
    last = len(features) - 1
    cam = network.class_activation_maps(features[-2]) if reads.cam else None
    wanted = _indices(reads.maps, last) | ({last} if reads.vector else set())
    return Observed(logits, _only(wanted, features), network, _only(_indices(reads.before_relu, last), before), cam)


def _only(wanted: set[int], features: Sequence[Any]) -> list[Any]:
    """The features of these numbers; None for the others, whose memory is free then."""
    return [each if index in wanted else None for index, each in enumerate(features)]


def norms_of(network: Any) -> list[tuple[Tensor, Tensor] | None]:
    """Scale and shift ``[C]`` of the batch normalisation behind each map before its ReLU, where it is known.

    Behind the maps comes the vector, which has none.
    """
    modules = [network.norms.get(stage) and network.get_submodule(network.norms[stage]) for stage in network.stages]
    return [*(each and (each.weight.detach().clone(), each.bias.detach().clone()) for each in modules), None]


@contextlib.contextmanager
def outputs_of(network: nn.Module, names: Container[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """The maps ``[B, C, H, W]`` that children return, the last where one is called several times.

    Those of ``names`` are as they were returned, whatever works on them in place afterwards. None: of all children,
    whose shapes alone will do.
    """
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                found[name] = output if names is None else output.clone()

        return look

    children = (each for each in network.named_modules() if each[0] and (names is None or each[0] in names))
    hooks = [
        child.register_forward_hook(watch(name))
        for name, child in children
        if not isinstance(child, torch.jit.ScriptModule)  # which takes none
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Shapes(list[Shape]):
    """``(C, H, W)`` of each stage output and ``(D,)`` of the pooled vector, last.

    Attributes:
        stages: the stages' names, in order.
        named: the shapes of the maps that children return, by their names.
        label: what messages call the network.
        refusal: raised for whoever asks for a shape, where the network has no features.
    """

    stages: tuple[str, ...] = ()
    named: Mapping[str, Shape] = {}
    label: str = ""
    refusal: UsageError | None = None

    def __getitem__(self, index: Any) -> Any:
        self.require()
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Shape]:
        self.require()
        return super().__iter__()

    def __len__(self) -> int:
        self.require()
        return super().__len__()

    def require(self) -> None:
        """Raise the refusal, if there is one."""
        if self.refusal is not None:
            raise self.refusal


@torch.no_grad()
def logits_shape(network: nn.Module, images: Tensor, arch: str, dataset: str) -> torch.Size:
    """The shape of a network's logits of some images, without their number.

    Raises:
        UsageError: they are too small for it, or not of the one size it takes.
    """
    training, size = network.training, images.shape[-1]
    try:
        logits: Tensor = network.eval()(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{arch} cannot take {dataset}'s images of {size}×{size}: {reason}") from None
    network.train(training)
    return logits.shape[1:]


def other_classes(arch: str, shape: Sequence[int], dataset: str, num_classes: int) -> UsageError:
    """The error for a network whose logits, of this shape without their number, are not the dataset's classes."""
    return UsageError(
        f"{arch} has {shape[-1]} classes, {dataset} has {num_classes}; its logits would have to be [B, {num_classes}], "
        f"not [B, {', '.join(map(str, shape))}]"
    )


@torch.no_grad()
def feature_shapes(network: Any, images: Tensor, reads: Reads = NOTHING) -> Shapes:
    """The shapes of what a network makes of images ``[B, 3, H, W]``; tries what ``reads`` asks of its classifier."""
    training, shapes = network.training, Shapes()
    network.eval()
    with outputs_of(network) as outputs:
        try:
            features, _ = network(images, is_feat=True)
            shapes.extend(tuple(feature.shape[1:]) for feature in features)
        except UsageError as error:
            shapes.refusal = error
            network(images)
    if shapes.refusal is None:
        if reads.cam:
            network.class_activation_maps(features[-2])
        if reads.head and reads.maps:
            network.classify(features[-2])
        if reads.head and reads.vector:
            network.classify_vector(features[-1])
    network.train(training)
    # a convolution that a normalisation was folded into returns what that did
    changed = {name for name, module in network.named_modules() if getattr(module, "folded", False)}
    shapes.named = {name: tuple(each.shape[1:]) for name, each in outputs.items() if name not in changed}
    shapes.stages, shapes.label = getattr(network, "stages", ()), getattr(network, "label", "")
    return shapes
