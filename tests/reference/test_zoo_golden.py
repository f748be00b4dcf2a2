"""Losses of one student and one teacher against the authors' released code (``tests/data/losses_zoo.json``).

Inputs and parameters are made by the recipes that the file holds. Values, parts and gradients are compared in float64.
"""

from __future__ import annotations

import inspect
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distiller_zoo import Distiller, DistillKL, Pair, distill_dict
from distiller_zoo.reviewkd import context_loss
from helper.batch import Batch, When
from helper.seen import Observed, Seen

Case = dict[str, Any]
CASES: list[Case] = json.loads((Path(__file__).parents[1] / "data" / "losses_zoo.json").read_text())

# A constant in the file → the argument of the loss's constructor, where it is called otherwise or is not in the file.
ARGUMENTS: dict[str, dict[str, str]] = {
    "dkd": {"T": "kd_T", "alpha": "dkd_alpha", "beta": "dkd_beta"},
    "ls": {"T": "ls_T", "alpha": "dkd_alpha", "beta": "dkd_beta"},
    "dist": {"tau": "kd_T", "beta": "dist_beta", "gamma": "dist_gamma"},
    "nkd": {"temp": "nkd_T", "gamma": "nkd_gamma"},
    "rkd": {"w_d": "rkd_distance", "w_a": "rkd_angle"},
    "catkd": {"resolution": "cam_resolution"},
}
# More arguments of a case.
SETTINGS: dict[str, dict[str, Any]] = {"ls/dkd": {"ls_loss": "dkd"}}
# Parameters in the file → those of our module, by what their names begin with; "": all others.
NAMES: dict[str, dict[str, str]] = {
    "cc": {"student": "embed_student", "teacher": "embed_teacher"},
    "srrl": {"conv": "transfer.0", "bn": "transfer.1"},
    "vid": {"": "stages."},
    "ab": {"": "stages."},
    "reviewkd": {"": "levels."},
    "semckd": {f"{i}{j}": f"projections.{i}.{j}" for i in range(3) for j in range(3)},
    "crd": {"": "embed_"},
    "ft": {
        **{f"paraphraser.{n}.": f"{part}.{2 * (n % 3)}." for n, part in enumerate(3 * ["encoder"] + 3 * ["decoder"])},
        **{
            f"translator.{n}.{part}.": f"translator.{3 * n + k}."
            for n in range(3)
            for k, part in enumerate(("conv", "bn"))
        },
    },
    "ofd": {"": "connectors."},
    "simkd": {f"{n}.{part}.": f"embed.{n}.{place}." for n in range(3) for place, part in enumerate(("conv", "bn"))},
}
# Parameters of our modules that a case leaves at their start values.
STARTS: dict[str, tuple[str, ...]] = {"vid/initial": ("log_scale",)}
# What a layer counts in the sum, where it would count 1 alone.
COUNTS = {"ab": (1 / 4, 1 / 2, 1)}
# Compared by tests of their own.
ELSEWHERE = {"reviewkd/hcl", "crd/two_steps", "ls/off"}
TOLERANCE = {"ofd": 1e-7}

WALKED = [case for case in CASES if case["name"] not in ELSEWHERE and case["loss"] in distill_dict]


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """Start values of parameters, too, are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


each_case = pytest.mark.parametrize("case", WALKED, ids=lambda case: case["name"])


def made(recipe: Case) -> Tensor:
    """An input of a case, float64; labels int64."""
    random, shape = np.random.RandomState(recipe["seed"]), recipe["shape"]
    if "randint" in recipe:
        return torch.from_numpy(random.randint(0, recipe["randint"], shape))
    if "uniform" in recipe:
        return torch.from_numpy(random.uniform(*recipe["uniform"], shape).astype("float32")).double()
    values = np.float32(recipe["scale"]) * random.standard_normal(shape).astype("float32")
    for row, factor in recipe.get("rows_scaled", {}).items():
        values[int(row)] *= np.float32(factor)
    return torch.from_numpy(np.maximum(values, 0) if recipe.get("relu") else values).double()


def inputs_of(case: Case) -> dict[str, Tensor]:
    """The student's ask for gradients."""
    made_of = {each["name"]: made(each) for each in case["inputs"] if "recipe" not in each}
    return {name: each.requires_grad_(name in case["gradients"]) for name, each in made_of.items()}


