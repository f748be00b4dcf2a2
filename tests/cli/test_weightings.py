"""Weightings from gradients, by chance and by an agent, in the real script made tiny."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from tiny_runs import distil, metrics, result, same, weights, without_times

from ensemble import ensemble_dict
from ensemble.gram import GradientMethod
from helper.stopping import signals
from helper.update import Update

pytestmark = pytest.mark.usefixtures("little_data")

FROM_GRADIENTS = [name for name, kind in ensemble_dict.items() if issubclass(kind, GradientMethod)]
DRAWN_OR_LEARNED = [
    "--distill kd --ensemble_method RLW",
    "--distill hint --ensemble_method MTKDRL -b 1",
    "--distill inter --ensemble_method MTKDRL -b 5 --policy reward --dynamic",
]


@pytest.mark.parametrize("method", FROM_GRADIENTS)
def test_weights_at_both_levels_with_what_they_follow_from(tmp_path: Path, teachers: str, method: str) -> None:
    words = f"{teachers} --distill hint --ensemble_method {method} -b 0.1 --kd_scale unit"
    folder = distil(tmp_path, words).folder
    (row,) = metrics(folder)
    for prefix in ("train_", "train_feature_"):
        assert sum(row[f"{prefix}weight_{k}"] for k in range(3)) == pytest.approx(1, rel=1e-5)
        assert row[f"{prefix}combined_gradient"] > 0
        assert -1 <= row[f"{prefix}gradient_cosine"] <= 1 + 1e-9
        assert 0 <= row[f"{prefix}conflict"] <= 1
    assert result(folder)["epochs"] == 1


def cut_off(patch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM before this step of the run."""
    update, steps = Update.__call__, iter(range(1, 1000))

    def counted(self: Update, batch: object, when: object) -> object:
        if next(steps) == step:
            signal.raise_signal(signal.SIGTERM)
        return update(self, batch, when)  # type: ignore[arg-type]

    patch.setattr(Update, "__call__", counted)


@pytest.mark.parametrize("words", DRAWN_OR_LEARNED)
def test_a_run_cut_off_within_an_epoch_goes_on_bitwise(tmp_path: Path, teachers: str, words: str) -> None:
    words = f"{teachers} {words} --epochs 3 --batch_size 32"
    undisturbed = distil(tmp_path / "a", words).folder
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, step=6)
        assert distil(tmp_path / "b", words).code == 75
    signals.received = None
    resumed = distil(tmp_path / "b", f"{words} --resume")
    assert without_times(metrics(undisturbed)) == without_times(metrics(resumed.folder))
    states = [torch.load(each / "last.pth", weights_only=True)["trained"] for each in (undisturbed, resumed.folder)]
    assert same(*states)
    assert same(weights(undisturbed), weights(resumed.folder))
    first, *_, last = metrics(undisturbed)
    if "MTKDRL" in words:  # its agents act from the second epoch on
        assert [sum(row[f"train_weight_{k}"] for k in range(3)) for row in (first, last)] == pytest.approx([3, 1])
        levels = {name.split(".")[1] for name in states[0] if ".agent." in name}
        assert levels == {"logit", "feature"}
    else:
        assert first["train_weight_0"] != last["train_weight_0"]
