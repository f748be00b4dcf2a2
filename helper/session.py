"""From options to a trained network: the steps that every training script takes in the same order."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from helper import distributed
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.evaluation import evaluate
from helper.images import PLAIN, ImageOptions
from helper.lone_values import lone_values
from helper.loop import Fit
from helper.machine import (
    autocast,
    compile_in_place,
    device_of,
    keep_memory,
    precision_of,
    require_compiler,
    require_right_code,
    uncompiled,
)
from helper.names import local
from helper.nearest import nothing_to_resume
from helper.recipe import require_sound_recipe, seed_of
from helper.resuming import Progress, seed_everything
from helper.run_folder import RunFolder, parameters_of
from helper.saying import say
from helper.seen import logits_shape, other_classes
from helper.sync_bn import replacements
from helper.task import Task
from helper.teachers.conversion import conversion_for
from helper.teachers.loading import Around, eyes_of
from helper.teachers.record import Eyes
from helper.weights import Labels, Loaded, compare_labels, load_network, located, publishes

DEFAULT_RATE = 0.05
"""Of models that do not ask for another one with an attribute ``learning_rate``."""

EVAL_BATCH = 500
"""Small images evaluated at once; larger ones in training batches, whose size fits. It does not change the result."""


LONGEST = 240
"""Letters of a run folder's name; file systems take 255."""


