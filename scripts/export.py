"""Write the network that a run is about, alone: without peers, gates and adapters, for use outside this collection.

python -m scripts.export save/online/OKDDip-resnet32-cifar100-trial=0 --format onnx
python -m scripts.export save/online/BOC-resnet20-cifar100-trial=0 --student 3

``torch`` is a program of ``torch.export`` (read with ``torch.export.load(file).module()``), ``onnx`` needs the packages
onnx, onnxscript and onnxruntime. Either takes images ``[B, 3, H, W]`` of any number, normalised as in training, and
returns logits ``[B, C]``; both are read again and compared with the trained network. Either says how it wants its
images and what its classes are called: in ``about.json`` among the program's extra files, in the graph's metadata as
JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import train_online
import train_student
from dataset import info_of
from helper import checkpoint
from helper.average import load_evaluated
from helper.cost import parameter_count
from helper.errors import UsageError
from helper.names import local
from helper.options import Parser, natural
from helper.run_folder import write_atomically
from helper.script import run_script
from helper.weights import HEADS
from models import StagedModel, model_dict, programs
from scripts.outputs import require_no_folder
from scripts.rebuilding import add_arch, of_one_run, require_asked

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit."""

LAYOUT = "NCHW, RGB, (value / 255 - mean) / std"
"""Of the images that an exported network takes."""

ABOUT = ("classes", "image_size", "mean", "std")
"""What a checkpoint says of the images; those of earlier versions do not."""


class Ensemble(nn.Module):
    """The peers' joint prediction: images ``[B, 3, H, W]`` → logits ``[B, C]``."""

    def __init__(self, task: train_online.PeerTraining) -> None:
        super().__init__()
        self.peers, self.method = task.used, task.method
        self.peers.networks = nn.ModuleList(alone(self.peers.networks))

    def forward(self, images: Tensor) -> Tensor:
        return self.method.predictions(self.peers(images))[self.method.ensemble]


def alone(networks: Iterable[Any]) -> list[nn.Module]:
    """Networks of ours as exporters take them."""
    return [each.alone() for each in networks]


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
    add_arch(parser)
    parser.add_argument("--out", type=Path, default=None, help="the file; beside the checkpoint, unless given")
    return parser


