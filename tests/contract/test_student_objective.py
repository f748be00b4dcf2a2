"""The student's objective under K teachers: every loss with every weighting, what learns, what stays, what it costs."""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from objectives import LOSSES, METHODS, make_objective, pairs
from sums import crossed
from torch import Tensor, nn

from distiller_zoo import Distiller, distill_dict
from ensemble import EnsembleMethod, TeacherLosses, ensemble_dict
from helper.answering import Heads
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.gradients import OnePass
from helper.machine import autocast
from helper.seen import feature_shapes, observe
from helper.teachers.asked import Teachers
from models import model_dict
from train_student import Distillation, chosen_losses, feat_start_epoch

CLASSES, B = 7, 8
ARCHS = ["resnet8x4", "vgg8", "wrn_16_1", "ShuffleV2_0_5", "resnet8"]
BY_AUTOGRAD = [name for name, kind in distill_dict.items() if kind.slopes is Distiller.slopes]
MAY_IDLE = re.compile(r"regressor\.0\.bias|translator\.\d\.bias|stages\.\d\.conv\.bias|(query|key)\.\d\.linear\d\.\w+")
"""A bias before BN has no effect; of a few hidden units that read positive numbers all may be below 0."""
THIN = {"ShuffleV2_0_5": (8, 16, 24, 40), "resnet8x4": (8, 12, 24, 40), "vgg8": (8, 12, 24, 32, 40)}
FEATURE_LEVEL = [name for name, kind in distill_dict.items() if not kind.on_logits()]
each_pair = pytest.mark.parametrize(("distill", "name"), pairs())
each_feature_pair = pytest.mark.parametrize(
    ("distill", "name"), [(distill, name) for distill, name in pairs() if distill in FEATURE_LEVEL]
)
SYMMETRIC = [name for name, kind in ensemble_dict.items() if kind.symmetric]
SYMMETRIC_PAIRS = [(distill, name) for distill, name in pairs() if name in SYMMETRIC]
FEW = [(distill, name) for distill, name in pairs() if distill in LOSSES and name in METHODS]
each_feature_loss = pytest.mark.parametrize("distill", FEATURE_LEVEL)
each_method = pytest.mark.parametrize("name", list(ensemble_dict))
Make = Callable[..., argparse.Namespace]


@cache
def teacher(k: int) -> nn.Module:
    """The k-th of many untrained networks of several families."""
    torch.manual_seed(100 + k)
    arch = ARCHS[k % len(ARCHS)]
    return model_dict[arch](num_classes=CLASSES, **({"widths": THIN[arch]} if arch in THIN else {}))


def images(size: int = 16) -> Tensor:
    return torch.randn(B, 3, size, size, generator=torch.Generator().manual_seed(1))


def target() -> Tensor:
    return torch.arange(B) % CLASSES


def batch(size: int = 16) -> Batch:
    return Batch(images(size), target(), places=torch.arange(B))


def objective(
    distill: str, name: str, K: int, opt: argparse.Namespace, size: int = 16, **settings: object
) -> Distillation:
    def make(numbers: list[int]) -> Distillation:
        teachers = Teachers([teacher(k) for k in numbers])
        torch.manual_seed(0)
        student = model_dict["resnet8"](num_classes=CLASSES)
        return make_objective(distill, name, student, teachers, opt, images(size), **settings)

    try:
        task = make([*range(K)])
    except UsageError:  # no loss refuses teachers of the student's kind
        task = make([k * len(ARCHS) + ARCHS.index("resnet8") for k in range(K)])
    task.trained.train()
    return task


def step(task: Distillation, epoch: int = 5, size: int = 16) -> dict[str, Tensor]:
    return task.step(batch(size), When(epoch, 10))


def weigh_with(task: Distillation, method: EnsembleMethod) -> None:
    """Put another method in the place of the task's, at both levels."""
    for term in task.terms:
        term.method = method


class Listener(EnsembleMethod):
    """Weighs as another method does, and keeps what it was told."""

    def __init__(self, method: EnsembleMethod) -> None:
        self.method, self.heard = method, dict[str, TeacherLosses]()
        self.answers: dict[str, Tensor] = {}

    def weights(self, teachers: TeacherLosses) -> Tensor:
        self.heard[teachers.level] = teachers
        self.answers[teachers.level] = self.method.weights(teachers)
        return self.answers[teachers.level]


