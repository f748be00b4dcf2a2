"""What README.md and docs/ say: their examples run, their commands are accepted, names, files and links exist."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkout import ROOT, examples, own_files, own_names, pages

import train_online
import train_student
import train_teacher
from distiller_zoo import Pair, distill_dict
from ensemble import TeacherLosses, ensemble_dict, weigh
from helper import optimisation
from helper.batch import When
from models import model_dict
from online import Outputs, online_dict

README = (ROOT / "README.md").read_text()
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in pages()}
BLOCKS = [block for text in TEXTS.values() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
EXAMPLES = examples()
OWN_FILES = [block for block in BLOCKS if "def net(num_classes)" in block or "def vit(num_classes)" in block]
"""Those that are a person's network, see docs/your-network.md."""
(BELOW,) = [block for block in BLOCKS if "schedule_dict.register" in block]
"""The example that is no file of its own, but belongs below the others in helper/optimisation.py."""

REGISTRIES = (
    *(distill_dict, ensemble_dict, model_dict, online_dict),
    *(optimisation.optimizer_dict, optimisation.schedule_dict),
)
each_page = pytest.mark.parametrize("page", TEXTS)


@pytest.fixture
def _added() -> Iterator[None]:
    """All examples are registered, whether or not somebody has followed the pages before; take that back."""
    before = {id(registry): registry._entries for registry in REGISTRIES}
    written = "".join(BLOCKS)
    for registry in REGISTRIES:
        registry._entries = {name: entry for name, entry in registry.items() if f'register("{name}")' not in written}
    for name, source in EXAMPLES.items():
        exec(compile(source, name, "exec"), {"__name__": "page"})
    exec(compile(BELOW, "below", "exec"), vars(optimisation).copy())
    yield
    for registry in REGISTRIES:
        registry._entries = before[id(registry)]


def test_every_block_of_python_is_tested() -> None:
    """As a worked example here, or with an exported network in test_export.py."""
    assert [
        block
        for block in BLOCKS
        if block not in (*EXAMPLES.values(), *OWN_FILES, BELOW) and "photograph.jpg" not in block
    ] == []
    assert {name.split("/")[0] for name in EXAMPLES} == {"distiller_zoo", "ensemble", "models", "online"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_that_are_files_too_are_those_files(name: str) -> None:
    """Those that are trained under several processes and resumed, see tests/cli/test_additions.py."""
    file = ROOT / "tests" / "additions" / name
    assert not file.exists() or EXAMPLES[name] == file.read_text()


@pytest.mark.usefixtures("_added")
def test_example_of_a_weighting_method() -> None:
    opt_parser = train_student.options()
    opt = opt_parser.parse(["--ensemble_method", "SOFTMAX_LOSS", "--sharpness", "0.5"])
    method = ensemble_dict["SOFTMAX_LOSS"](**opt_parser.hyperparameters(opt, "ensemble_method"))
    losses = torch.tensor([[1.0, 2.0], [1.5, 1.0]])
    zeros = torch.zeros(2, 2, 3)
    teachers = TeacherLosses(losses, torch.zeros(2, dtype=torch.long), "logit", lambda: zeros, lambda: zeros[:, 0])
    torch.testing.assert_close(weigh(method, teachers, "released"), (-2 * losses).softmax(0))


@pytest.mark.usefixtures("_added")
def test_example_of_a_distillation_loss() -> None:
    loss = distill_dict["attention"](Pair([(8, 8, 8), (8,)], [(16, 4, 4), (16,)]))
    student = torch.randn(5, 8, 8, 8, requires_grad=True)
    values = loss.distance(loss.adapt(student), torch.randn(5, 16, 4, 4))
    values.sum().backward()
    assert values.shape == (5,)
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.usefixtures("_added")
def test_example_of_a_network() -> None:
    network = model_dict["tinynet"](num_classes=7).eval()
    features, logits = network(torch.randn(2, 3, 32, 32), is_feat=True)
    assert [tuple(feature.shape[1:]) for feature in features] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)]
    torch.testing.assert_close(network.classify(features[-2]), logits)