def parameters_of(case: Case) -> dict[str, Tensor]:
    """The parameters of a case, float64, by their names in the file without that of the loss."""
    return {
        each["name"].removeprefix(f"{case['loss']}."): parameter(case["param_seed"], **each)
        for each in case.get("params", [])
    }


def parameter(seed: int, name: str, shape: list[int]) -> Tensor:
    r = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(shape)
    if len(shape) > 1:
        r = r * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith("log_scale"):
        r = math.log(math.exp(5 - 1e-5) - 1) + 0.5 * r
    else:
        r = (1 + 0.1 * r) if name.endswith("weight") else 0.1 * r
    return torch.from_numpy(r.astype("float32")).double()


class Network(nn.Module):
    """The teacher's classifier, and class activation maps that are given."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = parameters.get("head.weight"), parameters.get("head.bias")

    def classify_vector(self, vector: Tensor) -> Tensor:
        return nn.functional.linear(vector, self.weight, self.bias)

    def classify(self, maps: Tensor) -> Tensor:
        return self.classify_vector(maps.mean((2, 3)))


def observed(kind: type[Distiller], which: str, inputs: dict[str, Tensor], network: nn.Module) -> Observed:
    """What a network, ``s`` or ``t``, would have made of a batch: maps, in front of them a stem's, and a vector."""
    reads = kind.student if which == "s" else kind.teacher
    mine = {name: each for name, each in inputs.items() if name[0] == which and name != "target"}
    maps = [each for each in mine.values() if each.ndim == 4]
    flat = {name: each for name, each in mine.items() if each.ndim == 2}
    size = len(next(iter(mine.values())))
    logits = flat.pop(f"{which}_logits", None)
    if logits is None:
        logits = next(iter(flat.values())) if reads.logits else torch.zeros(size, 1)
    vector = torch.zeros(size, maps[-1].shape[1] if maps else 1).double()
    vector = next(iter(flat.values())) if reads.vector else vector
    stem = [] if "all" in (reads.maps, reads.before_relu) else [torch.zeros(size, 1, 1, 1).double()]
    features = [*stem, *maps, vector]
    return Observed(logits, features, network, before=features, cam=maps[-1] if maps else None)


def loss_of(case: Case, student: Observed, teacher: Observed) -> Distiller:
    """Our module for a case, with its parameters, in float64."""
    kind: Any = distill_dict[case["loss"]]
    accepted = [each.name for each in inspect.signature(kind).parameters.values() if each.kind is each.KEYWORD_ONLY]
    ours = ARGUMENTS.get(case["loss"], {})
    constants = {ours.get(name, name): value for name, value in case.get("constants", {}).items()}
    settings = {name: value for name, value in constants.items() if name in accepted}
    shapes = [[tuple(each.shape[1:]) for each in one.features] for one in (student, teacher)]
    classes, size = teacher.logits.shape[1], len(student.logits)
    pair = Pair(*shapes, classes, batch_size=size, teacher_norms=norms_of(case))
    loss: Distiller = kind(pair, **{**settings, **SETTINGS.get(case["name"], {})})
    load(loss.double(), case)
    return loss.train()


