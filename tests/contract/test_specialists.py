"""Teachers of some of the classes: what their logits stand for, and that they have no say on what they do not know."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objectives import few_pairs, make_objective
from torch import Tensor, nn

from distiller_zoo import distill_dict
from ensemble import TeacherLosses, ensemble_dict, weigh
from ensemble.base import among_those
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.evaluation import evaluate
from helper.kl import softened_kl
from helper.teachers.asked import Teachers, ensemble_logits
from helper.teachers.classes import Chosen, Known, class_map
from helper.weights import Labels
from models import model_dict

CPU = torch.device("cpu")
C, B = 7, 8
KNOWN = [(0, 2, 3), (1, 3, 4, 5, 6), None]
LABELS = Labels("animals", C, tuple("abcdefg"))
each_pair = pytest.mark.parametrize(
    ("distill", "name"), [(distill, name) for distill, name in few_pairs() if not distill_dict[distill].predicts]
)
each_method = pytest.mark.parametrize("name", list(ensemble_dict))
Make = Callable[..., argparse.Namespace]


def images(size: int = 16) -> Tensor:
    return torch.randn(B, 3, size, size, generator=torch.Generator().manual_seed(1))


def target() -> Tensor:
    return torch.arange(B) % C


def specialists(known: Any = KNOWN) -> Teachers:
    networks = []
    for k, classes in enumerate(known):
        torch.manual_seed(k)
        networks.append(model_dict["resnet8"](num_classes=C if classes is None else len(classes)))
    every = all(classes is None for classes in known)
    return Teachers(networks, known=None if every else Known(known, C, CPU))


def objective(distill: str, name: str, opt: argparse.Namespace, teachers: Teachers) -> Any:
    torch.manual_seed(0)
    task = make_objective(distill, name, model_dict["resnet8"](num_classes=C), teachers, opt, images())
    task.trained.train()
    return task


# ---- what a person says


def test_names_and_numbers_in_any_order() -> None:
    listed = class_map(["c", 0, "g"], LABELS, "x")
    assert listed == ((0, 2, 6), (1, 0, 2), 3)
    chosen = class_map({"g": 999, "a": 7, 3: 281}, LABELS, "x")
    assert chosen == ((0, 3, 6), (7, 281, 999), None)


@pytest.mark.parametrize(
    ("classes", "why"),
    [
        (["a", "h"], "unknown value 'h'.* choose from: a, b, c"),
        (["abc"], "unknown value 'abc'"),
        ([0, 7], "7 is no class of animals; choose from 0 to 6"),
        ([-1], "-1 is no class"),
        ([1.0], "1.0 is no class"),
        (["a", "b", 0], "the class 0 is there twice"),
        ({"a": 3, "b": 3}, "the logit 3 is there twice"),
        ({"a": -1}, "counted from 0"),
        ({"a": "b"}, "counted from 0"),
    ],
)
def test_what_makes_no_sense_is_refused(classes: Any, why: str) -> None:
    with pytest.raises(UsageError, match=f"^x: classes: .*{why}") as caught:
        class_map(classes, LABELS, "x")
    assert "\n" not in str(caught.value)


def test_classes_without_names_are_numbers() -> None:
    unnamed = Labels("animals", C)
    assert class_map([2, 1], unnamed, "x").known == (1, 2)
    with pytest.raises(UsageError, match="'a' is no class of animals; choose from 0 to 6"):
        class_map(["a"], unnamed, "x")


@pytest.mark.parametrize("arch", ["resnet8", "vgg8", "wrn_16_1", "ShuffleV2_0_5"])
def test_some_of_the_logits_and_all_else_as_it_was(arch: str) -> None:
    network = model_dict[arch](num_classes=C).eval()
    chosen, order = Chosen(network, (5, 0, 3)).eval(), torch.tensor([5, 0, 3])
    (features, logits), (same, some) = network(images(), is_feat=True), chosen(images(), is_feat=True)
    assert all(map(torch.equal, features, same))
    assert torch.equal(some, logits[:, order])
    assert torch.equal(chosen(images()), logits[:, order])
    assert torch.equal(chosen.classify(features[-2]), logits[:, order])
    assert torch.equal(chosen.classify_vector(features[-1]), network.classify_vector(features[-1])[:, order])
    maps = features[-2]
    assert torch.equal(chosen.class_activation_maps(maps), network.class_activation_maps(maps)[:, order])
    assert chosen.state_dict().keys() == network.state_dict().keys()
    assert [name for name, _ in chosen.named_modules()] == [name for name, _ in network.named_modules()]
    assert chosen.stages == network.stages


# ---- who teaches what


def test_probability_is_shared_by_the_known_classes() -> None:
    teachers = specialists()
    logits = teachers.logits(images())
    assert logits.shape == (3, B, C)
    probabilities = logits.softmax(-1)
    for k, (network, classes) in enumerate(zip(teachers.networks, KNOWN, strict=True)):
        own = list(range(C)) if classes is None else list(classes)
        torch.testing.assert_close(probabilities[k][:, own], network(images()).softmax(-1))
        assert (probabilities[k].sum(-1) - probabilities[k][:, own].sum(-1) < 1e-6).all()
    assert ensemble_logits(logits).isfinite().all()


def test_kd_is_that_of_the_student_over_the_known_classes(loss_options: Make) -> None:
    """On each sample the mean over those who know its class."""
    task = objective("kd", "AVERAGE_LOSS", loss_options(gamma=0.0, beta=0.0), specialists())
    task.student.eval()
    loss = task.step(Batch(images(), target(), places=torch.arange(B)), When(5, 10))["loss_kd"]
    student, values = task.student(images()), torch.zeros(B)
    for b, label in enumerate(target().tolist()):
        knowing = [k for k, classes in enumerate(KNOWN) if classes is None or label in classes]
        for k in knowing:
            own = list(range(C)) if KNOWN[k] is None else list(KNOWN[k] or ())
            teacher = task.teachers.networks[k](images())
            values[b] += softened_kl(student[b, own], teacher[b], 4.0).item() / len(knowing)
    torch.testing.assert_close(loss, values.mean(), rtol=1e-4, atol=1e-6)


@each_pair
def test_they_teach_together_under_every_pair(distill: str, name: str, loss_options: Make) -> None:
    """All is finite, and what a teacher says on samples that it does not know makes no difference."""
    b = 0.0 if distill_dict[distill].on_logits() else 1.0
    task = objective(distill, name, loss_options(beta=b), specialists())
    batch = Batch(images(), target(), places=torch.arange(B))
    scalars = task.step(batch, When(5, 10))
    assert all(value.isfinite() for value in scalars.values())
    scalars["loss"].backward()
    for parameter in task.student.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.parametrize("distill", [name for name, kind in distill_dict.items() if kind.predicts])
def test_they_cannot_answer_for_the_student(distill: str, loss_options: Make) -> None:
    with pytest.raises(UsageError, match=r"^--distill: .* needs teachers that know all classes, in their order"):
        objective(distill, "AVERAGE_LOSS", loss_options(), specialists())
    usual = specialists([None] * 3)
    assert usual.usual
    assert not Teachers([*usual.networks[:2], Chosen(usual.networks[2], range(C)[::-1])]).usual


@each_pair
def test_all_classes_known_is_the_same_as_nothing_said(distill: str, name: str, loss_options: Make) -> None:
    b = 0.0 if distill_dict[distill].on_logits() else 1.0
    losses = []
    for known in ([None] * 3, [tuple(range(C))] * 3):
        teachers = specialists([None] * 3)
        teachers.known = None if known[0] is None else Known(known, C, CPU)
        task = objective(distill, name, loss_options(beta=b), teachers)
        losses.append(task.step(Batch(images(), target(), places=torch.arange(B)), When(5, 10)))
    for name_of_loss, value in losses[0].items():
        torch.testing.assert_close(losses[1][name_of_loss], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["AVERAGE_LOSS", "AEKD", "EBKD", "CAMKD"])
def test_what_nobody_knows_is_not_taught(name: str, loss_options: Make) -> None:
    """By any teacher; and what a teacher says where it has no say moves nothing."""
    known = [(0, 2), (2, 3)]
    task = objective("kd", name, loss_options(gamma=0.0, beta=0.0), specialists(known))
    places = torch.arange(B)
    unknown = torch.tensor([1, 4, 5, 6, 1, 4, 5, 6])
    assert task.step(Batch(images(), unknown, places=places), When(5, 10))["loss_kd"] == 0
    mixed = torch.tensor([0, 0, 2, 2, 3, 3, 3, 3])
    task.student.eval()
    expected = task.step(Batch(images(), mixed, places=places), When(5, 10))["loss_kd"]
    plain = task.teachers._logits

    def babbling(images: Tensor, views: Tensor | None) -> list[Tensor]:
        first, second = (each.clone() for each in plain(images, views))
        first[4:] += 100 * torch.arange(2)
        second[:2] -= 100 * torch.arange(2)
        return [first, second]

    task.teachers._logits = babbling
    torch.testing.assert_close(task.step(Batch(images(), mixed, places=places), When(5, 10))["loss_kd"], expected)


def teachers_of(known: list[tuple[int, ...]], labels: Tensor) -> TeacherLosses:
    """As the objective describes them, with losses of 1 before they are shared."""
    K = len(known)
    draw, masks = torch.Generator().manual_seed(K), Known(known, C, CPU)
    logits = masks.spread([torch.randn(len(labels), len(each), generator=draw) for each in known])
    losses = masks.shared(torch.ones(K, len(labels)), labels)
    gradients, student = torch.randn(K, 40, generator=draw), torch.randn(len(labels), C, generator=draw)
    return TeacherLosses(
        losses, labels, "logit", lambda: logits, lambda: gradients, student_logits=student, knows=masks.knows
    )


@each_method
def test_each_sample_is_taught_as_much_as_if_all_knew_it(name: str) -> None:
    """Σ_k w_kb·loss_kb of losses 1 is what the weights sum to, by however many a class is known."""
    known, labels = [(0, 1, 2), (1, 2, 3), (2, 3, 4)], torch.arange(5)
    told, everyone = teachers_of(known, labels), teachers_of([tuple(range(C))] * 3, labels)
    method = ensemble_dict[name]()
    method.attach(told)
    total = method.total(3)
    for scale in ("released", *(("unit",) if total else ())):
        weights = weigh(method, told, scale)
        assert weights.isfinite().all()
        per_sample = weights if weights.ndim == 2 else weights[:, None].expand(3, 5)
        if weights.ndim == 2:
            assert not per_sample[told.losses == 0].any()
            if total is not None:
                expected = weigh(method, everyone, scale).sum(0)
                torch.testing.assert_close((per_sample * told.losses).sum(0), expected, rtol=1e-4, atol=1e-5)


def agent_of(told: TeacherLosses, **settings: Any) -> Any:
    torch.manual_seed(0)
    method: Any = ensemble_dict["MTKDRL"](**settings)
    method.attach(told)
    return method.train()


def test_an_agent_is_shown_nothing_of_what_teachers_do_not_know() -> None:
    """The two given weights of those who know a class are what they would be without the others."""
    labels = torch.arange(5)
    told = teachers_of([(0, 1, 2), (0, 1, 2, 3), (0, 1, 4)], labels)
    shown = agent_of(told).look(told)
    assert shown.state.abs().max() < 100
    assert not shown.close[2, 2].any()
    for knowing, these in (([0, 1, 2], labels[:2]), ([0, 1], labels[2:3])):
        some = TeacherLosses(
            told.losses[knowing][:, these],
            these,
            "logit",
            lambda: told.logits[knowing][:, these],  # noqa: B023
            told.gradients_of,
            student_logits=told.student_logits[these],  # type: ignore[index]
            knows=told.knows[knowing],  # type: ignore[index]
        )
        alone, n = agent_of(some).look(some), len(knowing)
        torch.testing.assert_close(shown.close[these][:, knowing], alone.close)
        torch.testing.assert_close(shown.certain[these][:, knowing] * (3 - 1), alone.certain * (n - 1))


def test_all_classes_known_changes_nothing_that_an_agent_is_shown() -> None:
    told = teachers_of([tuple(range(C))] * 3, torch.arange(5))
    shown = agent_of(told).look(told)
    told.knows = None
    assert all(map(torch.equal, shown, agent_of(told).look(told)))


@pytest.mark.parametrize("policy", ["released", "reward"])
def test_an_agent_of_specialists_learns(policy: str) -> None:
    """With ``reward``, that those with the smaller loss are better, but not those whose loss is 0 for want of a say."""
    labels = torch.arange(5).repeat(8)
    told = teachers_of([(0, 1, 2), (1, 2, 3), (0, 2, 3, 4)], labels)
    told.losses = told.losses * torch.tensor([[1.0], [2.0], [1.5]])
    method = agent_of(told, policy=policy)

    def own() -> Tensor:  # [B, K]
        return method.agent.head(method.agent.steam(method.look(told).state).relu()).softmax(1)

    before = own()
    assert before.max() < 0.99
    for _ in range(20):
        weights = weigh(method, told, "released")
        method.after_step((weights * told.losses).sum(0))
        method.after_epoch()
    assert (own() - before).abs().max() > 0.01
    if policy == "reward":
        gain = own() - before
        assert (gain[labels == 2, 0] > 0).all()
        assert (gain[labels == 2, 1] < 0).all()
        assert (gain[labels == 0, 0] > gain[labels == 0, 1]).all()


def test_who_does_not_know_a_class_is_neither_better_nor_worse() -> None:
    told = teachers_of([(0, 1, 2), (1, 2, 3), (2, 3, 4)], torch.arange(5))  # losses of 1 each, before they are shared
    torch.testing.assert_close(agent_of(told).look(told).losses, torch.ones(5, 3))


def test_weights_of_those_without_a_say_go_to_the_others() -> None:
    own = [[0.2, 0.2, -0.2, 0.5, -0.2], [0.3, 0.3, 0.7, 0.0, 0.7], [0.5, 0.5, 0.5, 0.5, 0.5]]
    weights = torch.tensor(own, requires_grad=True)
    has_say = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    shared = among_those(has_say, weights) * torch.tensor([3 / 2, 3, 3 / 2, 3, 1])  # with the factor of the losses
    expected = torch.tensor([[0.4, 1.0, 0.5, 0.0, -0.2], [0.6, 0.0, 0.5, 1.0, 0.7], [0, 0, 0, 0, 0.5]])
    torch.testing.assert_close(shared, expected)
    (gradient,) = torch.autograd.grad(shared[0].sum(), weights)
    assert gradient.isfinite().all()


def test_accuracy_is_that_over_the_known_classes() -> None:
    """Also in the last of several batches, without any of them."""
    logits = torch.eye(C)[[0, 2, 0, 1, 5, 6]] * 9
    labels = torch.tensor([0, 2, 2, 1, 1, 6])
    batches = [Batch(logits[:4], labels[:4]), Batch(logits[4:], labels[4:])]
    known = {"some": torch.tensor([c in (0, 2) for c in range(C)]), "none": torch.zeros(C, dtype=torch.bool)}
    scores = evaluate(lambda each: dict.fromkeys(("some", "all", "none"), each), batches, CPU, "fp32", known)
    assert scores["some"]["accuracy"] == pytest.approx(200 / 3)
    assert scores["all"]["accuracy"] == pytest.approx(400 / 6)
    assert scores["none"]["accuracy"] == 0


def test_losses_are_asked_about_the_labels_place() -> None:
    known = Known([(0, 2, 3), (1, 3)], C, CPU)
    first, second = known.of_batch(Batch(images(), torch.tensor([3, 2, 0, 1, 3, 6])))
    assert first.target.tolist() == [2, 1, 0, 0, 2, 0]
    assert second.target.tolist() == [1, 0, 0, 0, 1, 0]


def test_nothing_is_spread_to_a_class_at_any_size_of_logits() -> None:
    known = Known([(0, 2, 3), (1, 3)], C, CPU)
    for size in (0.0, 1.0, 1e4):
        for dtype in (torch.float32, torch.bfloat16):
            spread = known.spread([torch.full((B, 3), size, dtype=dtype), torch.full((B, 2), -size, dtype=dtype)])
            assert spread.isfinite().all()
            assert torch.allclose(spread.float().softmax(-1)[0, 0], torch.tensor([1, 0, 1, 1, 0, 0, 0]) / 3)


def test_a_network_of_any_kind_is_chosen_from() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, C)).eval()
    assert torch.equal(Chosen(plain, (6, 1))(images()), plain(images())[:, [6, 1]])
