"""What several test files share: nothing of a person's, one thread per worker, and a run that takes seconds."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helper import checkpoint
from helper.stopping import SIGNALS, signals
from models import model_dict

# What somebody wrote into setting.py is theirs: the tests have teachers of their own, none of which is there.
SETTING = ModuleType("setting")
SETTING.TEACHERS = {  # type: ignore[attr-defined]
    "cifar100": [("resnet32x4", f"save/teachers/resnet32x4-cifar100-trial={k}/last.pth") for k in range(3)],
    "digits": [("resnet14", f"save/teachers/resnet14-digits-epochs=8-trial={k}/last.pth") for k in range(3)],
}
sys.modules["setting"] = SETTING

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # started in the background by a shell, which all children inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers with all threads each would fight for the cores
    torch.set_num_threads(1)

HANDLERS = {number: signal.getsignal(number) for number in SIGNALS}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--faults``: the full form of tests/faults; ``--all``: products where ``sums`` takes sums."""
    parser.addoption("--faults", action="store_true", help="try every fault of tests/faults many times")
    parser.addoption(
        "--all", action="store_true", help="test every loss under every weighting and the like, not some of the pairs"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Say so to ``sums.all_asked``, which is called while tests are collected."""
    if config.getoption("--all"):
        os.environ["ALL_PAIRS"] = "1"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of images is not the user's."""
    monkeypatch.setattr("dataset.checking.cache_folder", lambda: tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(autouse=True)
def handlers_of_signals() -> Iterator[None]:
    """Scripts that are called in this process, in fixtures too, set their own and leave them."""
    restore_handlers()
    yield
    restore_handlers()


def restore_handlers() -> None:
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    signals.received = None


@pytest.fixture(scope="session")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with no ``save``, ``data`` or ``results`` in it."""
    return tmp_path_factory.mktemp("nowhere")


@pytest.fixture(autouse=True)
def _away_from_runs(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lead to nothing that a person has made."""
    monkeypatch.chdir(nowhere)


@pytest.fixture
def loss_options() -> Callable[..., argparse.Namespace]:
    """The options that ``train_student.Distillation`` reads; keyword arguments replace the defaults."""

    def make(**changes: object) -> argparse.Namespace:
        opt = argparse.Namespace(gamma=1.0, alpha=1.0, beta=1.0, kd_T=4.0, kd_scale="released", distill_decay=False)
        opt = argparse.Namespace(**vars(opt), feat_start_epoch=1, feat_stop_epoch=0, epochs=10, label_smoothing=0.0)
        assert changes.keys() <= vars(opt).keys()
        return argparse.Namespace(**{**vars(opt), **changes})

    return make


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Arguments of ``train_student.main`` for one epoch on the digits under two untrained teachers."""
    torch.manual_seed(0)
    for k in range(2):
        network = model_dict["resnet8"](num_classes=10)
        checkpoint.save({"model": network.state_dict(), "arch": "resnet8"}, tmp_path / f"teacher{k}.pth")
    teachers = [str(tmp_path / f"teacher{k}.pth") for k in range(2)]
    run = ["--model_s", "resnet8", "--dataset", "digits", "--epochs", "1", "--batch_size", "256", "--device", "cpu"]
    return [*run, "--save_dir", str(tmp_path / "save"), "--teachers", *teachers]
