"""Whom a student listens to, class by class: what each teacher's losses are weighted with where a run has ended.

python -m scripts.weights save/students/resnet8-…-trial=* --out results/whom

Each run's last weights see the training images of its last epoch once more, in batches as in training; nothing is
changed. Writes classes.csv (a line for each row, level and class: mean weights over images and seeds) and classes.png.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import train_student
from dataset import get_loaders, info_of
from ensemble import weigh
from helper import checkpoint
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.machine import autocast
from helper.options import Parser
from helper.script import run_script
from helper.session import Session
from helper.teachers.files import chosen_teachers
from helper.teachers.loading import load_teachers
from models import model_dict
from scripts.outputs import folder_for
from scripts.rebuilding import add_arch, of_one_run, require_asked
from scripts.reporting.runs import Group, Run, group, read_run
from train_student import Distillation


class PerClass(NamedTuple):
    """Of the losses on one level: ``weights`` float64 ``[K, C]``, means over ``images`` int64 ``[C]``."""

    weights: torch.Tensor
    images: torch.Tensor


def options() -> Parser:
    """The command line."""
    parser = Parser(description="Whom a student listens to, class by class.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished students; all seeds of a row")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--data_dir", type=Path, help="where the dataset lies now; where it was, unless given")
    add_arch(parser)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; as in training, unless given")
    return parser


def finished(folder: Path) -> Run:
    """The student's run in a folder.

    Raises:
        UsageError: there is none.
    """
    run = read_run(folder)
    if run is None or run.kind != "student" or len(run.result["teachers"]) < 2:
        raise UsageError(f"runs: {folder} is no finished student of several teachers")
    return run


def trained(words: Sequence[str], folder: Path, asked: Sequence[str]) -> tuple[Distillation, Session]:
    """A run as it has ended.

    Args:
        words: options that differ from the run's.
        folder: the run's.
        asked: the networks from outside that may be built, see :func:`scripts.rebuilding.require_asked`.

    Raises:
        UsageError: it cannot be built again.
    """
    parser = train_student.options()
    opt = parser.parse(["--config", str(folder / "parameters.json"), *words])
    files = chosen_teachers([], opt.teachers, None, opt.dataset, model_dict)
    require_asked(folder, asked, [opt.model_s, *(file.arch for file in files)])
    session = Session(opt, model_dict, get_loaders, info_of)
    methods = train_student.weightings(parser, opt)
    student = session.build(opt.model_s)
    teachers, _ = load_teachers(files, session.construct, session.around, session.precision)
    task = train_student.distillation(parser, opt, session, student, teachers, methods)
    try:
        state = checkpoint.load(folder / "last.pth")
    except (OSError, checkpoint.Damaged) as error:
        raise UsageError(f"runs: {folder / 'last.pth'} cannot be loaded: {error}") from None
    with of_one_run(folder):
        task.trained.load_state_dict(state["trained"])  # not --ema's average, which no teacher was weighed for
    return task, session


def weights_of(task: Distillation, batch: Batch, when: When) -> Iterator[tuple[str, torch.Tensor]]:
    """What losses on a batch are weighted with: the name of the level and ``[K]`` or ``[K, B]``."""
    shares = task.loss_weights(when.epoch)[1:]
    terms = [term for term, share in zip(task.terms, shares, strict=True) if task.counts(term, share)]
    student, teachers, logits = task.observed(terms, batch)
    for term in terms:
        told, _ = term.describe(student, list(teachers), logits, batch, when)
        yield term.name, weigh(term.method, told, term.kd_scale).detach()


def listened(task: Distillation, session: Session) -> dict[str, PerClass]:
    """Over the batches of the last epoch."""
    train, epochs = session.loaders.train, session.opt.epochs
    train.set_epoch(epochs)
    task.trained.train()
    found: dict[str, PerClass] = {}
    with autocast(session.device, session.precision):
        for step, batch in enumerate(train, 1):
            for name, weights in weights_of(task, batch, When(epochs, epochs, step, len(train))):
                each = (weights if weights.ndim == 2 else weights[:, None]).double().expand(-1, len(batch.target))
                if name not in found:
                    empty = each.new_zeros(len(each), session.info.num_classes)
                    found[name] = PerClass(empty, torch.zeros_like(empty[0], dtype=torch.int64))
                found[name].weights.index_add_(1, batch.target, each)
                found[name].images.add_(torch.bincount(batch.target, minlength=session.info.num_classes))
    return {name: PerClass((sums / images).cpu(), images.cpu()) for name, (sums, images) in found.items()}


def mean_over_seeds(of_runs: Sequence[dict[str, PerClass]]) -> dict[str, PerClass]:
    """Level by level, over the images of all runs: one may have seen none of a class."""
    found = {}
    for name in of_runs[0]:
        images = torch.stack([each[name].images for each in of_runs])
        sums = [each[name].weights.nan_to_num() * each[name].images for each in of_runs]
        found[name] = PerClass(torch.stack(sums).sum(0) / images.sum(0), images.sum(0))
    return found


def write(found: dict[str, dict[str, PerClass]], names: Sequence[str], path: Path) -> None:
    """A line for each row, level and class."""
    most = max(len(each.weights) for levels in found.values() for each in levels.values())
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "losses", "class", "images", *(f"weight_{k}" for k in range(most))])
        for label, levels in found.items():
            for level, (weights, images) in levels.items():
                for name, count, each in zip(names, images.tolist(), weights.T.tolist(), strict=True):
                    writer.writerow([label, level, name, count, *(f"{one:.5f}" for one in each)])


def drawn(found: dict[str, dict[str, PerClass]]) -> Figure:
    """A strip for each row and level: teachers from top to bottom, classes from left to right; darker is heavier."""
    strips = [(f"{label}: {level}", each.weights) for label, of in found.items() for level, each in of.items()]
    figure, axes = plt.subplots(len(strips), figsize=(8, 0.6 + 0.9 * len(strips)), squeeze=False, layout="constrained")
    shown = torch.cat([weights.nan_to_num().flatten() for _, weights in strips])
    least, most = min(0.0, float(shown.min())), float(shown.max())
    for (title, weights), ax in zip(strips, axes[:, 0], strict=True):
        image = ax.imshow(weights.numpy(), aspect="auto", cmap="Greys", vmin=least, vmax=most)
        ax.set_title(title, fontsize=9, loc="left")
        ax.set_yticks(range(len(weights)), [f"teacher {k}" for k in range(len(weights))], fontsize=7)
        ax.set_xticks([])
    axes[-1, 0].set_xlabel("classes, in the dataset's order")
    figure.colorbar(image, ax=axes[:, 0].tolist(), label="mean weight", shrink=0.8)
    return figure


def lines(label: str, levels: dict[str, PerClass], names: Sequence[str]) -> Iterator[str]:
    """Each teacher's mean weight, and the classes with the largest and the smallest."""
    for level, (weights, images) in levels.items():
        seen = [index for index, count in enumerate(images.tolist()) if count]
        for k, each in enumerate(weights):
            mean = float((each * images)[seen].sum() / images.sum())
            most, least = max(seen, key=each.__getitem__), min(seen, key=each.__getitem__)
            between = f"from {each[least]:.3f} ({names[least]}) to {each[most]:.3f} ({names[most]})"
            yield f"{label}, {level}, teacher {k}: {mean:.3f}, {between}"


