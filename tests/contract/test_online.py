"""What the online half promises: peers of any architecture, gradients where they belong, runs that can be resumed."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sums import crossed
from torch import Tensor, nn

import train_online
from dataset import dataset_dict
from dataset.digits import Digits
from helper import checkpoint
from helper.batch import Batch, When
from helper.cost import mac_count, parameter_count
from helper.errors import UsageError
from helper.machine import autocast
from helper.optimisation import parameter_groups
from helper.recipe import lr_drops
from helper.record import Record
from models import StagedModel, model_dict
from online import OnlineMethod, Outputs, Peers, online_dict
from online.base import diversity, ramp_up
from online.boc import BOC, OTHERS, RECIPES
from online.okddip import Attention, OKDDip
from online.one import mix as mix_of_one

CLASSES = 10
FAMILIES = ("resnet8", "wrn_16_1", "ShuffleV2_0_5")
PAIRS = [
    (name, peers)
    for name, entry in online_dict.items()
    for peers in (entry.structures if "peers" in entry.__init__.__annotations__ else ("",))
]
each_pair = pytest.mark.parametrize(("name", "peers"), PAIRS)
each_method = pytest.mark.parametrize("name", online_dict)


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def labels(batch: int = 4) -> Tensor:
    return torch.arange(batch) % CLASSES


def make_task(name: str, model: str = "resnet8", classes: int = CLASSES, **settings: Any) -> train_online.PeerTraining:
    torch.manual_seed(0)
    method = online_dict[name](**settings)
    peers = method.make_peers(lambda **config: model_dict[model](num_classes=classes, **config))
    return train_online.PeerTraining(peers, method, images(2))


def settings_of(peers: str) -> dict[str, str]:
    return {"peers": peers} if peers else {}


@pytest.fixture(scope="module")
def _few_digits() -> Iterator[None]:
    """Fewer and smaller images, so that an epoch takes a fraction of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset.digits.SIZE", 16)
        train, test = Digits.load(Digits.__new__(Digits))
        parts = train.subset(torch.arange(64)), test.subset(torch.arange(32))
        patch.setattr(Digits, "load", lambda _: parts)
        yield


def run(tmp_path: Path, *arguments: str) -> Path:
    """The real command on a few digits; returns the run folder."""
    common = ("--dataset", "digits", "--batch_size", "32", "--device", "cpu", "--save_dir", str(tmp_path))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        train_online.main([*arguments, *common])
    return Path(output.getvalue().splitlines()[-1].split(": ")[0])


# --- peers ---


@pytest.mark.parametrize(
    ("model", "shared"),
    crossed(
        [*FAMILIES, "vgg16_fc3", "densenetd40k12", "MobileNetV2", "torchvision/efficientnet_b0"],
        ["none", "stem", "trunk"],
        ["resnet8", "MobileNetV2"],
        ["trunk"],
    ),
)
@torch.no_grad()
def test_peers_are_whole_networks(model: str, shared: str) -> None:
    networks = [model_dict[model](num_classes=CLASSES) for _ in range(3)]
    alone = parameter_count(networks[0])
    depth = len(networks[0].stages)
    peers = Peers(networks, {"none": 0, "stem": 1, "trunk": depth - 1}[shared]).eval()
    outputs = peers(images())
    for j, network in enumerate(peers.networks):
        assert isinstance(network, StagedModel)
        torch.testing.assert_close(network(images()), outputs.logits[j])
        fresh = model_dict[model](num_classes=CLASSES).eval()
        fresh.load_state_dict(network.state_dict())
        torch.testing.assert_close(fresh(images()), outputs.logits[j])
    assert (outputs.trunk is None) == (shared == "none")
    assert outputs.features.shape[:2] == (3, 4)
    assert not torch.equal(outputs.logits[0], outputs.logits[1])
    total = parameter_count(peers)
    assert total == 3 * alone if shared == "none" else total < 3 * alone


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(UsageError, match="--model: torchvision/vit_b_32 has no stages"):
        online_dict["IND"]().make_peers(lambda: model_dict["torchvision/vit_b_32"](num_classes=CLASSES))


@each_pair
def test_every_part_learns(name: str, peers: str) -> None:
    """All peers and all the method's own modules have a gradient after one step; averaged peers have none."""
    task = make_task(name, **settings_of(peers))
    task.trained.train()
    scalars = task.step(Batch(images(), labels()), When(5, 10))
    scalars["loss"].backward()
    assert all(scalar.ndim == 0 for scalar in scalars.values())
    for module in (task.peers, task.method):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
    averaged = () if task.averaged is None else task.averaged.parameters()
    assert not any(parameter.requires_grad for parameter in averaged)


