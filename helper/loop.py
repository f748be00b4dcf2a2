"""The one epoch loop. It knows tasks, not methods."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from helper import checkpoint, distributed
from helper.batch import Batch
from helper.compiling import begin_step, uncompiled
from helper.errors import InputError, UsageError
from helper.evaluation import evaluate
from helper.logger import Logger
from helper.meters import FirstBad, Means, Scalars
from helper.pointwise import subsample_first
from helper.precision import autocast
from helper.progress import clock, progress
from helper.recipe import PUBLISHED, Recipe, lr_drops, seed_of
from helper.run_folder import RunFolder, provenance
from helper.stopping import Asked, Looks, ReadersLost, interruptible, losses_said, signals
from helper.sync_bn import synchronise

LOOK = 50
"""Every so many steps at most it is looked whether the loss is finite, whether to save, and whether a process stops."""


class Loader(Protocol):
    """Batches on the training device."""

    num_images: int

    def set_epoch(self, epoch: int, start: int = 0) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Any: ...


class Task(Protocol):
    """What the loop trains."""

    trained: nn.ModuleDict
    """Everything that has weights to train; ``trained["network"]`` is what inference needs."""

    def step(self, batch: Batch, epoch: int) -> Scalars:
        """A batch → ``loss``, ``accuracy`` (percent) and any named parts, all scalars; ``epoch`` counts from 1.

        The names are the same in all steps of an epoch.
        """

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images → named logits, see :func:`helper.evaluation.evaluate`; the best epoch is chosen by the first name."""


