"""What the losses that remember, learn first or answer for the student promise beside their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from objectives import make_objective
from torch import Tensor, nn

from distiller_zoo import Pair, distill_dict
from distiller_zoo.ofd import Margin, distance, expected_negative
from helper.answering import Heads
from helper.batch import Batch, When
from helper.errors import UsageError
from helper.machine import autocast
from helper.pretraining import First, before_training, pretrain
from helper.seen import Observed, Seen, norms_of, observe
from helper.teachers.asked import Teachers
from models import StagedModel, model_dict

B, CLASSES = 6, 7
Make = Callable[..., argparse.Namespace]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(places: Tensor, labels: Tensor) -> Batch:
    return Batch(normal(len(places), 3, 16, 16), labels[places], places=places)


# ---- margins


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (-0.5, 0.3), (2.0, -1.5), (0.3, 0.6)])
def test_a_margin_is_the_mean_negative_response(scale: float, shift: float) -> None:
    drawn = normal(10**6).double() * scale + shift
    found = expected_negative(torch.tensor([scale]).double(), torch.tensor([shift]).double())
    torch.testing.assert_close(found, drawn[drawn < 0].mean()[None], rtol=0.01, atol=0)


def test_the_margin_of_what_is_never_negative_and_of_a_constant() -> None:
    margins = expected_negative(torch.tensor([0.1, 0.0, 0.0, 0.0]), torch.tensor([4.0, 1.0, -2.0, 0.0]))
    torch.testing.assert_close(margins, torch.tensor([-0.3, 0.0, -2.0, 0.0]))


def test_margins_that_are_counted() -> None:
    """The mean over the batches, of each channel; evaluation counts nothing."""
    margin, maps = Margin(None, 3), [normal(B, 3, 4, 4, seed=seed) for seed in range(5)]
    for each in maps:
        margin(each)
    parts = [torch.stack([channel[channel < 0].mean() for channel in each.transpose(0, 1)]) for each in maps]
    torch.testing.assert_close(margin.mean, torch.stack(parts).mean(0))
    before = margin.mean.clone()
    margin.eval()(100 * maps[0])
    assert torch.equal(margin.mean, before)


def test_ofd_asks_for_nothing_below_the_margin() -> None:
    margin = Margin((torch.ones(2), torch.zeros(2)), 2)
    m = margin.mean[0].item()
    theirs = torch.tensor([1.0, -5.0, -0.1, -5.0]).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    mine = torch.tensor([0.0, 2 * m, -2.0, 0.0]).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    each = torch.tensor([1.0, 0.0, 0.0, m**2])  # active: its value; silent: anything below the margin, or below itself
    torch.testing.assert_close(distance(mine, theirs, margin), 18 * each)


@pytest.mark.parametrize("arch", ["resnet14", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV2_0_5"])
def test_margins_of_networks(arch: str) -> None:
    """From batch normalisations, frozen ones too, or, of the stages that have none, counted."""
    network = model_dict[arch](num_classes=CLASSES).eval()
    known = [each is not None for each in norms_of(network)[1:-1]]
    assert all(known) or arch == "ShuffleV2_0_5"
    features, _ = network(torch.zeros(2, 3, 32, 32), is_feat=True)
    shapes = [tuple(each.shape[1:]) for each in features]
    loss: Any = distill_dict["ofd"](Pair(shapes, shapes, CLASSES, teacher_norms=norms_of(network)))
    assert [not margin.counted for margin in loss.margins] == known
    for margin, shape in zip(loss.margins, shapes[1:-1], strict=True):
        assert margin.mean.shape == shape[:1]


def test_ofd_pairs_stages_from_the_last() -> None:
    """Those that the other network lacks do not count."""
    shapes = [[(4, 8, 8), *((width, 4, 4) for width in widths), (widths[-1],)] for widths in ((3, 5, 6, 7), (8, 9))]
    loss: Any = distill_dict["ofd"](Pair(*shapes, CLASSES))
    assert [(each.conv.in_channels, each.conv.out_channels) for each in loss.connectors] == [(6, 8), (7, 9)]
    maps = [[normal(B, *shape).requires_grad_() for shape in each[1:-1]] for each in shapes]
    values = loss(
        *(Seen(before_relu=tuple(each)) for each in maps), batch_of(torch.arange(B), torch.arange(9)), When(1, 1)
    )
    slopes = torch.autograd.grad(values.sum(), maps[0], allow_unused=True)
    assert [slope is not None for slope in slopes] == [False, False, True, True]


# ---- a memory


def contrast(images: int = 40, **settings: Any) -> Any:
    torch.manual_seed(0)
    labels = torch.arange(images) % 4
    return distill_dict["crd"](Pair([(5,)], [(9,)], 4, labels), feat_dim=8, **settings).train()


def ask(loss: Any, places: Tensor, step: int = 1) -> tuple[Tensor, Tensor]:
    student, teacher = normal(len(places), 5).requires_grad_(), normal(len(places), 9, seed=1)
    return loss(Seen(vector=student), Seen(vector=teacher), batch_of(places, loss.labels), When(1, 1, step)), student


def test_who_an_image_is_told_from() -> None:
    """Images of other classes, none twice; in a repeated step the same, in another one others; all as often."""
    loss = contrast(nce_k=10)
    target = torch.arange(6) % 4
    drawn = loss.draw(target, When(1, 1, 3))
    assert torch.equal(drawn.sort(1).values, loss.draw(target, When(1, 1, 3)).sort(1).values)
    assert not torch.equal(drawn.sort(1).values, loss.draw(target, When(1, 1, 4)).sort(1).values)
    assert not torch.equal(drawn[0].sort().values, drawn[4].sort().values)  # of the same class
    counts = torch.zeros(6, 40)
    for step in range(300):
        drawn = loss.draw(target, When(1, 1, step))
        assert all(len(row.unique()) == 10 for row in drawn)
        counts.scatter_add_(1, drawn, torch.ones(6, 10))
    others = loss.labels != target[:, None]
    assert not counts[~others].any()
    assert (counts[others] / 100 - 1).abs().max() < 0.35  # 10 of 30, 300 times; a deviation of 8


def test_each_micro_batch_draws_anew() -> None:
    """The first one what a whole batch would."""
    loss, target = contrast(nce_k=10), torch.zeros(6, dtype=torch.int64)
    plain = loss.draw(target, When(1, 1, 3))
    assert torch.equal(loss.draw(target, When(1, 1, 3, 5, part=0)), plain)
    places = [(step, part) for step in range(1, 6) for part in range(4)]
    draws = torch.stack([loss.draw(target, When(1, 1, step, 5, part)).sort(1).values for step, part in places])
    assert len(draws.unique(dim=0)) == len(places)


def test_all_teachers_draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, target = torch.arange(40) % 4, torch.arange(6) % 4
    losses: list[Any] = [distill_dict["crd"](Pair([(5,)], [(9,)], 4, labels), nce_k=10) for _ in range(3)]
    draws, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **how: draws.append(size) or rand(*size, **how))
    first, *others = (loss.draw(target, When(1, 1, 5)) for loss in losses)
    assert len(draws) == 1
    assert all(torch.equal(each, first) for each in others)
    assert not torch.equal(losses[0].draw(target.flip(0), When(1, 1, 5)), first)
    torch.manual_seed(1)  # another epoch
    assert not torch.equal(losses[0].draw(target, When(1, 1, 5)), first)


def test_fewer_images_than_are_asked_for() -> None:
    loss = contrast(nce_k=16384)
    assert loss.negatives == 30
    assert loss.draw(torch.zeros(2, dtype=torch.int64), When(1, 1)).shape == (2, 30)


@pytest.mark.parametrize("labels", [None, torch.zeros(40, dtype=torch.int64)], ids=["unknown", "of one class"])
def test_labels_that_tell_nothing_apart(labels: Tensor | None) -> None:
    with pytest.raises(UsageError, match=r"^--distill: crd .*; choose "):
        distill_dict["crd"](Pair([(5,)], [(9,)], 4, labels))


def test_what_the_memory_keeps() -> None:
    """Only training writes, only the batch's rows, which have length 1; the usual score is that of the first batch."""
    loss = contrast(nce_k=10)
    before = loss.student_bank.clone(), loss.teacher_bank.clone()
    places = torch.tensor([3, 17, 30, 5])
    ask(loss.eval(), places)
    assert torch.equal(loss.student_bank, before[0])
    assert not loss.usual.any()
    values, student = ask(loss.train(), places)
    usual = loss.usual.clone()
    assert (usual > 0).all()
    for bank, old in zip((loss.student_bank, loss.teacher_bank), before, strict=True):
        rest = torch.ones(40, dtype=torch.bool).index_fill(0, places, False)
        assert torch.equal(bank[rest], old[rest])
        torch.testing.assert_close(bank[places].norm(dim=1), torch.ones(4))
        assert not torch.equal(bank[places], old[places])
    values.sum().backward()  # the bank of before is what gradients are taken with
    assert student.grad is not None
    assert student.grad.any(1).all()
    ask(loss, places + 1)
    assert torch.equal(loss.usual, usual)
    assert {"student_bank", "teacher_bank", "usual"} <= loss.state_dict().keys()


