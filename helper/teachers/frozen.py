"""Networks that are only evaluated from now on, made fast once: normalisation folded, weights in low precision."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from helper.errors import UsageError
from helper.pointwise import PLAIN_CONVOLUTIONS

WEIGHTED = (nn.Conv2d, nn.Linear)
"""The layers whose weights autocast would otherwise convert at every call."""


def freeze(network: nn.Module, images: Tensor, precision: str) -> nn.Module:
    """Evaluation mode, no gradients, batch normalisation folded, with ``bf16`` also bfloat16 weights; in place.

    Args:
        network: float32 or float64; it stays what it computes, but its state is no longer that of its checkpoint.
        images: ``[B, 3, H, W]`` of any content and of a size that the network takes.
        precision: of ``--precision``. With ``bf16`` the network has to be called under autocast from now on.
    """
    network.eval().requires_grad_(False)
    fold_batch_norms(network, images)
    return lowered(network, precision)


def lowered(network: nn.Module, precision: str) -> nn.Module:
    """With ``bf16`` the weights that autocast would convert at every call are converted once; in place."""
    if precision == "bf16":
        for module in network.modules():
            if isinstance(module, WEIGHTED):
                module.to(torch.bfloat16)
    return network


@torch.no_grad()
def fold_batch_norms(network: nn.Module, images: Tensor) -> list[str]:
    """Fold each batch normalisation into the convolution that alone feeds it, and that feeds nothing else; in place.

    ``γ·(W∗x + b − μ)/σ + β = (γ/σ·W)∗x + γ/σ·(b − μ) + β``, computed in float64. A :class:`Folded` takes the place of
    the normalisation.

    Args:
        network: in evaluation mode. Its feature maps, where it offers them, stay what they are.
        images: ``[B, 3, H, W]`` of any content.

    Returns:
        the names of the folded normalisations.
    """
    pairs = foldable(network, images)
    for name, (conv, norm) in pairs.items():
        _fold(conv, norm)
        network.set_submodule(name, Folded(norm))
    return list(pairs)


class Folded(nn.Identity):
    """In the place of a batch normalisation that has been folded: what it scaled with and added, ``[C]`` each."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias


@torch.no_grad()
def foldable(network: nn.Module, images: Tensor) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The name of each batch normalisation that can be folded → the convolution before it, and itself.

    Found by watching the network run, so that nothing has to be known about its architecture: both run once, the
    normalisation reads the very tensor that the convolution returned, and nothing else does; nor is what the two hold
    read elsewhere, or anything hooked into them.
    """
    norms = {name: module for name, module in network.named_modules() if type(module) is nn.BatchNorm2d}
    if not norms:
        return {}
    settings = {"is_feat": True} if _offers_features(network, images) else {}
    watch = _Watch(network.modules())
    with watch:
        outputs = network(images, **settings)
    for tensor in tree_leaves(outputs):  # a map that others read cannot change
        watch.uses[id(tensor)] += 1
    watch.stop()
    found = {}
    for name, norm in norms.items():
        conv = watch.source_of(norm)
        if conv is not None and norm.running_mean is not None:
            found[name] = conv, norm
    return found


def _offers_features(network: nn.Module, images: Tensor) -> bool:
    """Whether there are maps; some networks find that out when they are asked first."""
    try:
        return bool(getattr(network, "has_maps", False) and network(images, is_feat=True))
    except UsageError:
        return False


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    wide = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()  # torch computes in the dtype that it is given
    fused = fuse_conv_bn_eval(*wide).to(conv.weight.dtype).requires_grad_(False)
    conv.weight, conv.bias = fused.weight, fused.bias
    vars(conv)["folded"] = True  # what it returns from now on is no longer its own


class _Watch(TorchFunctionMode):
    """Sees which convolution made a tensor, which normalisation reads it, and how many operations use it."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.uses: Counter[int] = Counter()
        self._calls: Counter[nn.Module] = Counter()
        # the tensors are kept, so that an id stays that of one tensor
        self._made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
        self._read: dict[nn.Module, Tensor] = {}
        watched = [module for module in modules if type(module) in (*PLAIN_CONVOLUTIONS, nn.BatchNorm2d)]
        self._owned = {id(each) for module in watched for each in tensors_of(module)}
        self._hooks = [module.register_forward_hook(self._after) for module in watched]

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._calls[module] += 1
        if isinstance(module, nn.Conv2d):
            self._made[id(output)] = module, output
        else:
            self._read[module] = inputs[0]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if any(isinstance(each, Tensor) for each in tree_leaves(output)):  # to ask for a shape is no use
            given = (id(each) for each in tree_leaves((args, kwargs)))
            self.uses.update(each for each in given if each in self._made or each in self._owned)
        return output

    def source_of(self, norm: nn.Module) -> nn.Conv2d | None:
        """The convolution that ``norm`` can be folded into; to be asked after :meth:`stop`."""
        tensor = id(self._read.get(norm))
        if tensor not in self._made:
            return None
        conv, _ = self._made[tensor]
        alone = self.uses[tensor] == self._calls[conv] == self._calls[norm] == 1
        # what the network also reads by itself has to stay; weights that a hook makes would be made again
        own = all(self.uses[id(each)] <= 1 for module in (conv, norm) for each in tensors_of(module))
        return conv if alone and own and not (hooked(conv) or hooked(norm)) else None

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """A layer's own parameters and buffers."""
    return chain(module.parameters(), module.buffers())


def hooked(module: nn.Module) -> bool:
    """Whether something runs before or after the layer, or instead of what it returns."""
    return bool(module._forward_pre_hooks or module._forward_hooks)
