"""Published values that a row can be held against: results/published.csv.

A line fits a row whose options are those in its column ``options`` (``*``: any value); a line without fits none, since
the publication does not say enough, or this collection lacks the method. Whatever else differs from the published
setting is listed, never passed over. The column ``of`` says what was published: see :data:`OF`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from scripts.reporting.runs import Group, Run

FILE = Path(__file__).parents[2] / "results" / "published.csv"
OF: dict[str, tuple[str, Callable[[Run], float]]] = {
    "": ("best epoch", partial(Run.accuracy, which="best")),
    "last": ("last epoch", partial(Run.accuracy, which="last")),
    "peers": ("best mean of the peers", Run.best_mean_of_peers),
}
"""What a line's ``of`` means, and what of a run is held against it."""
NO_DIFFERENCE = {"precision", "nesterov", "teachers", "teacher_num", "epochs", "accumulate", "sync_bn"}
"""Options that every published command sets, that the match is by, or that say how it is computed."""


@dataclass
class Published:
    """One published accuracy in percent, of what it is, and in what this row's setting is another one."""

    value: float
    std: float | None
    source: str
    differing: list[str]
    of: str

    def here(self, each: Group) -> tuple[float, float | None]:
        """Mean and deviation of the same in the row's runs."""
        return each.mean_std(OF[self.of][1])


@cache
def lines() -> list[dict[str, str]]:
    """The file's lines, the preferred ones first."""
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, restval="") if row["metric"] == "top1_acc" and row["options"]]
    return sorted(rows, key=lambda row: row["preferred"] != "yes")


def published(each: Group) -> Published | None:
    """What the literature has for the row."""
    for line in lines():
        options = dict(word.split("=", 1) for word in line["options"].split())
        if line["dataset"] == each.first.setting["dataset"] and fits(options, each.first.setting):
            differing = differences(each, options, line)
            std = float(line["std"]) if line["std"] else None
            return Published(float(line["value"]), std, line["source"], differing, line["of"])
    return None


def fits(options: dict[str, str], setting: dict[str, Any]) -> bool:
    """Whether the row has these options; of the teachers, number and architecture count."""
    return all(name in setting and same(value, setting[name]) for name, value in options.items())


def same(text: str, value: Any) -> bool:
    """Whether an option has the value that the file writes so."""
    if text == "*":
        return True
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(text) == value
    return text == str(value).split("@")[0]


def differences(each: Group, options: dict[str, str], line: dict[str, str]) -> list[str]:
    """How the row's setting differs from the published one, as far as options tell."""
    run, found = each.first, [line["note"]] if line["note"] else []
    epochs = int(line["epochs"]) if line["epochs"] else run.defaults.get("epochs", run.setting["epochs"])
    if run.setting["epochs"] != epochs:
        found.append(f"{run.setting['epochs']} of {epochs} epochs")
    for name, value in run.setting.items():
        if name not in options and name not in NO_DIFFERENCE and value != run.defaults.get(name, value):
            found.append(f"{name} {value}")
    return found
