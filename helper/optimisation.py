"""Optimizers and learning rates by name. A schedule is a function of progress, so that a resumed run needs no state."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from helper.batch import When
from helper.registry import Registry

Groups = list[dict[str, Any]]
Schedule = Callable[[When], float]
"""When a step is → the factor of the learning rate."""

optimizer_dict: Registry[Callable[[Groups, argparse.Namespace], torch.optim.Optimizer]] = Registry("--optimizer")
schedule_dict: Registry[Callable[[argparse.Namespace, Sequence[int]], Schedule]] = Registry("--lr_schedule")
WITHOUT_MOMENTUM = ("adam", "adamw")
"""Optimizers that read neither ``--momentum`` nor ``--nesterov``."""
WITHOUT_DROPS = ("cosine", "onecycle")
"""Schedules that do not read ``--lr_decay_rate``."""


def parameter_groups(
    trained: nn.ModuleDict, rate: float, rates: Mapping[str, float], decays: Mapping[str, float]
) -> Groups:
    """One group of weights, and one more for each child of ``trained`` that ``rates`` or ``decays`` name.

    ``factor`` of a group multiplies the learning rate.
    """
    own = {name: list(trained[name].parameters()) for name in dict.fromkeys([*rates, *decays])}
    named = {parameter for parameters in own.values() for parameter in parameters}
    rest = [each for each in trained.parameters() if each not in named and each.requires_grad]
    groups: Groups = [{"params": rest, "lr": rate, "factor": 1.0}]
    for name, parameters in own.items():
        if parameters:
            decay = {"weight_decay": decays[name]} if name in decays else {}
            groups.append({"params": parameters, "lr": rate, "factor": rates.get(name, 1.0), **decay})
    return groups


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate from now on, times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)  # resumed from before there were factors


@optimizer_dict.register("sgd")
def sgd(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """Stochastic gradient descent with ``--momentum``, ``--nesterov`` and L2 ``--weight_decay``."""
    optimizer = torch.optim.SGD(
        groups, momentum=opt.momentum, weight_decay=opt.weight_decay, nesterov=opt.nesterov, fused=True
    )
    # Zero buffers for all: torch's fused step fails when some parameters get their first gradient later.
    for parameter in (each for group in groups for each in group["params"]) if opt.momentum else ():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


@optimizer_dict.register("adam")
def adam(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """Adam (Kingma, Ba 2015) with L2 ``--weight_decay``."""
    return torch.optim.Adam(groups, weight_decay=opt.weight_decay, fused=True)


@optimizer_dict.register("adamw")
def adamw(groups: Groups, opt: argparse.Namespace) -> torch.optim.Optimizer:
    """Adam with decoupled ``--weight_decay`` (Loshchilov, Hutter 2019)."""
    return torch.optim.AdamW(groups, weight_decay=opt.weight_decay, fused=True)


@schedule_dict.register("steps")
def steps(opt: argparse.Namespace, drops: Sequence[int]) -> Schedule:
    """Times ``--lr_decay_rate`` after each of the epochs in ``drops``."""
    return lambda when: opt.lr_decay_rate ** sum(when.epoch > drop for drop in drops)


@schedule_dict.register("cosine")
def cosine(opt: argparse.Namespace, drops: Sequence[int]) -> Schedule:
    """Half a cosine from 1 to 0, step by step (Loshchilov, Hutter 2017, without restarts)."""
    return lambda when: (1 + math.cos(math.pi * progress(when))) / 2


@schedule_dict.register("onecycle")
def onecycle(opt: argparse.Namespace, drops: Sequence[int]) -> Schedule:
    """Up from 1/25 in the first 30 % of the run, then down to 4e-6, each along half a cosine (Smith, Topin 2018).

    Shares and ends are those of torch's ``OneCycleLR``; the momentum stays.
    """
    first, last, rise = 1 / 25, 1 / 25 / 1e4, 0.3

    def factor(when: When) -> float:
        at = progress(when)
        start, end, share = (first, 1.0, at / rise) if at < rise else (1.0, last, (at - rise) / (1 - rise))
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    return factor


def schedule_of(opt: argparse.Namespace, drops: Sequence[int]) -> Schedule:
    """What ``--lr_schedule`` names, growing from 0 over the first ``--warmup_epochs``, step by step."""
    factor = schedule_dict[opt.lr_schedule](opt, drops)
    if not opt.warmup_epochs:
        return factor
    return lambda when: factor(when) * min(1.0, (done(when) + 1 / when.steps) / opt.warmup_epochs)


def done(when: When) -> float:
    """Epochs before this step."""
    return when.epoch - 1 + (when.step - 1) / when.steps


def progress(when: When) -> float:
    """The share of the run before this step, from 0 to below 1."""
    return done(when) / when.epochs