@pytest.mark.parametrize(("pair", "K"), crossed(pairs(), [1, 3, 16], FEW, [3]), ids=str)
def test_everything_that_should_learn_does_and_nothing_else(pair: tuple[str, str], K: int, loss_options: Make) -> None:
    distill, name = pair
    task = objective(distill, name, K, loss_options(beta=1.0 if distill in FEATURE_LEVEL else 0.0))
    before = [copy.deepcopy(network.state_dict()) for network in task.teachers.networks]
    scalars = step(task)
    scalars["loss"].backward()

    assert all(value.ndim == 0 and value.isfinite() for value in scalars.values())
    assert len(task.adapters) == (K if distill in FEATURE_LEVEL else 0)
    for parameter in task.student.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
    for k, adapter in enumerate(task.adapters):
        counts = scalars[f"feature_weight_{k}"].abs() > 1e-6  # AEKD may leave a teacher out
        for which, parameter in ((name, each) for name, each in adapter.named_parameters() if each.requires_grad):
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any() or not counts or MAY_IDLE.fullmatch(which)
    for network, state in zip(task.teachers.networks, before, strict=True):
        assert not any(module.training for module in network.modules())
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
        assert all(torch.equal(state[entry], value) for entry, value in network.state_dict().items())
    assert {id(each) for each in task.trained.parameters() if each.requires_grad} == {
        id(parameter)
        for module in (task.student, *(each for term in task.terms for each in (*term.losses, term.method)))
        if isinstance(module, nn.Module)
        for parameter in module.parameters()
        if parameter.requires_grad
    }


@each_feature_pair
def test_full_size_images_and_bfloat16(distill: str, name: str, loss_options: Make) -> None:
    task = objective(distill, name, 4, loss_options(), size=32)
    with autocast(torch.device("cpu"), "bf16"):
        scalars = step(task, size=32)
    scalars["loss"].backward()
    assert all(value.isfinite() for value in scalars.values())
    assert scalars["loss"].dtype == torch.float32


@pytest.mark.parametrize(("pair", "K"), crossed(SYMMETRIC_PAIRS, [3, 7], FEW, [3]), ids=str)
def test_the_order_of_the_teachers_does_not_matter(pair: tuple[str, str], K: int, loss_options: Make) -> None:
    distill, name = pair
    task = objective(distill, name, K, loss_options(beta=1.0 if distill in FEATURE_LEVEL else 0.0))
    order = torch.randperm(K, generator=torch.Generator().manual_seed(K)).tolist()
    networks = [task.teachers.networks[k] for k in order]
    losses = copy.deepcopy({term.name: [term.losses[k] for k in order] for term in task.terms})  # before either step
    methods = [term.method for term in task.terms]
    shuffled = Distillation(task.student, Teachers(networks), losses, methods, task.opt)
    plain, other = step(task), step(shuffled)
    for part in ("loss", "loss_kd", "loss_feature"):
        if part in plain:
            torch.testing.assert_close(other[part], plain[part], rtol=1e-4, atol=1e-6)
    for place, k in enumerate(order):
        torch.testing.assert_close(other[f"weight_{place}"], plain[f"weight_{k}"], rtol=1e-3, atol=1e-5)


@each_feature_pair
def test_the_loss_is_the_weighted_sum_of_its_parts(distill: str, name: str, loss_options: Make) -> None:
    task = objective(distill, name, 3, loss_options(gamma=0.3, alpha=0.7, beta=11.0))
    scalars = step(task)
    rising = task.terms[1].losses[0].factor(When(5, 10))
    parts = 0.3 * scalars["loss_ce"] + 0.7 * scalars["loss_kd"] + 11 * rising * scalars["loss_feature"]
    torch.testing.assert_close(scalars["loss"], parts)
    expected = {"loss", "loss_ce", "loss_kd", "loss_feature", "accuracy"}
    assert expected <= scalars.keys()
    assert {f"{level}weight_{k}" for level in ("", "feature_") for k in range(3)} <= scalars.keys()
    assert "weight_3" not in scalars


