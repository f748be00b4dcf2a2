"""What a run comes to: its last and its best epoch, and all that a reader needs to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from helper import distributed
from helper.machine import device_name

if TYPE_CHECKING:
    from helper.loop import Fit


def result_of(fit: Fit) -> dict[str, Any]:
    """What goes into ``result.json``; the task may hold the best weights afterwards."""
    rows, best = distributed.from_first(fit.run.read_metrics), fit.progress.best
    assert best is not None
    result: dict[str, Any] = {
        "last": recorded_scores(rows[-1]),
        "best": recorded_scores(rows[best["epoch"] - 1]),
        "best_chosen_on": fit.chosen_name,
        "reported_on": fit.test_name,
        "seed": fit.seed,
        "epochs": fit.opt.epochs,
        "hours": fit.progress.seconds / 3600,
        "images_per_second": sum(row["images_per_second"] for row in rows) / len(rows),
        "device": device_name(fit.device),
        "processes": distributed.size(),
        "precision": fit.precision,
        **fit.about,
        **fit.task.notes,
        **fit.provenance,
    }
    for which, per_class in fit.progress.per_class.items():
        result[which] |= of_test(per_class)
    if fit.validation is not None or fit.task.compares:
        result["last"] |= scores_in_the_end(fit)
        if best["epoch"] != fit.progress.epoch:
            fit.contents.put_best_back(distributed.from_first(fit.run.load_best))
        result["best"] |= scores_in_the_end(fit)
    return result


def recorded_scores(row: dict[str, Any]) -> dict[str, Any]:
    """The part of an epoch's line that belongs into the result."""
    return {name: value for name, value in row.items() if name.startswith(("epoch", "test_", "validation_"))}


def of_test(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores under their names on record."""
    return {f"test_{name}": value for name, value in scores.items()}


def scores_in_the_end(fit: Fit) -> dict[str, Any]:
    """Test scores that no epoch has recorded, of the weights as they are."""
    scores: dict[str, Any] = {}
    if fit.validation is not None:
        scores |= fit.evaluate(fit.test)
        scores |= fit.per_class
    scores |= fit.evaluate(fit.test, compare=True) if fit.task.compares else {}
    return of_test(scores)
