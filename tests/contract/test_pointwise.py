"""Strided 1×1 convolutions: the same function and state, gradients that are right in every layout and on every CPU."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.pointwise import Subsampling, subsample_first
from models import model_dict
from models.base import TORCHVISION

ROOT = Path(__file__).parents[2]
GRADIENTS = """
import torch
from torch import nn
from helper.pointwise import subsample_first

torch.manual_seed(0)
for size in (8, 32, 64, 224):
    for channels in range(1, 33):
        conv = subsample_first(nn.Conv2d(channels, 8, 1, 2)).to(memory_format=torch.channels_last)
        images = torch.randn(2, channels, size, size)
        slope = torch.randn(2, 8, -(-size // 2), -(-size // 2))
        # contiguous and in float64, which oneDNN leaves to others
        plain = images.double().requires_grad_()
        weight = conv.weight.detach().double().requires_grad_()
        torch.nn.functional.conv2d(plain, weight, conv.bias.detach().double(), 2).backward(slope.double())
        for _ in range(2):  # what is written past the end shows at the next allocation
            conv.zero_grad()
            each = images.to(memory_format=torch.channels_last).detach().requires_grad_()
            conv(each).backward(slope.to(memory_format=torch.channels_last))
            torch.testing.assert_close(conv.weight.grad, weight.grad.float(), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(each.grad, plain.grad.float())
print("all right")
"""
BOC_AT_224 = """
import torch
from online import online_dict
from models import model_dict

torch.manual_seed(0)
peers = online_dict["BOC"](num_students=3).make_peers(
    lambda widths=None: model_dict["resnet8"](num_classes=2, **({"widths": widths} if widths else {}))
).to(memory_format=torch.channels_last)
for _ in range(2):
    peers(torch.randn(4, 3, 224, 224).to(memory_format=torch.channels_last)).logits.square().sum().backward()
assert all(weight.grad.isfinite().all() for weight in peers.parameters())
print("all right")
"""


@pytest.mark.parametrize("isa", ["AVX2", ""], ids=["AVX2 only", "all that there is"])
@pytest.mark.parametrize("code", [GRADIENTS, BOC_AT_224], ids=["convolution", "BOC"])
def test_gradients_in_channels_last(code: str, isa: str) -> None:
    """As in the contiguous layout, and no memory is written that is not ours, which ends a process."""
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    environment |= {"OMP_NUM_THREADS": "1", "MALLOC_CHECK_": "3", **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "all right\n"


def strided_pointwise(network: nn.Module) -> list[nn.Conv2d]:
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1
    ]


REGNETS = f"{TORCHVISION}regnet"  # compute their widths with tensors, so that they cannot be built without memory
SMALL = [name for name in model_dict if not name.startswith(REGNETS) or name.endswith("_400mf")]


@pytest.mark.parametrize("name", SMALL)
def test_every_network_of_the_registry(name: str) -> None:
    with torch.device("cpu" if name.startswith(REGNETS) else "meta"):
        network = model_dict[name](num_classes=10)
    assert all(isinstance(conv, Subsampling) for conv in strided_pointwise(network) if conv.groups == 1)


def test_some_networks_have_such_convolutions() -> None:
    for name in ("resnet8", "resnet110_bottleneck", f"{TORCHVISION}resnet50"):
        with torch.device("meta"):
            assert strided_pointwise(model_dict[name](num_classes=10))


class Scaled(nn.Conv2d):
    """A convolution of somebody's own."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


@pytest.mark.parametrize("kind", [nn.Conv2d, Scaled])
@pytest.mark.parametrize("stride", [2, 3, (2, 1)])
def test_the_function_stays(kind: type[nn.Conv2d], stride: int | tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = kind(5, 7, 1, stride).double()
    images = torch.randn(3, 5, 11, 9, dtype=torch.float64)
    expected, state = conv(images), copy.deepcopy(conv.state_dict())
    changed = subsample_first(nn.Sequential(conv))
    assert isinstance(conv, Subsampling)
    assert subsample_first(changed) is changed  # twice is as good as once
    torch.testing.assert_close(changed(images), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(changed(images), expected)
    assert conv.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in conv.state_dict().items())
    assert torch.equal(copy.deepcopy(changed)(images), changed(images))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, 2),
        nn.Conv2d(4, 4, 1, 2, padding=1),
        nn.Conv2d(4, 4, 1, 2, groups=2),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    assert type(subsample_first(conv)) is nn.Conv2d


def test_subsampling_is_a_mean_over_one_pixel() -> None:
    """Bit for bit, also in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        maps = torch.randn(2, 3, 7, 8).to(dtype)
        assert torch.equal(F.avg_pool2d(maps, 1, 2), maps[:, :, ::2, ::2])
