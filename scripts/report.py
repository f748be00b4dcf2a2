"""Tables and figures of finished runs.

python -m scripts.report --dataset cifar100 --out results/cifar100
python -m scripts.report --folders save/students/vgg8-* --out results/vgg8

Writes runs.csv (a line per run), table.md (mean ± standard deviation over seeds), and as PNG accuracy (bars), curves
(test or validation accuracy in every epoch) and weights (each teacher's, in every epoch).
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

matplotlib.use("Agg")  # no display is needed

REPEATS = {"trial", "seed"}  # tell repetitions of one setting apart
NOT_IN_RESULT = {"save_dir", "data_dir", "device", "gpu_id", "num_workers"}
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)))
MARKERS = "osD^vPX*"


@dataclass
class Run:
    """A finished run: what its folder holds."""

    path: Path
    parameters: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def setting(self) -> dict[str, Any]:
        """What the repetitions with other seeds share."""
        earlier = {"optimizer": "sgd"}  # of runs from before there was a choice
        return earlier | {name: value for name, value in self.parameters.items() if name not in REPEATS | NOT_IN_RESULT}

    def accuracy(self, which: str) -> float:
        """On the test set, in percent; ``which`` is ``last`` or ``best``."""
        return self.result[which]["test_accuracy"]

    @property
    def command(self) -> str:
        """What was typed, without the options that say what to do with an earlier attempt."""
        words = shlex.split(self.result["command"])
        return shlex.join(word for word in words if word not in ("--resume", "--overwrite"))


@dataclass
class Group:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Run]

    def mean_std(self, value: Callable[[Run], float]) -> tuple[float, float | None]:
        """Mean and sample standard deviation over the runs; None for a single run."""
        values = [value(run) for run in self.runs]
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None

    def curve(self, name: str) -> tuple[list[int], list[float], list[float]]:
        """Epochs, mean over the runs and standard deviation (0 for a single run) of one metric."""
        per_epoch: dict[int, list[float]] = {}
        for run in self.runs:
            for row in run.metrics:
                if name in row:
                    per_epoch.setdefault(row["epoch"], []).append(row[name])
        means = [statistics.mean(values) for values in per_epoch.values()]
        stds = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in per_epoch.values()]
        return list(per_epoch), means, stds


def read_run(folder: Path) -> Run | None:
    """The run in ``folder``; None if it is not finished."""
    if not (folder / "result.json").is_file():
        return None
    parameters, result = (json.loads((folder / name).read_text()) for name in ("parameters.json", "result.json"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Run(folder, parameters, result, rows)


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs by setting, in the order of their first; labels that would be the same get what tells them apart."""
    settings: list[dict[str, Any]] = []
    members: list[list[Run]] = []
    for run in runs:
        if run.setting not in settings:
            settings.append(run.setting)
            members.append([])
        members[settings.index(run.setting)].append(run)
    labels = [short_label(setting) for setting in settings]
    groups = []
    for setting, label, of_setting in zip(settings, labels, members, strict=True):
        twins = [other for other, same in zip(settings, labels, strict=True) if same == label]
        extra = [f"{name} {plain(setting[name])}" for name in setting if differs(name, twins)]
        groups.append(Group(", ".join([label, *extra]), of_setting))
    return groups


def short_label(setting: dict[str, Any]) -> str:
    """``resnet8 alone``, ``CAMKD, inter, b 50`` or ``OKDDip, resnet8 online``."""
    if "method" in setting:
        return f"{setting['method']}, {setting['model']} online"
    if "model" in setting:
        return f"{setting['model']} alone"
    parts = [setting["ensemble_method"], setting["distill"]]
    return ", ".join([*parts, f"b {setting['beta']:g}"] if setting["beta"] else parts)


def differs(name: str, settings: Sequence[dict[str, Any]]) -> bool:
    """Whether one of the settings has another value of the option than the first."""
    return any(setting.get(name) != settings[0].get(name) for setting in settings)


