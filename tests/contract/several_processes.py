"""Trains every method for a few steps and writes what came of it; started once, or as several processes.

python several_processes.py FOLDER [NAME…]: all, or those losses, weightings, online methods and changes of a network
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from objectives import METHODS, few_pairs, make_objective
from sums import all_asked

import train_online
import train_student
from dataset.base import Split
from dataset.loader import part_of
from dataset.order import batches_of
from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from helper import distributed
from helper.batch import Batch
from helper.loop import Fit
from helper.run_folder import RunFolder
from helper.teachers.asked import Teachers
from models import model_dict
from online import online_dict

BATCH, STEPS, EPOCHS, TEST, CLASSES, SIZE = 12, 3, 2, 31, 5, 8

SINGLE = ("inter", "crd", "OKDDip")
"""In single precision: every weighting, with a loss on maps; a loss with memories; peers."""


def pixels(count: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator).to(dtype)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


class Train:
    """Each process's part of each batch, and of so many views of its images."""

    def __init__(self, dtype: torch.dtype, steps: int, views: int) -> None:
        self.images, self.target = pixels(BATCH * steps, 1, dtype)
        self.again = [pixels(BATCH * steps, seed, dtype)[0] for seed in range(3, 2 + views)]
        self.num_images, self.start, self.places = len(self.target), 0, torch.arange(len(self.target))

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.start = start

    def __len__(self) -> int:
        return self.num_images // BATCH

    def __iter__(self) -> Iterator[Batch]:
        shard = distributed.rank(), distributed.size()
        for part in batches_of(self.num_images, BATCH, shard, self.start):
            again = tuple(images[part] for images in self.again)
            yield Batch(self.images[part], self.target[part], places=self.places[part], again=again)


class Test:
    """Each process's part of a test set that no number of processes divides; two have two batches and one."""

    AT_ONCE = 15

    def __init__(self, dtype: torch.dtype) -> None:
        images, target = pixels(TEST, 2, dtype)
        part = part_of(Split(images, target), (distributed.rank(), distributed.size()))
        self.images, self.target = part.images, part.labels
        self.num_images = len(self.target)

    def __len__(self) -> int:
        return len(self.images.split(self.AT_ONCE))

    def __iter__(self) -> Iterator[Batch]:
        yield from map(Batch, self.images.split(self.AT_ONCE), self.target.split(self.AT_ONCE))


def network(seed: int, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return model_dict["resnet8"](num_classes=CLASSES, **settings)


def offline(distill: str, method: str, dtype: torch.dtype) -> tuple[Any, Any]:
    parser = train_student.options()
    beta = "" if distill_dict[distill].on_logits() else "-b 2"
    start = "" if distill == "inter" else "--feat_start_epoch 1"  # one of them with adapters that idle at first
    opt = parser.parse(f"--distill {distill} --ensemble_method {method} {beta} {start}".split())
    student = network(0)
    teachers = Teachers([network(k + 1) for k in range(3)])
    task = make_objective(
        distill, method, student, teachers, opt, torch.zeros(BATCH // distributed.size(), 3, SIZE, SIZE)
    )
    for each in teachers.networks:
        each.to(dtype)
    return task, opt


def online(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    parser = train_online.options()
    opt, recipe = train_online.parse(parser, ["--method", name])
    method = train_online.make_method(parser, opt, recipe)
    seeds = iter(range(100))
    peers = method.make_peers(lambda **settings: network(next(seeds), **settings))
    return train_online.PeerTraining(peers, method, torch.zeros(2, 3, SIZE, SIZE), recipe), opt


def cases(dtype: torch.dtype, names: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    for distill, method in few_pairs():
        # kd stands beside a loss on maps, too; those that draw weights by chance only where they are asked for
        usual = ensemble_dict[method].symmetric and (distill != "kd" or method in METHODS)
        if usual if not names else {distill, method} & {*names}:
            yield f"{distill} {method}", *offline(distill, method, dtype)
    for name in CHANGES:
        if name not in names:
            continue
        task, opt = offline("kd", "AVERAGE_LOSS", dtype)
        CHANGES[name](task.student)
        yield name, task, opt
    for name in online_dict:
        if not names or name in names:
            yield name, *online(name, dtype)


def with_a_layer_that_is_not_used(student: Any) -> None:
    student.unused = torch.nn.Linear(3, 3)


def with_timms_norm(student: Any) -> None:
    student.bn1 = importlib.import_module("timm.layers").BatchNormAct2d(
        len(student.bn1.weight), act_layer="silu", inplace=False
    )


CHANGES = {"unused": with_a_layer_that_is_not_used, "timm": with_timms_norm}
"""What is asked of a student's network, by the names under which that is done."""


def outcomes(folder: Path, dtype: torch.dtype, names: Sequence[str]) -> dict[str, Any]:
    """``{case: (weights, scores)}`` after 6 steps in float64 or after the first in float32."""
    made = {}
    epochs, steps = (EPOCHS, STEPS) if dtype == torch.float64 else (1, 1)
    for name, task, opt in cases(dtype, names):
        task.trained.to(dtype)
        opt.epochs, opt.batch_size, opt.accumulate, opt.sync_bn, opt.lr_decay_epochs = epochs, BATCH, 1, True, [1]
        if dtype == torch.float32:
            opt.optimizer = "sgd"  # Adam's first step is the sign of the gradient, even where that is rounding only
        run = RunFolder(folder / name.replace(" ", "-"))
        distributed.from_first(lambda run=run: run.open({}, overwrite=True))  # type: ignore[misc]
        fit = Fit(
            task=task,
            train=Train(dtype, steps, task.method.views if name in online_dict else 1),
            validation=None,
            test=Test(dtype),
            opt=opt,
            run=run,
            device=torch.device("cpu"),
            precision="fp32",
            state=None,
            learning_rate=0.01,
            about={"arch": name},
        )
        result = fit()
        run.close()
        weights = {key: value.clone() for key, value in task.trained.state_dict().items()}
        made[name] = weights, {key: value for key, value in result["last"].items() if key.startswith("test_")}
    return made


def main(folder: Path, names: Sequence[str]) -> None:
    """Write ``{type: {case: (weights, scores)}}``."""
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    single = names or (() if all_asked() else SINGLE)
    made = {str(dtype): outcomes(folder, dtype, of) for dtype, of in ((torch.float64, names), (torch.float32, single))}
    if distributed.is_first():
        torch.save(made, folder / "outcomes.pth")
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
