"""Many small operations, launched as one: a pure function of tensors becomes a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 2
"""Calls before the capture, in which libraries make their handles and workspaces."""


class Replayed:
    """A function of tensors on one device that returns a tensor without a gradient.

    On a GPU, which takes longer to be told of an operation on a few numbers than to carry it out, the operations are
    captured at the first call with tensors of these shapes and replayed from then on; elsewhere they run as they are.

    Args:
        function: its result may depend on nothing but its arguments, and it may not look at their values.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.captured: dict[Any, Captured] = {}

    def __call__(self, *arguments: Any) -> Tensor:
        with torch.no_grad():
            tensors = [argument.detach() for argument in arguments if isinstance(argument, Tensor)]
            if tensors[0].device.type != "cuda" or torch.cuda.is_current_stream_capturing():
                return self.function(*arguments)
            key = tuple(
                (argument.shape, argument.dtype, argument.device) if isinstance(argument, Tensor) else argument
                for argument in arguments
            )
            if key not in self.captured:
                self.captured[key] = Captured(self.function, arguments)
            return self.captured[key](tensors)


class Captured:
    """The operations of one call; ``arguments`` that are no tensors stay what they were."""

    def __init__(self, function: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
        own = [argument.detach().clone() if isinstance(argument, Tensor) else argument for argument in arguments]
        self.inputs = [argument for argument in own if isinstance(argument, Tensor)]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                function(*own)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # other threads, such as nccl's, may go on with what is forbidden while this one captures
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.output = function(*own)

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        for mine, given in zip(self.inputs, tensors, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.output.clone()
