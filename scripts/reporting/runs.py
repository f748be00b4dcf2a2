"""Finished runs, and which of them repeat the same setting."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import train_online
import train_student
import train_teacher
from helper.errors import UsageError
from helper.options import Options, text_of, typed
from helper.run_folder import RunFolder, parameters_of, write_atomically
from helper.teachers.files import TeacherFile, fingerprint

SCRIPTS: dict[str, Any] = {"student": train_student, "online": train_online, "alone": train_teacher}
WEIGHTS = "teacher_weights"
"""What a setting calls the checksum of all its teachers' weights."""
REPEATS = {"trial", "seed"}  # tell repetitions of one setting apart
BESIDE = ("images", "network", "cached", WEIGHTS)
"""What a setting has beside options; see :attr:`Run.beside`."""
RECORDS = "records.jsonl"
"""A report's own copy of its runs, a line each."""
RESULTS = (
    *("last", "best", "best_chosen_on", "seed", "epochs", "dataset", "arch"),
    *("hours", "images_per_second", "device", "versions", "git_revision", "command"),
)
"""What the ``result.json`` of every finished run says, of any version."""
LEVELS = {"train_": "logits", "train_feature_": "feature maps"}
"""What the names of a method's curves begin with, and what its losses compare there; see :attr:`Group.levels`."""


@dataclass
class Run:
    """A finished run: what its folder holds."""

    path: Path
    parameters: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def kind(self) -> str:
        """``student``, ``online`` or ``alone``: which script it is of."""
        return (
            "student" if "ensemble_method" in self.parameters else "online" if "method" in self.parameters else "alone"
        )

    @property
    def model(self) -> str:
        return self.parameters["model_s" if self.kind == "student" else "model"]

    @property
    def defaults(self) -> dict[str, Any]:
        """What the script chooses where nothing is typed but the method, the network and the dataset."""
        chosen = {"student": ("distill", "ensemble_method"), "online": ("method", "model", "dataset"), "alone": ()}
        words = [f"--{name}={self.parameters[name]}" for name in chosen[self.kind]]
        return default_options(self.kind, tuple(words))

    @property
    def setting(self) -> dict[str, Any]:
        """What the repetitions with other seeds share; options that an older run did not have are at their default."""
        options = parser_of(self.kind)
        merged = {**self.defaults, **self.parameters, "precision": self.precision}
        if "teachers" in self.result:
            files = [TeacherFile.recorded(each) for each in self.result["teachers"]]
            merged["teachers"], merged["teacher_num"] = fingerprint(files), len(files)
        kept = {name: value for name, value in merged.items() if name not in REPEATS and options.changes_result(name)}
        return kept | self.beside

    @property
    def beside(self) -> dict[str, Any]:
        """What no option says, or None: checksums of the images, of the network's file and of the teachers' weights,
        and whether the teachers' answers came from a cache."""
        dataset, name = self.parameters["dataset"], self.path.name
        named = re.search(rf"(?:^|(?:@([0-9a-f]{{6}}))?-){re.escape(dataset)}(?:@([0-9a-f]{{6}}))?-", name)
        network, images = named.groups() if named else (None, None)
        recorded = self.result.get("images")  # older runs do not have it
        images = recorded.partition("@")[2] or None if recorded else images
        cached = True if "-cached-" in name else None
        return dict(zip(BESIDE, (images, network, cached, self.teacher_weights), strict=True))

    @property
    def teacher_weights(self) -> str | None:
        """A checksum of all teachers' weights; None without teachers, and in older runs, which do not have it."""
        weights = [each.get("weights") for each in self.result.get("teachers", ())]
        return sha256(" ".join(weights).encode()).hexdigest()[:6] if weights and all(weights) else None

    @property
    def precision(self) -> str:
        """What it was computed in."""
        return self.result.get("precision") or self.parameters["precision"]

    @property
    def seed(self) -> int:
        return self.result["seed"]

    def accuracy(self, which: str) -> float:
        """On the test set, in percent; ``which`` is ``last`` or ``best``."""
        return self.result[which]["test_accuracy"]

    def best_mean_of_peers(self) -> float:
        """The largest mean of the peers' test accuracies over the epochs, as OKDDip's code reports its baselines.

        A run that chose its best epoch on held out images has it of that epoch alone.
        """
        name = "test_peer_accuracy"
        return max([row[name] for row in self.metrics if name in row], default=self.result["best"][name])

    @property
    def command(self) -> str:
        """What was typed, without the options that say what to do with an earlier attempt."""
        words = shlex.split(self.result["command"])
        pairs = itertools.pairwise(["", *words])
        return shlex.join(word for before, word in pairs if not of_an_attempt(word, before))