class Session:
    """One call of a training script. Everything is checked before anything is written.

    Args:
        opt: parsed options of :mod:`helper.recipe`.
        models: name → constructor, ``models.model_dict``.
        get_loaders: ``dataset.get_loaders``.
        info_of: ``dataset.info_of``.
    """

    def __init__(
        self,
        opt: argparse.Namespace,
        models: Mapping[str, Callable[..., nn.Module]],
        get_loaders: Callable[..., Any],
        info_of: Callable[..., Any],
    ) -> None:
        require_sound_recipe(opt)
        self.device = device_of(opt)
        keep_memory(self.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        distributed.start(self.device)
        distributed.per_process("--batch_size", opt.batch_size, opt.accumulate)
        self.opt, self.models, self._get_loaders = opt, models, get_loaders
        self.precision = precision_of(opt, self.device)
        if opt.compile:
            require_compiler(self.device)
            require_right_code(self.device)
        self.images = ImageOptions.of(opt)
        self.info = info_of(opt.dataset, opt.data_dir, skip_damaged=opt.skip_damaged, images=self.images)
        self.dataset: str = "@".join(filter(None, (opt.dataset, self.info.identity)))
        self.labels = Labels(opt.dataset, self.info.num_classes, self.info.classes)
        seed_everything(seed_of(opt))

    @cached_property
    def loaders(self) -> Any:
        """Batches on the device, of which it is said how many images there are.

        Raises:
            UsageError: the dataset is missing or damaged.
        """
        opt = self.opt
        loaders = self._get_loaders(
            opt.dataset,
            data_dir=opt.data_dir,
            batch_size=opt.batch_size if opt.evaluate is None else 1,  # the training images are not asked for
            device=self.device,
            seed=seed_of(opt),
            validation=opt.validation,
            num_workers=opt.num_workers,
            eval_batch_size=EVAL_BATCH if self.info.image_size <= 96 else opt.batch_size,
            shard=(distributed.rank(), distributed.size()),
            skip_damaged=opt.skip_damaged,
            test_only=opt.evaluate is not None,
            images=self.images,
        )
        for line in (*loaders.notes, "" if opt.evaluate else loaders.sizes):
            if line:
                say(line)
        return loaders

    def example(self, number: int = 2) -> torch.Tensor:
        """So many black images ``[…, 3, H, W]`` of the dataset's size, to learn the shapes of feature maps from."""
        return torch.zeros(number, 3, self.info.image_size, self.info.image_size, device=self.device)

    @property
    def around(self) -> Around:
        """What teachers are asked about."""
        info = self.info
        shown = Eyes(info.mean, info.std, info.image_size, 1 if info.channels == 1 else "RGB").checked(info.name)
        return Around(self.labels, shown, self.example())

    def build(self, arch: str, pretrained: bool = False, widths: Sequence[int] | None = None) -> Any:
        """A network for the dataset's classes, on the device; UsageError where no weights are published for it.

        Args:
            arch: its name.
            pretrained: start from the published weights, with a new last layer where the classes are others.
            widths: the channels of its stages, the published ones unless given.
        """
        if pretrained and not publishes(self.models[arch], "pretrained"):
            raise UsageError(
                f"--pretrained: there are no published weights for {arch}, only for torchvision/…, timm/… and hf/…"
            )
        settings: dict[str, Any] = {"pretrained": True} if pretrained else {}
        if widths is not None:
            settings["widths"] = widths
        network = self.construct(arch, **settings)
        shape = logits_shape(network, self.example(), arch, self.opt.dataset)
        if shape != (self.info.num_classes,):
            raise other_classes(arch, shape, self.opt.dataset, self.info.num_classes)
        return network

    def construct(self, arch: str, num_classes: int | None = None, **settings: Any) -> Any:
        """A network on the device, for the dataset's classes or another number of them; not tried on its images."""
        network: Any = self.models[arch](num_classes=num_classes or self.info.num_classes, **settings)
        return network.to(self.device, memory_format=torch.channels_last)

    def compile(self, *networks: nn.Module) -> None:
        """With ``--compile``, let these networks run compiled in training from now on."""
        if self.opt.compile:
            compile_in_place(networks, self.device)

    def run_folder(self, kind: str, name: Sequence[str]) -> RunFolder | None:
        """The folder ``save_dir/kind/name``; None, after saying so, for a run that is finished.

        From here on ``precision`` is that of the run's checkpoint, if it has one to resume from.

        Raises:
            UsageError: an unfinished run lies there and neither --resume nor --overwrite is given, or it was trained on
                other classes.
        """
        run = RunFolder(self.opt.save_dir / kind / folder_name(name))
        if isinstance(self.opt.resume, Path):
            check_earlier(self.opt, self.dataset)
        if distributed.from_first(lambda: run.finished) and not self.opt.overwrite:
            if distributed.is_first():
                result = run.read_json("result.json") or {}
                say(f"{run.path} is finished ({describe(result)}); --overwrite trains it again")
                self.say_where_its_images_lie(run)
            distributed.from_first(lambda: run.leave_word(finished=True))
            return None
        distributed.from_first(lambda: run.require_permission(self.opt.resume is not None, self.opt.overwrite))
        distributed.from_first(lambda: run.leave_word(finished=False))
        if self.opt.resume is not None:
            if distributed.is_first():
                self.say_where_its_images_lie(run)
            self.precision = distributed.from_first(lambda: self._precision_before(run)) or self.precision
        return run

    def _precision_before(self, run: RunFolder) -> str | None:
        """What the run has been computed with so far, or the one that it goes on from; None where neither has begun.

        Raises:
            UsageError: it was trained on other classes.
        """
        for folder in (run, RunFolder(self.opt.resume)) if isinstance(self.opt.resume, Path) else (run,):
            state, _ = folder.newest()
            if state is not None:
                compare_labels(f"--resume: {folder.path}", state, self.labels)
                return folder.precision_in(state)
        return None

    def say_where_its_images_lie(self, run: RunFolder) -> None:
        """Where they are elsewhere, since trees of as many images of the same classes count as the same."""
        stored = None
        with contextlib.suppress(UsageError):  # a damaged one is written anew
            stored = (run.read_json("parameters.json") or {}).get("data_dir")
        if self.info.identity and stored is not None and Path(local(stored)).resolve() != self.opt.data_dir.resolve():
            say(
                f"{run.path}: its images were those of --data_dir {stored}; {self.opt.data_dir} has as many of each "
                "class, and counts as a copy (if it is none, choose another --trial)"
            )

    def train(self, run: RunFolder, task: Task, arch: str) -> dict[str, Any]:
        """Open the run folder, train, print and return the result."""
        opt, _ = self.opt, self.loaders  # first, since a fault of the images is to be said before anything is written
        self._require_statistics(task)
        if opt.sync_bn and distributed.size() > 1:
            replacements(task.trained)  # refuses what it cannot replace
        earlier = RunFolder(opt.resume) if isinstance(opt.resume, Path) else None
        state = distributed.from_first(lambda: run.open(parameters_of(opt), opt.overwrite, earlier))
        try:
            if state is not None:
                say(f"{run.path}: resuming after {Progress.of(state, opt.epochs, ()).where}")
            elif opt.resume is not None:
                ignored = MAY_DIFFER - {"epochs"}
                say(nothing_to_resume(run.path, parameters_of(opt), self.dataset, ignored))
            result = self.fit(run, task, arch, state)()
        finally:
            run.close()
        say(f"{run.path}: {describe(result)}")
        return result

    def _require_statistics(self, task: Task) -> None:
        """UsageError where BatchNorm would see a single value of a channel, which has no variance."""
        opt, together = self.opt, distributed.size() if self.opt.sync_bn else 1
        at_once = together * distributed.per_process("--batch_size", opt.batch_size, opt.accumulate)
        if at_once > 1:
            return
        first = torch.zeros(1, dtype=torch.int64, device=self.device)
        batch = Batch(self.example()[:1], first, places=first)
        with autocast(self.device, self.precision), uncompiled(opt.compile):
            lonely = lone_values(
                task.trained, lambda: task.step(batch, When(task.fullest_epoch(opt.epochs), opt.epochs))
            )
        if lonely:
            ways = ", or a smaller --accumulate" * (opt.accumulate > 1) + ", or --sync_bn" * (distributed.size() > 1)
            raise UsageError(
                f"--batch_size: {opt.batch_size} leaves one image at a time, of which {lonely[0]} would normalise a "
                f"single value per channel ({len(lonely)} such); choose a larger one{ways}"
            )

    def fit(self, run: RunFolder, task: Task, arch: str, state: dict[str, Any] | None) -> Fit:
        """The loop over the epochs, from the beginning or from the state that an earlier run has left."""
        opt, loaders = self.opt, self.loaders
        return Fit(
            task=task,
            train=loaders.train,
            validation=loaders.validation,
            test=loaders.test,
            opt=opt,
            run=run,
            device=self.device,
            precision=self.precision,
            state=state,
            learning_rate=opt.learning_rate or getattr(task.trained["network"], "learning_rate", DEFAULT_RATE),
            about={**self.about(arch), **task.about},
            test_name=loaders.test_name,
            validation_name=loaders.validation_name,
        )

    def about(self, arch: str) -> dict[str, Any]:
        """What every checkpoint says of its network, so that it can be used where the images are not."""
        info = self.info
        return {
            "arch": arch,
            "num_classes": info.num_classes,
            "dataset": self.opt.dataset,
            "images": self.dataset,
            "classes": info.classes and list(info.classes),
            "image_size": info.image_size,
            "mean": list(info.mean),
            "std": list(info.std),
            **({"channels": 1} if info.channels == 1 else {}),
        }

    def test(
        self,
        predict: Callable[[torch.Tensor], dict[str, torch.Tensor]],
        known: Mapping[str, torch.Tensor] = MappingProxyType({}),
        precision: str | None = None,
    ) -> dict[str, dict[str, float]]:
        """Scores of named predictions on the test set, see :func:`helper.evaluation.evaluate`."""
        with uncompiled(self.opt.compile):
            return evaluate(predict, self.loaders.test, self.device, precision or self.precision, known)

    def load(self, network: nn.Module, given: Path, arch: str, option: str) -> Loaded:
        """Load the checkpoint ``PATH[@KEY]`` into ``network`` and print what is to be said of it."""
        path, key = located(given)
        loaded = load_network(network, path, arch, self.labels, option, key)
        for note in loaded.notes:
            say(note)
        return loaded

    def print_evaluation(self, network: nn.Module, arch: str, given: Path) -> None:
        """Load the checkpoint ``PATH[@KEY]`` into ``network`` and print its test accuracy."""
        loaded = self.load(network, given, arch, "--evaluate")
        self.print_scores(network, arch, located(given)[0], loaded.about if loaded.ours else {})

    def print_scores(self, network: nn.Module, arch: str, path: Path, about: Mapping[str, Any]) -> None:
        """Print a network's test accuracy on images as in its training.

        Args:
            network: as it was read from ``path``.
            about: what that says of it, if it is a checkpoint of ours.
        """
        network.eval()
        what, (_, shown, images) = f"--evaluate: {str(path)!r}", self.around
        sees = conversion_for(network, eyes_of(about, what), shown, images, what)
        if sees is not None:
            print(f"{path}: sees {sees.wanted}, as in its training")
        scores = self.test(lambda images: {"network": network(sees(images) if sees else images)})["network"]
        print(
            f"{path}: {arch} on {self.opt.dataset}, {self.loaders.test_name}: accuracy {scores['accuracy']:.2f} %, "
            f"top-5 {scores['accuracy5']:.2f} %, cross-entropy {scores['loss']:.4f}"
        )


MAY_DIFFER = frozenset(
    {
        *("epochs", "checkpoint_minutes", "save_dir", "data_dir", "skip_damaged"),
        *("device", "gpu_id", "num_workers", "teacher_cache_gb", "in_memory", "memory_gb"),
    }
)
"""Options in which a run may differ from the one that it goes on from."""


NETWORKS = frozenset({"model", "model_s", "method"})
"""Options of which each script has others."""


def check_earlier(opt: argparse.Namespace, dataset: str) -> None:
    """Refuse to go on from a run of other options or images than these, or from one that is no run.

    Raises:
        UsageError: naming the folder and the options.
    """
    earlier = RunFolder(opt.resume)
    stored = earlier.read_json("parameters.json")
    if stored is None or not earlier.saved:
        raise UsageError(f"--resume: {opt.resume} holds no run to go on from")
    now = parameters_of(opt)
    if NETWORKS & stored.keys() != NETWORKS & now.keys():
        raise UsageError(f"--resume: the run in {opt.resume} is another script's")
    stored = {**parameters_of(argparse.Namespace(**vars(PLAIN))), **stored}  # older runs do not have these
    stored["teachers"] = stored.get("teachers") or now.get("teachers")  # older runs do not have setting.py's on record
    differing = [name for name in now if name not in MAY_DIFFER and stored.get(name, now[name]) != now[name]]
    if differing:
        names = ", ".join(f"--{name}" for name in differing)
        raise UsageError(f"--resume: the run in {opt.resume} has another {names}")
    images = (earlier.newest()[0] or {}).get("images", dataset)
    if images != dataset:
        raise UsageError(f"--resume: the run in {opt.resume} has seen other images, {images}, not {dataset}")
    if opt.epochs < stored["epochs"]:
        raise UsageError(f"--epochs: {opt.epochs}, but the run in {opt.resume} has {stored['epochs']}; choose more")


def describe(result: Mapping[str, Any]) -> str:
    """Last and best accuracy in words."""
    last, best, on = result["last"], result["best"], result["best_chosen_on"]
    reported = result.get("reported_on", "test")
    where = "" if reported == on else f" on the {reported} set"
    text = f"last epoch {last['epoch']}: {last['test_accuracy']:.2f} %{where}" if "test_accuracy" in last else ""
    return f"{text}; best epoch {best['epoch']}, chosen on the {on} set: {best['test_accuracy']:.2f} %{where}"


def folder_name(parts: Sequence[str]) -> str:
    """``a-b=1-c``: letters that no file system minds, and not more of them than any takes.

    Raises:
        UsageError: the name would be longer.
    """
    name = "-".join(part.replace("/", ".") for part in parts)
    if len(name) > LONGEST:
        raise UsageError(f"the run's name would be {len(name)} letters long; choose a shorter --trial or fewer options")
    return name
