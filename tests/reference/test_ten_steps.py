"""The learning dynamics against ten steps of the authors' code: losses, optimizer, schedule, ramp-up, what is detached.

``tests/data/ten_steps.json`` holds the losses that the released code gave in float64, each step in an epoch of its own,
so that the learning rate drops, ramps end and losses on maps begin between them; last, the cross-entropy of the trained
network in evaluation mode. Its weights were those of ``golden.fill`` under our names, its batches those of ``batches``.
What was mended in that code for it is said beside each record.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import fill
from torch import nn

import train_online
import train_student
import train_teacher
from dataset import info_of
from ensemble import ensemble_dict
from helper.batch import Batch, When
from helper.loop import Fit
from helper.optimisation import set_rate
from helper.session import Session
from helper.task import Task
from helper.teachers.asked import Teachers
from helper.teachers.frozen import freeze
from models import model_dict

RECORDS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "ten_steps.json").read_text(encoding="utf-8")
)["records"]
STEPS, BATCH, CLASSES, TEACHERS = 10, 4, 100, 3
NO_IMAGES = SimpleNamespace(train=SimpleNamespace(labels=None), validation=None, test=None, notes=(), sizes="")
NO_IMAGES.test_name = NO_IMAGES.validation_name = "none"


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Whatever is built and drawn has double precision, as the recorded steps had."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batches(views: int = 1) -> list[Batch]:
    """Further views are the images, moved by so many times 4 pixels."""
    random = np.random.RandomState(0)
    images = torch.from_numpy(random.standard_normal((STEPS, BATCH, 3, 32, 32)))
    labels = torch.from_numpy(random.randint(CLASSES, size=(STEPS, BATCH)))
    again = [tuple(each.roll(4 * view, -1) for view in range(1, views)) for each in images]
    return [Batch(*each, again=others) for *each, others in zip(images, labels, again, strict=True)]


def session_of(opt: argparse.Namespace) -> Session:
    return Session(opt, model_dict, lambda *_, **__: NO_IMAGES, info_of)


def teacher(arguments: list[str]) -> Fit:
    opt = train_teacher.options().parse(arguments)
    session = session_of(opt)
    network = session.build(opt.model)
    fill(network)
    return fit_of(session, train_teacher.CrossEntropy(network), opt.model)


def student(arguments: list[str]) -> Fit:
    parser = train_student.options()
    opt = parser.parse(arguments)
    session = session_of(opt)
    networks = [session.build("resnet8") for _ in range(1 + TEACHERS)]
    for seed, network in enumerate(networks):
        fill(network, seed)
    teachers = Teachers([freeze(network, session.example(), session.precision) for network in networks[1:]])
    methods = [ensemble_dict[opt.ensemble_method](**parser.hyperparameters(opt, "ensemble_method")) for _ in range(2)]
    task = train_student.distillation(parser, opt, session, networks[0], teachers, methods)
    fill(nn.ModuleList(task.adapters))
    return fit_of(session, task, opt.model_s)


def online(arguments: list[str]) -> Fit:
    parser = train_online.options()
    opt, recipe = train_online.parse(parser, arguments)
    session, method = session_of(opt), train_online.make_method(parser, opt, recipe)
    peers = method.make_peers(lambda widths=None: session.build(opt.model, widths=widths))
    task = train_online.PeerTraining(peers, method, session.example(), recipe)
    fill(peers)
    fill(method)
    if task.averaged is not None:
        task.averaged.load_state_dict(peers.state_dict())
    return fit_of(session, task, opt.model)


def fit_of(session: Session, task: Task, arch: str) -> Fit:
    return session.fit(None, task, arch, None)  # type: ignore[arg-type]  # nothing is written


SCRIPTS = {"train_teacher": teacher, "train_student": student, "train_online": online}


@pytest.mark.parametrize("name", RECORDS)
def test_ten_steps(name: str) -> None:
    record = RECORDS[name]
    fit = SCRIPTS[record["script"]]([*record["arguments"], "--device", "cpu", "--precision", "fp32"])
    fit.task.trained.train()
    for number, (epoch, batch) in enumerate(zip(record["epochs"], batches(record.get("views", 1)), strict=True)):
        when = When(epoch, fit.opt.epochs)
        set_rate(fit.optimizer, fit.learning_rate * fit.schedule(when))
        scalars = fit.step(batch, when)
        losses = {part: value.item() for part, value in scalars.items() if part.startswith("loss")}
        recorded = {part: values[number] for part, values in record["parts"].items() if values[number] is not None}
        assert losses == pytest.approx(recorded, rel=1e-9, abs=0), f"step {number + 1}, in epoch {epoch}"
    fit.task.trained.eval()
    first = batches()[0]
    logits = next(iter(fit.task.predict(first.images).values()))
    assert F.cross_entropy(logits, first.target).item() == pytest.approx(record["evaluated"], rel=1e-9, abs=0)