@dataclass
class Group:
    """Runs that differ in their seed only; ``repeats`` have the seed of one of them, and tell nothing new."""

    label: str
    runs: list[Run]
    repeats: list[Run] = field(default_factory=list)

    @property
    def first(self) -> Run:
        return self.runs[0]

    def mean_std(self, value: Callable[[Run], float]) -> tuple[float, float | None]:
        """Mean and sample standard deviation over the runs; None for a single run."""
        values = [value(run) for run in self.runs]
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None

    def last(self, name: str) -> tuple[float, float | None] | None:
        """Mean and deviation of a test score after the last epoch; None unless every run has recorded it."""
        if not all(name in run.result["last"] for run in self.runs):
            return None
        return self.mean_std(lambda run: run.result["last"][name])

    def names(self, prefix: str = "") -> list[str]:
        """The metrics that some epoch of some run has, of those that begin with ``prefix``."""
        rows = (row for run in self.runs for row in run.metrics)
        return [name for name in dict.fromkeys(name for row in rows for name in row) if name.startswith(prefix)]

    @property
    def levels(self) -> dict[str, str]:
        """:data:`LEVELS`, and where several losses are not on logits, each of them by its name."""
        losses = str(self.first.parameters.get("distill", "")).split(",")
        return LEVELS | {f"train_feature_{name}_": name for name in losses if len(losses) > 1}

    def curve(self, name: str) -> tuple[list[int], list[float], list[float]]:
        """Epochs, mean over the runs and standard deviation (0 for a single run) of one metric."""
        per_epoch: dict[int, list[float]] = {}
        for run in self.runs:
            for row in run.metrics:
                if name in row:
                    per_epoch.setdefault(row["epoch"], []).append(row[name])
        epochs = sorted(per_epoch)
        means = [statistics.mean(per_epoch[epoch]) for epoch in epochs]
        stds = [statistics.stdev(per_epoch[epoch]) if len(per_epoch[epoch]) > 1 else 0.0 for epoch in epochs]
        return epochs, means, stds


def of_an_attempt(word: str, before: str) -> bool:
    """Whether a word of a command is of ``--overwrite`` or ``--resume [FOLDER]``."""
    return word.partition("=")[0] in ("--resume", "--overwrite") or (before == "--resume" and not word.startswith("-"))


@cache
def parser_of(kind: str) -> Options:
    """The command line of the script that makes such runs."""
    return SCRIPTS[kind].options()


