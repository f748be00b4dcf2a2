#!/usr/bin/env python3
"""Distil K frozen teachers into one student: ``r·CE + a·L_kd + b·L_feat``.

python train_student.py --model_s vgg8 --teacher_num 3 --distill inter --ensemble_method CAMKD --nesterov \
    -r 1 -a 1 -b 50 --trial 0
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import setting
from dataset import dataset_dict, get_loaders, info_of
from distiller_zoo import Distiller, Pair, distill_dict
from ensemble import EnsembleMethod, TeacherLosses, combine, ensemble_dict, weigh
from helper import checkpoint, distributed
from helper.answering import Answering, Heads
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.evaluation import compared
from helper.gradients import OnePass, batch_mean, of_all_samples
from helper.kl import full_precision
from helper.label_loss import label_loss
from helper.machine import autocast, out_of_memory
from helper.meters import Scalars, accuracy
from helper.options import (
    Options,
    chosen_names,
    natural,
    one_of,
    positive_float,
    positive_int,
    text_of,
    weight,
    weight_list,
)
from helper.pretraining import First, pretrain
from helper.recipe import add_recipe
from helper.saying import say
from helper.script import run_script
from helper.seen import Observed, Reads, Seen, Shapes, either, feature_shapes, norms_of, observe
from helper.session import Session
from helper.task import Context, Task
from helper.teachers.asked import Teachers, ensemble_logits
from helper.teachers.cache import TeacherCache
from helper.teachers.classes import Known
from helper.teachers.files import TeacherFile, chosen_teachers, fingerprint, require_files
from helper.teachers.frozen import freeze
from helper.teachers.loading import load_teachers
from helper.weights import HEADS, located
from models import model_dict


class Term:
    """One distillation loss under K teachers, weighed: ``Σ_k mean_b(w_kb · loss_kb)``.

    Args:
        losses: one per teacher, all of one class.
        method: weighs the teachers.
        kd_scale: see :func:`ensemble.weigh`.
        name: what tells its curves and its method's state from other terms'.
        known: which classes the teachers know; None: all know all.
    """

    def __init__(
        self, losses: Sequence[Distiller], method: EnsembleMethod, kd_scale: str, name: str, known: Known | None = None
    ) -> None:
        self.losses, self.method, self.kd_scale, self.name = list(losses), method, kd_scale, name
        self.known = known
        self.level: Literal["logit", "feature"] = "logit" if losses[0].on_logits() else "feature"
        self.heads: Heads | None = None

    def __call__(
        self, student: Observed, teachers: list[Observed], teacher_logits: torch.Tensor, batch: Batch, when: When
    ) -> tuple[torch.Tensor, Callable[[], torch.Tensor], Scalars]:
        """The weighted loss, a function to its part of each sample ``[B]``, and what is worth a curve.

        Gradients that the method has asked for are not computed a second time.
        """
        told, once = self.describe(student, teachers, teacher_logits, batch, when)
        weights = weigh(self.method, told, self.kd_scale)
        means = weights if weights.ndim == 1 else weights.mean(1)
        prefix = f"{self.name}_" if self.level == "feature" else ""
        report = {f"{prefix}weight_{k}": mean.detach() for k, mean in enumerate(means)}
        if len(means) > 1:
            report |= {f"{prefix}{name}": value for name, value in self.method.diagnostics(told, weights).items()}
        if self.heads is not None:
            report["accuracy"] = self.accuracy(told, means.detach(), batch.target)
        loss = combine(weights, told.losses)
        if once is not None and once.known(weights):
            loss = once.attach(loss, weights)
        report = {f"loss_{self.name if self.level == 'feature' else 'kd'}": loss, **report}
        return loss, partial(of_each_sample, weights.detach(), told.losses.detach()), report

    @torch.no_grad()
    def accuracy(self, told: TeacherLosses, weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Of a loss that predicts: of the student's answers, in percent; weights ``[K]`` are followed."""
        assert self.heads is not None
        if self.losses[0].training:
            self.heads.follow(weights)
        return accuracy(self.heads.together(told.logits), target)

    def describe(
        self, student: Observed, teachers: list[Observed], teacher_logits: torch.Tensor, batch: Batch, when: When
    ) -> tuple[TeacherLosses, OnePass | None]:
        """What the weighting method is told, and where the gradients that it may ask for are kept.

        Below the logits the list of the teachers is emptied, so that maps take no memory while gradients are computed.
        """
        first, once, known = self.losses[0], None, self.known
        seen = student.seen(first.student)
        closed = type(first).slopes is not Distiller.slopes
        heads: Callable[[], torch.Tensor] = lambda: teacher_logits  # noqa: E731 replaced where the student feeds them
        vectors: list[tuple[torch.Tensor, torch.Tensor]] = []
        broadcasts = first.broadcasts and known is None
        if broadcasts and closed:
            theirs = Seen(logits=teacher_logits)
            values = full_precision(first(seen, theirs, batch, when))  # [K, B]
            gradients = partial(first.slopes, seen, theirs)
        elif broadcasts:
            once = OnePass(seen.tensors(), self.losses)
            each = Seen(logits=torch.stack([logits for (logits,) in once.aliases]))  # [K, B, C]
            values = full_precision(first(each, Seen(logits=teacher_logits), batch, when))  # [K, B]
            gradients = partial(self._found_gradients, values, once)
        else:
            once = OnePass(seen.tensors(), self.losses)
            aliases = [seen.with_tensors(each) for each in once.aliases]
            batches = [batch] * len(aliases)
            if known is not None:
                aliases = known.of_student(aliases)
                batches = known.of_batch(batch) if first.teacher.logits or first.teacher.cam else batches
            mine = [loss.prepare(alias) for loss, alias in zip(self.losses, aliases, strict=True)]
            size = len(batch.target)
            values = torch.stack(
                [
                    full_precision(loss.compare(prepared, teacher.seen(loss.teacher), each, when)).expand(size)
                    for loss, prepared, teacher, each in zip(self.losses, mine, teachers, batches, strict=True)
                ]
            )  # [K, B]
            if known is not None:
                values = known.shared(values, batch.target)
            gradients = partial(self._found_gradients, values, once)
            read = [loss.as_teacher_reads(prepared) for loss, prepared in zip(self.losses, mine, strict=True)]
            maps = [each for each in read if each is not None]
            if maps:
                networks, said = zip(*((teacher.network, teacher.logits) for teacher in teachers), strict=True)
                heads = partial(classified, networks, maps, said, known)
            if self.method.reads_vectors:
                pairs = zip(self.losses, mine, teachers, strict=True)
                found = [loss.as_vectors(prepared, teacher.seen(loss.teacher)) for loss, prepared, teacher in pairs]
                vectors = [pair for pair in found if pair is not None]
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
            knows=None if known is None else known.knows,
            own_logits=teacher_logits,
            vectors=vectors if len(vectors) == len(self.losses) else (),
        )
        return told, once

    def _found_gradients(self, values: torch.Tensor, once: OnePass) -> torch.Tensor:
        # A pass back to the aliases gives all K gradients, and none reaches the student.
        slopes = once.slopes(values.mean(1), keep=not self.method.constant)  # K times [B, …] of each tensor
        flat = of_all_samples if self.losses[0].sums_to_zero else batch_mean
        return torch.stack([torch.cat([flat(slope) for slope in each]) for each in slopes])


