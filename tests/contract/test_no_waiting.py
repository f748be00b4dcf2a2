"""A training step never waits for the device: nothing in it reads a value back, whichever method is chosen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives import make_objective, pairs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distiller_zoo import distill_dict
from ensemble import min_norm
from helper.batch import Batch, When
from helper.meters import FirstBad, Means
from helper.task import Task
from helper.teachers.asked import Teachers
from helper.teachers.classes import Chosen, Known
from helper.teachers.conversion import Conversion
from helper.teachers.record import Eyes
from helper.update import Step
from models import model_dict
from online import online_dict
from train_online import PeerTraining

CLASSES, B = 7, 8
READS = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")
TORCH = str(Path(torch.__file__).parent)
# Operations that read values or shapes back from a GPU, or copy numbers of the host's to it.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero"}
PEERS = [
    (name, peers)
    for name, entry in online_dict.items()
    for peers in (entry.structures if "peers" in entry.__init__.__annotations__ else ("",))
]
each_pair = pytest.mark.parametrize(("distill", "name"), pairs())
each_online = pytest.mark.parametrize(("name", "peers"), PEERS)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
Make = Callable[..., argparse.Namespace]


class NoWaiting(TorchDispatchMode):
    """Refuses operations that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        picks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        assert name != "lift_fresh", "torch.tensor(…) waits for the device: use numbers of Python's, or a buffer"
        assert name not in WAITING, f"{func} waits for the device"
        assert not picks, f"{func} with a mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU: the solver for devices, and an error at whatever reads a value, except within torch itself."""
    monkeypatch.setattr(min_norm, "on_host", lambda gram: False)
    for name in READS:
        monkeypatch.setattr(Tensor, name, refused(name, getattr(Tensor, name)))
    with NoWaiting():
        yield
    monkeypatch.undo()


def refused(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def read(tensor: Tensor, *args: Any, **settings: Any) -> Any:
        caller = sys._getframe(1).f_code.co_filename
        assert caller.startswith(TORCH), f"{caller} reads a value with Tensor.{name}"
        return original(tensor, *args, **settings)

    return read


def distillation(distill: str, name: str, opt: argparse.Namespace, device: str = "cpu") -> Task:
    torch.manual_seed(0)
    student, *others = [model_dict["resnet8"](num_classes=CLASSES).to(device) for _ in range(4)]
    teachers = Teachers(others)
    return make_objective(distill, name, student, teachers, opt, batch(device).images)


def peer_training(name: str, peers: str, device: str = "cpu") -> Task:
    torch.manual_seed(0)
    method = online_dict[name](**({"peers": peers} if peers else {}))
    built = method.make_peers(lambda **config: model_dict["resnet8"](num_classes=CLASSES, **config).to(device))
    return PeerTraining(built, method, batch(device).images)


def batch(device: str) -> Batch:
    images = torch.randn(B, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(images.to(device), (torch.arange(B) % CLASSES).to(device), places=torch.arange(B, device=device))


def trainer(task: Task, device: str) -> Callable[[int], None]:
    """What the loop does at each step."""
    task.trained.train()
    forward = Step(task, torch.device(device), "bf16")
    optimizer = torch.optim.SGD(task.trained.parameters(), lr=0.01, momentum=0.9, fused=True)
    means, bad, data = Means(), FirstBad(), batch(device)

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        scalars = forward(data, When(5, 10))
        scalars["loss"].backward()
        optimizer.step()
        task.after_step()
        means.add(scalars, B)
        bad.look(scalars, number)

    return step


def steps_on_gpu(task: Task) -> None:
    """Two steps: the first makes the libraries' handles, the second must not wait."""
    step = trainer(task, "cuda")
    step(1)
    try:
        torch.cuda.set_sync_debug_mode("error")
        step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_pair
def test_student(distill: str, name: str, loss_options: Make, request: pytest.FixtureRequest) -> None:
    opt = loss_options(beta=0.0 if distill_dict[distill].on_logits() else 1.0)
    step = trainer(distillation(distill, name, opt), "cpu")
    request.getfixturevalue("no_reading")
    step(1)
    step(2)


def specialists(device: str) -> Teachers:
    """Of some classes each, one of some of its logits, who see the images in other ways."""
    torch.manual_seed(0)
    known = [(0, 2, 3), (1, 3, 4, 5)]
    networks = [model_dict["resnet8"](num_classes=each).to(device) for each in (3, 9)]
    shown = Eyes(0.5, 0.5, 16, "RGB").checked("x")
    wanted = [Eyes(0.4, size=24), Eyes(0.3, channels="BGR")]
    conversions = [Conversion(each.checked("x").over(shown), shown, torch.device(device)) for each in wanted]
    chosen = [networks[0], Chosen(networks[1].eval(), (8, 0, 3, 5))]
    return Teachers(chosen, conversions, Known(known, CLASSES, torch.device(device)))


@pytest.mark.parametrize("name", ["AVERAGE_LOSS", "AEKD", "EBKD", "CAMKD"])
def test_specialists_with_other_eyes(name: str, loss_options: Make, request: pytest.FixtureRequest) -> None:
    student = model_dict["resnet8"](num_classes=CLASSES)
    task = make_objective("inter", name, student, specialists("cpu"), loss_options(), batch("cpu").images)
    step = trainer(task, "cpu")
    request.getfixturevalue("no_reading")
    step(1)
    step(2)


@each_online
def test_peers(name: str, peers: str, request: pytest.FixtureRequest) -> None:
    step = trainer(peer_training(name, peers), "cpu")
    request.getfixturevalue("no_reading")
    step(1)
    step(2)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: 1 if x else 0,
        lambda x: float(x),
        lambda x: int(x),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
    ],
)
def test_a_read_is_noticed(read: Callable[[Tensor], object], no_reading: None) -> None:
    with pytest.raises(AssertionError, match="reads a value"):
        read(torch.ones(()))


@pytest.mark.parametrize("pick", [lambda x: x[x > 0], lambda x: x + torch.tensor(1.0), lambda x: x.unique()])
def test_a_waiting_operation_is_noticed(pick: Callable[[Tensor], Tensor], no_reading: None) -> None:
    with pytest.raises(AssertionError, match="waits for the device"):
        pick(torch.ones(3))


@needs_gpu
@each_pair
def test_student_on_gpu(distill: str, name: str, loss_options: Make) -> None:
    opt = loss_options(beta=0.0 if distill_dict[distill].on_logits() else 1.0)
    steps_on_gpu(distillation(distill, name, opt, "cuda"))


@needs_gpu
@each_online
def test_peers_on_gpu(name: str, peers: str) -> None:
    steps_on_gpu(peer_training(name, peers, "cuda"))
