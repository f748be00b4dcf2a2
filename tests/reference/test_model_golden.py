"""Every network equals the one that the published checkpoints come from: names, shapes, features and logits.

The values in ``tests/data/models.json`` were computed with the released RepDistiller, CA-MKD and AE-KD code, weights
and input made as in ``golden_state`` and ``golden_input``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_state
from torch import Tensor

from models import model_dict

GOLDEN: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "models.json").read_text(encoding="utf-8")
)
RTOL = 1e-4


def golden_input() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal((4, 3, 32, 32))).float()


def close(actual: Any, expected: Any, scale: float) -> None:
    """Relative to ``scale``: a mean or a logit may be near zero while the values it comes from are large."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=RTOL, atol=RTOL * scale)


def test_every_golden_network_is_registered() -> None:
    assert set(GOLDEN) <= set(model_dict)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_values(name: str) -> None:
    golden = GOLDEN[name]
    model = model_dict[name](num_classes=100).eval()
    state = model.state_dict()

    assert sum(parameter.numel() for parameter in model.parameters()) == golden["params"]
    shapes = {key: list(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert shapes == golden["state"]

    model.load_state_dict(golden_state(state))
    with torch.no_grad():
        features, logits = model(golden_input(), is_feat=True)
    assert [list(feature.shape) for feature in features] == golden["feature_shapes"]
    for feature, mean, std in zip(features, golden["feature_means"], golden["feature_stds"], strict=True):
        assert feature.double().std().item() == pytest.approx(std, rel=RTOL)
        close(feature.double().mean().item(), mean, scale=std)
    assert logits.double().norm().item() == pytest.approx(golden["logits_norm"], rel=RTOL)
    close(logits[:, :10], golden["logits"], scale=golden["logits_norm"] / logits.numel() ** 0.5)
