"""The student's objective from its parts, for tests that have no command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from sums import crossed
from torch import Tensor, nn

from distiller_zoo import distill_dict
from ensemble import EnsembleMethod, ensemble_dict
from helper.teachers import Teachers
from train_student import Distillation, make_losses

LOSSES, METHODS = ("kd", "inter"), ("AVERAGE_LOSS", "AEKD")
"""Of either kind two that differ: on logits and on maps, looking at nothing and at gradients."""


def pairs() -> list[tuple[str, str]]:
    """Each loss under two weightings and each weighting with two losses; with ``sh scripts/test.sh --all`` all."""
    return crossed(distill_dict, ensemble_dict, LOSSES, METHODS)


NO_SETTINGS: Mapping[str, Any] = {}


def make_objective(
    distill: str,
    method: str,
    student: nn.Module,
    teachers: Teachers,
    opt: argparse.Namespace,
    images: Tensor,
    of_loss: Mapping[str, Any] = NO_SETTINGS,
    **of_method: Any,
) -> Distillation:
    """As ``train_student.py`` puts it together; ``images`` ``[B, 3, H, W]`` show the maps' sizes and the batch's.

    ``distill`` may be several, separated by commas; the loss on logits is ``kd`` where none of them is.
    """
    chosen = distill.split(",")
    names = {} if any(distill_dict[name].on_logits() for name in chosen) else {"kd": {"kd_T": opt.kd_T}}
    names |= dict.fromkeys(chosen, of_loss)
    classes = student(images).shape[1]
    labels = torch.arange(1000) % classes
    losses = {
        name: make_losses(distill_dict[name], settings, student, teachers, images, classes, labels, len(images))
        for name, settings in names.items()
    }
    methods: list[EnsembleMethod] = [ensemble_dict[method](**of_method) for _ in losses]
    task = Distillation(student, teachers, losses, methods, opt)
    task.attach(images)
    return task