def test_several_losses_are_summed(loss_options: Make) -> None:
    """Each as it would be alone, with a weight and a weighting method of its own, under names of its own."""
    opt = loss_options(gamma=0.3, alpha=0.7, beta=[11.0, 0.5])
    task = objective("hint,inter", "AEKD", 3, opt)
    losses = copy.deepcopy([term.losses for term in task.terms])
    scalars = step(task)
    parts = [0.3 * scalars["loss_ce"], 0.7 * scalars["loss_kd"]]
    for name, weight, mine in zip(("hint", "inter"), opt.beta, losses[1:], strict=True):
        methods = [ensemble_dict["AEKD"](), ensemble_dict["AEKD"]()]
        alone = argparse.Namespace(**{**vars(opt), "beta": weight})
        single = step(Distillation(task.student, task.teachers, {"kd": losses[0], name: mine}, methods, alone))
        for which in ("loss_feature", "feature_weight_0", "feature_gradient_cosine"):
            several = which.replace("feature", f"feature_{name}")
            torch.testing.assert_close(scalars[several], single[which], rtol=1e-4, atol=1e-6)
        parts.append(weight * single["loss_feature"])
    torch.testing.assert_close(scalars["loss"], torch.stack(parts).sum(), rtol=1e-4, atol=1e-6)
    scalars["loss"].backward()
    assert len(task.adapters) == 6
    for adapter in task.adapters:
        assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert len({id(term.method) for term in task.terms}) == 3


def test_what_checkpoints_hold_of_one_loss_and_of_several(loss_options: Make) -> None:
    cases = (("hint", 1.0), ("hint,inter", [1.0, 1.0]))
    one, two = (objective(names, "AEKD", 2, loss_options(beta=b)) for names, b in cases)
    keys = [[key for key in task.trained.state_dict() if not key.startswith("network.")] for task in (one, two)]
    assert {key.split(".")[1] for key in keys[0]} == {"0", "1"}
    assert keys[1][: len(keys[0])] == keys[0]
    assert {key.split(".")[1] for key in keys[1]} == {"0", "1", "2", "3"}


@pytest.mark.skipif(len(distill_dict) - len(FEATURE_LEVEL) < 2, reason="there is one loss on logits only")
def test_two_losses_on_logits_are_refused() -> None:
    names = [name for name in distill_dict if name not in FEATURE_LEVEL][:2]
    with pytest.raises(UsageError, match=f"^--distill: {' and '.join(names)} both compare logits"):
        chosen_losses(argparse.Namespace(distill=",".join(["hint", *names])), "kd")
    for distill, expected in (("hint,inter", ["kd", "hint", "inter"]), (f"hint,{names[1]}", [names[1], "hint"])):
        assert chosen_losses(argparse.Namespace(distill=distill), "kd") == expected


def test_a_warm_up_of_the_weight(loss_options: Make) -> None:
    task = objective("hint", "AVERAGE_LOSS", 2, loss_options(alpha=0.7, beta=2.0))
    for k, term in enumerate(task.terms):
        for loss in term.losses:
            loss.warmup = 5 * k
    for epoch, factor in ((1, 0.2), (3, 0.6), (5, 1.0), (9, 1.0)):
        scalars = step(task, epoch)
        parts = scalars["loss_ce"] + 0.7 * scalars["loss_kd"] + factor * 2 * scalars["loss_feature"]
        torch.testing.assert_close(scalars["loss"], parts)


@each_method
def test_kd_scale(name: str, loss_options: Make) -> None:
    """``unit`` undoes the released constants at both levels."""
    K = 3
    kind = ensemble_dict[name]
    total = kind().total(K)
    if not (kind.symmetric and total):
        pytest.skip("promises no sum, or not the same weights twice")
    factor = (K if kind.released_division else 1) / total
    released, unit = (step(objective("inter", name, K, loss_options(kd_scale=s))) for s in ("released", "unit"))
    for part in ("loss_kd", "loss_feature"):
        torch.testing.assert_close(unit[part], released[part] * factor)
    for level in ("", "feature_"):
        assert sum(unit[f"{level}weight_{k}"].item() for k in range(K)) == pytest.approx(1, rel=1e-5)


def learning(module: nn.Module) -> list[nn.Parameter]:
    return [each for each in module.parameters() if each.requires_grad]


