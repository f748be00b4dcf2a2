#!/usr/bin/env python3
"""Distil K frozen teachers into one student: ``r·CE + a·L_kd + b·L_feat``.

python train_student.py --model_s vgg8 --teacher_num 3 --distill inter --ensemble_method CAMKD --nesterov \
    -r 1 -a 1 -b 50 --trial 0
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import setting
from dataset import dataset_dict, get_loaders, info_of
from distiller_zoo import Distiller, Pair, distill_dict
from ensemble import EnsembleMethod, TeacherLosses, combine, ensemble_dict, weigh
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.evaluation import compared
from helper.gradients import OnePass, batch_mean
from helper.kl import full_precision
from helper.label_loss import label_loss
from helper.machine import autocast
from helper.meters import Scalars, accuracy
from helper.options import Options, natural, one_of, positive_float, positive_int, text_of, weight
from helper.recipe import add_recipe
from helper.script import run_script
from helper.seen import Observed, Reads, Seen, either, feature_shapes, observe
from helper.session import Session
from helper.task import Task
from helper.teacher_cache import TeacherCache
from helper.teachers import (
    TeacherFile,
    Teachers,
    chosen_teachers,
    ensemble_logits,
    fingerprint,
    load_teachers,
    require_files,
)
from models import model_dict


class Term:
    """One distillation loss under K teachers, weighed: ``Σ_k mean_b(w_kb · loss_kb)``.

    Args:
        losses: one per teacher, all of one class.
        method: weighs the teachers.
        kd_scale: see :func:`ensemble.weigh`.
    """

    def __init__(self, losses: Sequence[Distiller], method: EnsembleMethod, kd_scale: str) -> None:
        self.losses, self.method, self.kd_scale = list(losses), method, kd_scale
        self.level: Literal["logit", "feature"] = "logit" if losses[0].on_logits() else "feature"

    def __call__(
        self, student: Observed, teachers: list[Observed], teacher_logits: torch.Tensor, batch: Batch, when: When
    ) -> tuple[torch.Tensor, Callable[[], torch.Tensor], Scalars]:
        """The weighted loss, a function to its part of each sample ``[B]``, and what is worth a curve.

        Gradients that the method has asked for are not computed a second time.
        """
        told, once = self.describe(student, teachers, teacher_logits, batch, when)
        weights = weigh(self.method, told, self.kd_scale)
        means = weights if weights.ndim == 1 else weights.mean(1)
        prefix = "feature_" if self.level == "feature" else ""
        report = {f"{prefix}weight_{k}": mean.detach() for k, mean in enumerate(means)}
        if len(means) > 1:
            report |= {f"{prefix}{name}": value for name, value in self.method.diagnostics(told, weights).items()}
        loss = combine(weights, told.losses)
        if once is not None and once.known(weights):
            loss = once.attach(loss, weights)
        return loss, partial(of_each_sample, weights.detach(), told.losses.detach()), report

    def describe(
        self, student: Observed, teachers: list[Observed], teacher_logits: torch.Tensor, batch: Batch, when: When
    ) -> tuple[TeacherLosses, OnePass | None]:
        """What the weighting method is told, and where the gradients that it may ask for are kept.

        Below the logits the list of the teachers is emptied, so that maps take no memory while gradients are computed.
        """
        first, once = self.losses[0], None
        seen = student.seen(first.student)
        heads: Callable[[], torch.Tensor] = lambda: teacher_logits  # noqa: E731 replaced where the student feeds them
        if first.broadcasts:
            theirs = Seen(logits=teacher_logits)
            values = full_precision(first(seen, theirs, batch, when))  # [K, B]
            gradients = partial(self._closed_gradients, values, seen, theirs)
        else:
            once = OnePass(seen.tensors(), self.losses)
            aliases = [seen.with_tensors(each) for each in once.aliases]
            mine = [loss.prepare(alias) for loss, alias in zip(self.losses, aliases, strict=True)]
            size = len(batch.target)
            values = torch.stack(
                [
                    full_precision(loss.compare(prepared, teacher.seen(loss.teacher), batch, when)).expand(size)
                    for loss, prepared, teacher in zip(self.losses, mine, teachers, strict=True)
                ]
            )  # [K, B]
            gradients = partial(self._found_gradients, values, once)
            read = [loss.as_teacher_reads(prepared) for loss, prepared in zip(self.losses, mine, strict=True)]
            maps = [each for each in read if each is not None]
            if maps:
                heads = partial(classified, [teacher.network for teacher in teachers], maps)
            if self.level == "feature":
                teachers.clear()
        told = TeacherLosses(
            losses=values,
            target=batch.target,
            level=self.level,
            logits_of=heads,
            gradients_of=gradients,
            student_logits=student.logits.detach(),
            when=when,
        )
        return told, once

    def _found_gradients(self, values: torch.Tensor, once: OnePass) -> torch.Tensor:
        # A pass back to the aliases gives all K gradients, and none reaches the student.
        slopes = once.slopes(values.mean(1), keep=not self.method.constant)  # K times [B, …] of each tensor
        return torch.stack([torch.cat([batch_mean(slope) for slope in each]) for each in slopes])

    def _closed_gradients(self, values: torch.Tensor, seen: Seen, theirs: Seen) -> torch.Tensor:
        closed = self.losses[0].slopes(seen, theirs)
        if closed is not None:
            return closed
        # back to the logits alone
        slopes = [torch.autograd.grad(value.mean(), seen.tensors(), retain_graph=True) for value in values]
        return torch.stack([torch.cat([batch_mean(slope) for slope in each]) for each in slopes])


def of_each_sample(weights: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Weights ``[K]`` or ``[K, B]`` and losses ``[K, B]`` → ``Σ_k w_kb · loss_kb``, ``[B]``."""
    return ((weights if weights.ndim == 2 else weights[:, None]) * losses).sum(0)