@each_pair
def test_mixed_images_have_both_labels_and_are_looked_at_once(name: str, peers: str) -> None:
    """The losses are those with each label, by its share; a method's own modules run, and count, once a step."""
    task = make_task(name, **settings_of(peers))
    task.trained.train()
    calls: list[nn.Module] = []
    one, two, mixed = (copy.deepcopy(task) for _ in range(3))
    for module in mixed.method.modules():
        module.register_forward_hook(lambda module, *_: calls.append(module))
    plain = Batch(images(), labels())
    first = one.step(plain, When(5, 10))
    second = two.step(plain._replace(target=labels().flip(0)), When(5, 10))
    both = mixed.step(plain._replace(other=labels().flip(0), share=torch.full((4,), 0.7)), When(5, 10))
    for part in first.keys() - {"accuracy"}:
        torch.testing.assert_close(both[part], 0.7 * first[part] + 0.3 * second[part])
    assert len(calls) == len(set(calls))
    torch.testing.assert_close(dict(mixed.trained.named_buffers()), dict(one.trained.named_buffers()))


@each_pair
def test_evaluation_changes_nothing(name: str, peers: str) -> None:
    task = make_task(name, **settings_of(peers))
    task.trained.train()
    task.trained.eval()
    norms = [module for module in task.trained.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) >= len(task.peers)
    assert not any(norm.training for norm in norms)
    before = {key: value.clone() for key, value in task.trained.state_dict().items()}
    with torch.no_grad():
        first, second = task.predict(images()), task.predict(images())
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(task.trained.state_dict(), before, rtol=0, atol=0)
    assert next(iter(first)) == "network"
    torch.testing.assert_close(first["network"], task.trained["network"](images()))


# --- gradients ---


def test_okddips_attention_learns() -> None:
    task = make_task("OKDDip")
    outputs = task.peers(images())
    task.method.losses(outputs, labels())["kd"].sum().backward()
    assert task.method.attention.query.weight.grad.abs().sum() > 0
    assert task.method.attention.key.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("mix", ["logits", "probabilities"])
def test_okddips_mixtures(mix: str) -> None:
    """With one-hot attention a target is the peer that is attended to; else the formula of release or paper."""
    method = online_dict["OKDDip"](mix=mix, kd_T=2.0)
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    weights = torch.rand(4, 2, 3, dtype=torch.float64).softmax(-1)
    mixed = method.mixed(weights, logits)
    expected = torch.stack([sum(weights[:, n, b, None] * logits[b] for b in range(3)) for n in range(2)])
    if mix == "probabilities":
        soft = (logits / 2).softmax(-1)
        expected = torch.stack([sum(weights[:, n, b, None] * soft[b] for b in range(3)) for n in range(2)])
        mixed = (mixed / 2).softmax(-1)
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("mix", ["logits", "probabilities"])
def test_okddips_attention_to_one_peer_alone_has_a_finite_gradient(mix: str) -> None:
    """Scores so far apart that softmax gives the others exactly 0."""
    method = online_dict["OKDDip"](mix=mix)
    logits, vectors = torch.randn(4, 8, CLASSES, requires_grad=True), (400 * torch.rand(4, 8, 64)).requires_grad_()
    outputs = fake_outputs(logits, vectors)
    method.attach(outputs)
    assert (method.attended(outputs) == 0).any()
    method.losses(outputs, labels(8))["kd"].sum().backward()
    for each in (logits, vectors, *method.parameters()):
        assert each.grad is not None
        assert each.grad.isfinite().all()


def test_ensembles_are_not_rounded_to_half_precision() -> None:
    torch.manual_seed(0)
    logits, weights = torch.randn(3, 4, CLASSES), torch.rand(4, 2, 3).softmax(-1)
    attention = Attention(8)
    attention.query = attention.key = nn.Identity()
    features = torch.randn(3, 4, 8)

    def computed() -> list[Tensor]:
        mixtures = [OKDDip(mix=mix).mixed(weights, logits) for mix in ("logits", "probabilities")]
        return [attention(features), mix_of_one(weights[:, 0], logits), *mixtures]

    exact = computed()
    with autocast(torch.device("cpu"), "bf16"):
        assert all(map(torch.equal, computed(), exact))


@pytest.mark.parametrize("detach", [True, False])
def test_ones_gate_learns_from_the_labels_only_unless_its_target_has_a_gradient(detach: bool) -> None:
    """ONE's own code detaches the target of the KL, the one that OKDDip compares with does not."""
    for part, learns in (("kd", not detach), ("ce", True)):
        task = make_task("ONE", detach_targets=detach)
        losses = task.method.losses(task.peers(images()), labels())
        losses[part].sum().backward()
        gradients = [parameter.grad for parameter in task.method.gate.parameters()]
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients) == learns


@pytest.mark.parametrize("m", [2, 3, 4])
def test_clilr_divides_the_trunks_gradient(m: int) -> None:
    def gradients(factor: float) -> dict[str, Tensor]:
        task = make_task("CLILR", num_branches=m)
        task.trained.double().train()
        outputs = task.peers(images().double(), factor)
        sum(part.sum() for part in task.method.losses(outputs, labels()).values()).backward()
        return {key: parameter.grad for key, parameter in task.peers.named_parameters()}

    assert make_task("CLILR", num_branches=m).method.trunk_gradient == 1 / m
    plain, divided = gradients(1.0), gradients(1 / m)
    for key, gradient in plain.items():
        shared = not key.startswith("networks.") or not any(part in key for part in ("layer3", "fc"))
        torch.testing.assert_close(divided[key], gradient / m if shared else gradient, rtol=1e-9, atol=1e-12)