def count_gradients(monkeypatch: pytest.MonkeyPatch, task: Distillation) -> tuple[list[Tensor], list[str]]:
    """What ``autograd.grad`` is asked for from now on, and whenever a gradient reaches a feature or a weight."""
    asked: list[Tensor] = []
    reached: list[str] = []
    plain = torch.autograd.grad

    def grad(outputs: Tensor, inputs: Tensor, **settings: object) -> tuple[Tensor, ...]:
        asked.extend([inputs] if isinstance(inputs, Tensor) else inputs)
        return plain(outputs, inputs, **settings)

    def watch(_: nn.Module, __: object, output: Tensor | tuple[list[Tensor], Tensor]) -> None:
        maps, logits = ([], output) if isinstance(output, Tensor) else output
        for feature in (*maps, logits):
            feature.register_hook(lambda _: reached.append("feature"))

    monkeypatch.setattr(torch.autograd, "grad", grad)
    task.student.register_forward_hook(watch)
    for parameter in task.student.parameters():
        parameter.register_hook(lambda _: reached.append("student"))
    for adapter in task.adapters:
        for parameter in learning(adapter):
            parameter.register_hook(lambda _: reached.append("adapter"))
    return asked, reached


@each_method
def test_weighing_logits_needs_no_backward_pass(name: str, loss_options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    task = objective("kd", name, 3, loss_options(beta=0.0))
    asked, reached = count_gradients(monkeypatch, task)
    loss = step(task)["loss"]
    assert not asked
    assert not reached
    loss.backward()
    assert reached.count("feature") == 1  # the logits
    assert reached.count("student") == len(list(task.student.parameters()))


@each_feature_pair
def test_weighing_features_stops_before_the_student(
    distill: str, name: str, loss_options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AEKD asks for all K gradients in one pass, which ends at the student's map; no second one enters the adapters."""
    task = objective(distill, name, 3, loss_options())
    asked, reached = count_gradients(monkeypatch, task)
    loss = step(task)["loss"]
    assert not {"feature", "student"} & set(reached)
    weights = sum(len(learning(adapter)) for adapter in task.adapters)
    reads = task.adapters[0].student
    tensors = 3 * len(observe(task.student, images(), reads).seen(reads).tensors())
    gradients = tensors + weights if ensemble_dict[name].constant else tensors
    assert len(asked) in (0, gradients)
    assert all(alias.shape[0] == B for alias in asked[:tensors])  # [B, …]
    assert not {id(parameter) for parameter in task.student.parameters()} & set(map(id, asked))
    before = len(asked)
    reached.clear()  # the look at its features
    loss.backward()
    assert reached.count("student") == len(list(task.student.parameters()))
    assert len(asked) == before


def gradients_of(task: Distillation, precision: str) -> tuple[Tensor, list[Tensor]]:
    """The loss of a step and the gradient of every weight."""
    double = precision == "fp64"
    task.trained.double() if double else None
    for network in task.teachers.networks if double else ():
        network.double()
    x = images().double() if double else images()
    with autocast(torch.device("cpu"), precision):
        loss = task.step(Batch(x, target(), places=torch.arange(B)), When(5, 10))["loss"]
    loss.backward()
    gradients = [parameter.grad for parameter in task.trained.parameters()]
    task.trained.zero_grad()
    for network in task.teachers.networks:
        network.float()
    return loss.detach(), [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("distill", BY_AUTOGRAD)
@pytest.mark.parametrize(
    ("precision", "tolerance", "floor"), [("fp64", 1e-10, 0.01), ("fp32", 1e-5, 0.1), ("bf16", 0.05, 0.1)]
)
def test_gradients_found_for_the_weights_are_those_of_the_loss(
    distill: str, precision: str, tolerance: float, floor: float, loss_options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weighing the gradients of a first pass gives what a second pass through the weighted loss would."""
    opt = loss_options(alpha=0.7, beta=3.7, kd_scale="unit")
    asked: list[bool] = []
    known = OnePass.known
    monkeypatch.setattr(OnePass, "known", lambda self, weights: asked.append(known(self, weights)) or asked[-1])
    loss, gradients = gradients_of(objective(distill, "AEKD", 3, opt, C=0.5), precision)
    assert asked == [True]
    monkeypatch.setattr(OnePass, "known", lambda self, weights: False)
    monkeypatch.setattr(ensemble_dict["AEKD"], "constant", False)
    expected_loss, expected = gradients_of(objective(distill, "AEKD", 3, opt, C=0.5), precision)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=0)
    assert len(gradients) == len(expected)
    largest = max(each.norm() for each in expected)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert (mine - theirs).norm() <= tolerance * (theirs.norm() + floor * largest)  # a bias before BN has none


@each_feature_loss
def test_gradients_serve_weights_that_are_not_constant(distill: str, loss_options: Make) -> None:
    """A method that looks at gradients, and answers with weights for each sample that depend on the student."""

    class Odd(EnsembleMethod):
        def weights(self, teachers: TeacherLosses) -> Tensor:
            return teachers.gram.diagonal().float()[:, None] + teachers.losses

    task = objective(distill, "AEKD", 3, loss_options())
    odd = Odd()
    weigh_with(task, odd)
    step(task)["loss"].backward()
    assert all(parameter.grad is not None for parameter in task.student.parameters())
    odd.constant = True  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"Odd\.constant is True"):
        step(task)


@each_feature_loss
def test_feature_gradients_are_those_of_each_teacher_alone(distill: str, loss_options: Make) -> None:
    task = objective(distill, "AEKD", 5, loss_options())
    listener = Listener(task.terms[0].method)
    weigh_with(task, listener)
    losses = copy.deepcopy(task.terms[1].losses)
    step(task)
    seen = observe(task.student, images(), losses[0].student).seen(losses[0].student)
    start = [tensor.detach().requires_grad_() for tensor in seen.tensors()]
    expected = []
    for loss, network in zip(losses, task.teachers.networks, strict=True):
        with torch.no_grad():
            theirs = observe(network, images(), loss.teacher).seen(loss.teacher)
        value = loss(seen.with_tensors(start), theirs, batch(), When(5, 10)).mean()
        slopes = torch.autograd.grad(value, start, allow_unused=True, materialize_grads=True)
        expected.append(torch.cat([(slope if loss.sums_to_zero else slope.mean(0)).flatten() for slope in slopes]))
    torch.testing.assert_close(
        listener.heard["feature"].gradients, torch.stack(expected).double(), rtol=1e-4, atol=1e-9
    )


def test_who_looks_at_vectors_gets_the_compared_maps_pooled(loss_options: Make) -> None:
    """MTKDRL's agents see two losses and the logits of each teacher, on maps also a cosine and the pooled map."""
    task = objective("inter", "MTKDRL", 3, loss_options())
    pooled = [loss.teacher_shape[0] for loss in task.terms[1].losses]
    widths = [term.method.agent.steam.in_features for term in task.terms]
    assert widths == [3 * (CLASSES + 2), sum(width + CLASSES + 3 for width in pooled)]
    for reads in (True, False):
        listener = Listener(ensemble_dict["AVERAGE_LOSS"]())
        listener.reads_vectors = reads  # type: ignore[misc]
        weigh_with(task, listener)
        step(task)
        vectors = listener.heard["feature"].vectors
        shapes = [tuple(each.shape for each in pair) for pair in vectors]
        assert shapes == ([((B, width), (B, width)) for width in pooled] if reads else [])
        assert not any(each.requires_grad for pair in vectors for each in pair)


@each_feature_loss
@pytest.mark.parametrize("name", ["CAMKD", "EBKD"])
def test_what_weighs_the_features(distill: str, name: str, loss_options: Make) -> None:
    """The teachers' own classifiers where they can read the adapted map, else what they say of the image."""
    task = objective(distill, name, 4, loss_options())
    listener = Listener(task.terms[0].method)
    weigh_with(task, listener)
    losses = copy.deepcopy(task.terms[1].losses)
    step(task)
    logits = listener.heard["feature"].logits
    seen = observe(task.student, images(), losses[0].student).seen(losses[0].student)
    read = [loss.as_teacher_reads(loss.prepare(seen)) for loss in losses]
    if read[0] is None:
        torch.testing.assert_close(listener.answers["feature"], listener.answers["logit"])
        assert not logits.requires_grad
        return
    for k, (maps, network) in enumerate(zip(read, task.teachers.networks, strict=True)):
        torch.testing.assert_close(logits[k], network.classify(maps), rtol=1e-4, atol=1e-5)
    assert logits.requires_grad
    assert listener.answers["feature"].requires_grad == (name == "CAMKD")


def test_heads_count_where_their_networks_are() -> None:
    """On a GPU from the start: the student answers before anything is moved there."""
    networks = [model_dict["resnet8"](num_classes=CLASSES).to("meta") for _ in range(2)]
    assert Heads(networks).shares.device.type == "meta"


def test_distill_decay(loss_options: Make) -> None:
    """After half the epochs a falls linearly to 0, and r = 1 − a; b stays (the released code crashes there)."""
    task = objective("hint", "AVERAGE_LOSS", 1, loss_options(gamma=0.5, alpha=0.8, beta=3.0, distill_decay=True))
    assert [task.loss_weights(epoch) for epoch in (1, 5)] == [(0.5, 0.8, 3.0)] * 2
    falling = [task.loss_weights(epoch) for epoch in range(6, 11)]
    assert [a for _, a, _ in falling] == pytest.approx([0.64, 0.48, 0.32, 0.16, 0])
    assert [r for r, _, _ in falling] == pytest.approx([1 - a for _, a, _ in falling])
    assert all(b == 3 for _, _, b in falling)
    steady = objective("hint", "AVERAGE_LOSS", 1, loss_options(beta=3.0))
    assert {steady.loss_weights(epoch) for epoch in range(1, 11)} == {(1.0, 1.0, 3.0)}


@pytest.mark.parametrize(
    ("given", "epochs", "start"), [(None, 240, 2), (None, 2, 2), (None, 1, 1), (1, 240, 1), (7, 10, 7)]
)
def test_the_feature_loss_starts_late(given: int | None, epochs: int, start: int, loss_options: Make) -> None:
    opt = loss_options(beta=5.0, feat_start_epoch=given, epochs=epochs)
    assert feat_start_epoch(opt) == start
    task = objective("hint", "AEKD", 2, opt)
    weights = [task.loss_weights(epoch)[2] for epoch in range(1, min(epochs, 9) + 1)]
    assert weights == [5.0 if epoch >= start else 0.0 for epoch in range(1, len(weights) + 1)]
    for epoch in {1, start}:
        assert ("loss_feature" in step(task, epoch)) == (epoch >= start)


@pytest.mark.parametrize(("given", "last"), [(0, 10), (4, 4), (3, 3), (99, 10)])
def test_the_feature_loss_may_stop(given: int, last: int, loss_options: Make) -> None:
    """From then on the adapters are left alone, as before it begins."""
    task = objective("hint", "AEKD", 2, loss_options(beta=5.0, feat_start_epoch=3, feat_stop_epoch=given))
    expected = [5.0 if 3 <= epoch <= last else 0.0 for epoch in range(1, 11)]
    assert [task.loss_weights(epoch)[2] for epoch in range(1, 11)] == expected
    assert [task.idles(epoch) for epoch in range(1, 11)] == [weight == 0 for weight in expected]
    assert "loss_feature" in step(task, last)
    assert last == 10 or "loss_feature" not in step(task, last + 1)


def test_what_has_decayed_stays_where_a_run_is_extended(loss_options: Make) -> None:
    task = objective("hint", "AEKD", 2, loss_options(beta=5.0, alpha=0.5, distill_decay=True, epochs=20))
    assert [task.loss_weights(epoch)[:2] for epoch in (10, 15, 20)] == [(1.0, 0.5), (0.75, 0.25), (1.0, 0.0)]
    task.begun_for = 10
    assert [task.loss_weights(epoch)[:2] for epoch in (5, 10, 11, 20)] == [(1.0, 0.5), *[(1.0, 0.0)] * 3]


@each_feature_loss
def test_without_weight_the_feature_loss_is_left_out(distill: str, loss_options: Make) -> None:
    scalars = step(objective(distill, "AEKD", 2, loss_options(beta=0.0)))
    assert not any("feature" in name for name in scalars)


@each_method
def test_one_teacher_is_plain_distillation(name: str, loss_options: Make) -> None:
    """K = 1: weight 1 and ``-C`` ignored, so that every method is Hinton's KD and FitNet."""
    settings = {"C": 0.1} if name == "AEKD" else {}
    plain = step(objective("hint", "AVERAGE_LOSS", 1, loss_options()))
    scalars = step(objective("hint", name, 1, loss_options(), **settings))
    for part in ("loss", "loss_kd", "loss_feature"):
        torch.testing.assert_close(scalars[part], plain[part])
    assert scalars["weight_0"] == scalars["feature_weight_0"] == 1


def test_looking_at_the_shapes_leaves_the_student_alone() -> None:
    student = model_dict["resnet8"](num_classes=CLASSES).train()
    before = copy.deepcopy(student.state_dict())
    shapes = feature_shapes(student, images())
    assert student.training
    assert all(torch.equal(before[entry], value) for entry, value in student.state_dict().items())
    assert [len(shape) for shape in shapes] == [3] * (len(shapes) - 1) + [1]
