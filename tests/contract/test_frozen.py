"""Frozen networks: what is folded, that nothing changes by it, and what bfloat16 weights cost."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.machine import autocast
from helper.seen import Reads
from helper.teachers.asked import Teachers
from helper.teachers.frozen import fold_batch_norms, freeze
from models import model_dict

OWN = [name for name in model_dict if not name.startswith("torchvision/")]
FOREIGN = [
    f"torchvision/{name}"
    for name in (
        *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "googlenet"),
        *("shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "squeezenet1_1"),
    )
]
ALL_FOLDED = ("resnet20", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50", "torchvision/googlenet")
CPU = torch.device("cpu")


def images(side: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def used(network: nn.Module) -> nn.Module:
    """With statistics and affine parameters as no fresh network has them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    return network.eval().requires_grad_(False)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return used(model_dict[name](num_classes=7))


def distance(mine: Tensor, theirs: Tensor) -> float:
    return float((mine.float() - theirs.float()).norm() / theirs.float().norm())


def norms(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


@pytest.mark.parametrize("name", [*OWN, *FOREIGN])
@torch.no_grad()
def test_folding_changes_no_feature_and_no_logit(name: str) -> None:
    plain = build(name).double()
    x = images(64 if name in FOREIGN else 32).double()
    folded = copy.deepcopy(plain)
    names = fold_batch_norms(folded, torch.zeros_like(x))
    assert norms(folded) == norms(plain) - set(names)
    if name in ALL_FOLDED:
        assert not norms(folded)

    features, logits = plain(x, is_feat=True)
    same, same_logits = folded(x, is_feat=True)
    for mine, theirs in zip([*same, same_logits, folded(x)], [*features, logits, logits], strict=True):
        assert (mine - theirs).norm() <= 1e-9 * theirs.norm()
    torch.testing.assert_close(folded.classify(features[-2]), logits, rtol=1e-9, atol=1e-12)
    stages = plain.stages
    torch.testing.assert_close(folded.run(x, stages[0], stages[-1]), features[-2], rtol=1e-7, atol=1e-9)


def test_networks_that_normalise_first_fold_what_follows_a_convolution() -> None:
    network = build("wrn_40_2")
    names = set(fold_batch_norms(network, images()))
    assert names == {f"block{i}.layer.{j}.bn2" for i in (1, 2, 3) for j in range(6)}
    assert {"block1.layer.0.bn1", "bn1"} <= norms(network)  # the first reads a map that others may read too
    dense = build("densenetd40k12")
    assert {name.rpartition(".")[2] for name in fold_batch_norms(dense, images())} == {"bn2"}


class Odd(nn.Module):
    """A convolution and a normalisation in every relation that must not be folded, and two that may be."""

    def __init__(self) -> None:
        super().__init__()
        names = ("read_twice", "changed", "runs_twice", "shared", "plain", "bare", "no_statistics", "part")
        names += ("borrowed", "centred", "remade", "hooked", "watched")
        self.conv = nn.ModuleDict({name: nn.Conv2d(3, 3, 1, bias=name == "plain") for name in names})
        self.norm = nn.ModuleDict({name: nn.BatchNorm2d(3) for name in (*names, "again")})
        self.norm["bare"] = nn.BatchNorm2d(3, affine=False)
        self.norm["no_statistics"] = nn.BatchNorm2d(3, track_running_stats=False)
        self.norm["part"] = nn.BatchNorm2d(2)
        nn.utils.spectral_norm(self.conv["remade"])
        self.conv["hooked"].register_forward_hook(lambda *given: given[2].square())
        self.norm["watched"].register_forward_hook(lambda *given: given[2].square())

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        y = conv["read_twice"](x)
        x = y + norm["read_twice"](y)
        x = norm["changed"](F.relu(conv["changed"](x), inplace=True))
        x = norm["runs_twice"](conv["runs_twice"](norm["runs_twice"](x)))
        y = conv["shared"](x)
        x = norm["shared"](y) + norm["again"](y)
        x = norm["plain"](conv["plain"](x))
        x = norm["bare"](conv["bare"](x))
        x = norm["no_statistics"](conv["no_statistics"](x))
        x = norm["borrowed"](conv["borrowed"](x)) + F.conv2d(x, conv["borrowed"].weight)
        x = norm["centred"](conv["centred"](x)) - norm["centred"].running_mean.view(3, 1, 1)
        for name in ("remade", "hooked", "watched"):
            x = norm[name](conv[name](x))
        y = conv["part"](x)
        return norm["part"](y[:, :2])


@torch.no_grad()
def test_only_a_pair_that_nothing_else_reads_is_folded() -> None:
    torch.manual_seed(0)
    plain = used(Odd().double())
    folded = copy.deepcopy(plain)
    assert fold_batch_norms(folded, images().double()) == ["norm.plain", "norm.bare"]
    torch.testing.assert_close(folded(images().double()), plain(images().double()), rtol=1e-9, atol=1e-12)
    hooks = [[len(module._forward_hooks) for module in network.modules()] for network in (folded, plain)]
    assert sum(hooks[0]) == sum(hooks[1]) == 2


def test_networks_without_maps_are_frozen_too() -> None:
    network = freeze(model_dict["torchvision/swin_t"](num_classes=7), images(64), "bf16")
    with torch.no_grad(), autocast(CPU, "bf16"):
        assert network(images(64)).isfinite().all()


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "ShuffleV1", "MobileNetV2", "densenetd40k12"])
@torch.no_grad()
def test_bfloat16_weights_are_as_accurate_as_autocast(name: str) -> None:
    """Folding moves the roundings, so that a single network may fare better or worse: three networks' sums."""
    errors, expected = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        plain = model_dict[name](num_classes=7).to(memory_format=torch.channels_last)
        for _ in range(20):  # statistics of images, as training leaves them
            plain(torch.randn(16, 3, 32, 32))
        frozen = freeze(copy.deepcopy(plain), images(), "bf16")
        for module in frozen.modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight.dtype == torch.bfloat16
                assert module.weight.is_contiguous(memory_format=torch.channels_last)
        x = images(batch=16)
        exact = plain.eval()(x)
        with autocast(CPU, "bf16"):
            errors.append((frozen(x).float() - exact).norm())
            expected.append((plain(x).float() - exact).norm())
    assert sum(errors) <= 1.5 * sum(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_teachers_answer_and_pass_gradients_to_maps(precision: str) -> None:
    names = ("resnet8", "wrn_16_1", "ShuffleV2_0_5")
    plain = Teachers([build(name) for name in names])
    frozen = Teachers([freeze(copy.deepcopy(network), images(), precision) for network in plain.networks])
    tolerance = 1e-5 if precision == "fp32" else 0.03
    with autocast(CPU, precision):
        reads = Reads(maps=(-2,))
        (observed, logits), (theirs, expected) = (each.observe(images(), reads) for each in (frozen, plain))
        assert distance(logits, expected) <= tolerance
        torch.testing.assert_close(frozen.logits(images()), logits)
        for mine, other in zip(observed, theirs, strict=True):
            (each,), (exact,) = mine.seen(reads).maps, other.seen(reads).maps
            assert distance(each, exact) <= tolerance
            alike = each.detach().float().requires_grad_()
            mine.network.classify(alike).float().logsumexp(1).sum().backward()
            assert alike.grad is not None
            assert alike.grad.any()
        # what teachers return may be part of any loss
        student = torch.ones_like(logits, requires_grad=True)
        (student * logits).sum().backward()
