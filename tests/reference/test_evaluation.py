"""Calibration error and closeness to an ensemble, against their definitions."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from helper.batch import Batch
from helper.errors import InputError
from helper.evaluation import compared, evaluate

CPU = torch.device("cpu")


def expected_calibration_error(logits: torch.Tensor, target: torch.Tensor, bins: int = 15) -> float:
    """Guo et al. 2017, equation 3, bin by bin: Σ_m |B_m|/n · |acc(B_m) − conf(B_m)|."""
    confidence, predicted = logits.double().softmax(-1).max(-1)
    error = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            accuracy = (predicted == target)[inside].double().mean()
            error += inside.double().mean().item() * abs(accuracy - confidence[inside].mean()).item()
    return error


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 1000.0])
@pytest.mark.parametrize("size", [1, 7, 301])
def test_calibration_error_in_any_batches(scale: float, size: int) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(301, 10) * scale, torch.randint(0, 10, (301,))
    batches = [Batch(x, y) for x, y in zip(logits.split(size), target.split(size), strict=True)]
    scores = evaluate(lambda images: {"network": images}, batches, CPU, "fp32")["network"]
    assert scores["ece"] == pytest.approx(100 * expected_calibration_error(logits, target), abs=1e-9)
    assert scores["loss"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)
    assert not any(name.startswith("gap") for name in scores)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not() -> None:
    logits = torch.eye(4) * 1e4
    for target, error in ((torch.arange(4), 0.0), (torch.arange(4).roll(1), 100.0)):
        scores = evaluate(lambda images: {"network": images}, [Batch(logits, target)], CPU, "fp32")
        assert scores["network"]["ece"] == pytest.approx(error)


def test_calibration_error_of_peers_is_their_mean() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(3, 64, 10) * 2, torch.randint(0, 10, (64,))
    scores = evaluate(lambda _: {"peer": logits}, [Batch(logits[0], target)], CPU, "fp32")
    each = [100 * expected_calibration_error(peer, target) for peer in logits]
    assert [scores[f"peer_{j}"]["ece"] for j in range(3)] == pytest.approx(each)
    assert scores["peer"]["ece"] == pytest.approx(sum(each) / 3)


def test_what_fits_in_the_memory_in_parts_has_the_same_scores() -> None:
    torch.manual_seed(0)
    images, target = torch.randn(21, 10), torch.randint(0, 10, (21,))

    def predict(images: torch.Tensor, room: int) -> dict[str, torch.Tensor]:
        if len(images) > room:
            raise torch.OutOfMemoryError("out of memory")
        return {"network": images, "peer": torch.stack([images, -images, 2 * images]), "measure": images[:, 0]}

    whole, parts, single = (
        evaluate(partial(predict, room=room), [Batch(images, target)], CPU, "fp32") for room in (21, 4, 1)
    )
    assert whole == parts == single
    with pytest.raises(InputError, match="one image takes more memory than there is"):
        evaluate(partial(predict, room=0), [Batch(images, target)], CPU, "fp32")


def test_closeness_to_other_logits() -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(9, 5), torch.randn(9, 5)
    measures = compared(mine, theirs)
    p, q = theirs.softmax(-1), mine.softmax(-1)
    torch.testing.assert_close(measures["kl"], (p * (p / q).log()).sum(-1))
    assert measures["agreement"].tolist() == [
        100.0 * (a.argmax() == b.argmax()) for a, b in zip(mine, theirs, strict=True)
    ]
    same = compared(mine, mine + 3)  # softmax does not see the shift
    assert same["agreement"].eq(100).all()
    assert same["kl"].abs().max() < 1e-6