def names_of(session: Session) -> list[str]:
    """The classes of a run's dataset; their numbers, where they have no names."""
    return list(session.info.classes or map(str, range(session.info.num_classes)))


def main(arguments: Sequence[str]) -> None:
    """Ask the runs, print and write."""
    opt = options().parse_args(arguments)
    given = {"--data_dir": opt.data_dir, "--device": opt.device}
    words = [str(word) for flag, value in given.items() if value is not None for word in (flag, value)]
    groups: list[Group] = group([finished(folder) for folder in opt.runs])
    folder_for("--out", opt.out)
    found: dict[str, dict[str, PerClass]] = {}
    asked: tuple[str, list[str]] | None = None
    for each in groups:
        of_runs = []
        for run in each.runs:
            task, session = trained(words, run.path, opt.arch)
            of_run = session.opt.dataset, names_of(session)
            if asked not in (None, of_run):
                raise UsageError(f"runs: {run.path} is on another dataset or other classes than those before it")
            asked = of_run
            of_runs.append(listened(task, session))
        found[each.label] = mean_over_seeds(of_runs)
        print(*lines(each.label, found[each.label], names_of(session)), sep="\n", flush=True)
    write(found, names_of(session), opt.out / "classes.csv")
    drawn(found).savefig(opt.out / "classes.png", dpi=130)


if __name__ == "__main__":
    run_script(main)