def norms_of(case: Case) -> list[tuple[Tensor, Tensor] | None]:
    """The teacher's normalisations, if the case has any; the stem and the vector have none."""
    theirs = {name: each for name, each in parameters_of(case).items() if ".teacher_bn." in name}
    pairs = []
    for stage in range(len(theirs) // 2):
        scale, shift = (theirs[f"{stage}.teacher_bn.{which}"] for which in ("weight", "bias"))
        scale[1], shift[0] = -scale[1], 4  # as the case's note says
        pairs.append((scale, shift))
    return [None, *pairs, None] if pairs else []


def load(loss: Distiller, case: Case) -> None:
    """Every parameter of the module is one of the file's, and the other way round, but for the teacher's own."""
    mine = dict(loss.named_parameters())
    for name, value in parameters_of(case).items():
        if name.startswith("head.") or ".teacher_bn." in name:
            continue
        begins = max((each for each in NAMES.get(case["loss"], {}) if name.startswith(each)), key=len, default=None)
        ours = name if begins is None else NAMES[case["loss"]][begins] + name.removeprefix(begins)
        assert ours in mine, f"{case['name']}: no parameter {ours!r} (in the file {name!r}) among {sorted(mine)}"
        with torch.no_grad():
            mine[ours].copy_(value.view(mine[ours].shape))  # a linear layer may be a 1x1 convolution there
        del mine[ours]
    assert not [name for name in mine if not name.endswith(STARTS.get(case["name"], ("/",)))]


def evaluated(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """The loss of each sample, or of the batch."""
    kind: type[Distiller] = distill_dict[case["loss"]]
    network = Network(parameters_of(case))
    student, teacher = (observed(kind, which, inputs, network) for which in "st")
    loss = loss_of(case, student, teacher)
    size = len(student.logits)
    batch = Batch(torch.zeros(size, 3, 8, 8), inputs.get("target", torch.zeros(size).long()), places=torch.arange(size))
    return loss(student.seen(loss.student), teacher.seen(loss.teacher), batch, When(100, 100))


def close(actual: Tensor, expected: Any, tolerance: float, size: float = 0.0) -> None:
    """Relative to the expected value; to ``size`` where many terms may cancel to nothing."""
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), wanted, rtol=tolerance, atol=tolerance * size)


def compare_gradients(case: Case, gradients: dict[str, Tensor], tolerance: float) -> None:
    for name, expected in case["gradients"].items():
        found = gradients[name]
        fixed = torch.from_numpy(np.random.RandomState(12345).standard_normal(found.shape))
        norm = expected["norm"]
        close(found.norm(), norm, tolerance)
        close(found.flatten()[:6], expected["first"], tolerance, norm)
        close((found * fixed).sum(), expected["dot"], tolerance, norm)
        close(found.sum(0).norm(), expected["batch_sum_norm"], tolerance, norm)


@each_case
def test_value_parts_and_gradients(case: Case) -> None:
    inputs, tolerance = inputs_of(case), TOLERANCE.get(case["loss"], 1e-9)
    values = evaluated(case, inputs)
    close(values.mean(), case["value"], tolerance)
    if values.ndim:
        close(values, case["derived"]["per_sample"], tolerance)
    names = list(case["gradients"])
    gradients = dict(zip(names, torch.autograd.grad(values.mean(), [inputs[name] for name in names]), strict=True))
    compare_gradients(case, gradients, tolerance)


def test_logits_that_are_not_standardised() -> None:
    """``ls`` without its idea is ``kd``."""
    (case,) = (each for each in CASES if each["name"] == "ls/off")
    inputs = inputs_of(case)
    values = DistillKL(case["constants"]["T"])(inputs["s"], inputs["t"])
    close(values, case["derived"]["per_sample"], 1e-9)
    compare_gradients(case, {"s": torch.autograd.grad(values.mean(), inputs["s"])[0]}, 1e-9)


def alone(case: Case) -> int:
    """How many neighbouring stages make one of the case's layers; 0 where that cannot be tried."""
    if case.get("params") or "layers" not in {*case, *case.get("derived", {})}:
        return 0
    stages = sum(each["name"][0] == "s" for each in case["inputs"])
    layers = case["layers"] if "layers" in case else case["derived"]["layers"]
    return stages - len(layers) + 1