@runtime_checkable
class Comparing(Protocol):
    """A task that has more to say of its network when training is over."""

    def compare(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images → named measures of each ``[B]``; their means over the test set go into ``result.json``."""


@runtime_checkable
class Idling(Protocol):
    """A task that leaves some weights alone in some epochs."""

    def idles(self, epoch: int) -> bool:
        """Whether some weights get no gradient in this epoch."""


class Step(nn.Module):
    """A task's step as a module, which DistributedDataParallel can wrap."""

    def __init__(self, task: Task, device: torch.device, precision: str) -> None:
        super().__init__()
        self.trained = task.trained
        self.task, self.device, self.precision = task, device, precision

    def forward(self, batch: Batch, epoch: int) -> Scalars:
        with autocast(self.device, self.precision):
            scalars = self.task.step(batch, epoch)
        return {name: value if name == "loss" else value.detach() for name, value in scalars.items()}


@dataclass
class Fit:
    """One training run from its first or last step to its result, in one process or several.

    Args:
        task: what is trained; already on ``device``.
        train, test: loaders; ``validation`` chooses the best epoch where it is given.
        opt: the options of :mod:`helper.recipe`.
        learning_rate: the first one.
        run: an opened run folder, which the first process writes to.
        precision: ``fp32`` or ``bf16``.
        state: what :meth:`RunFolder.open` returned.
        about: goes into every checkpoint: ``arch``, ``num_classes``, ``dataset``.
        notes: goes into ``result.json``, for example the teachers' accuracies.
        recipe: where the learning rate drops unless the options say so.
        rates: factors of the learning rate of children of ``task.trained``; 1 for those not named.
        keep_all: whether ``best.pth`` holds all of ``task.trained``, since more than ``network`` is used in the end.
        test_name, validation_name: what people call the two sets; on record they are ``test_…`` and ``validation_…``.
    """

    task: Task
    train: Loader
    validation: Loader | None
    test: Loader
    opt: argparse.Namespace
    run: RunFolder
    device: torch.device
    precision: str
    state: dict[str, Any] | None
    learning_rate: float
    about: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe = PUBLISHED
    rates: Mapping[str, float] = field(default_factory=dict)
    keep_all: bool = False
    test_name: str = "test"
    validation_name: str = "validation"

    def __post_init__(self) -> None:
        opt = self.opt
        subsample_first(self.task.trained)  # adapters too, which no registry has built
        self.seed = seed_of(opt)
        self.provenance = provenance()  # of the code that runs, not of what lies there when it ends
        self.drops = lr_drops(opt.epochs, opt.lr_decay_epochs, self.recipe)
        if opt.sync_bn and distributed.size() > 1:
            synchronise(self.task.trained)
        self.optimizer = self._make_optimizer()
        self.epoch, self.seconds, self.accuracy = 0, 0.0, 0.0
        self.best: dict[str, Any] | None = None
        self.position: dict[str, Any] | None = None
        if self.state is not None:
            self._restore(self.state)
        self.forward: nn.Module = Step(self.task, self.device, self.precision)
        self.logger: Logger | None = None
        self.looks = Looks(LOOK)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        opt, groups = self.opt, self._parameter_groups()
        if opt.optimizer == "adam":
            return torch.optim.Adam(groups, lr=self.learning_rate, weight_decay=opt.weight_decay, fused=True)
        sgd = torch.optim.SGD(
            groups,
            lr=self.learning_rate,
            momentum=opt.momentum,
            weight_decay=opt.weight_decay,
            nesterov=opt.nesterov,
            fused=True,
        )
        # Zero buffers for all: torch's fused step fails when some parameters get their first gradient later.
        for parameter in self.task.trained.parameters() if opt.momentum else ():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """One group, and one more for each child that ``rates`` names; ``factor`` multiplies the learning rate."""
        slow = {name: list(self.task.trained[name].parameters()) for name in self.rates}
        named = {parameter for parameters in slow.values() for parameter in parameters}
        rest = [parameter for parameter in self.task.trained.parameters() if parameter not in named]
        groups = [{"params": parameters, "factor": self.rates[name]} for name, parameters in slow.items() if parameters]
        return [{"params": rest, "factor": 1.0}, *groups]

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.task.trained.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.seconds, self.best = state["epoch"], state["seconds"], state["best"]
        self.accuracy, self.position = state["accuracy"], state.get("position")
        drops = state.get("drops", self.drops)  # not always those of so many epochs: the run may have been extended
        same = state["epochs"] == self.opt.epochs
        self.drops = drops if same else rescaled_drops(drops, self.drops, self.epoch)

    def __call__(self) -> dict[str, Any]:
        """Train until the last epoch and write the result.

        Raises:
            UsageError: the loss is no longer finite, the memory or the disk is full, or an image cannot be read; the
                last good checkpoint stays.
            Stopped: a signal asked for it, or a process is lost.
        """
        signals.hold()
        if distributed.is_first():
            self.logger = Logger(self.run.path / "tensorboard", self.epoch + 1)
        self.saved_at = time.monotonic()
        try:
            with losses_said(f"{self.run.path}: --resume goes on"):
                while self.epoch < self.opt.epochs:
                    self._epoch(self.epoch + 1)
                    self._answer()
                return self._finish()
        except (Asked, ReadersLost) as reason:
            raise type(reason)(self._said(reason)) from None
        except InputError as error:
            raise UsageError(self._said(error)) from None
        finally:
            if self.logger:
                self.logger.close()

    def _epoch(self, epoch: int) -> None:
        started, self.epoch_started = time.perf_counter(), time.perf_counter()
        self.begun = self.position or {"step": 0}
        rate = self.learning_rate * self.opt.lr_decay_rate ** sum(epoch > drop for drop in self.drops)
        means = self._train(epoch, rate)
        speed = self._speed(len(self.train))
        trained = Means.read_together({"": means})[""]
        try:
            scores = self._evaluate(self.validation or self.test)
        except (Asked, InputError, ReadersLost) as reason:
            if isinstance(reason, Asked) or distributed.size() == 1:
                self._save_position(len(self.train), means, speed)
            raise
        self.seconds += time.perf_counter() - started
        row = {
            "epoch": epoch,
            "learning_rate": rate,
            **{f"train_{name}": value for name, value in trained.items()},
            **{f"{self.chosen_on}_{name}": value for name, value in scores},
            "images_per_second": speed,
            "seconds": self.seconds,
        }
        self._save_epoch(epoch, row)

    def _speed(self, step: int) -> float:
        """Images per second from where the epoch was begun or resumed; as it was, if that was after this step."""
        steps = step - int(self.begun["step"])
        if not steps:
            return float(self.begun.get("speed", 0.0))
        return steps * self.opt.batch_size / (time.perf_counter() - self.epoch_started)

    @property
    def chosen_on(self) -> str:
        """What the best epoch is chosen on, as on record."""
        return "validation" if self.validation else "test"

    @property
    def chosen_name(self) -> str:
        """The same, as people call it."""
        return self.validation_name if self.validation else self.test_name

    def _train(self, epoch: int, rate: float) -> Means:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)  # resumed from before there were factors
        self.connect(epoch)
        start, means, bad = self._begin(epoch)
        self.train.set_epoch(epoch, start)
        self.task.trained.train()
        self.looks.begin(start)
        title, each, done = f"epoch {epoch}/{self.opt.epochs}", self.opt.batch_size, start
        try:
            with progress(self.train, title, len(self.train) * each, start * each, each) as batches:
                for step, batch in enumerate(batches, start + 1):
                    scalars = self.step(batch, epoch)
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

    def connect(self, epoch: int) -> None:
        """Let the processes, if there are several, exchange gradients; they are told whether all weights get one."""
        idles = isinstance(self.task, Idling) and self.task.idles(epoch)
        wrapped = isinstance(self.forward, DistributedDataParallel)
        if distributed.size() == 1 or (wrapped and self.forward.find_unused_parameters == idles):
            return
        # Statistics of BN are the first process's, see _evaluate. The name has changed with torch 2.15.
        accepted = inspect.signature(DistributedDataParallel.__init__).parameters
        leave_buffers = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
        alone: dict[str, Any] = {leave_buffers: False}
        step = Step(self.task, self.device, self.precision)
        self.forward = DistributedDataParallel(step, find_unused_parameters=idles, **alone)

    def _begin(self, epoch: int) -> tuple[int, Means, FirstBad]:
        """How many steps of the epoch are done, and the sums over them."""
        means = Means()
        seed_everything(self.seed, epoch)
        if self.position is None:
            return 0, means, FirstBad()
        states, sums = self.position["generators"], self.position["means"]
        if len(states) == distributed.size():
            set_generators(states[distributed.rank()], self.device)
            sums = [sums[distributed.rank()]]
        elif not distributed.is_first():
            sums = []
        means.restore(sums, self.device)
        return self.position["step"], means, FirstBad()

    def step(self, batch: Batch, epoch: int) -> Scalars:
        """One update of the weights; the mean scalars of its micro-batches."""
        begin_step(self.opt.compile, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        parts = batch.split(self.opt.accumulate)
        try:
            each = [self._backward(part, epoch, len(parts), part is parts[-1]) for part in parts]
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not out_of_memory(error):
                raise
            each = []
        if not each:
            raise UsageError(self._too_large(batch, epoch))
        self.optimizer.step()
        return each[0] if len(each) == 1 else {name: torch.stack([s[name] for s in each]).mean() for name in each[0]}

    def _backward(self, batch: Batch, epoch: int, parts: int, is_last: bool) -> Scalars:
        """Add the gradient of a micro-batch; processes exchange theirs after the last."""
        alone = is_last or not isinstance(self.forward, DistributedDataParallel)
        with contextlib.nullcontext() if alone else self.forward.no_sync():  # type: ignore[operator]
            scalars: Scalars = self.forward(batch, epoch)
            (scalars["loss"] / parts).backward()
        return {name: value.detach() for name, value in scalars.items()}

    def _too_large(self, batch: Batch, epoch: int) -> str:
        """Says which batch would fit, found by trying halves."""
        size = len(batch.target) // self.opt.accumulate // 2
        while size and distributed.size() == 1:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                self._backward(Batch(batch.images[:size], batch.target[:size]), epoch, 1, True)
                break
            except RuntimeError:
                size //= 2
        hint = f"{size} images at once fit, so try --accumulate" if size else "try a smaller one, or --accumulate"
        return f"--batch_size: {self.opt.batch_size} does not fit in the memory; {hint}; {self._kept()}"

    def _kept(self) -> str:
        """What is not lost."""
        return f"the checkpoint of {self._where()} is kept" if self._where() else "there is no checkpoint yet"

    def _where(self) -> str:
        """Up to where the run is saved; empty where it is not."""
        if self.position:
            return f"step {self.position['step']} of epoch {self.epoch + 1}"
        return f"epoch {self.epoch}" if self.epoch else ""

    def _said(self, reason: BaseException) -> str:
        """Why the run ends here, and what comes of it."""
        if not self._where():
            return f"{reason}; {self._kept()}"
        return f"{reason}: {self.run.path} is saved after {self._where()}; --resume goes on from there"

    def _look(self, epoch: int, step: int, means: Means, bad: FirstBad) -> None:
        """Stop at a loss that is not finite or where a signal asks for it; save where it is time to."""
        self._refuse(bad, epoch)
        asked = self.looks.asked()
        if asked:
            self._save_position(step, means)
            raise asked
        due = time.monotonic() - self.saved_at > self.opt.checkpoint_minutes * 60
        if any(distributed.gather(due)):
            self._save_position(step, means)
        self.looks.done(step)

    def _refuse(self, bad: FirstBad, epoch: int) -> None:
        found = bad.read()
        if found:
            step, parts = found
            raise UsageError(
                f"{', '.join(parts)} became infinite or not a number in step {step} of epoch {epoch}; "
                f"{self._kept()}; try a smaller --learning_rate"
            )

    def _answer(self) -> None:
        """Stop after an epoch, which is saved, if any process was told to."""
        asked = self.looks.asked()
        if asked and self.epoch < self.opt.epochs:
            raise asked

    def _evaluate(self, loader: Loader) -> list[tuple[str, float]]:
        distributed.copy_from_first(self.task.trained.buffers())
        self.task.trained.eval()
        with uncompiled(self.opt.compile):
            scores = evaluate(self.task.predict, interruptible(loader, LOOK), self.device, self.precision)
        main = next(iter(scores))
        return [
            ("_".join(part for part in (which if which != main else "", name) if part), value)
            for which, values in scores.items()
            for name, value in values.items()
        ]

    def _save_epoch(self, epoch: int, row: dict[str, Any]) -> None:
        """Record an epoch that is done; the checkpoint last, so that a run that is cut off here repeats the epoch."""
        self.accuracy = row[f"{self.chosen_on}_accuracy"]
        is_best = self.best is None or self.accuracy > self.best["accuracy"]
        self.epoch, self.position = epoch, None
        if is_best:
            self.best = {"epoch": epoch, "accuracy": self.accuracy}
        if not distributed.is_first():
            return
        self._record(row)
        if is_best:
            everything = {"trained": self.task.trained.state_dict()} if self.keep_all else {}
            checkpoint.save({**self._network(), **everything}, self.run.best)
        self._save(self.seconds)

    def _save_position(self, step: int, means: Means, speed: float | None = None) -> None:
        """Save in the middle of an epoch; ``speed`` in images per second, up to now unless given."""
        speed = self._speed(step) if speed is None else speed
        generators, sums = distributed.gather(get_generators(self.device)), distributed.gather(means.state())
        self.position = {"step": step, "means": sums, "generators": generators, "speed": speed}
        if distributed.is_first():
            self._save(self.seconds + time.perf_counter() - self.epoch_started)

    def _save(self, seconds: float) -> None:
        state = {
            **self._network(),
            "trained": self.task.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seconds": seconds,
            "best": self.best,
            "drops": self.drops,
            "position": self.position,
        }
        checkpoint.save(state, self.run.last)
        self.saved_at = time.monotonic()

    def _network(self) -> dict[str, Any]:
        return {
            **self.about,
            "precision": self.precision,
            "model": self.task.trained["network"].state_dict(),
            "epoch": self.epoch,
            "epochs": self.opt.epochs,
            "accuracy": self.accuracy,
        }

    def _record(self, row: dict[str, Any]) -> None:
        assert self.logger is not None
        self.run.append_metrics(row)  # first: what TensorBoard cannot write, it says at length
        for name, value in row.items():
            if name != "epoch":
                self.logger.log_value(name, value, row["epoch"])
        self.logger.flush()
        tqdm.write(
            f"epoch {row['epoch']:3d}/{self.opt.epochs}  loss {row['train_loss']:.4f}  "
            f"train {row['train_accuracy']:.2f} %  {self.chosen_name} {row[f'{self.chosen_on}_accuracy']:.2f} %  "
            f"lr {row['learning_rate']:.2g}  {row['images_per_second']:.0f} images/s  "
            f"left {clock(self.seconds / row['epoch'] * (self.opt.epochs - row['epoch']))}"
        )
        sys.stdout.flush()

    def _finish(self) -> dict[str, Any]:
        """Write and return the result; the task may hold the best weights afterwards."""
        rows = distributed.from_first(self.run.read_metrics)
        assert self.best is not None
        result = {
            "last": self._scores(rows[-1]),
            "best": self._scores(rows[self.best["epoch"] - 1]),
            "best_chosen_on": self.chosen_name,
            "reported_on": self.test_name,
            "seed": self.seed,
            "epochs": self.opt.epochs,
            "hours": self.seconds / 3600,
            "images_per_second": sum(row["images_per_second"] for row in rows) / len(rows),
            "device": device_name(self.device),
            "processes": distributed.size(),
            "precision": self.precision,
            **self.about,
            **self.notes,
            **self.provenance,
        }
        if self.validation is not None or isinstance(self.task, Comparing):
            result["last"] |= self._scores_in_the_end()
            if self.best["epoch"] != self.epoch:
                self._load_best()
            result["best"] |= self._scores_in_the_end()
        if distributed.is_first():
            self.run.write_json("result.json", result)
        return result

    def _scores_in_the_end(self) -> dict[str, float]:
        """Test scores that no epoch has recorded, of the weights as they are."""
        scores = self._evaluate(self.test) if self.validation is not None else []
        if isinstance(self.task, Comparing):
            self.task.trained.eval()
            with uncompiled(self.opt.compile):
                images = interruptible(self.test, LOOK)
                compared = evaluate(self.task.compare, images, self.device, self.precision)
            scores += [(name, values[""]) for name, values in compared.items()]
        return {f"test_{name}": value for name, value in scores}

    def _load_best(self) -> None:
        best = distributed.from_first(self.run.load_best)
        if self.keep_all:
            self.task.trained.load_state_dict(best["trained"])
        else:
            self.task.trained["network"].load_state_dict(best["model"])

    @staticmethod
    def _scores(row: dict[str, Any]) -> dict[str, Any]:
        kept = ("epoch", "test_", "validation_")
        return {name: value for name, value in row.items() if name.startswith(kept)}


def rescaled_drops(old: Sequence[int], new: Sequence[int], epoch: int) -> list[int]:
    """Where the learning rate drops when the number of epochs has changed after ``epoch``.

    Drops that have taken effect stay; the others go where the new number of epochs puts them, at once if that has
    passed.
    """
    passed = sum(drop < epoch for drop in old)
    return [*old[:passed], *(max(drop, epoch) for drop in new[passed:])]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the accelerator's or the host's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed torch's generators for one epoch, so that a resumed run draws what an undisturbed one would.

    Before the first epoch all processes draw the same, the initial weights; then each draws its own.
    """
    process = distributed.rank() if epoch else 0
    torch.manual_seed((seed * 1_000_003 + epoch + process * 2_147_483_647) % 2**63)


def get_generators(device: torch.device) -> list[torch.Tensor]:
    """The states of torch's generators, of the host and of the device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_generators(states: Sequence[torch.Tensor], device: torch.device) -> None:
    """Go on from what :func:`get_generators` returned; the device's is left alone where the run was on another one."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