def test_an_image_learns_to_be_told_apart() -> None:
    """Fixed features on both sides: the loss falls when both layers are trained."""
    loss, places = contrast(nce_k=20), torch.arange(16)
    optimizer = torch.optim.SGD(loss.parameters(), 0.3)
    values = []
    for step in range(30):
        value = ask(loss, places, step)[0].mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


# ---- what learns first


def test_a_paraphraser_learns_before_all_else_and_then_stays() -> None:
    torch.manual_seed(0)
    shapes = [(4, 8, 8), (4, 8, 8), (4,)], [(6, 8, 8), (6, 8, 8), (6,)]
    losses: list[Any] = [distill_dict["ft"](Pair(*shapes, CLASSES)) for _ in range(2)]
    frozen = [{name for name, each in loss.named_parameters() if not each.requires_grad} for loss in losses]
    assert {name.split(".")[0] for name in frozen[0]} == {"encoder", "decoder"}
    maps = [normal(B, 6, 8, 8, seed=k).relu() for k in range(2)]
    errors = [loss.first_loss(Seen(maps=(each,))).item() for loss, each in zip(losses, maps, strict=True)]
    asked: list[int] = []

    def batches(epoch: int) -> list[Batch]:
        asked.append(epoch)
        return [batch_of(torch.arange(B), torch.arange(9))] * 5

    def see(_: Batch) -> list[Observed]:
        return [Observed(torch.zeros(B, CLASSES), [None, each, None]) for each in maps]

    before = [{name: each.clone() for name, each in loss.state_dict().items()} for loss in losses]
    pretrain([First(loss, k, 160) for k, loss in enumerate(losses)], see, batches, nullcontext)
    assert asked == list(range(1, 21))
    for loss, each, error, names, state in zip(losses, maps, errors, frozen, before, strict=True):
        assert loss.first_loss(Seen(maps=(each,))) < 0.9 * error  # of noise, half as many channels cannot hold all
        changed = {name for name, value in loss.state_dict().items() if not torch.equal(value, state[name])}
        assert changed == names
        assert {name for name, value in loss.named_parameters() if not value.requires_grad} == names
        assert all(value.grad is None for value in loss.parameters())


