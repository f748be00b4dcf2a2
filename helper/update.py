"""One update of the weights: micro-batches, processes, and what becomes of too little memory."""

from __future__ import annotations

import argparse
import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from helper import distributed
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.machine import autocast, begin_step, out_of_memory
from helper.meters import Scalars
from helper.task import Task

SOMETIMES = (
    "torchrun: some weights of the network get a gradient in some steps only, which several processes cannot exchange; "
    "train it in one process"
)
"""Said where those of the first step have all got one."""

HIDING = "CheckpointFunctionBackward"
"""A checkpoint that computes again within its backward pass: its weights get their gradients there, unseen."""


class Step(nn.Module):
    """A task's step as a module, which DistributedDataParallel can wrap."""

    def __init__(self, task: Task, device: torch.device, precision: str) -> None:
        super().__init__()
        self.trained = task.trained
        self.task, self.device, self.precision = task, device, precision
        self.reached: list[set[Tensor]] | None = None  # the weights that each loss depends on, where that is asked

    def forward(self, batch: Batch, when: When) -> Scalars:
        with autocast(self.device, self.precision):
            scalars = self.task.step(batch, when)
        if self.reached is not None:
            scalars = {**scalars, "loss": self._with_all(scalars["loss"], self.reached)}
        return {name: value if name == "loss" else value.detach() for name, value in scalars.items()}

    def _with_all(self, loss: Tensor, reached: list[set[Tensor]]) -> Tensor:
        """The loss, on which all weights depend by name: DistributedDataParallel waits for a gradient of each.

        Where it cannot be seen which do, they are taken to do so.
        """
        found = leaves(loss)
        reached.append({*self.trained.parameters()} if found is None else {*found})
        for each in self.trained.parameters():
            if each.requires_grad and each not in reached[-1]:
                loss = loss + torch.atleast_1d(each)[:0].sum().to(loss.dtype)  # 0, also beside what is not finite
        return loss


def leaves(loss: Tensor) -> list[Tensor] | None:
    """The tensors that a backward pass would give a gradient to; None where the graph hides some."""
    nodes: list[Any] = [loss.grad_fn]
    seen = {*nodes}
    found = []
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == HIDING:
            return None
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)
        following = {each for each, _ in getattr(node, "next_functions", ())} - seen
        seen |= following
        nodes += following - {None}
    return found


class Update:
    """A batch → new weights.

    Args:
        task: what is trained.
        optimizer: of its weights.
        opt: ``accumulate``, ``batch_size``, ``clip_grad`` and ``compile``.
        device, precision: where and with what.
    """

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        opt: argparse.Namespace,
        device: torch.device,
        precision: str,
    ) -> None:
        self.task, self.optimizer, self.opt, self.device, self.precision = task, optimizer, opt, device, precision
        self.own = Step(task, device, precision)
        self.forward: nn.Module = self.own
        self.unused: bool | None = None  # whether there are weights that never get a gradient; None: not known yet

    def connect(self, epoch: int) -> None:
        """Let the processes, if there are several, exchange gradients; they are told whether all weights get one.

        What the task does not know, a person's network with a layer that is not used, the first step finds out.
        """
        idles = self.task.idles(epoch) or bool(self.unused)
        wrapped = isinstance(self.forward, DistributedDataParallel)
        if distributed.size() == 1 or (wrapped and self.forward.find_unused_parameters == idles):
            return
        # It arranges gradients anew after its first step: three processes that resume sum one step's in another order.
        # BN's statistics are the first process's when it comes to evaluation. The name has changed with torch 2.15.
        accepted = inspect.signature(DistributedDataParallel.__init__).parameters
        leave_buffers = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
        alone: dict[str, Any] = {leave_buffers: False}
        self.own = Step(self.task, self.device, self.precision)
        self.own.reached = [] if self.unused is None and not idles else None
        self.forward = DistributedDataParallel(self.own, find_unused_parameters=idles, **alone)

    def __call__(self, batch: Batch, when: When) -> Scalars:
        """One update; the mean scalars of its micro-batches.

        Raises:
            UsageError: the batch does not fit in the memory; it says which would, if one does.
        """
        begin_step(self.opt.compile, self.device)
        try:
            each = self._update(batch.split(self.opt.accumulate), when)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if "Expected to have finished reduction" in str(error):
                raise UsageError(SOMETIMES) from None
            if not out_of_memory(error):
                raise
            each = []
        if not each:
            raise UsageError(self._too_large(batch, when))
        self.task.after_step()
        return each[0] if len(each) == 1 else {name: torch.stack([s[name] for s in each]).mean() for name in each[0]}

    def _update(self, parts: Sequence[Batch], when: When) -> list[Scalars]:
        """Micro-batches → new weights; the scalars of each."""
        self.optimizer.zero_grad(set_to_none=True)
        each = [self.backward(part, when._replace(part=number), len(parts)) for number, part in enumerate(parts)]
        self._find_unused(when.epoch)
        if self.opt.clip_grad:
            nn.utils.clip_grad_norm_(self.task.trained.parameters(), self.opt.clip_grad)
        self.optimizer.step()
        return each

    def backward(self, batch: Batch, when: When, parts: int) -> Scalars:
        """Add the gradient of a micro-batch, one of so many; processes exchange theirs after the last."""
        alone = when.part == parts - 1 or not isinstance(self.forward, DistributedDataParallel)
        with contextlib.nullcontext() if alone else self.forward.no_sync():  # type: ignore[operator]
            scalars: Scalars = self.forward(batch, when)
            (scalars["loss"] / parts).backward()
        return {name: value.detach() for name, value in scalars.items()}

    def _find_unused(self, epoch: int) -> None:
        """After the first update's backward passes, leave weights that no loss depends on without a gradient.

        As in one process, where neither weight decay nor momentum reaches them. From then on they are searched for, and
        so are those that some micro-batch or process does without.
        """
        reached, self.own.reached = self.own.reached, None
        if reached is None:
            return
        weights = [each for each in self.task.trained.parameters() if each.requires_grad]
        lacking = [[each not in of_part for each in weights] for of_part in reached]
        counts = distributed.total(torch.tensor(lacking, device=self.device).sum(0).float()).tolist()
        for each, count in zip(weights, counts, strict=True):
            if count == len(reached) * distributed.size():
                each.grad = None
        self.unused = any(counts)
        self.connect(epoch)

    def _too_large(self, batch: Batch, when: When) -> str:
        """Says which batch would fit, found by trying halves; nothing of these weights is saved any more."""
        size = len(batch.target) // self.opt.accumulate // 2
        while size and distributed.size() == 1:
            try:
                self._update([batch.part(0, size)], when)
                break
            except (RuntimeError, UsageError, ValueError):  # some losses fit one size, BatchNorm wants several values
                size //= 2
        hint = f"{size} images at once fit, so try --accumulate" if size else "try a smaller one, or --accumulate"
        return f"--batch_size: {self.opt.batch_size} does not fit in the memory; {hint}"
