"""Networks of another make, held to the contract of ``StagedModel`` as far as they can keep it."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from helper.errors import UsageError
from models.base import Output, StagedModel, global_average

POOLINGS = frozenset({"avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "adaptive_max_pool2d", "lp_pool2d"})
"""Functions of torch that make less of a map ``[B, C, H, W]``."""

REDUCTIONS = frozenset({"mean", "amax", "max", "sum", "logsumexp"})
"""Those that make a vector of a map if they go over its positions, by one axis after the other too."""

Parts = tuple[list[Tensor], Tensor, Tensor]
"""Maps ``[B, C_i, H_i, W_i]``, the vector ``[B, D]`` that the classifier reads, and the logits ``[B, C]``."""


class Wrapped(StagedModel):
    """A network that runs as a whole; its tensors and children keep their names, so that its checkpoints load.

    Only logits are offered here. There are no stages: parts of it cannot be run or shared.

    Args:
        num_classes: number of logits C.
        net: the network: images ``[B, 3, H, W]`` → logits ``[B, C]``, or a record that has ``logits``.
        label: what messages call it.
    """

    has_maps = False
    has_preact = False
    reads_means = False
    _calls: frozenset[str] = frozenset()

    def __init__(self, num_classes: int, net: nn.Module, label: str) -> None:
        super().__init__(num_classes, parts={}, head="")
        self.label = label
        # The state has to bear the network's own names. So this module shares the network's tensors and children, and
        # the tuple keeps the network itself from becoming a child, whose name would be a prefix.
        self._parameters, self._buffers, self._modules = net._parameters, net._buffers, net._modules
        self._non_persistent_buffers_set = net._non_persistent_buffers_set
        self._version = net._version
        self._net = (net,)
        self.training = net.training

    @property
    def net(self) -> Any:
        """The network itself."""
        return self._net[0]

    @property
    def training(self) -> bool:
        """As of any module; the network follows, which may ask for its own."""
        return self.__dict__.get("_training", True)

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["_training"] = mode
        for net in self.__dict__.get("_net", ()):
            net.training = mode

    def train(self, mode: bool = True) -> Wrapped:
        self.net.train(mode)  # its own way, such as to keep a part frozen
        self._training = mode
        return self

    def get_submodule(self, target: str) -> nn.Module:
        return self.net.get_submodule(target) if target else self  # children may be called as attributes are here

    def set_submodule(self, target: str, module: nn.Module, strict: bool = False) -> None:
        self.net.set_submodule(target, module, strict)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self.net._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.net._load_from_state_dict(*arguments)

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool | Literal["both"] = False) -> Output:
        if not is_feat:
            return self.logits_of(self.net(x))
        if preact:
            raise UsageError(f"{self.label} does not offer features before the activation (preact)")
        return self.features(x)

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Images → the maps and the pooled vector, and the logits."""
        raise self.no_maps()

    def logits_of(self, output: Any) -> Tensor:
        """The logits in what the network has returned."""
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise UsageError(f"{self.label} returns a {type(output).__name__}, not its logits, a tensor [B, C]")
        return logits

    def run(self, x: Tensor, first: str, last: str) -> Tensor:
        why = UsageError(f"{self.label} runs as a whole: its parts cannot be run or shared")
        raise why if self.has_maps else self.no_maps()

    def finish(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise self.no_maps()

    def classify_vector(self, vector: Tensor) -> Tensor:
        raise self.no_maps()

    def tail(self) -> StagedModel:
        twin = copy.deepcopy(self)
        keep_only(twin.net, {twin.get_submodule(name) for name in self._calls})
        return twin

    def no_maps(self) -> UsageError:
        """What to tell whoever asks for more than logits."""
        return UsageError(f"{self.label} offers logits only, no features: only --distill kd works with it")

    def alone(self) -> nn.Module:
        return _Alone(self).train(self.training)

    def unreadable(self, what: str) -> UsageError:
        """What to tell whoever lets its classifier read what it cannot."""
        return UsageError(f"{self.label}: its classifier cannot read {what}; choose another network")

    @torch.no_grad()
    def on_noise_like(self, x: Tensor, look: Callable[[Tensor], None]) -> None:
        """Let ``look`` see noise of the shape of ``x``, in evaluation mode: once, before anything is trained."""
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        training = self.training
        try:
            self.eval()
            look(noise)
        finally:
            self.train(training)

    def follow_classifier(self, last: Tensor) -> None:
        """Remember which children it calls to classify the last map ``[B, C, H, W]``: :meth:`tail` keeps those."""
        names: set[str] = set()
        hooks = [
            child.register_forward_pre_hook(lambda *_, name=name: names.add(name))
            for name, child in self.net.named_modules()
            if name and not isinstance(child, torch.jit.ScriptModule)  # which takes none
        ]
        self.finish(last)
        for hook in hooks:
            hook.remove()
        self._calls = frozenset(names)


class _Alone(nn.Module):
    """What :meth:`Wrapped.alone` returns: the network as a child, and its answers."""

    def __init__(self, network: Wrapped) -> None:
        super().__init__()
        self.net, self.answer, self.classify = network.net, network.forward, network.classify

    def forward(self, x: Tensor, is_feat: bool = False) -> Output:
        return self.answer(x, is_feat)


class Pooled(Wrapped):
    """One whose classifier reads a vector that need not be the mean of the last map.

    The last map is offered so that its mean over the pixels *is* that vector: where it is not, as of a class token, all
    pixels are moved by the difference. So the classifier can read this map, and one that has been made like it.

    A subclass says in :meth:`look` what the maps are. Where the vector has another width than the last map, the map
    stays as it is and ``reads_maps`` is False.
    """

    has_maps = True
    _moves: bool | None = None

    def look(self, x: Tensor) -> Parts:
        """Images → the maps, the vector that the classifier reads, and the logits.

        Raises:
            UsageError: it cannot be told what they are.
        """
        raise NotImplementedError

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        if self._moves is None:
            self.on_noise_like(x, self._examine)
        (*maps, last), vector, logits = self.look(x)
        if self._moves:
            last = last + (vector - global_average(last))[..., None, None]
        return [*maps, last, vector], logits

    def _examine(self, noise: Tensor) -> None:
        (*_, last), vector, logits = self.look(noise)
        if not agree(self.classify_vector(vector), logits):
            raise UsageError(f"{self.label}: its logits do not follow from the vector before its last layer alone")
        self.reads_maps = last.shape[1] == vector.shape[1]
        self._moves = self.reads_maps and not agree(global_average(last), vector)
        self.reads_means = self.reads_maps
        if self.reads_maps:
            self.follow_classifier(last)

    def finish(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.reads_maps:
            raise self.unreadable("its last map")
        vector = global_average(x)
        return vector, self.classify_vector(vector)


class Plain(Pooled):
    """Any network that ends in a pooling and one linear layer: the map that is pooled last is the one it offers.

    They are found by watching it run, so that they may be written as functions.
    """

    _last = ""

    @torch.compiler.disable
    def look(self, x: Tensor) -> Parts:
        with _End(None if self._last else self.net) as end:
            logits = self.logits_of(self.net(x))
        if end.vector is None or end.logits is not logits:
            raise self._not_plain("its logits are not what a last Linear returns")
        if end.maps is None:
            raise self._not_plain("no map is pooled before its last Linear")
        self._last = self._last or self._classifier(end)
        return [end.maps], end.vector, logits

    def classify_vector(self, vector: Tensor) -> Tensor:
        return self.get_submodule(self._last)(vector)

    def _classifier(self, end: _End) -> str:
        """The name of the ``nn.Linear`` whose weight was used last, or of what has made the logits of the vector."""
        holders = (name for name, each in self.net.named_modules() if _holds(each, end.weight))
        name = next(holders, end.maker)
        if not name:
            raise self._not_plain("no child makes its logits of the vector before its last Linear")
        return name

    def _not_plain(self, why: str) -> UsageError:
        return UsageError(
            f"{self.label} offers logits and its children's maps (--hint_layer NAME), no features of its own: {why}"
        )


class _Reduced(NamedTuple):
    """A map of which some axes are gone.

    Attributes:
        output: what is left of it.
        maps: the map.
        axes: which axis of the map each of the output is.
        gone: those that were reduced.
    """

    output: Tensor
    maps: Tensor
    axes: tuple[int, ...]
    gone: frozenset[int]

    def without(self, dims: frozenset[int], output: Tensor) -> _Reduced:
        """After a reduction over these axes of the output."""
        kept = output.ndim == self.output.ndim  # keepdim
        axes = tuple(axis for place, axis in enumerate(self.axes) if kept or place not in dims)
        return _Reduced(output, self.maps, axes, self.gone | {self.axes[dim] for dim in dims})

    def pooled(self) -> Tensor | None:
        """The map ``[B, C, H, W]`` if what is gone are its positions, which may lie before its channels."""
        if self.gone == {2, 3}:
            return self.maps
        return self.maps.permute(0, 3, 1, 2) if self.gone == {1, 2} else None


def _reduced_axes(given: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> frozenset[int]:
    """Over which axes a reduction goes that was called so; none where it goes over all, or compares two tensors."""
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else ()))
    dims = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
    return frozenset(each % given.ndim for each in dims if type(each) is int)


class _End(TorchFunctionMode):
    """Sees the last pooling's input, what the last linear layer is given and returns, and which child it was.

    Args:
        net: whose children are watched; None: that child is known.
    """

    maps: Tensor | None = None
    vector: Tensor | None = None
    weight: Tensor | None = None
    logits: Tensor | None = None
    maker = ""
    _partly: _Reduced | None = None

    def __init__(self, net: nn.Module | None) -> None:
        super().__init__()
        self._hooks = [
            child.register_forward_hook(partial(self._after, name))
            for name, child in (() if net is None else net.named_modules())
            if name and not isinstance(child, torch.jit.ScriptModule)  # which takes none
        ]

    def _after(self, name: str, _: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if self.logits is not None and output is self.logits and len(given) == 1 and given[0] is self.vector:
            self.maker = self.maker or name  # the innermost returns first

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name, given = getattr(func, "__name__", ""), args[0] if args else kwargs.get("input")
        if not isinstance(given, Tensor):
            return output
        if given.ndim == 4 and name in POOLINGS:
            self.maps = given
        elif given.ndim > 2 and name in REDUCTIONS:
            self._reduce(given, _reduced_axes(given, args, kwargs), output)
        elif func is F.linear and given.ndim == 2:
            self.vector, self.weight, self.logits, self.maker = given, args[1], output, ""
        elif name.startswith("conv"):
            self.maps = None  # that pooling was inside, as of a squeeze and excitation
        return output

    def _reduce(self, given: Tensor, dims: frozenset[int], output: Any) -> None:
        """Remember the map if it is one whose positions are reduced; other axes are none of a pooling."""
        whole = _Reduced(given, given, (0, 1, 2, 3), frozenset())
        before = self._partly if self._partly and given is self._partly.output else whole if given.ndim == 4 else None
        if before is None or not dims:
            return
        self._partly = before.without(dims, output if isinstance(output, Tensor) else output[0])  # max has places too
        maps = self._partly.pooled()
        self.maps = self.maps if maps is None else maps


def _holds(module: nn.Module, weight: Tensor | None) -> bool:
    # as an attribute, one that weight_norm or spectral_norm makes would be made anew
    return isinstance(module, nn.Linear) and module._parameters.get("weight") is weight


def agree(one: Tensor, other: Tensor) -> bool:
    """Whether two results are the same but for rounding; never called in a training step."""
    if one.shape != other.shape:
        return False
    coarse = torch.is_autocast_enabled(one.device.type) or torch.bfloat16 in (one.dtype, other.dtype)
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= (0.03 if coarse else 1e-4) * other.abs().max())


def keep_only(module: nn.Module, called: Collection[nn.Module]) -> None:
    """Leave out all children that neither are ``called`` nor have one of these inside."""
    for name, child in module.named_children():
        if child in called:
            continue
        if any(each in called for each in child.modules()):
            keep_only(child, called)
        else:
            setattr(module, name, nn.Identity())


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Where weights are fetched: what goes wrong is said in the end, not at each try."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def checksum(*paths: Path) -> str:
    """Six letters that change with what the files hold."""
    digest = sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:6]