class Epoch(list[Batch]):
    """A loader whose epochs are all alike."""

    def set_epoch(self, epoch: int) -> None:
        pass


def first_losses(opt: argparse.Namespace, precision: str) -> Tensor:
    """Of the steps of a paraphraser, over an eighth of the run's epochs of three batches."""
    torch.manual_seed(0)
    student, teacher = (model_dict[arch](num_classes=CLASSES) for arch in ("resnet8", "resnet14"))
    task = make_objective("ft", "AVERAGE_LOSS", student, Teachers([teacher]), opt, normal(B, 3, 16, 16))
    (loss,), values = task.adapters, []
    learns = loss.first_loss
    loss.first_loss = lambda seen: values.append(learns(seen)) or values[-1]
    train = Epoch([batch_of(torch.arange(B), torch.arange(9) % CLASSES)] * 3)
    inside = partial(autocast, torch.device("cpu"), precision)
    before_training(task, train, lambda: train, inside, argparse.Namespace(seed=0, batch_size=B))
    return torch.stack(values).detach()


def test_a_paraphraser_learns_as_well_in_bfloat16(loss_options: Make) -> None:
    """Each step is that of the weights which the last one has left, not of copies that autocast keeps."""
    exact, coarse = (first_losses(loss_options(epochs=160), precision) for precision in ("fp32", "bf16"))
    assert exact[-1] < 0.25 * exact[0]
    torch.testing.assert_close(coarse, exact, rtol=0.2, atol=0)