@pytest.mark.parametrize("case", [case for case in WALKED if alone(case)], ids=lambda case: case["name"])
def test_each_layer_alone(case: Case) -> None:
    """Of losses without parameters: a network that has these stages only."""
    inputs, layers = inputs_of(case), case.get("layers") or case["derived"]["layers"]
    for first, expected in enumerate(layers):
        kept = [f"{which}{number}" for which in "st" for number in range(first, first + alone(case))]
        value = evaluated(case, {name: inputs[name] for name in kept}).mean()
        close(value * COUNTS.get(case["loss"], (1,) * len(layers))[first], expected, 1e-9)


@pytest.mark.parametrize("name", sorted({case["loss"] for case in CASES}))
def test_every_loss_is_here(name: str) -> None:
    if name not in distill_dict:
        pytest.skip("not written yet")


def test_the_distance_of_reviewkd() -> None:
    (case,) = (case for case in CASES if case["name"] == "reviewkd/hcl")
    inputs = inputs_of(case)
    levels = [context_loss(inputs[f"s{level}"] - inputs[f"t{level}"]) for level in range(3)]
    for level, expected in zip(levels, case["layers"], strict=True):
        close(level.mean(), expected, 1e-9)
    values = torch.stack(levels).sum(0)
    close(values, case["derived"]["per_sample"], 1e-9)
    names = list(case["gradients"])
    gradients = torch.autograd.grad(values.mean(), [inputs[name] for name in names])
    compare_gradients(case, dict(zip(names, gradients, strict=True)), 1e-9)


def test_crd_over_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The normalisers of the first step, both halves of the loss, its gradient, and the banks after either step."""
    (case,) = (case for case in CASES if case["loss"] == "crd")
    inputs, constants = inputs_of(case), case["constants"]
    shapes = [[tuple(inputs[name].shape[1:])] for name in ("s_step0", "t_step0")]
    labels = torch.arange(constants["n_data"]) % 2
    loss: Any = distill_dict["crd"](Pair(*shapes, 2, labels), nce_k=constants["negatives"]).double().train()
    load(loss, case)
    for name in ("student_bank", "teacher_bank"):
        setattr(loss, name, inputs[name])
    values, halves = [], []
    contrast = loss.contrast
    monkeypatch.setattr(loss, "contrast", lambda x: halves.append(contrast(x)) or halves[-1])
    for step in range(2):
        (seed,) = (each["seed"] for each in case["inputs"] if each["name"] == f"index_step{step}")
        random = np.random.RandomState(seed)  # in the order of the case's recipe
        places = torch.from_numpy(random.permutation(64)[:8])
        negatives = torch.from_numpy(random.randint(0, 64, (8, 24)))
        monkeypatch.setattr(loss, "draw", lambda *_, drawn=negatives: drawn)
        seen = [Seen(vector=inputs[f"{which}_step{step}"]) for which in "st"]
        values.append(loss(*seen, Batch(torch.zeros(8, 3, 8, 8), labels[places], places=places), When(1, 1)))
    close(values[0], case["derived"]["per_sample"], 1e-9)
    close(values[0].mean(), case["value"], 1e-9)
    close(values[1].mean(), case["loss_step1"], 1e-9)
    close(loss.usual * 64, [case["Z_student"], case["Z_teacher"]], 1e-9)
    for half, which in zip(halves, ("student", "teacher"), strict=False):
        close(half.mean(), case["derived"][f"anchor_{which}"], 1e-9)
        bank = getattr(loss, f"{which}_bank")
        fixed = torch.from_numpy(np.random.RandomState(12345).standard_normal(bank.shape))
        close((bank * fixed).sum(), case[f"{which}_bank_dot"], 1e-9)
    (gradient,) = torch.autograd.grad(values[0].mean(), [inputs["s_step0"]])
    compare_gradients(case, {"s_step0": gradient}, 1e-9)


def test_what_ft_learns_first() -> None:
    (case,) = (case for case in CASES if case["loss"] == "ft")
    inputs = inputs_of(case)
    student, teacher = (observed(distill_dict["ft"], which, inputs, nn.Identity()) for which in "st")
    loss = loss_of(case, student, teacher)
    close(loss.first_loss(teacher.seen(loss.teacher)), case["reconstruction_mse"], 1e-9)
