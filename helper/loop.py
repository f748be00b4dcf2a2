"""The one epoch loop. It knows tasks, not methods."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from helper import checkpoint
from helper.batch import Batch
from helper.errors import UsageError
from helper.logger import Logger
from helper.meters import Means, accuracy
from helper.recipe import PUBLISHED, Recipe, lr_drops, seed_of
from helper.run_folder import RunFolder, provenance

Scalars = dict[str, torch.Tensor]


class Loader(Protocol):
    """Batches on the training device."""

    num_images: int

    def set_epoch(self, epoch: int) -> None: ...

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
        """Images → named logits, see :func:`evaluate`; the first name is what the best epoch is chosen by."""


@dataclass
class Fit:
    """One training run from its first or last epoch to its result.

    Args:
        task: what is trained; already on ``device``.
        train, test: loaders; ``validation`` chooses the best epoch where it is given.
        opt: the options of :mod:`helper.recipe`.
        learning_rate: the first one.
        run: an opened run folder.
        precision: ``fp32`` or ``bf16``.
        state: what :meth:`RunFolder.open` returned.
        about: goes into every checkpoint: ``arch``, ``num_classes``, ``dataset``.
        notes: goes into ``result.json``, for example the teachers' accuracies.
        recipe: where the learning rate drops unless the options say so.
        rates: factors of the learning rate of children of ``task.trained``; 1 for those not named.
        keep_all: whether ``best.pth`` holds all of ``task.trained``, since more than ``network`` is used in the end.
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

    def __post_init__(self) -> None:
        opt = self.opt
        self.seed = seed_of(opt)
        self.provenance = provenance()  # of the code that runs, not of what lies there when it ends
        self.drops = lr_drops(opt.epochs, opt.lr_decay_epochs, self.recipe)
        self.optimizer = self._make_optimizer()
        self.epoch, self.seconds = 0, 0.0
        self.best: dict[str, Any] | None = None
        if self.state is not None:
            self._restore(self.state)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        opt, groups = self.opt, self._parameter_groups()
        if opt.optimizer == "adam":
            return torch.optim.Adam(groups, lr=self.learning_rate, weight_decay=opt.weight_decay)
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

    def __call__(self) -> dict[str, Any]:
        """Train until the last epoch and write the result.

        Raises:
            UsageError: the loss is no longer finite; the last good checkpoint stays.
        """
        logger = Logger(self.run.path / "tensorboard", self.epoch + 1)
        try:
            while self.epoch < self.opt.epochs:
                self._epoch(self.epoch + 1, logger)
        finally:
            logger.close()
        return self._finish()

    def _epoch(self, epoch: int, logger: Logger) -> None:
        started = time.perf_counter()
        rate = self.learning_rate * self.opt.lr_decay_rate ** sum(epoch > drop for drop in self.drops)
        trained = self._train(epoch, rate)
        train_seconds = time.perf_counter() - started
        if not math.isfinite(trained["loss"]):
            raise UsageError(
                f"the loss became {trained['loss']} in epoch {epoch} "
                f"({', '.join(f'{name} {value:.4g}' for name, value in trained.items())}); "
                f"the checkpoint of epoch {self.epoch} is kept; try a smaller --learning_rate"
            )
        held_out = {f"{self.chosen_on}_{name}": value for name, value in self._evaluate(self.validation or self.test)}
        self.seconds += time.perf_counter() - started
        row = {
            "epoch": epoch,
            "learning_rate": rate,
            **{f"train_{name}": value for name, value in trained.items()},
            **held_out,
            "images_per_second": len(self.train) * self.opt.batch_size / train_seconds,
            "seconds": self.seconds,
        }
        self._record(row, logger)
        self._save(epoch, row)

    @property
    def chosen_on(self) -> str:
        """What the best epoch is chosen on."""
        return "validation" if self.validation else "test"

    def _train(self, epoch: int, rate: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)  # resumed from before there were factors
        seed_everything(self.seed, epoch)
        self.train.set_epoch(epoch)
        self.task.trained.train()
        means = Means()
        with progress(self.train, f"epoch {epoch}/{self.opt.epochs}", self.opt.batch_size) as batches:
            for batch in batches:
                with autocast(self.device, self.precision):
                    scalars = self.task.step(batch, epoch)
                self.optimizer.zero_grad(set_to_none=True)
                scalars["loss"].backward()
                self.optimizer.step()
                means.add(scalars, len(batch.target))
                batches.show(means)
        return means.read()

    def _evaluate(self, loader: Loader) -> list[tuple[str, float]]:
        self.task.trained.eval()
        scores = evaluate(self.task.predict, loader, self.device, self.precision)
        main = next(iter(scores))
        return [
            ("_".join(part for part in (which if which != main else "", name) if part), value)
            for which, values in scores.items()
            for name, value in values.items()
        ]

    def _record(self, row: dict[str, Any], logger: Logger) -> None:
        for name, value in row.items():
            if name != "epoch":
                logger.log_value(name, value, row["epoch"])
        logger.flush()
        self.run.append_metrics(row)
        tqdm.write(
            f"epoch {row['epoch']:3d}/{self.opt.epochs}  loss {row['train_loss']:.4f}  "
            f"train {row['train_accuracy']:.2f} %  {self.chosen_on} {row[f'{self.chosen_on}_accuracy']:.2f} %  "
            f"lr {row['learning_rate']:.2g}  {row['images_per_second']:.0f} images/s  "
            f"left {_clock(self.seconds / row['epoch'] * (self.opt.epochs - row['epoch']))}"
        )
        sys.stdout.flush()

    def _save(self, epoch: int, row: dict[str, Any]) -> None:
        chosen = row[f"{self.chosen_on}_accuracy"]
        network = {
            **self.about,
            "precision": self.precision,
            "model": self.task.trained["network"].state_dict(),
            "epoch": epoch,
            "epochs": self.opt.epochs,
            "accuracy": chosen,
        }
        if self.best is None or chosen > self.best["accuracy"]:
            self.best = {"epoch": epoch, "accuracy": chosen}
            everything = {"trained": self.task.trained.state_dict()} if self.keep_all else {}
            checkpoint.save({**network, **everything}, self.run.best)
        self.epoch = epoch
        resume = {
            "trained": self.task.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
            "best": self.best,
        }
        checkpoint.save({**network, **resume}, self.run.last)

    def _finish(self) -> dict[str, Any]:
        rows = self.run.read_metrics()
        assert self.best is not None
        result = {
            "last": self._scores(rows[-1]),
            "best": self._scores(rows[self.best["epoch"] - 1]),
            "best_chosen_on": self.chosen_on,
            "seed": self.seed,
            "epochs": self.opt.epochs,
            "hours": self.seconds / 3600,
            "images_per_second": sum(row["images_per_second"] for row in rows) / len(rows),
            "device": device_name(self.device),
            "precision": self.precision,
            **self.about,
            **self.notes,
            **self.provenance,
        }
        if self.validation is not None:
            result["last"] |= {f"test_{name}": value for name, value in self._evaluate(self.test)}
            best = checkpoint.load(self.run.best)
            if self.keep_all:
                self.task.trained.load_state_dict(best["trained"])
            else:
                self.task.trained["network"].load_state_dict(best["model"])
            result["best"] |= {f"test_{name}": value for name, value in self._evaluate(self.test)}
        self.run.write_json("result.json", result)
        return result

    @staticmethod
    def _scores(row: dict[str, Any]) -> dict[str, Any]:
        kept = ("epoch", "test_", "validation_")
        return {name: value for name, value in row.items() if name.startswith(kept)}


