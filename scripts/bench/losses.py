"""Every distillation loss by itself, beside the released way to compute it, and a step under AEKD beside the plain mean."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from helper.batch import When
from helper.machine import autocast
from helper.seen import Observed, Seen, observe
from scripts.bench.as_released import plain
from scripts.bench.memory import peak_during
from scripts.bench.released_losses import released_losses
from scripts.bench.subjects import AVERAGE, SOLVED, Offline, Pair, Step, step_of
from scripts.bench.timing import Rows, alternate, ratio
from train_student import Term, make_losses

TITLE = "losses"
OURS, THEN = "ours", "as released"
IMAGES = 50_000
"""Training images that a memory has room for."""
PART = 8
"""A loss gets so much less of the time than the other sections' groups of variants."""


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Rows]:
    """Of each setting a row for each loss that its networks take."""
    tables = {}
    for setting in opt.settings:
        rows: Rows = {}
        with Offline(setting, opt) as bench:
            for distill in dict.fromkeys(pair.distill for pair in bench.pairs()):
                say(f"{setting}: {distill}")
                rows[distill] = {**by_itself(distill, bench, opt), **in_steps(distill, bench, opt)}
        tables[str(setting)] = rows
    return tables


def in_steps(distill: str, bench: Offline, opt: argparse.Namespace) -> dict[str, float]:
    """A training step under AEKD, and how much longer it takes than under AVERAGE_LOSS."""
    steps = {method: step_of(bench.fit(Pair(distill, method))) for method in (AVERAGE, SOLVED)}
    times = alternate(steps, opt.steps, opt.seconds / PART, bench.device)
    return {"AEKD_vs_average": ratio(times, SOLVED, AVERAGE)}


def by_itself(distill: str, bench: Offline, opt: argparse.Namespace) -> dict[str, float]:
    """Milliseconds and MB of the loss and its gradients under all teachers, and what part of the released that is."""
    ways = ways_of(distill, bench)
    times = alternate(ways, opt.steps, opt.seconds / PART, bench.device)
    row = {"ms": 1e3 * sorted(times[OURS])[len(times[OURS]) // 2], "MB": peak_during(ways[OURS], bench.device)}
    if THEN in ways:
        row["vs_released"] = ratio(times, OURS, THEN)
        row["MB_vs_released"] = row["MB"] / peak_during(ways[THEN], bench.device)
    return row


def leaf(tensor: Tensor | None) -> Tensor | None:
    """The same numbers, where a gradient ends."""
    return None if tensor is None else tensor.detach().requires_grad_()


def leaves(seen: Observed) -> Observed:
    """What a network has made of a batch, as if gradients ended there."""
    features, before = ([leaf(each) for each in maps] for maps in (seen.features, seen.before))
    logits = seen.logits.detach().requires_grad_()
    return seen._replace(logits=logits, features=features, before=before, cam=leaf(seen.cam))


def as_released(seen: Seen) -> Seen:
    """In float32 and NCHW."""
    return seen.with_tensors([tensor.float().contiguous() for tensor in seen.tensors()])


def ways_of(distill: str, bench: Offline) -> dict[str, Step]:
    """What computes a loss and its gradients at each call, from the same tensors: ours, and the released way if known."""
    parser, opt = bench.options(Pair(distill, AVERAGE))
    student, teachers, batch = bench.session.build(bench.setting.student), bench.teachers, bench.batches[0]
    labels = torch.arange(IMAGES, device=bench.device) % bench.session.info.num_classes
    settings = parser.hyperparameters(opt, "distill", distill)
    classes, when = bench.session.info.num_classes, When(opt.epochs // 4, opt.epochs)
    losses = make_losses(
        distill_dict[distill], settings, student, teachers, batch.images, classes, labels, len(batch.target)
    )
    with autocast(bench.device, bench.session.precision), torch.no_grad():
        of_student = observe(student, batch.images, losses[0].student)
        of_teachers, logits = teachers.observe(batch.images, [loss.teacher for loss in losses])
    term = Term(losses, ensemble_dict[AVERAGE](), "released", "loss")

    def ours() -> Tensor:
        start = leaves(of_student)
        with autocast(bench.device, bench.session.precision):
            told, _ = term.describe(start, list(of_teachers), logits, batch, when)
            total = told.losses.mean(1).sum()
        total.backward()
        return total.detach()

    if distill not in released_losses:
        return {OURS: ours}
    compute, copies = released_losses[distill], [plain(loss) for loss in losses]
    mine = as_released(of_student.seen(losses[0].student))
    theirs = [as_released(each.seen(loss.teacher)) for each, loss in zip(of_teachers, losses, strict=True)]

    def then() -> Tensor:
        seen = mine.with_tensors([tensor.detach().requires_grad_() for tensor in mine.tensors()])
        total = sum(compute(loss, seen, each, batch) for loss, each in zip(copies, theirs, strict=True))
        total.backward()
        return total.detach()

    return {OURS: ours, THEN: then}
