"""Every distillation loss by itself, beside the released way to compute it, and steps with it under AEKD."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from distiller_zoo import Distiller, distill_dict
from helper.batch import When
from helper.machine import autocast
from helper.seen import Seen, observe
from scripts.bench.as_released import plain
from scripts.bench.memory import peak_during
from scripts.bench.released_losses import released_losses
from scripts.bench.subjects import AVERAGE, SOLVED, Offline, Pair, step_of
from scripts.bench.timing import Rows, alternate, ratio
from train_student import make_losses

TITLE = "losses"
OURS, THEN = "ours", "as released"
IMAGES, QUICK_IMAGES = 50_000, 1_000
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


def as_released(seen: Seen) -> Seen:
    """In float32 and NCHW."""
    return seen.with_tensors([tensor.float().contiguous() for tensor in seen.tensors()])


def ways_of(distill: str, bench: Offline) -> dict[str, Callable[[], Tensor]]:
    """From the same tensors a loss and its gradients under all teachers: ours, and as released where that differs."""
    parser, opt = bench.options(Pair(distill, AVERAGE))
    student, teachers, batch = bench.session.build(bench.setting.student), bench.teachers, bench.batches[0]
    images = QUICK_IMAGES if bench.bench.quick else IMAGES
    labels = torch.arange(images, device=bench.device) % bench.session.info.num_classes
    settings = parser.hyperparameters(opt, "distill", distill)
    classes, when = bench.session.info.num_classes, When(opt.epochs // 4, opt.epochs)
    kind, at_once = distill_dict[distill], len(batch.target)
    with autocast(bench.device, bench.session.precision), torch.no_grad():
        losses = make_losses(kind, settings, student, teachers, batch.images, classes, labels, at_once)
        of_teachers, logits = teachers.observe(batch.images, [loss.teacher for loss in losses])
        mine = observe(student, batch.images, losses[0].student).seen(losses[0].student)
    theirs = [each.seen(loss.teacher) for each, loss in zip(of_teachers, losses, strict=True)]

    def ours(seen: Seen) -> list[Tensor]:
        with autocast(bench.device, bench.session.precision):
            if losses[0].broadcasts:
                closed = type(losses[0]).slopes is not Distiller.slopes
                start = seen if closed else Seen(logits=torch.stack([*seen.tensors()] * len(losses)))
                return [losses[0](start, Seen(logits=logits), batch, when).mean(1)]
            return [loss(seen, each, batch, when).mean() for loss, each in zip(losses, theirs, strict=True)]

    ways = {OURS: differentiated(ours, mine)}
    if distill in released_losses:
        compute, copies, old = released_losses[distill], [plain(loss) for loss in losses], map(as_released, theirs)
        pairs = list(zip(copies, old, strict=True))
        then = lambda seen: [compute(loss, seen, each, batch) for loss, each in pairs]  # noqa: E731
        ways[THEN] = differentiated(then, as_released(mine))
    return ways


def differentiated(losses: Callable[[Seen], list[Tensor]], student: Seen) -> Callable[[], Tensor]:
    """What computes at each call the sum of losses and its gradients, and returns it."""

    def call() -> Tensor:
        start = student.with_tensors([tensor.detach().requires_grad_() for tensor in student.tensors()])
        total = torch.stack(losses(start)).sum()
        total.backward()
        return total.detach()

    return call