@pytest.mark.parametrize(("given", "epochs", "expected"), [(None, 240, 30), (None, 2, 1), (None, 30, 4), (7, 240, 7)])
def test_how_long_it_learns(given: int | None, epochs: int, expected: int) -> None:
    shapes = [(4, 8, 8), (4, 8, 8), (4,)]
    assert distill_dict["ft"](Pair(shapes, shapes, CLASSES), init_epochs=given).first_epochs(epochs) == expected


def test_losses_that_learn_nothing_first_ask_for_no_epoch(loss_options: Make) -> None:
    task = through(loss_options())
    task.before(lambda epoch: pytest.fail("a batch was asked for"), nullcontext)


# ---- answers through heads


def through(opt: argparse.Namespace, method: str = "AVERAGE_LOSS") -> Any:
    torch.manual_seed(0)
    student, *teachers = (model_dict[arch](num_classes=CLASSES) for arch in ("resnet8", "resnet14", "vgg8"))
    task = make_objective("simkd", method, student, Teachers(teachers), opt, normal(B, 3, 16, 16))
    task.trained.train()
    return task


def test_the_student_answers_through_the_teachers(loss_options: Make) -> None:
    """And its own classifier learns nothing where labels and logits have no weight."""
    task = through(loss_options(gamma=0.0, alpha=0.0))
    scalars = task.step(batch_of(torch.arange(B), torch.arange(9) % CLASSES), When(1, 10))
    scalars["loss"].backward()
    assert not task.student.fc.weight.grad.any()
    assert all(each.grad.any() for each in task.adapters[0].parameters())
    assert not any(each.requires_grad for each in task.trained["heads"].parameters())

    task.trained.eval()
    shares = torch.tensor([0.25, 0.75])
    task.trained["heads"].shares = 2 * shares
    images = normal(B, 3, 16, 16, seed=1)
    with torch.no_grad():
        seen = observe(task.student, images, task.adapters[0].student).seen(task.adapters[0].student)
        expected = sum(
            share * network.classify(loss.as_teacher_reads(loss.prepare(seen)))
            for share, network, loss in zip(shares, task.teachers.networks, task.adapters, strict=True)
        )
        (answer,) = task.predict(images).values()
    torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize("method", ["AVERAGE_LOSS", "CAMKD"])
def test_teachers_count_as_they_did_in_training(method: str, loss_options: Make) -> None:
    task = through(loss_options(gamma=0.0, alpha=0.0), method)
    heads: Heads = task.trained["heads"]
    for step in range(3):
        scalars = task.step(batch_of(torch.arange(B), torch.arange(9) % CLASSES), When(1, 10, step + 1))
        weights = torch.stack([scalars[f"feature_weight_{k}"] for k in range(2)])
    ratio, asked = heads.shares[1] / heads.shares[0], weights[1] / weights[0]
    assert (ratio == 1) == (method == "AVERAGE_LOSS")
    assert (ratio - 1) * (asked - 1) >= 0
    before = heads.shares.clone()
    task.trained.eval()
    task.predict(normal(B, 3, 16, 16))
    assert torch.equal(before, heads.shares)
    assert not any(module.training for module in task.trained.train()["heads"].modules())


@pytest.mark.parametrize("name", [name for name in model_dict if not name.startswith("torchvision/")])
@torch.no_grad()
def test_the_tail_of_a_network_classifies_its_maps(name: str) -> None:
    model: StagedModel = model_dict[name](num_classes=CLASSES).eval()
    features, logits = model(normal(2, 3, 32, 32), is_feat=True)
    tail = model.tail()
    torch.testing.assert_close(tail.classify(features[-2]), logits)
    mine, theirs = (sum(each.numel() for each in module.parameters()) for module in (tail, model))
    assert mine < theirs / 2 or name == "MobileNetV2"  # whose last convolution belongs to it
    convolutions = [module for module in tail.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == (name == "MobileNetV2")
