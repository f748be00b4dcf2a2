"""What is timed: the training scripts' own objects, on random images and with untrained networks.

The speed of a step does not depend on what the networks know. The images are random 8-bit pixels with CIFAR-100's
shape and labels; each teacher's batch statistics are those of one random batch, so that its maps are of usual size.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import train_online
import train_student
import train_teacher
from dataset import info_of
from dataset.base import DatasetInfo, MemoryDataset, Split
from dataset.loader import Loaders, memory_loaders
from dataset.order import Shard
from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from helper import checkpoint
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.loop import Fit
from helper.machine import autocast
from helper.run_folder import RunFolder
from helper.session import Session
from helper.teachers.asked import Teachers
from helper.teachers.conversion import Conversion
from helper.teachers.files import TeacherFile
from helper.teachers.loading import load_teachers
from helper.teachers.record import Eyes
from models import model_dict
from scripts.bench.as_released import RATE, ReleasedDistillation, ReleasedPeers

DATASET = "cifar100"
BETA = 50.0
"""Weight of the feature losses; their cost does not depend on it."""
POOL = 8
"""Batches that are made before anything is timed; steps take them in turn."""
SETTLED = 16
"""Images that an untrained teacher's batch statistics are taken from."""
AVERAGE, SOLVED = "AVERAGE_LOSS", "AEKD"
METHODS, LOSSES = (AVERAGE, SOLVED), ("kd", "inter")
"""Weightings that every loss is timed with, and losses that every weighting is timed with."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """K teachers of one architecture and a student, written ``resnet20x3:resnet8``."""

    teacher: str
    teacher_num: int
    student: str

    def __str__(self) -> str:
        return f"{self.teacher}x{self.teacher_num}:{self.student}"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """The setting that a word of the command line names.

        Raises:
            UsageError: it is not of that form, or no such architecture is known.
        """
        match = re.fullmatch(r"(.+)x([1-9]\d*):(.+)", text)
        if not match:
            raise UsageError(f"--settings: {text!r} is not of the form TEACHERxK:STUDENT, such as resnet20x3:resnet8")
        for arch in match.group(1, 3):
            if arch not in model_dict:
                raise model_dict.unknown(arch, "--settings")
        return cls(match[1], int(match[2]), match[3])


@dataclass(frozen=True)
class Pair:
    """A distillation loss and an ensemble method."""

    distill: str
    ensemble: str

    def __str__(self) -> str:
        return f"{self.distill} {self.ensemble}"


def pairs() -> list[Pair]:
    """Each loss with two weightings and each weighting with two losses."""
    some = [*product(distill_dict, METHODS), *product(LOSSES, ensemble_dict)]
    return [Pair(*each) for each in dict.fromkeys(some)]


class RandomImages(MemoryDataset):
    """CIFAR-100 in all but its pixels and labels, and with so many training images."""

    def __init__(self, images: int) -> None:
        super().__init__(Path())
        self.images = images

    @property
    def info(self) -> DatasetInfo:
        return info_of(DATASET)

    def load(self) -> tuple[Split, Split]:
        return self._draw(self.images), self._draw(1)

    def _draw(self, images: int) -> Split:
        source, size = torch.Generator().manual_seed(0), self.info.image_size
        pixels = torch.randint(0, 256, (images, size, size, 3), generator=source, dtype=torch.uint8)
        return Split(pixels, torch.randint(0, self.info.num_classes, (images,), generator=source))


def session_of(opt: argparse.Namespace, views: int = 1) -> Session:
    """As a training script makes it, but for the images; ``views`` is how many of each image a batch has."""

    def loaders(name: str, *, batch_size: int, device: torch.device, seed: int, shard: Shard, **_: object) -> Loaders:
        images = RandomImages(POOL * batch_size)
        made = memory_loaders(images, batch_size, device, seed, 0.0, batch_size, shard, views)
        return replace(made, sizes="")  # untold

    return Session(opt, model_dict, loaders, info_of)


def fit_of(session: Session, task: Any, arch: str) -> Fit:
    """The loop of the training scripts, whose steps are timed; it writes nothing."""
    task.trained.train()
    return session.fit(RunFolder(Path("benchmark")), task, arch, None)


def step_of(fit: Fit) -> Step:
    """One update of the weights at each call, on the prepared batches in turn."""
    batches = cycle(list(fit.train))
    when = When(fit.opt.epochs // 4, fit.opt.epochs)  # every loss is on
    return lambda: fit.step(next(batches), when)


def released_step(session: Session, task: ReleasedDistillation | ReleasedPeers) -> Step:
    """The same with a step as released, whose images are in NCHW."""
    batches = cycle([in_nchw(batch) for batch in session.loaders.train])
    return lambda: task.step(*next(batches))


def in_nchw(batch: Batch) -> tuple[Tensor, ...]:
    """Images, labels and further views, as the released codes have them in memory."""
    return batch.images.contiguous(), batch.target, *(images.contiguous() for images in batch.again)


def words(opt: argparse.Namespace, *more: str) -> list[str]:
    """The command line of a training script in this benchmark."""
    arithmetic = ["--precision", opt.precision] if opt.precision else []
    arithmetic += ["--compile"] if opt.compile else []
    machine = ["--dataset", DATASET, "--device", opt.device, "--batch_size", str(opt.batch_size)]
    return [*machine, *arithmetic, "--optimizer", "sgd", "--nesterov", "--lr", str(RATE), *more]


class Offline:
    """One setting: its teachers, and a student for each way to train it. Leaving its context removes its files."""

    def __init__(self, setting: Setting, opt: argparse.Namespace) -> None:
        self.setting, self.bench = setting, opt
        self.session = session_of(train_teacher.options().parse(words(opt)))
        self.device = self.session.device
        self.batches = list(self.session.loaders.train)
        self.images = self.batches[0].images
        self._folder = tempfile.TemporaryDirectory()
        self.paths = [Path(self._folder.name) / f"{k}.pth" for k in range(setting.teacher_num)]
        self.files = [TeacherFile(setting.teacher, path) for path in self.paths]
        for path in self.paths:  # what a training run might have left
            network = self.session.build(setting.teacher)
            settle(network, self.images[:SETTLED])
            checkpoint.save({"model": network.state_dict()}, path)

    def __enter__(self) -> Offline:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def _load(self) -> Teachers:
        session = self.session
        return load_teachers(self.files, session.construct, session.around, session.precision)[0]

    @cached_property
    def teachers(self) -> Teachers:
        """The same networks as the training script makes them ready."""
        teachers = self._load()
        self.session.compile(*teachers.networks)
        return teachers

    @cached_property
    def caching_teachers(self) -> Teachers:
        """The same with a cache that holds all batches that are trained on."""
        teachers = self._load()
        opt = train_student.options().parse(words(self.bench, "--teacher_cache", self._folder.name))
        train_student.attach_cache(opt, teachers, self.session)
        with autocast(self.device, self.session.precision):
            for batch in self.batches:
                teachers.logits(batch.images, batch.views)
        return teachers

    def alone(self) -> Step:
        """The student without teachers."""
        student = self.session.build(self.setting.student)
        self.session.compile(student)
        return step_of(fit_of(self.session, train_teacher.CrossEntropy(student), self.setting.student))

    def teachers_forward(self) -> Step:
        """What all teachers say of a batch."""
        batches, teachers = cycle(self.batches), self.teachers

        def forward() -> torch.Tensor:
            with autocast(self.device, self.session.precision):
                return teachers.logits(next(batches).images)

        return forward

    def own_images(self) -> Step:
        """What each teacher would see if all had means of their own, and every other one images half as large again."""
        batches, (_, shown, images) = cycle(self.batches), self.session.around
        assert shown.size is not None
        wanted = [Eyes(k / 100, size=shown.size * (2 + k % 2) // 2) for k in range(self.setting.teacher_num)]
        conversions = [Conversion(each.checked("").over(shown), shown, images.device) for each in wanted]
        teachers = Teachers(self.teachers.networks, conversions)
        return lambda: teachers.shown(next(batches).images)

    def options(self, pair: Pair) -> tuple[Any, argparse.Namespace]:
        """The parser and the options of ``train_student.py`` for a pair."""
        b = 0 if distill_dict[pair.distill].on_logits() else BETA
        parser = train_student.options()
        chosen = ["--model_s", self.setting.student, "--distill", pair.distill, "--ensemble_method", pair.ensemble]
        return parser, parser.parse(words(self.bench, *chosen, "-b", str(b)))

    def distillation(self, pair: Pair, teachers: Teachers, **settings: object) -> Any:
        """The objective of a pair; ``settings`` are hyperparameters of the ensemble method."""
        parser, opt = self.options(pair)
        student = self.session.build(self.setting.student)
        chosen = {**parser.hyperparameters(opt, "ensemble_method"), **settings}
        methods = [ensemble_dict[pair.ensemble](**chosen) for _ in range(2)]
        return train_student.distillation(parser, opt, self.session, student, teachers, methods)

    def pairs(self) -> list[Pair]:
        """All pairs but those whose loss refuses these networks."""
        refused = set()
        for distill in distill_dict:
            try:
                self.distillation(Pair(distill, AVERAGE), self.teachers)
            except UsageError:
                refused.add(distill)
        return [pair for pair in pairs() if pair.distill not in refused]

    def fit(self, pair: Pair, cached: bool = False) -> Fit:
        """A student under all teachers, or under what the cache has of them."""
        task = self.distillation(pair, self.caching_teachers if cached else self.teachers)
        self.session.compile(task.student)
        return fit_of(self.session, task, self.setting.student)

    def both(self, pair: Pair) -> tuple[Any, ReleasedDistillation]:
        """The objective of a pair, with the solver on the host where the method has one, and its released form."""
        parser, opt = self.options(pair)
        has_solver = "qp_solver" in parser.hyperparameters(opt, "ensemble_method")
        task = self.distillation(pair, self.teachers, **({"qp_solver": "svm"} if has_solver else {}))
        method = task.terms[0].method
        raw = [self.session.build(file.arch) for file in self.files]  # as their training left them
        for network, path in zip(raw, self.paths, strict=True):
            network.load_state_dict(checkpoint.load(path)["model"])
        return task, ReleasedDistillation(task.student, raw, task.adapters, method, opt.kd_T, opt.beta)

    def released(self, pair: Pair) -> Step:
        """A step as released."""
        return released_step(self.session, self.both(pair)[1])


class Online:
    """An online method, by name, on one architecture."""

    def __init__(self, method: str, model: str, opt: argparse.Namespace) -> None:
        parser = train_online.options()
        self.opt, recipe = train_online.parse(parser, words(opt, "--method", method, "--model", model))
        made = train_online.make_method(parser, self.opt, recipe)
        self.session = session_of(self.opt, made.views)
        peers = made.make_peers(lambda widths=None: self.session.build(model, widths=widths))
        self.task = train_online.PeerTraining(peers, made, self.session.example(), recipe)
        released = ReleasedPeers(peers, made, self.opt.epochs // 4, self.opt.epochs)
        self.released = released_step(self.session, released)
        self.session.compile(*self.task.running)
        self.step = step_of(fit_of(self.session, self.task, model))


@torch.no_grad()
def settle(network: nn.Module, images: torch.Tensor) -> None:
    """Give the network the batch statistics of ``images``."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # what was seen last, not its running mean
    network.train()(images)