def of_each_sample(weights: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Weights ``[K]`` or ``[K, B]`` and losses ``[K, B]`` → ``Σ_k w_kb · loss_kb``, ``[B]``."""
    return ((weights if weights.ndim == 2 else weights[:, None]) * losses).sum(0)


def classified(
    networks: Sequence[Any], maps: Sequence[torch.Tensor], logits: Sequence[torch.Tensor], known: Known | None
) -> torch.Tensor:
    """What the teachers' own classifiers make of maps ``[B, C_k, H_k, W_k]``: ``[K, B, C]``; gradients flow to them.

    A classifier that reads no maps has said ``logits`` of the images, ``[B, C_k]`` as theirs.
    """
    every = zip(networks, maps, logits, strict=True)
    each = [network.classify(own) if network.reads_maps else said for network, own, said in every]
    return known.spread(each) if known else torch.stack(each)


class Distillation(Task):
    """The objective of one student under K teachers.

    Args:
        student: the network that is trained.
        teachers: K frozen networks.
        losses: by name, K of a loss on logits, weighted by ``-a``; then K of each of any number of others, each
            weighted by its part of ``-b``.
        methods: weigh the teachers, one for each of these names.
        opt: ``gamma``, ``alpha``, ``beta``, ``kd_scale``, ``distill_decay``, ``feat_start_epoch``, ``feat_stop_epoch``
            and ``epochs`` as :func:`options` describes them.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Teachers,
        losses: Mapping[str, Sequence[Distiller]],
        methods: Sequence[EnsembleMethod],
        opt: argparse.Namespace,
    ) -> None:
        self.student, self.teachers, self.opt = student, teachers, opt
        names = ["logit", *("feature" if len(losses) == 2 else f"feature_{name}" for name in list(losses)[1:])]
        self.terms = [
            Term(each, method, opt.kd_scale, name, teachers.known)
            for name, each, method in zip(names, losses.values(), methods, strict=True)
        ]
        self.betas = betas(opt) if len(losses) > 1 else []
        self.listening = any(type(method).after_step is not EnsembleMethod.after_step for method in methods)
        self.sample_losses: list[torch.Tensor] = []
        logit_term, *rest = self.terms
        self.adapters = [loss for term in rest for loss in term.losses]
        weightings = {term.name: term.method for term in self.terms}
        self.trained = nn.ModuleDict(
            {
                "network": student,
                "adapters": nn.ModuleList(self.adapters),
                "logit_losses": nn.ModuleList(logit_term.losses),
                "weightings": nn.ModuleDict({k: each for k, each in weightings.items() if isinstance(each, nn.Module)}),
            }
        )
        self.answering: nn.Module = student
        for term in rest:
            if term.losses[0].predicts:
                self.answer_through(term)

    def answer_through(self, term: Term) -> None:
        """Let the student's answers be what the teachers' classifiers make of its maps.

        Raises:
            UsageError: these know other classes, or maps of other images.
        """
        if not self.teachers.usual:
            raise UsageError(
                "--distill: a loss whose student answers through the teachers' classifiers needs teachers that know "
                "all classes, in their order, and see images of the dataset's size; choose another loss or teachers"
            )
        term.heads = self.trained["heads"] = Heads(self.teachers.networks)
        self.answering = Answering(self.student, term.losses, term.heads)
        self.keep_all, self.about = True, {"answers": HEADS}

    def attach(self, images: torch.Tensor) -> None:
        """Let the weighting methods build what they own; ``images`` ``[B, 3, H, W]`` show the shapes.

        Raises:
            UsageError: the student answers through classifiers that cannot read its maps.
        """
        if self.answering is not self.student:
            self.try_answering(images)
        if len(self.teachers) == 1 or all(type(term.method).attach is EnsembleMethod.attach for term in self.terms):
            return  # a single teacher is not weighed
        none = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        batch = Batch(images, none, places=none)
        of_student, of_teachers = self.reads(self.terms)
        self.trained.eval()
        student = observe(self.student, images, of_student)
        teachers, logits = self.teachers.observe(images, of_teachers)
        for term in self.terms:
            described = term.describe(student, list(teachers), logits, batch, When(1, self.opt.epochs))
            term.method.attach(described[0])
        self.trained.train().to(images.device)

    @torch.no_grad()
    def try_answering(self, images: torch.Tensor) -> None:
        """UsageError where a teacher's classifier does not take what the student makes for it of ``images``."""
        self.trained.eval()
        try:
            self.answering(images[:2])
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            (why, *_) = str(error).splitlines()
            raise UsageError(
                f"--distill: {self.opt.distill} lets the student answer through the teachers' classifiers, and one of "
                f"them cannot read its maps at their size ({why}); choose another loss, teacher or student"
            ) from None
        self.trained.train()

    def before(self, batches: Callable[[int], Iterable[Batch]], inside: Context) -> None:
        """Let losses learn what they need from the teachers alone."""
        _, *shares = self.loss_weights(feat_start_epoch(self.opt))
        terms = [term for term, share in zip(self.terms, shares, strict=True) if self.counts(term, share)]
        firsts = [First(loss, k, self.opt.epochs) for term in terms for k, loss in enumerate(term.losses)]
        _, of_teachers = self.reads(terms)
        pretrain(firsts, lambda batch: self.teachers.observe(batch.images, of_teachers)[0], batches, inside)

    def step(self, batch: Batch, when: When) -> Scalars:
        """A batch → ``loss`` and its parts, each a batch mean."""
        r, *shares = self.loss_weights(when.epoch)
        terms = [(term, share) for term, share in zip(self.terms, shares, strict=True) if self.counts(term, share)]
        student, teachers, teacher_logits = self.observed([term for term, _ in terms], batch)

        logits = full_precision(student.logits)
        cross_entropy = label_loss(logits, batch, smoothing=self.opt.label_smoothing)
        loss = r * cross_entropy
        scalars = {"loss_ce": cross_entropy, "accuracy": accuracy(logits, batch.target)}
        parts: list[tuple[float, Callable[[], torch.Tensor]]] = []
        for term, share in terms:
            last = term is terms[-1][0]  # those before it leave the maps to the others
            value, each, report = term(student, teachers if last else list(teachers), teacher_logits, batch, when)
            share *= term.losses[0].factor(when)
            loss = loss + share * value
            parts.append((share, each))
            scalars |= report
        if self.listening and self.trained.training:
            own = r * label_loss(logits.detach(), batch, "none", self.opt.label_smoothing)
            self.sample_losses.append(sum((share * each() for share, each in parts), own))
        return {"loss": loss, **scalars}

    def observed(self, terms: Sequence[Term], batch: Batch) -> tuple[Observed, list[Observed], torch.Tensor]:
        """What the terms read of the student and of each teacher, and all teachers' logits ``[K, B, C]``."""
        of_student, of_teachers = self.reads(terms)
        teachers, logits = self.teachers.observe(batch.images, of_teachers, batch.views)
        return observe(self.student, batch.images, of_student), teachers, logits

    @staticmethod
    def reads(terms: Sequence[Term]) -> tuple[Reads, list[Reads]]:
        """What the student and each teacher are asked for."""
        pairs = zip(*(term.losses for term in terms), strict=True)  # of each teacher
        return either(*(term.losses[0].student for term in terms)), [
            either(*(loss.teacher for loss in losses)) for losses in pairs
        ]

    def after_step(self) -> None:
        """Tell the methods that learn from it what the step has cost."""
        if self.listening:
            losses, self.sample_losses = torch.cat(self.sample_losses), []
            for term in self.terms:
                term.method.after_step(losses)

    def after_epoch(self) -> None:
        for term in self.terms:
            term.method.after_epoch()

    def loss_weights(self, epoch: int) -> tuple[float, ...]:
        """:func:`loss_weights` of each term, behind that of the cross-entropy."""
        return loss_weights(self.opt, self.betas, epoch, self.begun_for)

    def fullest_epoch(self, epochs: int) -> int:
        return feat_start_epoch(self.opt)

    @staticmethod
    def counts(term: Term, weight: float) -> bool:
        """Whether a term is computed: without weight that of the logits is, for its curve."""
        return term.level == "logit" or weight > 0

    def idles(self, epoch: int) -> bool:
        """Whether the adapters of a loss are left alone in this epoch."""
        return 0.0 in self.loss_weights(epoch)[2:]

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"network": self.answering(images)}

    def compare(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """How close the student is to the teachers' ensemble: ``ensemble_agreement`` in percent, ``ensemble_kl``."""
        measures = compared(self.answering(images), ensemble_logits(self.teachers.logits(images)))
        return {f"ensemble_{name}": each for name, each in measures.items()}


def betas(opt: argparse.Namespace) -> list[float]:
    """``-b``: a weight for each loss that does not read logits alone."""
    return opt.beta if isinstance(opt.beta, list) else [opt.beta]


def loss_weights(
    opt: argparse.Namespace, betas: Sequence[float], epoch: int, begun_for: int | None = None
) -> tuple[float, ...]:
    """``r, a, b, …`` in an epoch. ``--distill_decay``: ``a`` falls to 0 over the second half, ``r = 1 − a``.

    The second half of the ``begun_for`` epochs, where the run has been extended: it stays at 0 afterwards.
    """
    r, a, epochs = opt.gamma, opt.alpha, begun_for or opt.epochs
    if opt.distill_decay and epoch > epochs / 2:
        a = a * max(epochs - epoch, 0) / (epochs / 2)
        r = 1 - a
    counts = feat_start_epoch(opt) <= epoch <= (opt.feat_stop_epoch or opt.epochs)
    return r, a, *(b if counts else 0.0 for b in betas)


def feat_start_epoch(opt: argparse.Namespace) -> int:
    """The first epoch with the feature loss: the released code leaves it out of the first, if there is another.

    Not where there is no other loss.
    """
    return opt.feat_start_epoch or (1 if opt.gamma == opt.alpha == 0 else min(2, opt.epochs))


def make_losses(
    kind: type[Distiller],
    settings: Mapping[str, object],
    student: nn.Module,
    teachers: Teachers,
    images: torch.Tensor,
    num_classes: int,
    labels: torch.Tensor | None = None,
    batch_size: int = 0,
) -> list[Distiller]:
    """One loss per teacher; ``images`` ``[B, 3, H, W]`` show the maps' sizes, ``labels`` are the training set's.

    ``batch_size``: see :class:`Pair`.

    Raises:
        UsageError: a network has no maps, or not the layer that the loss asks for.
    """
    make: Callable[..., Distiller] = kind
    name = next((name for name, each in distill_dict.items() if each is kind), kind.__name__)
    mine = shapes_read(name, student, kind.student, images)
    of_teacher = kind.teacher._replace(head=True) if kind.predicts else kind.teacher
    losses = []
    for teacher, seen in zip(teachers.networks, teachers.shown(images), strict=True):
        theirs = shapes_read(name, teacher, of_teacher, seen)
        norms = norms_of(teacher) if kind.teacher.before_relu else ()
        loss = make(Pair(mine, theirs, num_classes, labels, batch_size, norms), **settings)
        for reads, shapes in ((loss.student, mine), (loss.teacher, theirs)):
            if reads.staged:
                shapes.require()
        losses.append(loss)
    return [loss.to(images.device, memory_format=torch.channels_last) for loss in losses]  # type: ignore[call-overload]


def shapes_read(loss: str, network: nn.Module, reads: Reads, images: torch.Tensor) -> Shapes:
    """The shapes of a network's features; none where logits alone are read.

    Raises:
        UsageError: the network does not offer what ``loss`` reads.
    """
    if not reads.features:
        return Shapes()
    choose = f"choose another network or one of {', '.join(undemanding())}"
    if reads.before_relu and not network.has_preact:
        raise UsageError(
            f"--distill: {loss} reads maps before their last ReLU, which {network.label} does not offer; {choose}"
        )
    try:
        return feature_shapes(network, images, reads)
    except UsageError as error:
        why, *_ = str(error).removeprefix("--distill: ").split("; choose ")
        raise UsageError(f"--distill: {loss} asks a classifier: {why}; {choose}") from None


def undemanding() -> list[str]:
    """The losses that any network's maps serve: they ask no classifier, not all stages, and nothing before a ReLU."""
    losses = [name for name, kind in distill_dict.items() if not kind.predicts]
    reads = {name: either(distill_dict[name].student, distill_dict[name].teacher) for name in losses}
    asked = {name: (each.head, each.cam, each.before_relu, each.maps == "all") for name, each in reads.items()}
    return [name for name in losses if not any(asked[name])]


def options() -> Options:
    """The command line."""
    parser = Options("Distil K frozen teachers into one student.")
    add = parser.section("student and teachers")
    add("--model_s", type=one_of("--model_s", model_dict), default="resnet8", help="any name of models.model_dict")
    add("--pretrained", action="store_true", help="start from the published weights, of torchvision/…, timm/… and hf/…")
    add("--teacher_num", type=positive_int, default=None, help="the first so many teachers; all, unless given")
    add(
        "--teachers",
        nargs="+",
        metavar="PATH[:ARCH][@KEY]",
        default=None,
        help="checkpoints to use instead of setting.py's; KEY where one holds several; an ARCH alone, such as timm/…, "
        "stands for its published weights; mean, std and size of the images are each teacher's own, where its "
        "checkpoint says them",
    )
    add = parser.section("loss r·CE + a·L_kd + b·L_feat")
    add("-r", "--gamma", type=weight, default=1.0, help="weight of the cross-entropy with the labels")
    add("-a", "--alpha", type=weight, default=1.0, help="weight of the softened KL to the teachers' logits")
    add(
        "-b",
        "--beta",
        type=weight_list,
        default=0.0,
        metavar="B[,B…]",
        help="weight of a loss on maps or vectors; one for each of several: --distill at,sp -b 1000,3000",
    )
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
        help="first epoch with the feature loss; 2, unless given (1 when the run has one epoch, or with -r 0 -a 0)",
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
    parser.add_methods(
        "distillation loss",
        "distill",
        distill_dict,
        "kd",
        "loss between the student and one teacher; several, separated by commas, at most one of them on logits",
        several=True,
    )
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
    choices = [model_dict.run_name(opt.model_s), dataset, opt.distill, opt.ensemble_method, fingerprint(files)]
    return [*choices, *losses, *changed, f"trial={opt.trial}"]


def chosen_losses(opt: argparse.Namespace, default: str) -> list[str]:
    """The losses that ``--distill`` names, first the one on logits: ``default``, unless there is one among them.

    Raises:
        UsageError: there are several.
    """
    names = chosen_names(opt, "distill")
    on_logits = [name for name in names if distill_dict[name].on_logits()]
    if len(on_logits) > 1:
        raise UsageError(f"--distill: {' and '.join(on_logits)} both compare logits, under one -a; choose one of them")
    return [*(on_logits or [default]), *(name for name in names if name not in on_logits)]


def on_features(opt: argparse.Namespace) -> list[str]:
    """Those of them that stand under ``-b``."""
    return [name for name in chosen_names(opt, "distill") if not distill_dict[name].on_logits()]


def uses_cache(opt: argparse.Namespace) -> bool:
    """Whether there is a cache and logits are all that is asked of the teachers."""
    return opt.teacher_cache is not None and (not on_features(opt) or not any(betas(opt)))


def attach_cache(opt: argparse.Namespace, teachers: Teachers, session: Session) -> None:
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
    teachers.cache = TeacherCache(
        opt.teacher_cache, opt.teacher_cache_gb, views, teachers.identities, session.precision, session.info.num_classes
    )


def report_teachers(session: Session, teachers: Teachers, files: Sequence[TeacherFile]) -> dict[str, object]:
    """Print the accuracy of every teacher, over the classes that it knows, and of their ensemble.

    In float32, as it is published: bfloat16 turns a few images' answers.

    Returns:
        them for ``result.json``.
    """
    known = {} if teachers.known is None else dict(enumerate(teachers.known.knows))

    def predict(images: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = teachers.logits(images)
        return {**{str(k): each for k, each in enumerate(logits)}, "ensemble": ensemble_logits(logits)}

    scores = session.test(predict, {str(k): knows for k, knows in known.items()}, "fp32")
    for k, file in enumerate(files):
        over = f" over the {int(known[k].sum())} classes that it knows" if k in known else ""
        say(f"teacher {k}: {scores[str(k)]['accuracy']:.2f} %{over}  {file.arch}  {file.path or 'its own weights'}")
    say(f"their ensemble: {scores['ensemble']['accuracy']:.2f} %")
    checksums = [checksum for _, checksum, _ in teachers.identities]
    described = [
        {**file.about(), "weights": checksum[:12], **scores[str(k)]}
        for k, (file, checksum) in enumerate(zip(files, checksums, strict=True))
    ]
    return {"teachers": described, "teacher_ensemble": scores["ensemble"]}


def require_sound_objective(opt: argparse.Namespace, method: EnsembleMethod, teacher_num: int) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        UsageError: naming the option.
    """
    method.require_valid(teacher_num)
    if opt.kd_scale == "unit" and teacher_num > 1 and method.total(teacher_num) == 0:
        raise UsageError(
            f"--kd_scale: unit makes weights sum to 1, but those of {opt.ensemble_method} sum to 0; choose released"
        )
    weighted, given = on_features(opt), betas(opt)
    if not weighted and (any(given) or len(given) > 1):
        raise UsageError(
            f"-b: {text_of(opt.beta)} weighs a loss on features, which --distill {opt.distill} does not have"
        )
    if weighted and len(given) != len(weighted):
        raise UsageError(
            f"-b: {text_of(opt.beta)} is {len(given)} of {len(weighted)} weights; give one for each of "
            f"{', '.join(weighted)}, separated by commas"
        )
    for name, b in zip(weighted, given, strict=True) if weighted else ():
        if b == 0 and distill_dict[name].predicts:
            raise UsageError(f"-b: 0, but --distill {name} gives the student its answers; choose a weight above 0")
    for flag, epoch in (("start", opt.feat_start_epoch), ("stop", opt.feat_stop_epoch)):
        if epoch and not any(given):
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
    if opt.gamma == opt.alpha == 0 and not any(given):
        raise UsageError("-r, -a, -b: all are 0, so that there is no loss")
    empty = [epoch for epoch in range(1, opt.epochs + 1) if not any(loss_weights(opt, given, epoch))]
    if empty:
        raise UsageError(
            f"-r, -a: both are 0, so that epoch {empty[0]} would have no loss (--feat_start_epoch, --feat_stop_epoch); "
            "choose -r or -a above 0"
        )


def weightings(parser: Options, opt: argparse.Namespace) -> list[EnsembleMethod]:
    """An instance of the chosen ensemble method for each loss."""
    settings = parser.hyperparameters(opt, "ensemble_method")
    return [ensemble_dict[opt.ensemble_method](**settings) for _ in chosen_losses(opt, parser.get_default("distill"))]


def distillation(
    parser: Options,
    opt: argparse.Namespace,
    session: Session,
    student: nn.Module,
    teachers: Teachers,
    methods: Sequence[EnsembleMethod],
) -> Distillation:
    """The objective that the options describe: the chosen losses; beside those on features, one on logits."""
    require_several_classes(opt, teachers)
    example, labels = session.example(), session.loaders.train.labels
    at_once = distributed.per_process("--batch_size", opt.batch_size, opt.accumulate)
    with autocast(session.device, session.precision):
        losses = {
            name: make_losses(
                distill_dict[name],
                parser.hyperparameters(opt, "distill", name),
                student,
                teachers,
                example,
                session.info.num_classes,
                labels,
                at_once,
            )
            for name in chosen_losses(opt, parser.get_default("distill"))
        }
        task = Distillation(student, teachers, losses, methods[: len(losses)], opt)
        task.attach(session.example(at_once))
    return task


def require_several_classes(opt: argparse.Namespace, teachers: Teachers) -> None:
    """UsageError where logits are compared with those of a teacher that knows a single class: they are all alike."""
    numbers = [] if teachers.known is None else teachers.known.knows.sum(1).tolist()
    if 1 in numbers and (opt.alpha > 0 or len(on_features(opt)) < len(chosen_names(opt, "distill"))):
        raise UsageError(
            f"--teachers: teacher {numbers.index(1)} knows a single class, of which logits say nothing; leave it "
            "out, or choose a loss on maps, and -a 0"
        )


def evaluate(parser: Options, opt: argparse.Namespace, session: Session) -> None:
    """Print a checkpoint's accuracy; of a student that answers through heads, with the options of its run."""
    if not any(distill_dict[name].predicts for name in on_features(opt)):
        session.print_evaluation(session.build(opt.model_s), opt.model_s, opt.evaluate)
        return
    path, _ = located(opt.evaluate)
    try:
        state = checkpoint.load(path)
    except (OSError, checkpoint.Damaged) as error:
        raise UsageError(f"--evaluate: {str(path)!r} cannot be loaded: {error}") from None
    network = answering(parser, opt, state, session.build, session.example(), "--evaluate")
    session.print_scores(network, opt.model_s, path, state)


def archs_of_teachers(opt: argparse.Namespace) -> list[str]:
    """Of the teachers that a run has put on record, the architectures."""
    return (
        [file.arch for file in chosen_teachers([], opt.teachers, None, opt.dataset, model_dict)] if opt.teachers else []
    )


def answering(
    parser: Options,
    opt: argparse.Namespace,
    state: Mapping[str, Any],
    build: Callable[[str], Any],
    images: torch.Tensor,
    option: str,
) -> Answering:
    """The student of a checkpoint that answers through its teachers' heads, whose files are not needed for it.

    Args:
        parser, opt: the command line of its run.
        state: the checkpoint.
        build: architecture → network.
        images: ``[B, 3, H, W]`` of its size.
        option: what named the file, for the messages.

    Raises:
        UsageError: it is not of such a run.
    """
    names = on_features(opt)
    place = next((place for place, name in enumerate(names) if distill_dict[name].predicts), None)
    archs = archs_of_teachers(opt)
    refusal = UsageError(f"{option}: the checkpoint is not of such a run; give its parameters.json as --config")
    if state.get("answers") != HEADS or state["arch"] != opt.model_s or not archs or place is None:
        raise refusal
    student = build(opt.model_s)
    teachers = Teachers([freeze(build(arch), images, "fp32") for arch in archs])
    settings = parser.hyperparameters(opt, "distill", names[place])
    losses = make_losses(distill_dict[names[place]], settings, student, teachers, images, state["num_classes"])
    network = Answering(student, losses, Heads(teachers.networks))
    try:
        network.load(state, place * len(archs))
    except RuntimeError:
        raise refusal from None
    return network.eval().to(memory_format=torch.contiguous_format)  # as what is exported has to lie


def main(arguments: Sequence[str]) -> None:
    """Train, or evaluate, as the command line says."""
    parser = options()
    opt = parser.parse(arguments)
    session = Session(opt, model_dict, get_loaders, info_of)
    if opt.evaluate:
        evaluate(parser, opt, session)
        return
    files = chosen_teachers(
        setting.TEACHERS.get(opt.dataset, []), opt.teachers, opt.teacher_num, opt.dataset, model_dict
    )
    source = "--teachers" if opt.teachers else "setting.py"
    opt.teachers = [str(file) for file in files]  # on record, whatever setting.py says later
    settings = parser.hyperparameters(opt, "ensemble_method")
    losses = chosen_losses(opt, parser.get_default("distill"))
    methods = weightings(parser, opt)
    require_sound_objective(opt, methods[0], len(files))
    run = session.run_folder("students", run_name(parser, opt, files, session.dataset))
    if run is None:
        return
    require_files(files, opt.dataset, source)
    # The student first: its initial weights depend on the seed alone, whoever teaches it.
    student = session.build(opt.model_s, pretrained=opt.pretrained)
    teachers, notes = load_teachers(files, session.construct, session.around, "fp32")
    for note in notes:
        say(note)
    scores = report_teachers(session, teachers, files)
    teachers.lower(session.precision)
    task = distillation(parser, opt, session, student, teachers, methods)
    task.notes = scores
    for name, b in zip(on_features(opt), betas(opt), strict=False):
        if b == 0:
            say(f"-b 0: the feature loss of --distill {name} is left out")
    read = [settings, *(parser.hyperparameters(opt, "distill", name) for name in losses)]
    if opt.kd_T != parser.get_default("kd_T") and not any("kd_T" in each for each in read):
        say(f"--kd_T {opt.kd_T:g}: nothing in --distill {opt.distill} reads it")
    if uses_cache(opt):
        attach_cache(opt, teachers, session)
    elif opt.teacher_cache:
        say(f"--teacher_cache: --distill {opt.distill} compares maps, which are not kept; going on without")
    # What the cache lacks comes in batches of all sizes, each of which would be compiled anew.
    session.compile(student, *(() if uses_cache(opt) else teachers.networks))
    session.train(run, task, opt.model_s)


if __name__ == "__main__":
    run_script(main)