@pytest.mark.usefixtures("_added")
def test_example_of_an_online_method() -> None:
    method = online_dict["BEST_PEER"](num_branches=2)
    target = torch.arange(4)
    logits = torch.stack([torch.eye(4) * 9, torch.randn(4, 4)]).requires_grad_()
    losses = method.losses(Outputs(logits, (), (), None), target)
    assert losses["kd"][0] < 1e-4 < losses["kd"][1]
    losses["kd"][1].backward()
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert train_online.options().parse(["--method", "BEST_PEER"]).num_branches == 3


@pytest.mark.usefixtures("_added")
def test_example_of_a_schedule_and_an_optimizer() -> None:
    opt = train_student.options().parse(["--lr_schedule", "linear", "--optimizer", "radam", "--warmup_epochs", "1"])
    factor = optimisation.schedule_of(argparse.Namespace(lr_schedule="linear", warmup_epochs=0.0), [])
    assert [factor(When(epoch, 4)) for epoch in (1, 2, 3, 4)] == [1, 0.75, 0.5, 0.25]
    network = torch.nn.Linear(2, 1)
    groups = optimisation.parameter_groups(torch.nn.ModuleDict({"network": network}), 0.1, {}, {})
    optimizer = optimisation.optimizer_dict[opt.optimizer](groups, opt)
    before = network.weight.detach().clone()
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(network.weight, before)


@pytest.mark.parametrize("block", OWN_FILES)
def test_examples_of_a_persons_network(block: str, tmp_path: Path) -> None:
    if "timm" in block:
        pytest.importorskip("timm")
    (tmp_path / "my_net.py").write_text(block)
    (name,) = re.findall(r"def (\w+)", block)
    network = model_dict[f"{tmp_path}/my_net.py:{name}"](num_classes=7).eval()
    features, logits = network(torch.randn(2, 3, 32, 32), is_feat=True)
    torch.testing.assert_close(network.classify(features[-2]), logits)


def commands() -> list[str]:
    """Every training command of the pages, without shell variables, globs and placeholders."""
    joined = "\n".join(TEXTS.values()).replace("\\\n", " ")
    found = re.findall(r"\b(?:python|torchrun|sbatch)\b[^`\n|]*?\b(train_\w+\.py[^`#\n;|]*)", joined)
    return [each for each in found if not re.search(r"[$*\[]|…|\b(?:LOSS|METHOD)\b|--help", each)]


@pytest.mark.usefixtures("_added")
@pytest.mark.parametrize("command", commands())
def test_commands_are_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in re.findall(r" (timm)/", command):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(OWN_FILES[0])
    script, *arguments = shlex.split(command)
    scripts = {"train_teacher.py": train_teacher, "train_student.py": train_student, "train_online.py": train_online}
    scripts[script].options().parse(arguments)


@each_page
def test_scripts_that_are_named_exist(page: str) -> None:
    modules = re.findall(r"python -m (scripts\.\w+)", TEXTS[page])
    files = re.findall(r"(?<![\w/.])((?:scripts|\.ci)/[\w/.]*\w|tests/\w+/\w+\.py)", TEXTS[page])
    for name in (*(f"{module.replace('.', '/')}.py" for module in modules), *files):
        assert (ROOT / name).exists(), name


@pytest.mark.skipif(not own_files(), reason="not a git checkout: whose methods these are is not known")
def test_names_in_the_method_tables_are_the_registered_ones() -> None:
    tables = re.findall(r"^\| `(\w+)` \|", README.split("## Methods\n")[1].split("\n## ")[0], re.MULTILINE)
    assert set(tables) == own_names(distill_dict) | own_names(ensemble_dict) | own_names(online_dict)


def slugs(text: str) -> set[str]:
    """What a link can lead to within a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [path for path in own_files() if path.suffix == ".md"], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        name, _, place = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert any(file.is_relative_to(target) for file in (*own_files(), ROOT / "setting.py")), link
        assert not place or place in slugs(target.read_text()), link


@pytest.mark.skipif(not own_files(), reason="not a git checkout: whose pages these are is not known")
def test_readme_leads_to_every_page() -> None:
    assert {path for path in own_files() if path.parent == ROOT / "docs"} <= set(pages())


def test_the_version_is_said_alike() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    (changes, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version == changes == cited
