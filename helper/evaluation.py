"""Scores of named predictions over a loader, exact in any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F

from helper.errors import InputError
from helper.machine import autocast, out_of_memory
from helper.meters import Means, PerClass, correct

BINS = 15
"""Of equal width, over the confidences (Guo et al. 2017)."""

GAP = "gap_"
"""Before a bin's number: the sum of correctness minus confidence over its predictions."""

Predict = Callable[[torch.Tensor], dict[str, torch.Tensor]]
Sums = dict[str, torch.Tensor]


def evaluate(
    predict: Predict,
    loader: Any,
    device: torch.device,
    precision: str,
    known: Mapping[str, torch.Tensor] = MappingProxyType({}),
    per_class: PerClass | None = None,
) -> dict[str, dict[str, float]]:
    """Named predictions' mean scores over a loader, of which each process has a part.

    Args:
        predict: images ``[B, 3, H, W]`` → for each name logits ``[B, C]``; or those of m networks ``[m, B, C]``, which
            are scored as ``name_0``, ``name_1``, … and, as their mean, ``name``; or a measure of each image ``[B]``.
        known: for some names of logits ``[B, C]`` the classes whose images they are scored on, bool ``[C]``; all else
            is scored on all images.
        per_class: takes in what is predicted under the first name.

    Raises:
        InputError: not one image fits in the memory.

    Returns:
        for each name ``accuracy`` and ``accuracy5`` in percent, ``loss`` (cross-entropy in nats, which is the negative
        log-likelihood) and ``ece`` (expected calibration error in percent); the mean of a measure under the empty name.
        Of several networks the ``ece`` is their mean too.
    """
    means: dict[str, Means] = {}
    with torch.no_grad():
        for batch in loader:
            predictions = _predicted(predict, batch.images, device, precision)
            if per_class is not None:
                per_class.add(next(iter(predictions.values())), batch.target)
            for name, prediction in predictions.items():
                target = batch.target
                if name in known:
                    of_these = known[name][target]
                    prediction, target = prediction[of_these], target[of_these]
                for which, sums, count in _named_sums(name, prediction, target):
                    means.setdefault(which, Means()).add_sums(sums, count)
    return _calibrated(Means.read_together(means))


def _predicted(predict: Predict, images: torch.Tensor, device: torch.device, precision: str) -> dict[str, torch.Tensor]:
    """What ``predict`` says of ``images``, of halves where all at once do not fit in the memory."""
    try:
        with autocast(device, precision):
            return predict(images)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    # not inside the handler, whose error holds what has been computed so far
    if len(images) == 1:
        raise InputError("evaluating one image takes more memory than there is (make room, or choose another --device)")
    halves = [_predicted(predict, half, device, precision) for half in images.chunk(2)]
    return {name: torch.cat([half[name] for half in halves], max(0, one.ndim - 2)) for name, one in halves[0].items()}


def _named_sums(name: str, prediction: torch.Tensor, target: torch.Tensor) -> Iterator[tuple[str, Sums, int]]:
    """Names, sums of scores, and how many predictions they are sums over."""
    if prediction.ndim == 1:
        yield name, {"": prediction.double().sum()}, len(target)
    elif prediction.ndim == 2:
        yield name, _sums_of(prediction.float(), target), len(target)
    else:
        each = [_sums_of(logits.float(), target) for logits in prediction]
        together = {score: torch.stack([sums[score] for sums in each]).sum() for score in each[0]}
        yield name, together, len(target) * len(each)
        for j, sums in enumerate(each):
            yield f"{name}_{j}", sums, len(target)


def _sums_of(logits: torch.Tensor, target: torch.Tensor) -> Sums:
    return {
        "accuracy": correct(logits, target).sum() * 100.0,
        "accuracy5": correct(logits, target, top=5).sum() * 100.0,
        "loss": F.cross_entropy(logits, target, reduction="sum"),
        **calibration_gaps(logits, target),
    }


def calibration_gaps(logits: torch.Tensor, target: torch.Tensor) -> Sums:
    """Logits ``[B, C]`` and labels ``[B]`` → per bin of confidence ``(i/15, (i+1)/15]``, Σ (correct − confidence).

    Sums over parts of the data add up to those over all of it: the calibration error is exact in any number of
    batches and processes.
    """
    confidence, predicted = logits.double().softmax(-1).max(-1)  # [B]
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = (predicted == target).double() - confidence
    # not index_add, whose order of summation differs from call to call on a GPU
    sums = torch.where(bins == torch.arange(BINS, device=bins.device)[:, None], gaps, 0.0).sum(1)  # [BINS]
    return {f"{GAP}{i}": each for i, each in enumerate(sums)}


def _calibrated(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean gaps of the bins → ``ece = Σ_bins |mean gap|`` in percent."""
    finished = {}
    for name, values in scores.items():
        finished[name] = {score: value for score, value in values.items() if not score.startswith(GAP)}
        if gaps := [value for score, value in values.items() if score.startswith(GAP)]:
            finished[name]["ece"] = 100 * sum(map(abs, gaps))
    for name, values in finished.items():
        each = [finished[f"{name}_{j}"]["ece"] for j in range(len(finished)) if f"{name}_{j}" in finished]
        if each:
            values["ece"] = sum(each) / len(each)
    return finished


def named_scores(scores: dict[str, dict[str, float]], main: str | None) -> dict[str, float]:
    """Scores of several predictions as ``prediction_score``; the name of the ``main`` one is left out."""
    return {
        "_".join(part for part in (which if which != main else "", name) if part): value
        for which, values in scores.items()
        for name, value in values.items()
    }


def compared(logits: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits ``[B, C]`` beside others → measures of each image ``[B]``.

    ``agreement`` is 100 where both prefer the same class, else 0; ``kl`` is ``KL(softmax(other) ‖ softmax(logits))`` in
    nats.
    """
    mine, theirs = logits.float().log_softmax(-1), other.float().log_softmax(-1)
    return {
        "agreement": (mine.argmax(-1) == theirs.argmax(-1)) * 100.0,
        "kl": F.kl_div(mine, theirs, log_target=True, reduction="none").sum(-1),
    }
