#!/usr/bin/env python3
"""Distil K frozen teachers into one student: ``r·CE + a·L_kd + b·L_feat``.

python train_student.py --model_s vgg8 --teacher_num 3 --distill inter --ensemble_method CAMKD --nesterov \
    -r 1 -a 1 -b 50 --trial 0
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import setting
from dataset import dataset_dict, get_loaders, info_of
from distiller_zoo import Distiller, DistillKL, FeatureDistiller, distill_dict
from ensemble import EnsembleMethod, TeacherLosses, combine, ensemble_dict, weigh
from helper.batch import Batch
from helper.branches import Branches
from helper.errors import UsageError
from helper.evaluation import compared
from helper.kl import full_precision
from helper.meters import Scalars, accuracy
from helper.options import Options, one_of, positive_float, positive_int, text_of, weight
from helper.precision import autocast
from helper.recipe import add_recipe
from helper.script import run_script
from helper.session import Session
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


class Distillation:
    """The objective of one student under K teachers.

    Args:
        student: the network that is trained.
        teachers: K frozen networks.
        adapters: one per teacher where the distillation loss compares feature maps, else none.
        method: weighs the teachers.
        opt: ``gamma``, ``alpha``, ``beta``, ``kd_T``, ``kd_scale``, ``distill_decay``, ``feat_start_epoch`` and
            ``epochs`` as :func:`options` describes them.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Teachers,
        adapters: Sequence[FeatureDistiller],
        method: EnsembleMethod,
        opt: argparse.Namespace,
    ) -> None:
        self.teachers, self.method, self.opt = teachers, method, opt
        self.kl = DistillKL(opt.kd_T)
        self.trained = nn.ModuleDict({"network": student, "adapters": nn.ModuleList(adapters)})
        self.student, self.adapters = student, adapters

    def step(self, batch: Batch, epoch: int) -> Scalars:
        """A batch → ``loss`` and its parts, each a batch mean."""
        images, target, views = batch
        r, a, b = self.loss_weights(epoch)
        if b > 0:
            layer = self.adapters[0].layer
            teacher_maps, teacher_logits = self.teachers.maps(images, layer)
            features, logits = self.student(images, is_feat=True)
        else:
            teacher_logits, logits = self.teachers.logits(images, views), self.student(images)

        cross_entropy = F.cross_entropy(full_precision(logits), target)
        kd, report = self.logit_loss(logits, teacher_logits, target)
        loss = r * cross_entropy + a * kd
        scalars = {"loss_ce": cross_entropy, "loss_kd": kd, **report, "accuracy": accuracy(logits, target)}
        if b > 0:
            feature, report = self.feature_loss(features[layer], teacher_maps, teacher_logits, target)
            loss = loss + b * feature
            scalars |= {"loss_feature": feature, **report}
        return {"loss": loss, **scalars}

    def loss_weights(self, epoch: int) -> tuple[float, float, float]:
        """``r, a, b`` in this epoch. ``--distill_decay`` lets ``a`` fall to 0 over the second half, ``r = 1 − a``."""
        r, a, b = self.opt.gamma, self.opt.alpha, self.opt.beta
        half = self.opt.epochs / 2
        if self.opt.distill_decay and epoch > half:
            a = a * (self.opt.epochs - epoch) / half
            r = 1 - a
        return r, a, b if self.adapters and epoch >= feat_start_epoch(self.opt) else 0.0

    def idles(self, epoch: int) -> bool:
        """Whether the adapters are left alone in this epoch."""
        return bool(self.adapters) and self.loss_weights(epoch)[2] == 0

    def logit_loss(
        self, logits: torch.Tensor, teacher_logits: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, Scalars]:
        """Student ``[B, C]`` and teachers ``[K, B, C]`` → the weighted KL, and each teacher's mean weight."""
        T = self.opt.kd_T

        def gradients() -> torch.Tensor:
            # ∂(mean_b KL_k)/∂s has a closed form, so that no backward pass is needed: T·(p_s − p_k)/B; its batch mean.
            student, teachers = (each.detach().double() / T for each in (logits, teacher_logits))
            gap = student.softmax(-1) - teachers.softmax(-1)  # [K, B, C]
            return gap.mean(1) * (T / len(target))

        losses = TeacherLosses(
            losses=self.kl(logits, teacher_logits),
            target=target,
            level="logit",
            logits_of=lambda: teacher_logits,
            gradients_of=gradients,
        )
        return self.weighted(losses, "")

    def feature_loss(
        self,
        student_map: torch.Tensor,
        teacher_maps: list[torch.Tensor],
        teacher_logits: torch.Tensor,
        target: torch.Tensor,
    ) -> tuple[torch.Tensor, Scalars]:
        """Student map ``[B, C, H, W]`` and one map of each teacher → the weighted distance, and mean weights.

        The list of the teachers' maps is emptied, so that they take no memory while gradients are computed.
        """
        # A pass back to the aliases gives all K gradients, and none reaches the student.
        branches = Branches(student_map, self.adapters)
        adapted = [adapter.adapt(alias) for adapter, alias in zip(self.adapters, branches.aliases, strict=True)]
        each = [
            full_precision(adapter.distance(mine, theirs))
            for adapter, mine, theirs in zip(self.adapters, adapted, teacher_maps, strict=True)
        ]
        distances = torch.stack(each)  # [K, B]
        teacher_maps.clear()

        def gradients() -> torch.Tensor:
            slopes = branches.slopes(distances.mean(1), keep=not self.method.constant)  # K times [B, C, H, W]
            return torch.stack([batch_mean(slope).flatten() for slope in slopes])

        def head_logits() -> torch.Tensor:
            if not self.adapters[0].feeds_head:
                return teacher_logits
            return torch.stack([self.teachers.classify(k, maps) for k, maps in enumerate(adapted)])

        losses = TeacherLosses(
            losses=distances, target=target, level="feature", logits_of=head_logits, gradients_of=gradients
        )
        return self.weighted(losses, "feature_", branches)

    def weighted(
        self, losses: TeacherLosses, prefix: str, branches: Branches | None = None
    ) -> tuple[torch.Tensor, Scalars]:
        """Weigh and combine; report the weights that multiply the losses and what the method finds worth a curve.

        Gradients that the method has asked for are not computed a second time.
        """
        weights = weigh(self.method, losses, self.opt.kd_scale)
        means = weights if weights.ndim == 1 else weights.mean(1)
        report = {f"{prefix}weight_{k}": mean.detach() for k, mean in enumerate(means)}
        if len(means) > 1:
            report |= {f"{prefix}{name}": value for name, value in self.method.diagnostics(losses, weights).items()}
        loss = combine(weights, losses.losses)
        if branches is not None and branches.known(weights):
            loss = branches.attach(loss, weights)
        return loss, report

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"network": self.student(images)}

    def compare(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """How close the student is to the teachers' ensemble: ``ensemble_agreement`` in percent, ``ensemble_kl``."""
        measures = compared(self.student(images), ensemble_logits(self.teachers.logits(images)))
        return {f"ensemble_{name}": each for name, each in measures.items()}


def batch_mean(maps: torch.Tensor) -> torch.Tensor:
    """``[B, C, H, W]`` → their mean ``[C, H, W]``, in float32 or better."""
    # Summed in the order in which they lie in memory, and not in float64: many times faster.
    rows = maps.contiguous(memory_format=torch.channels_last).movedim(1, -1)
    return rows.mean(0, dtype=torch.promote_types(maps.dtype, torch.float32)).movedim(-1, 0)


def feat_start_epoch(opt: argparse.Namespace) -> int:
    """The first epoch with the feature loss: the released code leaves it out of the first, if there is another."""
    return opt.feat_start_epoch or min(2, opt.epochs)


def make_adapters(
    kind: type[Distiller], settings: dict[str, object], student: nn.Module, teachers: Teachers, images: torch.Tensor
) -> list[FeatureDistiller]:
    """One adapter per teacher, none for a loss on logits alone; ``images`` ``[B, 3, H, W]`` show the maps' sizes.

    Raises:
        UsageError: a network has no maps, or not the layer that the loss asks for.
    """
    if not issubclass(kind, FeatureDistiller):
        return []
    make: Callable[..., FeatureDistiller] = kind
    student_shapes = feature_shapes(student, images)
    adapters = [make(student_shapes, feature_shapes(teacher, images), **settings) for teacher in teachers.networks]
    return [adapter.to(images.device, memory_format=torch.channels_last) for adapter in adapters]  # type: ignore[call-overload]


@torch.no_grad()
def feature_shapes(network: nn.Module, images: torch.Tensor) -> list[tuple[int, ...]]:
    """``(C, H, W)`` of each stage output and ``(D,)`` of the pooled vector."""
    training = network.training
    features, _ = network.eval()(images, is_feat=True)
    network.train(training)
    return [tuple(feature.shape[1:]) for feature in features]


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
    return opt.teacher_cache is not None and not (distill_dict[opt.distill].feature_level and opt.beta > 0)


def attach_cache(opt: argparse.Namespace, teachers: Teachers, files: Sequence[TeacherFile], session: Session) -> None:
    """Let the teachers answer from ``--teacher_cache``.

    Raises:
        UsageError: the folder cannot be written, or the dataset's views cannot be counted.
    """
    views = session.loaders.train.views
    if views is None:
        raise UsageError(f"--teacher_cache: --dataset {opt.dataset} is cropped in countless ways; leave it out")
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


def check(opt: argparse.Namespace, kind: type[Distiller], method: EnsembleMethod, teacher_num: int) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        UsageError: naming the option.
    """
    method.check(teacher_num)
    if opt.kd_scale == "unit" and teacher_num > 1 and method.total(teacher_num) == 0:
        raise UsageError(
            f"--kd_scale: unit makes weights sum to 1, but those of {opt.ensemble_method} sum to 0; choose released"
        )
    if opt.beta > 0 and not kind.feature_level:
        raise UsageError(f"-b: {opt.beta:g} weighs a loss on feature maps, which --distill {opt.distill} does not have")
    if opt.feat_start_epoch is not None and not (kind.feature_level and opt.beta > 0):
        raise UsageError(
            "--feat_start_epoch: there is no loss on feature maps; choose a --distill that has one, and -b"
        )
    if (opt.feat_start_epoch or 0) > opt.epochs:
        raise UsageError(f"--feat_start_epoch: {opt.feat_start_epoch} is after the last of {opt.epochs} --epochs")
    if opt.distill_decay and opt.alpha > 1:
        raise UsageError(f"--distill_decay: r = 1 − a would be negative; choose -a from 0 to 1, not {opt.alpha:g}")
    if opt.gamma == opt.alpha == opt.beta == 0:
        raise UsageError("-r, -a, -b: all are 0, so that there is no loss")


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
    method = ensemble_dict[opt.ensemble_method](**parser.hyperparameters(opt, "ensemble_method"))
    check(opt, kind, method, len(files))
    run = session.run_folder("students", run_name(parser, opt, files, session.dataset))
    if run is None:
        return
    require_files(files, opt.dataset, source)
    # The student first: its initial weights depend on the seed alone, whoever teaches it.
    student = session.build(opt.model_s, pretrained=opt.pretrained)
    example = session.example()
    teachers, notes = load_teachers(files, session.build, session.labels, example, session.precision)
    with autocast(session.device, session.precision):
        adapters = make_adapters(kind, parser.hyperparameters(opt, "distill"), student, teachers, example)
    for note in notes:
        print(note)
    if kind.feature_level and opt.beta == 0:
        print(f"-b 0: the feature loss of --distill {opt.distill} is left out")
    if uses_cache(opt):
        attach_cache(opt, teachers, files, session)
    elif opt.teacher_cache:
        print(f"--teacher_cache: --distill {opt.distill} compares maps, which are not kept; going on without")
    # What the cache lacks comes in batches of all sizes, each of which would be compiled anew.
    session.compile(student, *(() if uses_cache(opt) else teachers.networks))
    task = Distillation(student, teachers, adapters, method, opt)
    session.train(run, task, opt.model_s, report_teachers(session, teachers, files))


if __name__ == "__main__":
    run_script(main)
