"""Batch normalisations of a single value per channel: found without a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helper.lone_values import lone_values


def network() -> nn.Sequential:
    """Maps of 4×4 pixels, then of one, then a vector."""
    layers = [nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Dropout(), nn.AvgPool2d(4), nn.BatchNorm2d(5)]
    return nn.Sequential(*layers, nn.Flatten(), nn.BatchNorm1d(5))


@pytest.mark.parametrize(("images", "names"), [(1, ["4", "6"]), (2, [])])
def test_found_by_name(images: int, names: list[str]) -> None:
    modules = network()
    assert lone_values(modules, lambda: modules(torch.ones(images, 3, 4, 4))) == names


def test_they_are_those_that_training_fails_at() -> None:
    modules = network()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        modules(torch.ones(1, 3, 4, 4))
    modules(torch.ones(2, 3, 4, 4))


def test_nothing_changes() -> None:
    modules = network()
    modules[1].eval()  # frozen by its owner
    before, drawn = copy.deepcopy(modules.state_dict()), torch.get_rng_state()
    lone_values(modules, lambda: modules(torch.rand(1, 3, 4, 4)))
    assert all(torch.equal(value, before[name]) for name, value in modules.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [module.training for module in modules] == [index != 1 for index in range(len(modules))]
    assert not any(module._forward_pre_hooks for module in modules.modules())
