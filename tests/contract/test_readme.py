"""What README.md says: its worked examples run, its commands are accepted, its names exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkout import own_files, own_names

import train_online
import train_student
import train_teacher
from distiller_zoo import distill_dict
from ensemble import TeacherLosses, ensemble_dict, weigh
from models import model_dict
from online import Outputs, online_dict

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def _forget() -> Iterator[None]:
    """Examples register themselves, if nobody has followed the README yet; take that back."""
    registries = (distill_dict, ensemble_dict, model_dict, online_dict)
    before = {id(registry): registry._entries for registry in registries}
    for registry in registries:
        registry._entries = {name: entry for name, entry in registry.items() if f'register("{name}")' not in README}
    yield
    for registry in registries:
        registry._entries = before[id(registry)]  # type: ignore[assignment]


def example(name: str) -> None:
    (source,) = [source for source in EXAMPLES if f'register("{name}")' in source]
    exec(compile(source, f"README.md: {name}", "exec"), {"__name__": "readme"})


@pytest.mark.usefixtures("_forget")
def test_example_of_a_weighting_method() -> None:
    example("SOFTMAX_LOSS")
    opt_parser = train_student.options()
    opt = opt_parser.parse(["--ensemble_method", "SOFTMAX_LOSS", "--sharpness", "0.5"])
    method = ensemble_dict["SOFTMAX_LOSS"](**opt_parser.hyperparameters(opt, "ensemble_method"))
    losses = torch.tensor([[1.0, 2.0], [1.5, 1.0]])
    zeros = torch.zeros(2, 2, 3)
    teachers = TeacherLosses(losses, torch.zeros(2, dtype=torch.long), "logit", lambda: zeros, lambda: zeros[:, 0])
    torch.testing.assert_close(weigh(method, teachers, "released"), (-2 * losses).softmax(0))


@pytest.mark.usefixtures("_forget")
def test_example_of_a_distillation_loss() -> None:
    example("attention")
    loss = distill_dict["attention"]([(8, 8, 8), (8,)], [(16, 4, 4), (16,)])
    student = torch.randn(5, 8, 8, 8, requires_grad=True)
    values = loss(student, torch.randn(5, 16, 4, 4))
    values.sum().backward()
    assert values.shape == (5,)
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.usefixtures("_forget")
def test_example_of_a_network() -> None:
    example("tinynet")
    network = model_dict["tinynet"](num_classes=7).eval()
    features, logits = network(torch.randn(2, 3, 32, 32), is_feat=True)
    assert [tuple(feature.shape[1:]) for feature in features] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)]
    torch.testing.assert_close(network.classify(features[-2]), logits)


@pytest.mark.usefixtures("_forget")
def test_example_of_an_online_method() -> None:
    example("BEST_PEER")
    method = online_dict["BEST_PEER"](num_branches=2)
    target = torch.arange(4)
    logits = torch.stack([torch.eye(4) * 9, torch.randn(4, 4)]).requires_grad_()
    losses = method.losses(Outputs(logits, (), (), None), target)
    assert losses["kd"][0] < 1e-4 < losses["kd"][1]
    losses["kd"][1].backward()
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert train_online.options().parse(["--method", "BEST_PEER"]).num_branches == 3


def commands() -> list[str]:
    """Every training command of README.md and run.sh's usage, without shell variables and globs."""
    joined = README.replace("\\\n", " ")
    found = re.findall(r"python (train_\w+\.py[^`#\n;|]*)", joined)
    return [command for command in found if not re.search(r"[$*\[]|…|[A-Z]{4} |--help", command)]


@pytest.mark.parametrize("command", commands())
def test_commands_are_accepted(command: str) -> None:
    script, *arguments = shlex.split(command)
    scripts = {"train_teacher.py": train_teacher, "train_student.py": train_student, "train_online.py": train_online}
    parser = scripts[script].options()
    if "SOFTMAX_LOSS" not in command:
        parser.parse(arguments)


@pytest.mark.skipif(not own_files(), reason="not a git checkout: whose methods these are is not known")
def test_names_in_the_method_tables_are_the_registered_ones() -> None:
    tables = re.findall(r"^\| `(\w+)` \|", README.split("## Methods")[1].split("## Train")[0], re.MULTILINE)
    assert set(tables) == own_names(distill_dict) | own_names(ensemble_dict) | own_names(online_dict)
