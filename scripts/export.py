"""Write the network that a run is about, alone: without peers, gates and adapters, for use outside this collection.

python -m scripts.export save/online/OKDDip-resnet32-cifar100-trial=0 --format onnx
python -m scripts.export save/online/BOC-resnet20-cifar100-trial=0 --student 3

``torch`` is a program of ``torch.export`` (read with ``torch.export.load(file).module()``), ``onnx`` needs the packages
onnx, onnxscript and onnxruntime. Either takes images ``[B, 3, H, W]`` of any number, normalised as in training, and
returns logits ``[B, C]``; both are read again and compared with the trained network.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import train_online
from dataset import info_of
from helper import checkpoint
from helper.cost import parameter_count
from helper.errors import UsageError
from helper.names import local
from helper.options import natural
from helper.script import run_script
from models import model_dict

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit."""


class Ensemble(nn.Module):
    """The peers' joint prediction: images ``[B, 3, H, W]`` → logits ``[B, C]``."""

    def __init__(self, task: train_online.PeerTraining) -> None:
        super().__init__()
        self.peers, self.method = task.peers, task.method

    def forward(self, images: Tensor) -> Tensor:
        return self.method.predictions(self.peers(images))[self.method.ensemble]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def options() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder, save/…/<run>")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--student", "--branch", type=natural, help="the peer of this number, counted from 0")
    which.add_argument("--leader", action="store_true", help="the network used in the end (the default)")
    which.add_argument("--ensemble", action="store_true", help="all peers, and what combines them")
    parser.add_argument("--format", choices=("torch", "onnx"), default="torch")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="last", help="which epoch's weights")
    parser.add_argument("--out", type=Path, default=None, help="the file; beside the checkpoint, unless given")
    return parser


def read_run(run: Path, which: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options and the checkpoint of a run.

    Raises:
        UsageError: the folder holds none, or they are damaged.
    """
    try:
        parameters = json.loads((run / "parameters.json").read_text(encoding="utf-8"))
        return parameters, checkpoint.load(run / f"{which}.pth")
    except (OSError, ValueError, checkpoint.Damaged) as error:
        raise UsageError(f"{run}: no run with parameters.json and {which}.pth ({error})") from None


def rebuild_peers(run: Path, state: dict[str, Any], example: Tensor) -> train_online.PeerTraining:
    """Peers and method of an online run, with their weights; ``example`` shows the images' size."""
    parser = train_online.options()
    opt, recipe = train_online.parse(parser, ["--config", str(run / "parameters.json")])
    method = train_online.make_method(parser, opt, recipe)
    peers = method.make_peers(partial(model_dict[opt.model], num_classes=state["num_classes"]))
    task = train_online.PeerTraining(peers, method, example, opt.epochs)
    task.trained.load_state_dict(state["trained"])
    return task


def chosen_network(opt: argparse.Namespace, state: dict[str, Any], online: bool, example: Tensor) -> nn.Module:
    """The network to write, in evaluation mode.

    Raises:
        UsageError: the run has no such peer.
    """
    if not online:
        if opt.student is not None or opt.ensemble:
            raise UsageError(f"--student, --ensemble: {opt.run} trained a single network")
        network = model_dict[state["arch"]](num_classes=state["num_classes"])
        network.load_state_dict(state["model"])
        return network.eval()
    task = rebuild_peers(opt.run, state, example)
    task.trained.eval()
    if opt.ensemble:
        return Ensemble(task).eval()
    if opt.student is None:
        return task.network
    if opt.student >= len(task.peers):
        raise UsageError(f"--student: the run has peers 0 to {len(task.peers) - 1}, got {opt.student}")
    return task.peers.networks[opt.student]


def write_torch(network: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    """Write a ``torch.export`` program; returns what is read back."""
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), path)
    return torch.export.load(path).module()


def write_onnx(network: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    """Write an ONNX graph with input ``images`` and output ``logits``; returns what onnxruntime reads back.

    Raises:
        UsageError: a package is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--format onnx: needs {', '.join(missing)}; pip install {' '.join(missing)}")
    import onnxruntime

    torch.onnx.export(
        network,
        (example,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def check_outputs(network: nn.Module, written: Callable[[Tensor], Tensor], example: Tensor) -> float:
    """The largest relative difference between the trained and the written network, for batches of several sizes.

    Raises:
        UsageError: it is above ``TOLERANCE``.
    """
    worst = 0.0
    for batch in (1, 3, 8):
        images = torch.randn(batch, *example.shape[1:], generator=torch.Generator().manual_seed(batch))
        expected = network(images)
        worst = max(worst, ((written(images) - expected).abs().max() / expected.abs().max()).item())
    if not worst <= TOLERANCE:
        raise UsageError(f"the written network's logits differ from the trained one's by {worst:.1e} of the largest")
    return worst


WRITERS = {"torch": (write_torch, ".pt2"), "onnx": (write_onnx, ".onnx")}


def main(arguments: Sequence[str]) -> None:
    """Write one network and check it."""
    opt = options().parse_args(arguments)
    parameters, state = read_run(opt.run, opt.checkpoint)
    size = info_of(parameters["dataset"], Path(local(parameters["data_dir"]))).image_size
    example = torch.zeros(2, 3, size, size)
    network = chosen_network(opt, state, "method" in parameters, example)
    write, suffix = WRITERS[opt.format]
    name = "ensemble" if opt.ensemble else "network" if opt.student is None else f"peer_{opt.student}"
    path = opt.out or opt.run / f"{opt.checkpoint}_{name}{suffix}"
    worst = check_outputs(network, write(network, example, path), example)
    print(f"{path}: {parameter_count(network):,} parameters; logits differ by {worst:.0e} of the largest")


if __name__ == "__main__":
    run_script(main)