def test_a_step_divides_the_trunks_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained with is what :func:`test_clilr_divides_the_trunks_gradient` shows."""
    stems = []
    for factor in (None, 1.0):
        task = make_task("CLILR", num_branches=4)
        task.trained.double().train()
        if factor is not None:
            monkeypatch.setattr(type(task.method), "trunk_gradient", factor)
        task.step(Batch(images().double(), labels()), When(5, 10))["loss"].backward()
        stems.append(task.network.conv1.weight.grad)
    torch.testing.assert_close(4 * stems[0], stems[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["DML", "CLILR"])
def test_detached_targets(name: str) -> None:
    """With --detach_targets peer i's KL sends no gradient to peer j."""
    for settings in ({}, {"pairwise": True}) if name == "DML" else ({},):
        for detach in (False, True):
            method = online_dict[name](num_branches=3, detach_targets=detach, **settings)
            logits = torch.randn(3, 4, CLASSES, requires_grad=True)
            method.losses(fake_outputs(logits), labels())["kd"][0].backward()
            assert logits.grad is not None
            assert bool(logits.grad[1].abs().sum() > 0) != detach
            assert logits.grad[0].abs().sum() > 0


def fake_outputs(logits: Tensor, vectors: Tensor | None = None) -> Outputs:
    vectors = torch.zeros(*logits.shape[:2], 8) if vectors is None else vectors
    maps = tuple((vector[:, :, None, None].expand(-1, -1, 2, 2),) for vector in vectors)
    return Outputs(logits, tuple(vectors), maps, torch.ones(logits.shape[1], 4, 2, 2), averaged=2 * logits.detach())