def classified(networks: Sequence[Any], maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the teachers' own classifiers make of maps ``[B, C_k, H_k, W_k]``: ``[K, B, C]``; gradients flow to them."""
    return torch.stack([network.classify(each) for network, each in zip(networks, maps, strict=True)])


class Distillation(Task):
    """The objective of one student under K teachers.

    Args:
        student: the network that is trained.
        teachers: K frozen networks.
        losses: K of a loss on logits, weighted by ``-a``; then, or not, K of another one, weighted by ``-b``.
        methods: weigh the teachers, one for each of these losses.
        opt: ``gamma``, ``alpha``, ``beta``, ``kd_scale``, ``distill_decay``, ``feat_start_epoch``, ``feat_stop_epoch``
            and ``epochs`` as :func:`options` describes them.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Teachers,
        losses: Sequence[Sequence[Distiller]],
        methods: Sequence[EnsembleMethod],
        opt: argparse.Namespace,
    ) -> None:
        self.student, self.teachers, self.opt = student, teachers, opt
        self.terms = [Term(each, method, opt.kd_scale) for each, method in zip(losses, methods, strict=True)]
        self.listening = any(type(method).after_step is not EnsembleMethod.after_step for method in methods)
        self.sample_losses: list[torch.Tensor] = []
        logit_losses, *rest = losses
        self.adapters = list(rest[0]) if rest else []
        weightings = {term.level: method for term, method in zip(self.terms, methods, strict=True)}
        self.trained = nn.ModuleDict(
            {
                "network": student,
                "adapters": nn.ModuleList(self.adapters),
                "logit_losses": nn.ModuleList(logit_losses),
                "weightings": nn.ModuleDict({k: each for k, each in weightings.items() if isinstance(each, nn.Module)}),
            }
        )

    def attach(self, images: torch.Tensor) -> None:
        """Let the weighting methods build what they own; ``images`` ``[B, 3, H, W]`` show the shapes."""
        if len(self.teachers) == 1 or all(type(term.method).attach is EnsembleMethod.attach for term in self.terms):
            return  # a single teacher is not weighed
        none = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        batch = Batch(images, none, places=none)
        of_student, of_teachers = self.reads(self.terms)
        self.trained.eval()
        student = observe(self.student, images, of_student)
        teachers, logits = self.teachers.observe(images, of_teachers)
        for term in self.terms:
            term.method.attach(term.describe(student, teachers, logits, batch, When(1, self.opt.epochs))[0])
        self.trained.train().to(images.device)

    def step(self, batch: Batch, when: When) -> Scalars:
        """A batch → ``loss`` and its parts, each a batch mean."""
        r, a, b = self.loss_weights(when.epoch)
        terms = self.terms if b > 0 else self.terms[:1]
        of_student, of_teachers = self.reads(terms)
        teachers, teacher_logits = self.teachers.observe(batch.images, of_teachers, batch.views)
        student = observe(self.student, batch.images, of_student)

        logits = full_precision(student.logits)
        cross_entropy = label_loss(logits, batch)
        kd, kd_each, report = self.terms[0](student, teachers, teacher_logits, batch, when)
        loss = r * cross_entropy + a * kd
        scalars = {"loss_ce": cross_entropy, "loss_kd": kd, **report, "accuracy": accuracy(logits, batch.target)}
        feature_each: Callable[[], torch.Tensor | float] = float
        if b > 0:
            feature, feature_each, report = self.terms[1](student, teachers, teacher_logits, batch, when)
            loss = loss + b * feature
            scalars |= {"loss_feature": feature, **report}
        if self.listening and self.trained.training:
            each = label_loss(logits.detach(), batch, reduction="none")
            self.sample_losses.append(r * each + a * kd_each() + b * feature_each())
        return {"loss": loss, **scalars}

    @staticmethod
    def reads(terms: Sequence[Term]) -> tuple[Reads, Reads]:
        """What student and teachers are asked for."""
        first = [term.losses[0] for term in terms]
        return either(*(loss.student for loss in first)), either(*(loss.teacher for loss in first))

    def after_step(self) -> None:
        """Tell the methods that learn from it what the step has cost."""
        if self.listening:
            losses, self.sample_losses = torch.cat(self.sample_losses), []
            for term in self.terms:
                term.method.after_step(losses)

    def after_epoch(self) -> None:
        for term in self.terms:
            term.method.after_epoch()

    def loss_weights(self, epoch: int) -> tuple[float, float, float]:
        """``r, a, b`` in this epoch. ``--distill_decay`` lets ``a`` fall to 0 over the second half, ``r = 1 − a``."""
        r, a, b = self.opt.gamma, self.opt.alpha, self.opt.beta
        half = self.opt.epochs / 2
        if self.opt.distill_decay and epoch > half:
            a = a * (self.opt.epochs - epoch) / half
            r = 1 - a
        last = self.opt.feat_stop_epoch or self.opt.epochs
        return r, a, b if self.adapters and feat_start_epoch(self.opt) <= epoch <= last else 0.0

    def idles(self, epoch: int) -> bool:
        """Whether the adapters are left alone in this epoch."""
        return bool(self.adapters) and self.loss_weights(epoch)[2] == 0

    def compare(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """How close the student is to the teachers' ensemble: ``ensemble_agreement`` in percent, ``ensemble_kl``."""
        measures = compared(self.student(images), ensemble_logits(self.teachers.logits(images)))
        return {f"ensemble_{name}": each for name, each in measures.items()}


def feat_start_epoch(opt: argparse.Namespace) -> int:
    """The first epoch with the feature loss: the released code leaves it out of the first, if there is another."""
    return opt.feat_start_epoch or min(2, opt.epochs)


def make_losses(
    kind: type[Distiller],
    settings: Mapping[str, object],
    student: nn.Module,
    teachers: Teachers,
    images: torch.Tensor,
    num_classes: int,
    labels: torch.Tensor | None = None,
) -> list[Distiller]:
    """One loss per teacher; ``images`` ``[B, 3, H, W]`` show the maps' sizes, ``labels`` are the training set's.

    Raises:
        UsageError: a network has no maps, or not the layer that the loss asks for.
    """
    make: Callable[..., Distiller] = kind
    mine = feature_shapes(student, images) if kind.student.features else []
    losses = []
    for teacher in teachers.networks:
        theirs = feature_shapes(teacher, images) if kind.teacher.features else []
        losses.append(make(Pair(mine, theirs, num_classes, labels), **settings))
    return [loss.to(images.device, memory_format=torch.channels_last) for loss in losses]  # type: ignore[call-overload]


def options() -> Options:
    """The command line."""
    parser = Options("Distil K frozen teachers into one student.")
    add = parser.section("student and teachers")
    add("--model_s", type=one_of("--model_s", model_dict), default="resnet8", help="any name of models.model_dict")
    add("--pretrained", action="store_true", help="start from torchvision's ImageNet weights (torchvision/… only)")
    add("--teacher_num", type=positive_int, default=None, help="the first so many teachers; all, unless given")
    add(
        "--teachers",
        nargs="+",
        metavar="PATH[:ARCH][@KEY]",
        default=None,
        help="checkpoints to use instead of setting.py's; KEY where one holds several",
    )
    add = parser.section("loss r·CE + a·L_kd + b·L_feat")
    add("-r", "--gamma", type=weight, default=1.0, help="weight of the cross-entropy with the labels")
    add("-a", "--alpha", type=weight, default=1.0, help="weight of the softened KL to the teachers' logits")
    add("-b", "--beta", type=weight, default=0.0, help="weight of the loss on feature maps of hint and inter")
    add("--kd_T", type=positive_float, default=4.0, help="temperature of the softened KL")
    add(
        "--kd_scale",
        type=one_of("--kd_scale", ("released", "unit")),
        default="released",
        metavar="released|unit",
        help="released: a method's weights sum to what its authors' code gives; unit: every method's sum to 1",
    )
    add(
        "--distill_decay",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let -a fall to 0 over the second half of the epochs, r = 1 − a",
    )
    add(
        "--feat_start_epoch",
        type=positive_int,
        default=None,
        help="first epoch with the feature loss; 2, unless given (1 when the run has one epoch)",
    )
    add("--feat_stop_epoch", type=natural, default=0, help="last epoch with the feature loss; 0 never stops it")
    add = parser.section("teacher cache")
    add(
        "--teacher_cache",
        type=Path,
        metavar="DIR",
        default=None,
        named=False,
        help="keep the teachers' logits of every augmented view there, as float16, for later epochs and runs; "
        "for losses on logits alone",
    )
    add("--teacher_cache_gb", type=positive_float, default=20.0, named=False, help="the folder's largest size")
    parser.add_methods("distillation loss", "distill", distill_dict, "kd", "loss between the student and one teacher")
    parser.add_methods("ensemble method", "ensemble_method", ensemble_dict, "AVERAGE_LOSS", "weights the teachers")
    add_recipe(parser, dataset_dict, nesterov_help="Nesterov momentum (the published student commands have it)")
    return parser


def run_name(parser: Options, opt: argparse.Namespace, files: Sequence[TeacherFile], dataset: str) -> list[str]:
    """What tells this run from others: the choices that every run makes, then whatever differs from its default."""
    always = {"model_s", "dataset", "distill", "ensemble_method", "gamma", "alpha", "beta", "trial"}
    losses = [f"{flag}={text_of(value)}" for flag, value in (("r", opt.gamma), ("a", opt.alpha), ("b", opt.beta))]
    changed = parser.changed(opt, leave_out=(*always, "teacher_num", "teachers"))
    if uses_cache(opt):
        changed.append("cached")  # where it lies makes no difference, but float16 does
    choices = [opt.model_s, dataset, opt.distill, opt.ensemble_method, fingerprint(files)]
    return [*choices, *losses, *changed, f"trial={opt.trial}"]


def uses_cache(opt: argparse.Namespace) -> bool:
    """Whether there is a cache and logits are all that is asked of the teachers."""
    return opt.teacher_cache is not None and (distill_dict[opt.distill].on_logits() or opt.beta == 0)


def attach_cache(opt: argparse.Namespace, teachers: Teachers, files: Sequence[TeacherFile], session: Session) -> None:
    """Let the teachers answer from ``--teacher_cache``.

    Raises:
        UsageError: the folder cannot be written, or the dataset's views cannot be counted.
    """
    if opt.mixup or opt.cutmix:
        option = "--mixup" if opt.mixup else "--cutmix"
        raise UsageError(f"--teacher_cache: {option} makes images that cannot be counted; leave one of them out")
    views = session.loaders.train.views
    if views is None:
        raise UsageError(
            f"--teacher_cache: --dataset {opt.dataset} is cropped in countless ways, distorted, or not in memory; "
            "leave the cache out, or choose --augment crop_flip or none, and --in_memory always"
        )
    described = [(file.arch, checksum) for file, checksum in zip(files, teachers.checksums, strict=True)]
    teachers.cache = TeacherCache(
        opt.teacher_cache, opt.teacher_cache_gb, views, described, session.precision, session.info.num_classes
    )


def report_teachers(session: Session, teachers: Teachers, files: Sequence[TeacherFile]) -> dict[str, object]:
    """Print the accuracy of every teacher and of their ensemble; returns it for ``result.json``."""

    def predict(images: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = teachers.logits(images)
        return {**{str(k): each for k, each in enumerate(logits)}, "ensemble": ensemble_logits(logits)}

    scores = session.test(predict)
    for k, file in enumerate(files):
        print(f"teacher {k}: {scores[str(k)]['accuracy']:.2f} %  {file.arch}  {file.path}")
    print(f"their ensemble: {scores['ensemble']['accuracy']:.2f} %", flush=True)
    described = [
        {"arch": file.arch, "path": str(file.path), **({"key": file.key} if file.key else {}), **scores[str(k)]}
        for k, file in enumerate(files)
    ]
    return {"teachers": described, "teacher_ensemble": scores["ensemble"]}


def require_sound_objective(
    opt: argparse.Namespace, kind: type[Distiller], method: EnsembleMethod, teacher_num: int
) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        UsageError: naming the option.
    """
    method.require_valid(teacher_num)
    if opt.kd_scale == "unit" and teacher_num > 1 and method.total(teacher_num) == 0:
        raise UsageError(
            f"--kd_scale: unit makes weights sum to 1, but those of {opt.ensemble_method} sum to 0; choose released"
        )
    if opt.beta > 0 and kind.on_logits():
        raise UsageError(f"-b: {opt.beta:g} weighs a loss on features, which --distill {opt.distill} does not have")
    for flag, given in (("start", opt.feat_start_epoch), ("stop", opt.feat_stop_epoch)):
        if given and (kind.on_logits() or opt.beta == 0):
            raise UsageError(
                f"--feat_{flag}_epoch: there is no loss on feature maps; choose a --distill that has one, and -b"
            )
    if (opt.feat_start_epoch or 0) > opt.epochs:
        raise UsageError(f"--feat_start_epoch: {opt.feat_start_epoch} is after the last of {opt.epochs} --epochs")
    if 0 < opt.feat_stop_epoch < feat_start_epoch(opt):
        raise UsageError(
            f"--feat_stop_epoch: {opt.feat_stop_epoch} is before the first epoch with the feature loss, "
            f"{feat_start_epoch(opt)} (--feat_start_epoch); choose a later one, or 0"
        )
    if opt.distill_decay and opt.alpha > 1:
        raise UsageError(f"--distill_decay: r = 1 − a would be negative; choose -a from 0 to 1, not {opt.alpha:g}")
    if opt.gamma == opt.alpha == opt.beta == 0:
        raise UsageError("-r, -a, -b: all are 0, so that there is no loss")


def distillation(
    parser: Options,
    opt: argparse.Namespace,
    session: Session,
    student: nn.Module,
    teachers: Teachers,
    methods: Sequence[EnsembleMethod],
) -> Distillation:
    """The objective that the options describe: the chosen loss; beside one on features, the default one on logits."""
    chosen = [opt.distill] if distill_dict[opt.distill].on_logits() else [parser.get_default("distill"), opt.distill]
    example, labels = session.example(), session.loaders.train.labels
    with autocast(session.device, session.precision):
        losses = [
            make_losses(
                distill_dict[name],
                parser.hyperparameters(opt, "distill", name),
                student,
                teachers,
                example,
                session.info.num_classes,
                labels,
            )
            for name in chosen
        ]
        task = Distillation(student, teachers, losses, methods[: len(losses)], opt)
        task.attach(example)
    return task


def main(arguments: Sequence[str]) -> None:
    """Train, or evaluate, as the command line says."""
    parser = options()
    opt = parser.parse(arguments)
    session = Session(opt, model_dict, get_loaders, info_of)
    if opt.evaluate:
        session.print_evaluation(session.build(opt.model_s), opt.model_s, opt.evaluate)
        return
    files = chosen_teachers(
        setting.TEACHERS.get(opt.dataset, []), opt.teachers, opt.teacher_num, opt.dataset, model_dict
    )
    source = "--teachers" if opt.teachers else "setting.py"
    opt.teachers = [str(file) for file in files]  # on record, whatever setting.py says later
    kind = distill_dict[opt.distill]
    methods = [ensemble_dict[opt.ensemble_method](**parser.hyperparameters(opt, "ensemble_method")) for _ in range(2)]
    require_sound_objective(opt, kind, methods[0], len(files))
    run = session.run_folder("students", run_name(parser, opt, files, session.dataset))
    if run is None:
        return
    require_files(files, opt.dataset, source)
    # The student first: its initial weights depend on the seed alone, whoever teaches it.
    student = session.build(opt.model_s, pretrained=opt.pretrained)
    teachers, notes = load_teachers(files, session.build, session.labels, session.example(), session.precision)
    task = distillation(parser, opt, session, student, teachers, methods)
    for note in notes:
        print(note)
    if not kind.on_logits() and opt.beta == 0:
        print(f"-b 0: the feature loss of --distill {opt.distill} is left out")
    if uses_cache(opt):
        attach_cache(opt, teachers, files, session)
    elif opt.teacher_cache:
        print(f"--teacher_cache: --distill {opt.distill} compares maps, which are not kept; going on without")
    # What the cache lacks comes in batches of all sizes, each of which would be compiled anew.
    session.compile(student, *(() if uses_cache(opt) else teachers.networks))
    task.notes = report_teachers(session, teachers, files)
    session.train(run, task, opt.model_s)


if __name__ == "__main__":
    run_script(main)
