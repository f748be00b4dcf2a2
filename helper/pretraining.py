"""What losses learn from their teachers alone, before the student is trained."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from helper import distributed
from helper.batch import Batch
from helper.progress import progress
from helper.recipe import seed_of
from helper.resuming import seed_everything
from helper.seen import Observed
from helper.task import Context, Task

RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
"""Of the released codes' SGD for it."""


class First:
    """One loss's part in it: its frozen parameters learn ``first_loss`` for ``first_epochs``.

    Args:
        loss: of the teacher with number ``teacher``.
        epochs: how many the run has.
    """

    def __init__(self, loss: Any, teacher: int, epochs: int) -> None:
        self.loss, self.teacher, self.epochs = loss, teacher, loss.first_epochs(epochs)
        self.parameters: list[nn.Parameter] = [each for each in loss.parameters() if not each.requires_grad]
        self.optimizer = torch.optim.SGD(self.parameters, RATE, MOMENTUM, weight_decay=DECAY) if self.epochs else None

    def step(self, teacher: Observed) -> None:
        """One update; with several processes by the mean of their gradients."""
        assert self.optimizer is not None
        for each in self.parameters:
            each.requires_grad_(True)
        loss = self.loss.first_loss(teacher.seen(self.loss.teacher))
        for each, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            each.grad = distributed.mean(gradient)
        self.optimizer.step()
        for each in self.parameters:
            each.grad = None
            each.requires_grad_(False)


def pretrain(
    firsts: Sequence[First],
    observe: Callable[[Batch], list[Observed]],
    batches: Callable[[int], Iterable[Batch]],
    inside: Context,
) -> None:
    """Run over the training images as often as any of the losses wants to.

    Args:
        firsts: of all losses.
        observe: a batch → what each teacher makes of it.
        batches: the number of an epoch, from 1 → its batches.
        inside: where networks run.
    """
    for epoch in range(1, max((each.epochs for each in firsts), default=0) + 1):
        for batch in batches(epoch):
            with inside():  # anew for each batch: until it is left, autocast keeps copies of the weights as they were
                observed = observe(batch)
                for each in firsts:
                    if epoch <= each.epochs:
                        each.step(observed[each.teacher])


def before_training(
    task: Task, train: Any, once: Callable[[], Iterable[Batch]], inside: Context, opt: argparse.Namespace
) -> float:
    """Let a task learn what it needs before the first epoch; the seconds that it took.

    Args:
        train: the loader of the training images.
        once: → the batches of the epoch that it is set to.
        inside: where networks run.
        opt: ``batch_size`` and what the seed follows from.
    """
    started = time.perf_counter()
    seed_everything(seed_of(opt))

    def batches(epoch: int) -> Iterator[Batch]:
        train.set_epoch(epoch)
        with progress(once(), f"before, {epoch}", len(train), 0, opt.batch_size) as shown:
            yield from shown

    task.before(batches, inside)
    return time.perf_counter() - started