@each_method
def test_permuting_the_peers_permutes_the_losses(name: str) -> None:
    torch.manual_seed(0)
    entry = online_dict[name]
    method = entry(adapters=False) if name == "BOC" else entry(num_branches=5)
    logits, vectors = torch.randn(5, 4, CLASSES), torch.randn(5, 4, 8)
    order = torch.tensor([2, 0, 3, 1, 4])  # the last is OKDDip's leader
    method.attach(fake_outputs(logits, vectors))
    plain = method.losses(fake_outputs(logits, vectors), labels())
    if name == "ONE":  # the gate's outputs belong to branches
        method.gate.fc = permuted(method.gate.fc, order)
    elif name == "PCL":
        method.classifier = permuted(method.classifier, channels_of(order), inputs=True)
    elif name == "FFL":
        method.fusion.depthwise = permuted(method.fusion.depthwise, channels_of(order))
        method.fusion.pointwise = permuted(method.fusion.pointwise, channels_of(order), inputs=True)
    others = method.losses(fake_outputs(logits[order], vectors[order]), labels())
    for key, each in plain.items():
        assert len(each) >= 5
        torch.testing.assert_close(others[key][:5], each[:5][order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(others[key][5:], each[5:], rtol=1e-4, atol=1e-5)


def test_permuting_the_students_permutes_their_map_losses() -> None:
    """Student 0, whose maps are the target, keeps its place; each student takes its adapters along."""
    method = BOC(num_students=4)
    maps = tuple((torch.randn(2, 8 - j, 4, 4), torch.randn(2, 16 - j, 2, 2)) for j in range(4))
    outputs = Outputs(torch.randn(4, 2, CLASSES), (), maps, None)
    method.num_blocks = 2
    method.attach(outputs)
    plain = method.map_losses(outputs)
    order = [2, 0, 1]
    method.adapters = nn.ModuleList(method.adapters[j] for j in order)
    outputs.maps = (maps[0], *(maps[1 + j] for j in order))
    torch.testing.assert_close(method.map_losses(outputs), plain[order])


def channels_of(order: Tensor, width: int = 8) -> Tensor:
    """Where the channels of peers in this order stand in a concatenation."""
    return (order[:, None] * width + torch.arange(width)).flatten()


def permuted(layer: nn.Module, order: Tensor, inputs: bool = False) -> nn.Module:
    """A copy whose outputs, or inputs, come in another order."""
    new = copy.deepcopy(layer)
    state = layer.state_dict()
    changed = {"weight": state["weight"][:, order]} if inputs else {key: each[order] for key, each in state.items()}
    new.load_state_dict({**state, **changed})
    return new


# --- views and averages ---

SEVERAL = [name for name, entry in online_dict.items() if entry().own_views]


def views(count: int) -> Batch:
    """One batch with so many views of its images."""
    first, *again = torch.randn(count, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch(first, labels(), again=tuple(again))


@pytest.mark.parametrize("peers", ["branches", "networks"])
def test_each_peer_sees_its_own_view(peers: str) -> None:
    """Of a network of its own, and of a shared trunk; batch statistics are those of one view at a time."""
    batch = views(3)
    task = make_task("IND", peers=peers, num_branches=3)
    task.trained.train()
    outputs = task.peers((batch.images, *batch.again))
    assert outputs.trunk is None
    for network, images, logits in zip(task.peers.networks, (batch.images, *batch.again), outputs.logits, strict=True):
        torch.testing.assert_close(network(images), logits)


@pytest.mark.parametrize("name", SEVERAL)
def test_own_views_are_an_option(name: str) -> None:
    assert online_dict[name](num_branches=3).views == 3
    assert online_dict[name](num_branches=3, own_views=False).views == 1


@pytest.mark.usefixtures("_few_digits")
@pytest.mark.parametrize("name", SEVERAL)
def test_peers_are_trained_on_views(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Batch] = []
    step = train_online.PeerTraining.step

    def watch(self: Any, batch: Batch, when: When) -> Any:
        seen.append(batch)
        return step(self, batch, when)

    monkeypatch.setattr(train_online.PeerTraining, "step", watch)
    arguments = ("--method", name, "--model", "resnet8", "--epochs", "1", "--num_branches", "3")
    run(tmp_path, *arguments)
    assert all(len(batch.again) == 2 for batch in seen)
    assert not any(torch.equal(batch.images, images) for batch in seen for images in batch.again)
    seen.clear()
    run(tmp_path, *arguments, "--no-own_views")
    assert seen
    assert not any(batch.again for batch in seen)


def test_averaged_peers_follow() -> None:
    """In their weights, not in their batch statistics, and what is used in the end is averaged."""
    task = make_task("PCL")
    assert task.averaged is not None
    assert any(task.network is network for network in task.averaged.networks)
    task.trained.train()
    optimizer = torch.optim.SGD(task.peers.parameters(), lr=0.1)
    expected: dict[str, Tensor] = {}
    for step in range(1, 4):
        task.step(views(3), When(1, 10, step, 5))["loss"].backward()
        optimizer.step()
        task.after_step()
        share = 1 / step  # the true mean, in the beginning
        for key, weight in task.peers.named_parameters():
            expected[key] = weight.detach().lerp(expected[key], 1 - share) if step > 1 else weight.detach().clone()
    torch.testing.assert_close(dict(task.averaged.named_parameters()), expected)
    statistics = [module.running_mean for module in task.averaged.modules() if isinstance(module, nn.BatchNorm2d)]
    others = [module.running_mean for module in task.peers.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(torch.equal(mine, theirs) for mine, theirs in zip(statistics, others, strict=True))


@pytest.mark.usefixtures("_few_digits")
def test_averages_go_on_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off after the first step: as if nothing had been."""
    monkeypatch.setattr("helper.loop.LOOK", 1)
    arguments = ("--method", "PCL", "--model", "resnet8", "--epochs", "1", "--checkpoint_minutes", "1e-9")
    straight = run(tmp_path / "a", *arguments)
    save = Record.save

    def cut(self: Record, seconds: float) -> None:
        save(self, seconds)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", *arguments)
    (folder,) = (tmp_path / "b" / "online").iterdir()
    assert checkpoint.load(folder / "last.pth")["position"]["step"] == 1
    resumed = run(tmp_path / "b", *arguments, "--resume")
    mine, theirs = (checkpoint.load(each / "last.pth")["trained"] for each in (straight, resumed))
    assert any(key.startswith("averaged.") for key in mine)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.usefixtures("_few_digits")
def test_what_has_grown_stays_where_a_run_is_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, told = OnlineMethod.weights, {}

    def tell(self: OnlineMethod, epoch: int, epochs: int) -> dict[str, float]:
        told[epoch] = weights(self, epoch, epochs)["kd"]
        return weights(self, epoch, epochs)

    monkeypatch.setattr(OnlineMethod, "weights", tell)
    arguments = ("--method", "ONE", "--model", "resnet8")
    first = run(tmp_path, *arguments, "--epochs", "1")
    run(tmp_path, *arguments, "--epochs", "4", "--resume", str(first))
    assert told == {1: pytest.approx(math.exp(-5)), 2: 1.0, 3: 1.0, 4: 1.0}


def test_the_fusion_has_a_weight_decay_of_its_own() -> None:
    task = make_task("FFL", fusion_weight_decay=0.5)
    groups = parameter_groups(task.trained, 0.1, task.rates, task.decays)
    assert [group.get("weight_decay") for group in groups] == [None, 0.5]
    assert {*map(id, groups[1]["params"])} == {*map(id, task.method.parameters())}


# --- formulas ---


def test_ramp_up() -> None:
    assert ramp_up(1, 80) == pytest.approx(torch.tensor(-5.0).exp().item())
    assert ramp_up(41, 80) == pytest.approx(torch.tensor(-1.25).exp().item())
    assert ramp_up(81, 80) == ramp_up(300, 80) == 1
    method = online_dict["OKDDip"](alpha=2.0)
    assert method.weights(41, 300)["kd"] == pytest.approx(2 * method.weights(5, 30)["kd"] / 2)  # e/length is the same
    assert online_dict["DML"]().weights(1, 300)["kd"] == 1


def test_diversity() -> None:
    logits = torch.tensor([[[50.0, 0.0]], [[0.0, 50.0]], [[50.0, 0.0]]])  # [3, 1, 2]
    torch.testing.assert_close(diversity(logits), torch.tensor([2 / 3 * 2**0.5]))
    assert diversity(logits[:1]).item() == 0


ADAM = (1e-3, 1e-5, False, "adam")
SGD = (0.1, 1e-4, False, "sgd")


@pytest.mark.parametrize(
    ("name", "model", "dataset", "expected"),
    [
        ("OKDDip", "resnet32", "cifar100", (300, (150, 225), 128, 0.1, 5e-4, True, "sgd")),
        ("ONE", "resnet32", "cifar10", (300, (151, 225), 128, *SGD)),
        ("PCL", "resnet32", "cifar100", (300, (150, 225), 128, 0.1, 5e-4, True, "sgd")),
        ("FFL", "resnet32", "cifar100", (300, (150, 225), 128, 0.1, 1e-4, True, "sgd")),
        ("KDCL", "resnet32", "cifar100", (240, (150, 180, 210), 64, 0.05, 5e-4, False, "sgd")),
        ("BOC", "resnet32", "cifar100", (350, (200, 300), 128, *ADAM)),
        ("BOC", "resnet20", "cifar100", (400, (100, 180, 240, 350), 64, *ADAM)),
        ("BOC", "resnet20", "digits", (400, (100, 180, 240, 350), 64, *ADAM)),
        ("BOC", "resnet20", "CIFAR10", (400, (100, 180, 250, 350), 128, *SGD)),
        ("BOC", "resnet32", "cifar10", (400, (50, 130, 220, 270), 128, *SGD)),
        ("BOC", "densenetd100k12", "cifar10", (350, (170, 250), 48, *SGD)),
        ("BOC", "torchvision/efficientnet_b0", "imagenet", (100, (50, 70, 90), 128, 1e-3, 1e-4, False, "adam")),
    ],
)
def test_published_recipes_are_the_defaults(name: str, model: str, dataset: str, expected: tuple[Any, ...]) -> None:
    arguments = ["--method", name, "--model", model, "--dataset", dataset]
    opt, recipe = train_online.parse(train_online.options(), arguments)
    epochs, drops, *rest = expected
    assert (opt.epochs, lr_drops(opt.epochs, None, recipe)) == (epochs, list(drops))
    assert [opt.batch_size, opt.learning_rate, opt.weight_decay, opt.nesterov, opt.optimizer] == rest
    assert opt.lr_decay_rate == (0.5 if dataset == "imagenet" else 0.1)
    count = opt.num_students if name == "BOC" else opt.num_branches
    assert count == {"BOC": 5, "OKDDip": 4, "ONE": 3, "PCL": 3, "FFL": 2, "KDCL": 2}[name]
    assert lr_drops(epochs // 10, None, recipe) == [round(drop / 10) for drop in drops]


def test_help_says_whose_learning_rate_it_is() -> None:
    said = " ".join(train_online.options().format_help().split())
    assert "--lr LEARNING_RATE the first one, as the method's recipe has it unless given (default: 0.1)" in said


@pytest.mark.parametrize(
    ("model", "dataset", "ratios", "kd_T"),
    [
        ("resnet20", "cifar100", (0.4, 0.3, 0.3), 3.0),
        ("resnet110", "cifar100", (0.7, 0.15, 0.15), 2.0),
        ("resnet20", "cifar10", (0.4, 0.2, 0.4), 3.0),
        ("resnet110", "cifar10", (0.4, 0.3, 0.3), 3.0),
        ("densenetd100k12", "cifar10", (1.0, 1.0, 1.0), 3.0),
        ("torchvision/efficientnet_b0", "imagenet", (1.0, 1.0, 1.0), 3.0),
        ("resnet32", "folder", (0.7, 0.15, 0.15), 2.0),
    ],
)
def test_published_ratios(model: str, dataset: str, ratios: tuple[float, ...], kd_T: float) -> None:
    parser = train_online.options()
    opt, recipe = train_online.parse(parser, ["--method", "BOC", "--model", model, "--dataset", dataset])
    method = train_online.make_method(parser, opt, recipe)
    assert isinstance(method, BOC)
    assert (method.ratios, method.kd_T) == (ratios, kd_T)


def test_a_recipes_own_values_are_no_mistake() -> None:
    """Typed or not, and whatever the default method's are."""
    words = ["--method", "BOC", "--dataset", "imagenet", "--lr_schedule", "cosine"]
    for typed in ([], ["--lr_decay_rate", "0.5", "--momentum", "0.9"]):
        assert train_online.parse(train_online.options(), [*words, *typed])[0].lr_decay_rate == 0.5


def test_every_recipe_is_of_a_known_network_and_dataset() -> None:
    """A misspelt row would never be used."""
    assert set(RECIPES) <= set(dataset_dict)
    assert {model for recipes in RECIPES.values() for model in recipes} <= {*model_dict, OTHERS}


def test_what_is_typed_overrides_the_recipe() -> None:
    arguments = ["--method", "BOC", "--optimizer", "sgd", "--lr", "0.1", "--batch_size", "32", "--epochs", "7"]
    opt, recipe = train_online.parse(train_online.options(), arguments)
    assert (opt.optimizer, opt.learning_rate, opt.batch_size, opt.epochs) == ("sgd", 0.1, 32, 7)
    method = train_online.make_method(train_online.options(), opt, recipe)
    assert isinstance(method, BOC)
    assert (method.ratios, method.kd_T) == ((0.7, 0.15, 0.15), 2.0)
    opt, recipe = train_online.parse(train_online.options(), ["--method", "BOC", "--model", "resnet20", "--kd_T", "5"])
    method = train_online.make_method(train_online.options(), opt, recipe)
    assert (method.ratios, method.kd_T) == ((0.4, 0.3, 0.3), 5.0)


@pytest.mark.parametrize("peers", ["branches", "networks"])
def test_dropout_of_okddips_vgg(peers: str) -> None:
    """Released: 0.5 after each hidden ReLU of a branch, none in networks of their own."""
    networks = make_task("IND", "vgg16_fc3", peers=peers, num_branches=2).peers.networks
    rates = [module.p for network in networks for module in network.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.5 if peers == "branches" else 0.0] * 4


# --- sizes ---


@pytest.mark.parametrize(
    ("name", "model", "m", "parameters"),
    [
        ("OKDDip", "resnet32", 4, 1_554_272),
        ("OKDDip", "resnet110_bottleneck", 4, 3_874_016),
        ("OKDDip", "wide_resnet20_8", 4, 22_611_936),
        ("ONE", "resnet32", 3, 1_193_189),
        ("ONE", "resnet110_bottleneck", 3, 2_962_437),
        ("ONE", "resnet164_bottleneck", 3, 4_363_653),
        ("CLILR", "resnet32", 3, 1_193_084),
    ],
)
def test_sizes_of_the_released_ensembles(name: str, model: str, m: int, parameters: int) -> None:
    assert parameter_count(make_task(name, model, classes=100, num_branches=m).trained) == parameters


def test_sizes_of_the_released_students() -> None:
    students = make_task("BOC", "resnet20", classes=100).peers.networks
    assert [parameter_count(student) for student in students] == [278_324, 176_216, 100_528, 44_571, 11_943]


@pytest.mark.parametrize("model", ["resnet20", "wrn_16_2", "densenetd40k12", "ResNet18", "torchvision/efficientnet_b0"])
def test_students_are_thinner_and_share_the_stem(model: str) -> None:
    task = make_task("BOC", model, num_students=3, num_blocks=2)
    first, *others = task.peers.networks
    for j, student in enumerate(others, 1):
        assert student.widths == first.thinner_widths(3 - j, 3, 2)
        for child in first.parts[first.stages[0]]:
            assert student.get_submodule(child) is first.get_submodule(child)
    assert [len(adapters) for adapters in task.method.adapters] == [2, 2]
    costs = train_online.costs(task.peers, images(2))
    assert [cost["macs"] for cost in costs] == sorted((cost["macs"] for cost in costs), reverse=True)
    assert costs[0]["compression"] == 1 < costs[1]["compression"] < costs[2]["compression"]


def test_multiply_accumulates() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten())
    network.append(nn.Linear(8 * 14 * 14, 5))
    assert mac_count(network, images()) == 8 * 256 * 27 + 8 * 196 * 9 + 8 * 196 * 5
    assert network.training


# --- the real command ---


@pytest.mark.usefixtures("_few_digits")
@pytest.mark.parametrize(
    ("pair", "model"), crossed(PAIRS, FAMILIES, [("OKDDip", "branches"), ("BOC", "")], ["resnet8"])
)
def test_every_method_on_every_structure_of_three_families(pair: tuple[str, str], model: str, tmp_path: Path) -> None:
    name, peers = pair
    extra = ["--peers", peers, "--num_branches", "3"] if peers else ["--num_students", "3"]
    folder = run(tmp_path, "--method", name, "--model", model, "--epochs", "1", *extra)
    assert folder.parent == tmp_path / "online"
    result = json.loads((folder / "result.json").read_text())
    last = result["last"]
    count = 2 if name == "OKDDip" else 3
    mean = sum(last[f"test_peer_{j}_accuracy"] for j in range(count)) / count
    assert last["test_peer_accuracy"] == pytest.approx(mean)
    assert {"test_accuracy", "test_ensemble_accuracy", "test_diversity"} <= last.keys()
    assert ("test_one_e_accuracy" in last) == (name == "ONE")
    assert len(result["peers"]) == 3
    best = checkpoint.load(folder / "best.pth")
    fresh = model_dict[model](num_classes=CLASSES)
    fresh.load_state_dict(best["model"])


@pytest.mark.usefixtures("_few_digits")
@pytest.mark.parametrize("model", ["resnet20", "wrn_16_2", "densenetd40k12", "torchvision/efficientnet_b0"])
def test_students_of_the_published_families(model: str, tmp_path: Path) -> None:
    """Each student has its accuracy and its costs in the result, and learns from student 0's maps."""
    folder = run(tmp_path, "--method", "BOC", "--model", model, "--epochs", "1", "--num_students", "3")
    result = json.loads((folder / "result.json").read_text())
    students = make_task("BOC", model, num_students=3).peers.networks
    assert [cost["parameters"] for cost in result["peers"]] == [parameter_count(student) for student in students]
    assert all(f"test_peer_{j}_accuracy" in result["last"] for j in range(3))
    assert json.loads((folder / "metrics.jsonl").read_text())["train_loss_map"] > 0


@pytest.mark.usefixtures("_few_digits")
@each_method
def test_validation_between_epochs_moves_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real run, with batches other than the training ones."""
    seen = 0

    def watch(self: Any, batch: Tensor) -> Any:
        nonlocal seen
        before = {key: value.clone() for key, value in self.trained.state_dict().items()}
        assert not any(module.training for module in self.trained.modules())
        scores = predict(self, batch)
        torch.testing.assert_close(self.trained.state_dict(), before, rtol=0, atol=0)
        seen += 1
        return scores

    predict = train_online.PeerTraining.predict
    monkeypatch.setattr(train_online.PeerTraining, "predict", watch)
    run(tmp_path, "--method", name, "--model", "resnet8", "--epochs", "1", "--validation", "0.25")
    assert seen >= 2


@pytest.mark.usefixtures("_few_digits")
@each_method
def test_resuming_is_bitwise(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run cut off after epoch 1 goes on as if nothing had been; its checkpoint holds everything that is trained."""
    arguments = ("--method", name, "--model", "resnet8", "--epochs", "2")
    straight = run(tmp_path / "a", *arguments)
    save = Record.save

    def cut(self: Record, seconds: float) -> None:
        save(self, seconds)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", *arguments)
    resumed = run(tmp_path / "b", *arguments, "--resume")
    mine, theirs = checkpoint.load(straight / "last.pth"), checkpoint.load(resumed / "last.pth")
    assert mine["trained"].keys() == make_task(name).trained.state_dict().keys()
    torch.testing.assert_close(mine["trained"], theirs["trained"], rtol=0, atol=0)
    torch.testing.assert_close(mine["optimizer"]["state"], theirs["optimizer"]["state"], rtol=0, atol=0)


@pytest.mark.usefixtures("_few_digits")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_adapters_train_from_the_first_step_at_half_the_rate(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    step = train_online.PeerTraining.step

    def watch(self: Any, *arguments: Any) -> Any:
        seen.append({key: value.clone() for key, value in self.method.state_dict().items()})
        return step(self, *arguments)

    monkeypatch.setattr(train_online.PeerTraining, "step", watch)
    folder = run(tmp_path, "--method", "BOC", "--model", "resnet8", "--epochs", "1", "--optimizer", optimizer)
    assert all(not torch.equal(seen[0][key], seen[1][key]) for key in seen[0])
    network, adapters = checkpoint.load(folder / "last.pth")["optimizer"]["param_groups"]
    assert adapters["lr"] == network["lr"] / 2
    assert len(adapters["params"]) == 2 * 3 * 4


@pytest.mark.usefixtures("_few_digits")
def test_a_single_student(tmp_path: Path) -> None:
    arguments = ("--method", "BOC", "--model", "resnet8", "--epochs", "1", "--single_student", "2")
    folder = run(tmp_path, *arguments)
    (cost,) = json.loads((folder / "result.json").read_text())["peers"]
    full, thin = (make_task("BOC").peers.networks[j] for j in (0, 2))
    assert cost["parameters"] == parameter_count(thin) < parameter_count(full)
    assert (cost["number"], cost["compression"]) == (2, parameter_count(full) / parameter_count(thin))
    assert sum("loss" in name for name in json.loads((folder / "metrics.jsonl").read_text()) if "train" in name) == 2


@pytest.mark.usefixtures("_few_digits")
def test_the_best_of_a_validated_run_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--method", "ONE", "--model", "resnet8", "--epochs", "2", "--validation", "0.2")
    folder = run(tmp_path, *arguments)
    result = json.loads((folder / "result.json").read_text())
    assert "test_one_e_accuracy" in result["best"]
    best = ["--evaluate", str(folder / "best.pth"), "--dataset", "digits", "--device", "cpu", "--batch_size", "32"]
    train_online.main([*arguments, *best])
    assert f"accuracy {result['best']['test_accuracy']:.2f} %" in capsys.readouterr().out


@pytest.mark.usefixtures("_few_digits")
def test_student_0_may_be_pretrained(tmp_path: Path) -> None:
    arguments = ("--method", "BOC", "--model", "resnet8", "--epochs", "1", "--num_students", "2")
    first = run(tmp_path / "a", *arguments) / "last.pth"
    # a rate at which nothing moves in float32
    second = run(tmp_path / "b", *arguments, "--start", str(first), "--lr", "1e-30", "--wd", "0") / "last.pth"
    before, after = checkpoint.load(first)["model"], checkpoint.load(second)["model"]
    torch.testing.assert_close(after["fc.weight"], before["fc.weight"], rtol=0, atol=0)


@pytest.mark.usefixtures("_few_digits")
@pytest.mark.parametrize("name", ["OKDDip", "ONE", "BOC", "FFL", "PCL"])
def test_half_precision(name: str, tmp_path: Path) -> None:
    folder = run(tmp_path, "--method", name, "--model", "resnet8", "--epochs", "1", "--precision", "bf16")
    assert json.loads((folder / "result.json").read_text())["last"]["test_loss"] < 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method ONE --num_branches 1", "--num_branches: ONE needs at least 2, got 1"),
        ("--method OKDDip --num_branches 2", "--num_branches: OKDDip needs at least 3, got 2"),
        ("--method ONE --peers networks", "--peers: ONE works on a shared trunk; choose branches"),
        ("--method CLILR --peers networks", "--peers: CLILR works on a shared trunk; choose branches"),
        ("--method DML --kd_T 0", "--kd_T: expected a number above 0"),
        ("--method DML --alpha=-1", "--alpha: expected a number of at least 0"),
        ("--method IND --alpha 1", "--alpha: belongs to --method .*, not to IND"),
        ("--method BOC --ratios 1,2", "--ratios: expected three numbers .* got '1,2'"),
        ("--method BOC --ratios 1,x,2", "--ratios: expected three numbers"),
        ("--method BOC --ratios 0,0,0", "--ratios: expected three numbers"),
        ("--method BOC --single_student 5", "--single_student: there are students 0 to 4, got 5"),
        ("--method BOC --single_student=-1", "--single_student: there are students 0 to 4, got -1"),
        ("--method BOC --single_student 1 --ratios 1,1,1", "--ratios=1,1,1: nothing reads it with --single_student=1"),
        ("--method BOC --single_student 1 --kd_T 5", "--kd_T=5.0: nothing reads it with --single_student=1"),
        ("--method BOC --single_student 1 --no-adapters", "--no-adapters: nothing reads it with --single_student=1"),
        ("--method BOC --lr_schedule cosine --lr_decay_rate 0.5", "--lr_decay_rate=0.5: nothing reads it with --lr_s"),
        ("--method BOC --momentum 0.5", "--momentum=0.5: nothing reads it with --optimizer=adam"),
        ("--method BOC --num_students 1", "--num_students: BOC needs at least 2, got 1"),
        ("--method BOC --num_students 17", "--num_students: student 16 of 17 would be left without channels"),
        (
            "--method BOC --model densenetd40k12 --num_students 13",
            "--num_students: student 12 of 13 cannot be built; wid",
        ),
        ("--method BOC --num_students 0", "--num_students: BOC needs at least 2, got 0"),
        ("--method BOC --num_blocks 0", "--num_blocks: expected a whole number of at least 1, got 0"),
        ("--method BOC --ratios 1,2,3,4", "--ratios: expected three numbers .* got '1,2,3,4'"),
        ("--method BOC --ratios nan,1,1", "--ratios: expected three numbers .* got 'nan,1,1'"),
        ("--method BOC --num_branches 3", "--num_branches: belongs to --method"),
        ("--method BOC --num_blocks 4", "--num_blocks: the network has 3 stages after its stem, got 4"),
        ("--method BOC --model torchvision/resnet18", "--model: torchvision/resnet18 cannot be made thinner"),
        ("--method BOC --model torchvision/efficientnet_b0 --num_blocks 5", "--num_blocks: the network has 4 stages"),
        ("--method IND --model torchvision/swin_t", "--model: torchvision/swin_t has no stages"),
        ("--method BOC --model torchvision/swin_t", "--model: torchvision/swin_t cannot be made thinner"),
        ("--method IND --num_branches 1", "--num_branches: IND needs at least 2, got 1"),
        ("--method DML --num_branches 0", "--num_branches: DML needs at least 2, got 0"),
        ("--method CLILR --num_branches=-3", "--num_branches: CLILR needs at least 2, got -3"),
        ("--method OKDDip --mix average", "--mix: .*'average'.*logits, probabilities"),
        ("--method OKDDip --peers trunks", "--peers: .*'trunks'.*branches, networks"),
        ("--method OKDDIP", "did you mean 'OKDDip'"),
        ("--method KDCL --alpha 1.5", "--alpha: KDCL weighs the cross-entropy by 1 − α; expected at most 1, got 1.5"),
        ("--method KDCL --target general", "--target: .*'general'.*minlogit, naive, mean"),
        ("--method PCL --ema_decay 1", "--ema_decay: expected at least 0 and below 1, got 1"),
        ("--method PCL --ramp_up none", "--ramp_up: .*'none'.*paper, released"),
        ("--method FFL --fusion_weight_decay=-1", "--fusion_weight_decay: expected a number of at least 0, got -1"),
        ("--method DML --own_views", "--own_views: belongs to --method"),
        ("--method BOC --start nowhere.pth", "--start: there is no checkpoint 'nowhere.pth'"),
    ],
)
def test_bad_input_is_one_line(arguments: str, message: str, tmp_path: Path) -> None:
    words = ["--model", "resnet8", "--dataset", "digits", "--device", "cpu", *arguments.split()]
    with pytest.raises(UsageError, match=message) as caught:
        train_online.main([*words, "--save_dir", str(tmp_path)])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_every_method_says_where_it_comes_from() -> None:
    for entry in online_dict.values():
        assert issubclass(entry, OnlineMethod)
        assert (entry.__doc__ or "").strip().startswith("``")


def test_one_average_is_enough() -> None:
    parser = train_online.options()
    opt, recipe = train_online.parse(parser, ["--method", "PCL", "--ema", "0.9"])
    with pytest.raises(UsageError, match=r"--ema: 0.9, but the peers of PCL have averages of their own; leave it out"):
        train_online.make_method(parser, opt, recipe)
