"""Several processes that train one network: started by ``torchrun``, joined by torch's own process group.

Everything here also works, and does nothing, in a process that is alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from helper.errors import UsageError

Result = TypeVar("Result")

SMALL = 1 << 16
"""Numbers in a tensor that is cheaper to copy beside others than to send by itself."""


def start(device: torch.device) -> None:
    """Join the other processes, where ``torchrun`` has started this one: nccl between GPUs, gloo between CPUs."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if rank() > 0:
            # the first process speaks for all, to the end
            sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, also before it has joined the others; 0 writes and prints."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() > 1 else 0


def launched() -> int:
    """How many processes ``torchrun`` has started, whether or not they have joined."""
    return int(os.environ.get("WORLD_SIZE", 1))


def size() -> int:
    """How many processes have joined, this one among them."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, without a gradient; the argument stays as it is."""
    if size() == 1:
        return tensor
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean over all processes, without a gradient."""
    return total(tensor) / size() if size() > 1 else tensor


class _Stack(torch.autograd.Function):
    """Every process's tensor: each process's loss depends on all of them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0])[rank()]


def gathered(tensor: Tensor, gradient: bool = False) -> Tensor:
    """The batch of all processes from each one's part ``[B, …]``, in order.

    Args:
        gradient: whether a gradient reaches every process's part, as a loss between samples needs it; else none does,
            in one process too.
    """
    tensor = tensor if gradient else tensor.detach()
    return tensor if size() == 1 else differentiable_stack(tensor).flatten(0, 1)


def own(tensor: Tensor) -> Tensor:
    """This process's part ``[b, …]`` of what :func:`gathered` has made of all of them, or what follows from it."""
    return tensor if size() == 1 else tensor.unflatten(0, (size(), -1))[rank()]


def differentiable_stack(tensor: Tensor) -> Tensor:
    """The tensors of all processes, stacked by rank; the gradient is summed over the processes."""
    if size() == 1:
        return tensor[None]
    result: Tensor = _Stack.apply(tensor)
    return result


def from_first(function: Callable[[], Result]) -> Result:
    """What ``function`` returns in the first process, which alone calls it; it has to be picklable.

    Raises:
        UsageError: in every process, if it does in the first.
    """
    if size() == 1:
        return function()
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = function()
        except UsageError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise UsageError(answer[1])
    result: Result = answer[0]
    return result


def gather(item: Result) -> list[Result]:
    """Every process's item, by rank; it has to be picklable."""
    if size() == 1:
        return [item]
    items: list[Any] = [None] * size()
    dist.all_gather_object(items, item)
    return items


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with those of the first process; small ones of a type travel together."""
    small: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors if size() > 1 else ():
        if tensor.numel() > SMALL:
            dist.broadcast(tensor, 0)
        else:
            small.setdefault(tensor.dtype, []).append(tensor)
    for alike in small.values():
        together = torch.cat([tensor.flatten() for tensor in alike])
        dist.broadcast(together, 0)
        for tensor, part in zip(alike, together.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))


def per_process(option: str, number: int, accumulate: int) -> int:
    """How many of a global batch's images this process takes at once.

    Raises:
        UsageError: processes and micro-batches do not divide it.
    """
    parts = size() * accumulate
    if number % parts:
        ways = f"{size()} processes" if accumulate == 1 else f"{size()} processes × --accumulate {accumulate}"
        raise UsageError(f"{option}: {number} cannot be shared equally by {ways}; choose a multiple of {parts}")
    return number // parts