def plain(value: Any) -> str:
    """An option's value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def write_runs(groups: Sequence[Group], path: Path) -> None:
    """A line per run."""
    rows = [csv_row(each.label, run) for each in groups for run in each.runs]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def csv_row(label: str, run: Run) -> dict[str, Any]:
    """What the file says of one run; accuracies in percent."""
    result = run.result
    return {
        "method": label,
        **{name: result[name] for name in ("dataset", "arch", "seed", "epochs")},
        "last_accuracy": f"{run.accuracy('last'):.4f}",
        "best_accuracy": f"{run.accuracy('best'):.4f}",
        "best_epoch": result["best"]["epoch"],
        "best_chosen_on": result["best_chosen_on"],
        "images_per_second": f"{result['images_per_second']:.1f}",
        "hours": f"{result['hours']:.4f}",
        "device": result["device"],
        "git_revision": result["git_revision"],
        "command": run.command,
        "folder": run.path,
    }


def table(groups: Sequence[Group]) -> str:
    """The results in Markdown, with the commands below."""
    runs = [run for each in groups for run in each.runs]
    chosen_on = " or ".join(sorted({run.result["best_chosen_on"] for run in runs}))
    lines = [
        f"Test accuracy in %, mean ± standard deviation over seeds; the best epoch is chosen on the {chosen_on} set.",
        "",
        "| method | last epoch | best epoch | seeds | images/s |",
        "|---|---|---|---|---|",
    ]
    for each in groups:
        last, best = (each.mean_std(partial(Run.accuracy, which=which)) for which in ("last", "best"))
        speed, _ = each.mean_std(lambda run: run.result["images_per_second"])
        lines.append(f"| {each.label} | {spread(*last)} | {spread(*best)} | {len(each.runs)} | {speed:.0f} |")
    lines += ["", *teacher_lines(runs), "", *machine_lines(runs), "", "```"]
    lines += [each.runs[0].command for each in groups]
    return "\n".join([*lines, "```", ""])


def spread(mean: float, std: float | None) -> str:
    """``97.20 ± 0.31``."""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def teacher_lines(runs: Sequence[Run]) -> list[str]:
    """Each set of teachers once: their accuracies and their ensemble's."""
    lines = []
    for run in runs:
        if "teachers" in run.result:
            each = ", ".join(f"{teacher['arch']} {teacher['accuracy']:.2f}" for teacher in run.result["teachers"])
            lines.append(f"Teachers: {each}; their ensemble {run.result['teacher_ensemble']['accuracy']:.2f}.")
    return list(dict.fromkeys(lines))


def machine_lines(runs: Sequence[Run]) -> list[str]:
    """What the runs were made with, each combination once."""
    made_with = []
    for run in runs:
        versions = run.result["versions"]
        revision = run.result["git_revision"] or "unknown"
        made_with.append(f"{run.result['device']}; PyTorch {versions['torch']}; revision {revision}.")
    return list(dict.fromkeys(made_with))