def evaluate(predict: Any, loader: Loader, device: torch.device, precision: str) -> dict[str, dict[str, float]]:
    """Named predictions' mean scores over a loader.

    Args:
        predict: images ``[B, 3, H, W]`` → for each name logits ``[B, C]``; or those of m networks ``[m, B, C]``, which
            are scored as ``name_0``, ``name_1``, … and, as their mean, ``name``; or a measure of each image ``[B]``.

    Returns:
        for each name ``accuracy`` and ``accuracy5`` in percent, and ``loss`` (cross-entropy in nats); the mean of a
        measure under the empty name.
    """
    means: dict[str, Means] = {}
    with torch.no_grad():
        for batch in loader:
            with autocast(device, precision):
                predictions = predict(batch.images)
            for name, prediction in predictions.items():
                for which, scores in _named_scores(name, prediction, batch.target):
                    means.setdefault(which, Means()).add(scores, len(batch.target))
    return {name: mean.read() for name, mean in means.items()}


def _named_scores(name: str, prediction: torch.Tensor, target: torch.Tensor) -> list[tuple[str, Scalars]]:
    if prediction.ndim == 1:
        return [(name, {"": prediction.mean()})]
    if prediction.ndim == 2:
        return [(name, _scores_of(prediction.float(), target))]
    each = [_scores_of(logits.float(), target) for logits in prediction]
    mean = {score: torch.stack([scores[score] for scores in each]).mean() for score in each[0]}
    return [(name, mean), *((f"{name}_{j}", scores) for j, scores in enumerate(each))]


def _scores_of(logits: torch.Tensor, target: torch.Tensor) -> Scalars:
    return {
        "accuracy": accuracy(logits, target),
        "accuracy5": accuracy(logits, target, top=5),
        "loss": F.cross_entropy(logits, target),
    }


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic that ``--precision`` asks for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed torch's generators for one epoch, so that a resumed run draws what an undisturbed one would."""
    torch.manual_seed((seed * 1_000_003 + epoch) % 2**63)


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class progress:
    """A tqdm bar over batches on a terminal, and nothing elsewhere. The means are read twice a second at most."""

    def __init__(self, loader: Iterable[Any], title: str, batch_size: int) -> None:
        self._bar = tqdm(
            total=len(loader) * batch_size,  # type: ignore[arg-type]
            desc=title,
            unit=" images",
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        self._loader, self._batch_size, self._shown = loader, batch_size, 0.0

    def __enter__(self) -> progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __iter__(self) -> Any:
        for batch in self._loader:
            yield batch
            self._bar.update(self._batch_size)

    def show(self, means: Means) -> None:
        """Put loss and accuracy beside the bar, if it is time to."""
        now = time.monotonic()
        if self._bar.disable or now - self._shown < 0.5:
            return
        self._shown = now
        values = means.read()
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, accuracy {values['accuracy']:.2f} %", refresh=False)