@cache
def default_options(kind: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Options by name, as ``parameters.json`` holds them; none where a method of the run is gone."""
    parser = SCRIPTS[kind].options()  # of its own: parse of the online script changes its defaults
    try:
        opt = train_online.parse(parser, words)[0] if kind == "online" else parser.parse(words)
    except UsageError:
        return {}
    return parameters_of(opt)


def runs_in(folder: Path) -> list[Run]:
    """The runs that an earlier report has kept in ``folder``, or the finished run whose folder it is, if any.

    Raises:
        UsageError: they are damaged.
    """
    kept = folder / RECORDS
    if kept.is_file():
        try:
            lines = map(json.loads, kept.read_text(encoding="utf-8").splitlines())
            return [Run(Path(line["folder"]), line["parameters"], line["result"], line["metrics"]) for line in lines]
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{kept} is damaged ({error!r}); leave it out, or report on the run folders") from None
    run = read_run(folder)
    return [run] if run else []


def write_records(runs: Sequence[Run], folder: Path) -> None:
    """Keep all that a report needs of the runs, so that later ones can add to them where their folders are gone."""
    lines = [
        {"folder": str(run.path), "parameters": run.parameters, "result": run.result, "metrics": run.metrics}
        for run in runs
    ]
    write_atomically(folder / RECORDS, "".join(json.dumps(line) + "\n" for line in lines))


def read_run(folder: Path) -> Run | None:
    """The run in ``folder``; None if it is not finished.

    Raises:
        UsageError: it is damaged.
    """
    run = RunFolder(folder)
    parameters, result = run.read_json("parameters.json"), run.read_json("result.json")
    if not parameters or not result:
        return None
    if missing := ", ".join(name for name in RESULTS if name not in result):
        raise UsageError(f"{run.result} is damaged, it does not say {missing}; leave that run out, or --overwrite it")
    metrics = run.read_metrics()
    if not metrics:
        raise UsageError(
            f"{run.metrics} is missing or damaged, it has no epochs; leave that run out, or --overwrite it"
        )
    return Run(folder, parameters, result, metrics)


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs by setting, in the order of their first; labels that would be the same get what tells them apart.

    Of several with one seed the one named last counts. A run that does not say which weights its teachers had goes to
    the first row that it fits.
    """
    settings: list[dict[str, Any]] = []
    members: list[list[Run]] = []
    for run in runs:
        setting = run.setting
        place = next((place for place, each in enumerate(settings) if agree(each, setting)), None)
        if place is None:
            settings.append(setting)
            members.append([run])
        else:
            settings[place][WEIGHTS] = settings[place][WEIGHTS] or setting[WEIGHTS]
            members[place].append(run)
    labels = [short_label(setting) for setting in settings]
    groups = []
    for setting, label, of_setting in zip(settings, labels, members, strict=True):
        twins = [other for other, same in zip(settings, labels, strict=True) if same == label]
        told = {name: setting[name] for name in telling(twins) if setting.get(name) is not None}
        if "teachers" in told:
            told["teachers"] = short_teachers(told["teachers"], {twin["teachers"] for twin in twins})
            told.pop("teacher_num", None)  # which that tells, too
        extra = [f"{name} {typed(value)}" for name, value in told.items()]
        of_seed = {run.seed: run for run in of_setting}
        repeats = [run for run in of_setting if run is not of_seed[run.seed]]
        groups.append(Group(", ".join([label, *extra]), list(of_seed.values()), repeats))
    return groups


def agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two settings are the same; teachers' weights that are not known may be any."""
    known = alike(one, other, [WEIGHTS])
    return known and {**one, WEIGHTS: None} == {**other, WEIGHTS: None}


def alike(one: dict[str, Any], other: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether two settings have the same values of these, as far as both say them."""
    return all(None in (one.get(name), other.get(name)) or one[name] == other[name] for name in names)


def best_of(groups: Sequence[Group], option: str) -> list[Group]:
    """Of rows that differ in ``option`` alone, the one with the best mean validation accuracy after the last epoch.

    Raises:
        UsageError: no run has the option, or a row to choose among has no validation images.
    """
    rows: list[tuple[dict[str, Any], list[Group]]] = []
    for each in groups:
        rest = {name: value for name, value in each.first.setting.items() if name != option}
        of_rest = next((members for setting, members in rows if agree(setting, rest)), None)
        if of_rest is None:
            rows.append((rest, of_rest := []))
        of_rest.append(each)
    if not any(option in each.first.setting for each in groups):
        raise UsageError(f"--choose: {option!r} is no option that changes these runs")
    return [max(members, key=last_validation) if len(members) > 1 else members[0] for _, members in rows]


def last_validation(each: Group) -> float:
    """The mean validation accuracy after the last epoch.

    Raises:
        UsageError: some run has held no images out.
    """
    last = [run.metrics[-1] for run in each.runs]
    if not all("validation_accuracy" in row for row in last):
        raise UsageError(f"--choose: {each.label} was trained without --validation, and test images choose nothing")
    return statistics.mean(row["validation_accuracy"] for row in last)


def short_teachers(own: str, every: Collection[str]) -> str:
    """``3xresnet20@b7cda4`` without what their files are told by, where that tells every set of teachers apart."""
    short = {each.partition("@")[0] for each in every}
    return own.partition("@")[0] if len(short) == len(every) else own


def short_label(setting: dict[str, Any]) -> str:
    """``resnet8 alone``, ``CAMKD, inter, b 50`` or ``OKDDip, resnet8 online``."""
    if "method" in setting:
        return f"{setting['method']}, {setting['model']} online"
    if "model" in setting:
        return f"{setting['model']} alone"
    parts = [setting["ensemble_method"], setting["distill"]]
    return ", ".join([*parts, f"b {text_of(setting['beta'])}"] if setting["beta"] else parts)


def family(each: Group) -> tuple[str, ...]:
    """Dataset, network and label of a row, but for what tells it from others of the same method and loss."""
    setting = each.first.setting
    return setting["dataset"], each.first.model, short_label(setting)


def telling(settings: Sequence[dict[str, Any]]) -> list[str]:
    """What tells settings apart: options, and what lies beside them only where options do not."""
    names = [name for name in dict.fromkeys(name for each in settings for name in each) if differs(name, settings)]
    options = [name for name in names if name not in BESIDE]
    rows = [[each.get(name) for name in options] for each in settings]
    return options if all(row not in rows[:place] for place, row in enumerate(rows)) else names


def differs(name: str, settings: Sequence[dict[str, Any]]) -> bool:
    """Whether one of the settings has another value of the option than the first."""
    return any(setting.get(name) != settings[0].get(name) for setting in settings)
