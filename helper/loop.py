"""The one epoch loop. It knows tasks, not methods."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from helper import distributed
from helper.batch import When
from helper.contents import Contents
from helper.errors import InputError, UsageError
from helper.evaluation import evaluate, named_scores
from helper.machine import autocast, uncompiled
from helper.meters import FirstBad, Means, PerClass
from helper.optimisation import optimizer_dict, parameter_groups, schedule_of, set_rate
from helper.outcome import result_of
from helper.pointwise import subsample_first
from helper.pretraining import before_training
from helper.progress import progress
from helper.recipe import lr_drops, seed_of
from helper.record import Record
from helper.resuming import Progress
from helper.run_folder import RunFolder, provenance
from helper.stopping import Asked, Looks, ReadersLost, interruptible, losses_said, signals
from helper.sync_bn import synchronise
from helper.task import Task
from helper.update import Update

LOOK = 50
"""Every so many steps at most it is looked whether the loss is finite, whether to save, and whether a process stops."""


@dataclass
class Fit:
    """One training run from its first or last step to its result, in one process or several.

    Args:
        task: what is trained; already on ``device``.
        train, test: loaders as of :mod:`dataset.loader`; ``validation`` chooses the best epoch where it is not None.
        opt: the options of :mod:`helper.recipe`.
        learning_rate: the first one.
        run: an opened run folder, which the first process writes to.
        precision: ``fp32`` or ``bf16``.
        state: what :meth:`RunFolder.open` returned.
        about: goes into every checkpoint: ``arch``, ``num_classes``, ``dataset``.
        test_name, validation_name: what people call the two sets; on record they are ``test_…`` and ``validation_…``.
    """

    task: Task
    train: Any
    validation: Any
    test: Any
    opt: argparse.Namespace
    run: RunFolder
    device: torch.device
    precision: str
    state: dict[str, Any] | None
    learning_rate: float
    about: dict[str, Any]
    test_name: str = "test"
    validation_name: str = "validation"

    def __post_init__(self) -> None:
        opt, trained = self.opt, self.task.trained
        self.seed = seed_of(opt)
        self.provenance = provenance()  # of the code that runs, not of what lies there when it ends
        self.chosen_on = "validation" if self.validation else "test"  # on record
        self.chosen_name = self.validation_name if self.validation else self.test_name
        subsample_first(trained)  # adapters too, which no registry has built
        if opt.sync_bn and distributed.size() > 1:
            synchronise(trained)
        groups = parameter_groups(trained, self.learning_rate, self.task.rates, self.task.decays)
        self.optimizer = optimizer_dict[opt.optimizer](groups, opt)
        drops = lr_drops(opt.epochs, opt.lr_decay_epochs, self.task.recipe)
        self.progress = Progress.of(self.state, opt.epochs, drops)
        self.task.begun_for = self.progress.begun_for
        self.schedule = schedule_of(opt, self.progress.drops)
        about = {**self.about, "precision": self.precision, "epochs": opt.epochs}
        self.contents = Contents(self.task, self.optimizer, self.progress, opt.ema, about, self.state)
        self.step = Update(self.task, self.optimizer, opt, self.device, self.precision)
        minutes = opt.checkpoint_minutes
        self.record = Record(self.run, self.contents, opt.epochs, minutes, self.chosen_on, self.chosen_name)
        self.looks = Looks(LOOK)
        self.per_class: dict[str, Any] = {}  # of the last evaluation

    def __call__(self) -> dict[str, Any]:
        """Train until the last epoch and write the result.

        Raises:
            UsageError: a loss is no longer finite, the memory or the disk is full, or an image cannot be read; the
                last good checkpoint stays.
            Stopped: a signal asked for it, or a process is lost.
        """
        signals.hold()
        advice = f"{self.run.path}: --resume goes on"
        try:
            with self.record.opened(self.progress.epoch + 1), losses_said(advice):
                if self.state is None:
                    once = partial(interruptible, self.train, LOOK)
                    inside = partial(autocast, self.device, self.precision)
                    self.progress.seconds += before_training(self.task, self.train, once, inside, self.opt)
                while self.progress.epoch < self.opt.epochs:
                    self._epoch(self.progress.epoch + 1)
                    asked = self.looks.asked()
                    if asked and self.progress.epoch < self.opt.epochs:
                        raise asked
                result = result_of(self)
                self.record.result(result)
                return result
        except (Asked, ReadersLost) as reason:
            raise type(reason)(self._said(reason)) from None
        except InputError as error:
            raise UsageError(self._said(error)) from None

    def _said(self, reason: BaseException) -> str:
        """Why the run ends here, and what comes of it."""
        if not self.progress.where:
            return f"{reason}; {self.progress.kept}"
        return f"{reason}: {self.run.path} is saved after {self.progress.where}; --resume goes on from there"

    def _epoch(self, epoch: int) -> None:
        started = self.epoch_started = time.perf_counter()
        position = self.progress.position
        self.begun = (position["step"], position.get("speed", 0.0)) if position else (0, 0.0)
        means = self._train(epoch)
        speed = self._speed(len(self.train))
        trained = Means.read_together({"": means})[""]
        try:
            scores = self.evaluate(self.validation or self.test)
        except (Asked, InputError, ReadersLost) as reason:
            if isinstance(reason, Asked) or distributed.size() == 1:
                self._save_position(len(self.train), means, speed)
            raise
        if not math.isfinite(scores["loss"]):  # the losses of the steps were those before their updates
            raise self._diverged(f"the loss on the {self.chosen_name} set", f"after epoch {epoch}")
        self.task.after_epoch()
        self.progress.seconds += time.perf_counter() - started
        row = {
            "epoch": epoch,
            "learning_rate": self.learning_rate * self.schedule(self._when(epoch, len(self.train))),
            **{f"train_{name}": value for name, value in trained.items()},
            **{f"{self.chosen_on}_{name}": value for name, value in scores.items()},
            "images_per_second": speed,
            "seconds": self.progress.seconds,
        }
        per_class = self.per_class if self.validation is None else {}
        is_best = self.progress.take(epoch, row[f"{self.chosen_on}_accuracy"], per_class)
        self.record.epoch(row, is_best)

    def _when(self, epoch: int, step: int) -> When:
        return When(epoch, self.opt.epochs, step, len(self.train))

    def _speed(self, step: int) -> float:
        """Images per second from where the epoch was begun or resumed; as it was, if that was after this step."""
        start, before = self.begun
        if step == start:
            return before
        return (step - start) * self.opt.batch_size / (time.perf_counter() - self.epoch_started)

    def _train(self, epoch: int) -> Means:
        """All steps of an epoch that are not done yet; their mean scalars."""
        self.step.connect(epoch)
        start, means = self.progress.begin(self.seed, epoch, self.device)
        bad = FirstBad()
        self.train.set_epoch(epoch, start)
        self.task.trained.train()
        self.looks.begin(start)
        title, done = f"epoch {epoch}/{self.opt.epochs}", start
        try:
            with progress(self.train, title, len(self.train), start, self.opt.batch_size) as batches:
                for step, batch in enumerate(batches, start + 1):
                    when = self._when(epoch, step)
                    set_rate(self.optimizer, self.learning_rate * self.schedule(when))
                    scalars = self._updated(batch, when)
                    self.contents.average.update(when)
                    means.add(scalars, len(batch.target))
                    bad.look({name: value for name, value in scalars.items() if name.startswith("loss")}, step)
                    batches.show(means)
                    if self.looks.due(step):
                        self._look(epoch, step, means, bad)
                    done = step
        except (InputError, ReadersLost):  # no batch came
            if done and distributed.size() == 1:  # others would be waiting for this one, within a step
                self._refuse(bad, epoch)
                self._save_position(done, means)
            raise
        self._refuse(bad, epoch)
        return means

    def _updated(self, batch: Any, when: When) -> dict[str, torch.Tensor]:
        try:
            return self.step(batch, when)
        except UsageError as error:
            raise UsageError(f"{error}; {self.progress.kept}") from None

    def _look(self, epoch: int, step: int, means: Means, bad: FirstBad) -> None:
        """Stop at a loss that is not finite or where a signal asks for it; save where it is time to."""
        self._refuse(bad, epoch)
        asked = self.looks.asked()
        if asked or self.record.due():
            self._save_position(step, means)
        if asked:
            raise asked
        self.looks.done(step)

    def _refuse(self, bad: FirstBad, epoch: int) -> None:
        found = bad.read()
        if found:
            step, parts = found
            raise self._diverged(", ".join(parts), f"in step {step} of epoch {epoch}")

    def _diverged(self, what: str, where: str) -> UsageError:
        advice = "try a smaller --learning_rate"
        return UsageError(f"{what} became infinite or not a number {where}; {self.progress.kept}; {advice}")

    def evaluate(self, loader: Any, compare: bool = False) -> dict[str, float]:
        """Named scores of the task's predictions; the names of its main one are left out."""
        self.task.trained.eval()
        ask = self.task.compare if compare else self.task.predict
        per_class = None if compare else PerClass()
        with uncompiled(self.opt.compile), self.contents.average.shown():
            distributed.copy_from_first(self.task.trained.buffers())
            scores = evaluate(ask, interruptible(loader, LOOK), self.device, self.precision, per_class=per_class)
        if per_class is None:
            return named_scores(scores, main=None)
        main = next(iter(scores))
        scores[main]["balanced_accuracy"], self.per_class = per_class.read()
        return named_scores(scores, main)

    def _save_position(self, step: int, means: Means, speed: float | None = None) -> None:
        """Save in the middle of an epoch; ``speed`` in images per second, up to now unless given."""
        self.progress.stand(step, means, self.device, self._speed(step) if speed is None else speed)
        self.record.save(self.progress.seconds + time.perf_counter() - self.epoch_started)