def draw_accuracy(groups: Sequence[Group], path: Path) -> None:
    """Bars: accuracy after the last epoch; diamonds: in the best one."""
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.42 * len(groups)), layout="constrained")
    lowest = highest = groups[0].runs[0].accuracy("last")
    for row, each in enumerate(groups):
        alone = "model" in each.runs[0].parameters
        mean, std = each.mean_std(partial(Run.accuracy, which="last"))
        best, _ = each.mean_std(partial(Run.accuracy, which="best"))
        color, hatch = ("white", "///") if alone else ("lightsteelblue", "")
        axes.barh(row, mean, 0.62, xerr=std, color=color, hatch=hatch, edgecolor="black", capsize=3)
        axes.plot(best, row + 0.2, "D", color="black", markerfacecolor="white", markersize=5)
        lowest, highest = min(lowest, mean - (std or 0)), max(highest, best, mean + (std or 0))
        axes.annotate(spread(mean, std), (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    margin = max(0.25 * (highest - lowest), 0.5)
    start = max(0.0, lowest - margin)
    axes.set_xlim(start, min(100.0, highest + margin / 2) if highest < 100 else 100.4)
    axes.set_yticks(range(len(groups)), [each.label for each in groups])
    axes.invert_yaxis()
    cut = f"; the axis starts at {start:.1f}" if start else ""
    repeated = " ± std" if any(len(each.runs) > 1 for each in groups) else ""
    axes.set_xlabel(f"test accuracy (%): bar last epoch{repeated}, ◇ best epoch{cut}")
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
    save(figure, path)


def draw_curves(groups: Sequence[Group], path: Path) -> None:
    """Accuracy in every epoch."""
    chosen_on = sorted({run.result["best_chosen_on"] for each in groups for run in each.runs})
    figure, axes = plt.subplots(figsize=(8.5, 4.5), layout="constrained")
    for index, each in enumerate(groups):
        epochs, means, stds = each.curve(f"{each.runs[0].result['best_chosen_on']}_accuracy")
        draw_line(axes, index, epochs, means, each.label)
        if len(each.runs) > 1:
            low, high = ([mean + sign * std for mean, std in zip(means, stds, strict=True)] for sign in (-1, 1))
            axes.fill_between(epochs, low, high, color=f"C{index % 10}", alpha=0.2)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{' or '.join(chosen_on)} accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.4)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(figure, path)


def draw_weights(groups: Sequence[Group], path: Path) -> None:
    """Each teacher's mean weight in every epoch, a panel per method and level. Nothing without teachers."""
    panels = []
    for each in groups:
        names = dict.fromkeys(name for run in each.runs for row in run.metrics for name in row)
        for prefix, level in (("train_weight_", "logits"), ("train_feature_weight_", "feature maps")):
            curves = [name for name in names if name.startswith(prefix)]
            if curves:
                panels.append((f"{each.label}\n{level}", each, curves))
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (0.8 + 3.1 * columns, 0.8 + 2.5 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for index, (axes, (title, each, curves)) in enumerate(zip(grid.flat, panels, strict=False)):
        for k, name in enumerate(curves):
            epochs, means, _ = each.curve(name)
            draw_line(axes, k, epochs, means, f"teacher {k}")
        axes.set_title(title, fontsize=9)
        axes.set_xlim(0.5, max(run.result["epochs"] for run in each.runs) + 0.5)
        axes.set_ylim(0, 1.1 * max(max(each.curve(name)[1]) for name in curves))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.4)
        if index + columns >= len(panels):  # nothing below
            axes.set_xlabel("epoch")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    most = max(grid.flat[: len(panels)], key=lambda axes: len(axes.lines))
    figure.legend(*most.get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False)
    figure.supylabel("weight of the teacher's loss (mean over the epoch)", fontsize=10)
    save(figure, path)


def draw_line(axes: Axes, index: int, x: Sequence[int], y: Sequence[float], label: str) -> None:
    """A line that can be told from the others without colour too."""
    axes.plot(
        x,
        y,
        color=f"C{index % 10}",
        linestyle=LINES[index % len(LINES)],
        marker=MARKERS[index % len(MARKERS)],
        markevery=max(1, len(x) // 10),
        markersize=6,
        markerfacecolor="none",  # so that equal values show all their markers
        label=label,
    )


def save(figure: Figure, path: Path) -> None:
    """Write the figure and forget it."""
    figure.savefig(path, dpi=150)
    plt.close(figure)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Tables and figures of finished runs.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--save_dir", type=Path, default=Path("save"), help="where the run folders are")
    parser.add_argument(
        "--folders", type=Path, nargs="+", help="run folders, in the table's order; all of --save_dir, unless given"
    )
    parser.add_argument("--dataset", help="only runs on this dataset")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Read, write, and print the table."""
    opt = arguments(words)
    folders = opt.folders or sorted(
        (path.parent for path in opt.save_dir.glob("*/*/result.json")),
        key=lambda folder: (folder.parent.name != "teachers", folder),  # single networks first, to compare with
    )
    runs = [run for run in map(read_run, folders) if run and opt.dataset in (None, run.result["dataset"])]
    if not runs:
        where = f" among the {len(folders)} folders" if opt.folders else f" below {opt.save_dir}"
        print(f"report: error: there is no finished run{where}", file=sys.stderr)
        sys.exit(2)
    groups = group(runs)
    opt.out.mkdir(parents=True, exist_ok=True)
    write_runs(groups, opt.out / "runs.csv")
    text = table(groups)
    (opt.out / "table.md").write_text(text)
    draw_accuracy(groups, opt.out / "accuracy.png")
    draw_curves(groups, opt.out / "curves.png")
    draw_weights(groups, opt.out / "weights.png")
    print(f"{text}\nwritten to {opt.out}/: {', '.join(sorted(path.name for path in opt.out.iterdir()))}")


if __name__ == "__main__":
    main()