def read_run(run: Path, which: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options and the checkpoint of a run.

    Raises:
        UsageError: the folder holds none, or they are damaged.
    """
    try:
        parameters = json.loads((run / "parameters.json").read_text(encoding="utf-8"))
        state = checkpoint.load(run / f"{which}.pth")
    except (OSError, ValueError, checkpoint.Damaged) as error:
        raise UsageError(f"{run}: no run with parameters.json and {which}.pth ({error})") from None
    if not isinstance(parameters, dict):
        raise UsageError(f"{run / 'parameters.json'} is damaged, it is no JSON object")
    return parameters, state


def rebuild_peers(run: Path, state: dict[str, Any], example: Tensor) -> train_online.PeerTraining:
    """Peers and method of an online run, as it was evaluated; ``example`` shows the images' size.

    Raises:
        UsageError: its parameters.json is not that of its checkpoint.
    """
    parser = train_online.options()
    opt, recipe = train_online.parse(parser, ["--config", str(run / "parameters.json")])
    if opt.model != state["arch"]:
        raise UsageError(f"{run}: parameters.json says that the network is {opt.model}, the checkpoint {state['arch']}")
    method = train_online.make_method(parser, opt, recipe)
    peers = method.make_peers(partial(model_dict[opt.model], num_classes=state["num_classes"]))
    task = train_online.PeerTraining(peers, method, example, recipe)
    with of_one_run(run):
        load_evaluated(task.trained, state)
    return task


def build_network(arch: str, num_classes: int) -> StagedModel:
    """A network of any of the collection's architectures."""
    return model_dict[arch](num_classes=num_classes)


def chosen_network(opt: argparse.Namespace, state: dict[str, Any], online: bool, example: Tensor) -> nn.Module:
    """The network to write, in evaluation mode.

    Raises:
        UsageError: the run has no such peer, or its weights are not those of ``--arch``.
    """
    if online:
        return chosen_peers(opt, state, example)
    if opt.student is not None or opt.ensemble:
        raise UsageError(f"--student, --ensemble: {opt.run} trained a single network")
    if state.get("answers") == HEADS:
        return through_heads(opt, state, example)
    arch = opt.arch[0] if opt.arch else state["arch"]
    require_asked(opt.run, opt.arch, [arch])
    network = build_network(arch, state["num_classes"])
    try:
        network.load_state_dict(state["model"])
    except RuntimeError:
        raise UsageError(f"{opt.run}: its weights are of {state['arch']} and do not fit {arch} as it is") from None
    return network.eval().alone()


def chosen_peers(opt: argparse.Namespace, state: dict[str, Any], example: Tensor) -> nn.Module:
    """Of an online run.

    Raises:
        UsageError: it has no such peer, or ``--arch`` names another network.
    """
    if others := ", ".join(name for name in opt.arch if name != state["arch"]):
        raise UsageError(f"--arch: {others}, but the peers of {opt.run} are {state['arch']}")
    require_asked(opt.run, opt.arch, [state["arch"]])
    task = rebuild_peers(opt.run, state, example)
    task.trained.eval()
    if opt.ensemble:
        return Ensemble(task).eval()
    if opt.student is None:
        return alone([task.network])[0]
    if opt.student >= len(task.used):
        raise UsageError(f"--student, --branch: the run has peers 0 to {len(task.used) - 1}, got {opt.student}")
    return alone(task.used.networks)[opt.student]


def through_heads(opt: argparse.Namespace, state: dict[str, Any], example: Tensor) -> nn.Module:
    """A student that answers through its teachers' classifiers."""
    parser = train_student.options()
    run = parser.parse(["--config", str(opt.run / "parameters.json")])
    require_asked(opt.run, opt.arch, [state["arch"], *train_student.archs_of_teachers(run)])
    build = partial(build_network, num_classes=state["num_classes"])
    return train_student.answering(parser, run, state, build, example, str(opt.run)).alone()


def about_images(opt: argparse.Namespace, parameters: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """``ABOUT`` of the run's images, and their ``layout``: as the checkpoint says, else from the dataset.

    Raises:
        UsageError: the checkpoint does not say, and the dataset is not here.
    """
    about = {name: state[name] for name in ABOUT if name in state}
    if missing := ", ".join(name for name in ABOUT if name not in state):
        source = f"--dataset {parameters['dataset']}"
        try:
            info = info_of(parameters["dataset"], Path(local(parameters["data_dir"])))
        except UsageError as error:
            raise UsageError(f"{opt.run}: its checkpoint does not say {missing}; asking {source}: {error}") from None
        print(f"{opt.run}: its checkpoint, of an earlier version, does not say {missing}; taken from {source}")
        about = {name: getattr(info, name) for name in ABOUT} | about
    return {**about, "layout": LAYOUT + f", {programs.GREY}" * (state.get("channels") == 1)}


def require_python(network: nn.Module, run: Path) -> None:
    """UsageError where a part of the network is TorchScript, which cannot be exported a second time."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise UsageError(
            f"{run}: its network is TorchScript, which cannot be exported again; let its file return it without "
            "torch.jit.script or torch.jit.trace, or write it with torch.jit.save"
        )


def torch_program(
    network: nn.Module, example: Tensor, about: dict[str, Any]
) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """A ``torch.export`` program, and what is read back of it."""
    file, extra = io.BytesIO(), {programs.ABOUT: json.dumps(about)}
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, file, extra_files=extra)
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


def onnx_graph(network: nn.Module, example: Tensor, about: dict[str, Any]) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """An ONNX graph with input ``images`` and output ``logits``, and what onnxruntime reads back of it.

    Raises:
        UsageError: a package is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--format onnx: needs {', '.join(missing)}; pip install {' '.join(missing)}")
    import onnx
    import onnxruntime

    program: Any = torch.onnx.export(
        network,
        (example,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    graph = program.model_proto
    onnx.helper.set_model_props(graph, {name: json.dumps(value) for name, value in about.items()})
    content = graph.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


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
        difference = ((written(images) - expected).abs().max() / expected.abs().max()).item()
        if not difference <= TOLERANCE:  # nor NaN
            raise UsageError(
                f"the written network's logits differ from the trained one's by {difference:.1e} of the largest"
            )
        worst = max(worst, difference)
    return worst


FORMATS = {"torch": (torch_program, ".pt2"), "onnx": (onnx_graph, ".onnx")}


def main(arguments: Sequence[str]) -> None:
    """Write one network and check it."""
    opt = options().parse_args(arguments)
    if opt.out is not None:
        require_no_folder("--out", opt.out)
    parameters, state = read_run(opt.run, opt.checkpoint)
    about = about_images(opt, parameters, state)
    example = torch.zeros(2, 3, about["image_size"], about["image_size"])
    network = chosen_network(opt, state, "method" in parameters, example)
    require_python(network, opt.run)
    convert, suffix = FORMATS[opt.format]
    name = "ensemble" if opt.ensemble else "network" if opt.student is None else f"peer_{opt.student}"
    path = opt.out or opt.run / f"{opt.checkpoint}_{name}{suffix}"
    content, written = convert(network, example, about)
    worst = check_outputs(network, written, example)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"--out: {path} cannot be written: {error.strerror}") from None
    print(f"{path}: {parameter_count(network):,} parameters; logits differ by {worst:.0e} of the largest")


if __name__ == "__main__":
    run_script(main)
