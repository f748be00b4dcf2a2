#!/usr/bin/env python3
"""Train peers together, without a teacher: ``Σ_name weight(name)·Σ losses(name)``.

python train_online.py --method OKDDip --model resnet32 --dataset cifar100
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset import dataset_dict, get_loaders, info_of
from helper.batch import Batch, When
from helper.cost import mac_count, parameter_count
from helper.errors import UsageError
from helper.meters import Scalars, accuracy
from helper.options import Options, one_of
from helper.recipe import PUBLISHED, Recipe, add_recipe
from helper.saying import say
from helper.script import run_script
from helper.session import Session
from helper.task import Task
from helper.teachers.files import TeacherFile, fingerprint
from helper.weights import located
from models import model_dict
from online import OnlineMethod, Peers, averaging, online_dict


class PeerTraining(Task):
    """The objective of peers that learn from the labels and from each other.

    Args:
        peers: m networks.
        method: what they learn from each other; its own modules are attached here.
        example: images ``[B, 3, H, W]`` that show the shapes of maps.
        recipe: the method's published one.
    """

    keep_all = True

    def __init__(self, peers: Peers, method: OnlineMethod, example: torch.Tensor, recipe: Recipe = PUBLISHED) -> None:
        self.peers, self.method, self.recipe = peers, method, recipe
        with torch.no_grad():
            method.attach(peers.eval()(example))
        method.to(example.device)
        self.averaged = None if method.average_decay is None else copy.deepcopy(peers).requires_grad_(False)
        self.used = peers if self.averaged is None else self.averaged  # in the end
        self.network = self.used.networks[method.inference]
        self.trained = nn.ModuleDict({"network": self.network, "peers": peers, "method": method})
        if self.averaged is not None:
            self.trained["averaged"] = self.averaged
        self.rates = {} if method.rate == 1 else {"method": method.rate}
        self.decays = {} if method.weight_decay is None else {"method": method.weight_decay}

    @property
    def running(self) -> list[Peers]:
        """What runs in a training step."""
        return [self.peers] if self.averaged is None else [self.peers, self.averaged]

    def step(self, batch: Batch, when: When) -> Scalars:
        """A batch → ``loss`` and its parts, each a batch mean summed over the peers."""
        target, images = batch.target, (batch.images, *batch.again) if batch.again else batch.images
        outputs = self.peers(images, self.method.trunk_gradient)
        if self.averaged is not None:
            with torch.no_grad():
                outputs.averaged = self.averaged(images).logits
            self.done = (when.epoch - 1) * when.steps + when.step - 1
        losses = {name: each.sum() for name, each in self.method.losses(outputs, target).items()}
        if batch.other is not None and batch.share is not None:  # what does not look at the labels, stays what it is
            others = {name: each.sum() for name, each in self.method.losses(outputs, batch.other).items()}
            losses = {name: others[name].lerp(each, batch.share[0].to(each.dtype)) for name, each in losses.items()}
        weights = self.method.weights(when.epoch, self.begun_for or when.epochs)
        loss = torch.stack([weights[name] * part for name, part in losses.items()]).sum()
        parts = {f"loss_{name}": part for name, part in losses.items()}
        return {"loss": loss, **parts, "accuracy": accuracy(outputs.logits[self.method.inference], target)}

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.method.predictions(self.used(images))

    def after_step(self) -> None:
        if self.averaged is not None and self.method.average_decay is not None:
            self.averaged.follow(self.peers, averaging(self.method.average_decay, self.done))


def options() -> Options:
    """The command line; the defaults of the recipe are those of the default method."""
    parser = Options("Train peers together, without a teacher.")
    add = parser.section("network")
    add("--model", type=one_of("--model", model_dict), default="resnet32", help="any name of models.model_dict")
    add("--start", type=Path, default=None, metavar="CHECKPOINT", help="what peer 0 starts from, such as a teacher's")
    parser.add_methods("method", "method", online_dict, "OKDDip", "what the peers learn from each other")
    its = "as the method's recipe has it unless given"
    add_recipe(parser, dataset_dict, f"Nesterov momentum, {its}", f"the first one, {its}")
    parser.set_defaults(**online_dict["OKDDip"].recipe.defaults())
    return parser


def parse(parser: Options, arguments: Sequence[str]) -> tuple[argparse.Namespace, Recipe]:
    """The options, with the chosen method's published recipe for defaults, and that recipe."""
    first = parser.read(arguments)
    recipe = online_dict[first.method].published(first.model, first.dataset)
    parser.set_defaults(**recipe.defaults())
    return parser.parse(arguments), recipe


def make_method(parser: Options, opt: argparse.Namespace, recipe: Recipe) -> OnlineMethod:
    """The chosen method; what the user leaves open comes from the recipe.

    Raises:
        UsageError: its hyperparameters make no sense.
    """
    given = parser.hyperparameters(opt, "method")
    settings = {name: value for name, value in recipe.settings.items() if given[name] is None}
    method = online_dict[opt.method](**{**given, **settings})
    method.require_valid()
    if opt.ema and method.average_decay is not None:
        raise UsageError(f"--ema: {opt.ema:g}, but the peers of {opt.method} have averages of their own; leave it out")
    method.label_smoothing = opt.label_smoothing
    return method


def costs(peers: Peers, example: torch.Tensor) -> list[dict[str, Any]]:
    """Number, parameters, multiply-accumulates per image and compression of each peer, against the whole network."""
    counts = [parameter_count(network) for network in peers.networks]
    whole = peers.whole or counts[0]
    return [
        {"number": j, "parameters": count, "macs": mac_count(network, example), "compression": whole / count}
        for j, network, count in zip(peers.numbers, peers.networks, counts, strict=True)
    ]


def describe_peers(result: Mapping[str, Any]) -> list[str]:
    """A line for each peer: its last test accuracy and what it costs."""
    return [
        f"peer {cost['number']}: {result['last'].get(f'test_peer_{j}_accuracy', float('nan')):.2f} %  "
        f"{cost['parameters']:,} parameters  {cost['macs'] / 1e6:.1f} million MACs  "
        f"compression {cost['compression']:.2f}"
        for j, cost in enumerate(result["peers"])
        if f"test_peer_{j}_accuracy" in result["last"]
    ]


def main(arguments: Sequence[str]) -> None:
    """Train, or evaluate, as the command line says."""
    parser = options()
    opt, recipe = parse(parser, arguments)
    method = make_method(parser, opt, recipe)
    session = Session(opt, model_dict, partial(get_loaders, views=method.views), info_of)
    peers = method.make_peers(lambda widths=None: session.build(opt.model, widths=widths))
    if opt.evaluate:
        session.print_evaluation(peers.networks[method.inference], opt.model, opt.evaluate)
        return
    network = model_dict.run_name(opt.model)
    changed = parser.changed(opt, leave_out=("model", "dataset", "method", "trial", "start"))
    if opt.start:
        changed.append(f"start={fingerprint([TeacherFile(network, *located(opt.start))])}")
    run = session.run_folder("online", [opt.method, network, session.dataset, *changed, f"trial={opt.trial}"])
    if run is None:
        return
    if opt.start:
        session.load(peers.networks[0], opt.start, opt.model, "--start")
    task = PeerTraining(peers, method, session.example(), recipe)
    task.notes = {
        "method": opt.method,
        "peers": costs(peers, session.example()),
        "parameters": parameter_count(nn.ModuleList([peers, method])),
    }
    session.compile(*task.running)
    result = session.train(run, task, opt.model)
    for line in describe_peers(result):
        say(f"{run.path}: {line}")


if __name__ == "__main__":
    run_script(main)
