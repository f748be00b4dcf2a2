#!/usr/bin/env python3
"""Train one network with cross-entropy: a teacher, or a student's baseline.

python train_teacher.py --model resnet32x4 --dataset cifar100 --trial 0
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dataset import dataset_dict, get_loaders, info_of
from helper.batch import Batch, When
from helper.kl import full_precision
from helper.label_loss import label_loss
from helper.meters import Scalars, accuracy
from helper.options import Options, one_of
from helper.recipe import add_recipe
from helper.script import run_script
from helper.session import Session
from helper.task import Task
from models import model_dict


class CrossEntropy(Task):
    """One network and the labels."""

    def __init__(self, network: nn.Module, smoothing: float = 0.0) -> None:
        self.trained, self.smoothing = nn.ModuleDict({"network": network}), smoothing

    def step(self, batch: Batch, when: When) -> Scalars:
        logits = full_precision(self.trained["network"](batch.images))
        return {"loss": label_loss(logits, batch, smoothing=self.smoothing), "accuracy": accuracy(logits, batch.target)}


def options() -> Options:
    """The command line."""
    parser = Options("Train one network with cross-entropy: a teacher, or a student's baseline.")
    add = parser.section("network")
    add("--model", type=one_of("--model", model_dict), default="resnet32x4", help="any name of models.model_dict")
    add("--pretrained", action="store_true", help="start from the published weights, of torchvision/…, timm/… and hf/…")
    add_recipe(parser, dataset_dict, nesterov_help="Nesterov momentum (the published teachers train without)")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Train, or evaluate, as the command line says."""
    parser = options()
    opt = parser.parse(arguments)
    session = Session(opt, model_dict, get_loaders, info_of)
    network = session.build(opt.model, pretrained=opt.pretrained)
    if opt.evaluate:
        session.print_evaluation(network, opt.model, opt.evaluate)
        return
    name = [
        model_dict.run_name(opt.model),
        session.dataset,
        *parser.changed(opt, leave_out=("model", "dataset", "trial")),
    ]
    run = session.run_folder("teachers", [*name, f"trial={opt.trial}"])
    if run is not None:
        session.compile(network)
        session.train(run, CrossEntropy(network, opt.label_smoothing), opt.model)


if __name__ == "__main__":
    run_script(main)
