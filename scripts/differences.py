"""One figure of the same rows in several settings: what each gains on the plain average of its teachers.

python -m scripts.differences results/when/alike results/when/wrong --out results/when/differences.png

Each folder, a results folder of scripts.report, becomes a panel. Its students are compared, seed by seed, with the
default weighting of the default loss of the same student, images, epochs and batch size; where that is there under
several sets of teachers, with the largest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helper.errors import UsageError
from helper.options import Parser
from helper.script import run_script
from scripts.outputs import folder_for, require_figure
from scripts.reporting.runs import Group, alike, group, parser_of, runs_in
from scripts.reporting.statistics import Difference, distance, holm, paired
from scripts.reporting.tables import spread

LEVEL = 0.05
"""p, corrected for the number of a panel's rows, below which a marker is filled."""


class Panel(NamedTuple):
    """``bases``: what the rows of a folder are compared with; ``gaps``: by name, the difference and its corrected p."""

    title: str
    bases: list[Group]
    gaps: dict[str, tuple[Difference, float | None]]


def options() -> Parser:
    """The command line."""
    parser = Parser(description="One figure of the same rows in several settings.")
    parser.add_argument("folders", type=Path, nargs="+", help="results folders; a panel each")
    parser.add_argument("--out", type=Path, required=True, help="the figure's file, as FIGURE.png")
    return parser


def panel_of(folder: Path) -> Panel:
    """The differences in a results folder.

    Raises:
        UsageError: it holds no runs, or nothing to compare with.
    """
    groups = group(runs_in(folder)) if folder.is_dir() else []
    students = [each for each in groups if each.first.kind == "student"]
    parser = parser_of("student")
    usual = {name: parser.get_default(name) for name in ("distill", "ensemble_method", "beta")}
    found = [each for each in students if usual.items() <= each.first.setting.items()]
    if not found:
        row = f"{usual['ensemble_method']}, {usual['distill']}"
        raise UsageError(f"folders: {folder} holds no row {row!r} to compare with; make it with scripts.report")
    pairs = [(each, base) for each in students if (base := base_of(each, found)) is not None]
    names = [name_of(each, base) for each, base in pairs]
    labels = [name if names.count(name) == 1 else each.label for (each, _), name in zip(pairs, names, strict=True)]
    gaps = {label: paired(each, base) for (each, base), label in zip(pairs, labels, strict=True) if each is not base}
    shared = {name: gap for name, gap in gaps.items() if gap is not None}
    tested = [name for name, gap in shared.items() if gap.p is not None]
    corrected = dict(zip(tested, holm([shared[name].p or 0.0 for name in tested]), strict=True))
    bases = [each for each, base in pairs if each is base]
    return Panel(folder.name, bases, {name: (gap, corrected.get(name)) for name, gap in shared.items()})


def base_of(each: Group, found: Sequence[Group]) -> Group | None:
    """Which of the plain averages a row is compared with: that of its student, images, epochs and batch size under the
    most teachers; None: there is none, and the row is left out.

    Where several have as many, the one with the fewest other differences.
    """
    mine = each.first.setting
    wanted = {name: mine[name] for name in ("model_s", "dataset", "epochs", "batch_size")}.items()
    fitting = [other for other in found if wanted <= other.first.setting.items()]
    fitting = [other for other in fitting if alike(mine, other.first.setting, ["images"])]
    return max(fitting, key=lambda other: (number_of_teachers(other), -distance(each, other)), default=None)


def number_of_teachers(each: Group) -> int:
    """Of a student's row."""
    return int(each.first.setting["teacher_num"])


def name_of(each: Group, base: Group) -> str:
    """A row's label without what differs between settings: its teachers, but for their number, and a chosen ``-a``."""
    label = re.sub(r", (teachers|alpha) [^,]+", "", each.label)
    number = number_of_teachers(each)
    return label if number == number_of_teachers(base) else f"{label}, {number} teacher{'s' * (number > 1)}"


def drawn(panels: Sequence[Panel]) -> Figure:
    """A line for each row, the same in all panels: its mean difference and Student's 95 % interval."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.gaps))
    size = (3.0 + 2.7 * len(panels), 1.9 + 0.3 * len(names))
    figure, grid = plt.subplots(
        1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, panel in zip(grid[0], panels, strict=True):
        draw(axes, panel, names)
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].invert_yaxis()
    method, loss = (panels[0].bases[0].first.setting[name] for name in ("ensemble_method", "distill"))
    figure.supxlabel(
        f"test accuracy after the last epoch minus that of {method}, {loss}, in points:\n"
        f"mean over seeds and 95 % interval; filled: p < {LEVEL:g}, corrected for a panel's rows (Holm)",
        fontsize=9,
    )
    return figure


def draw(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    """One setting."""
    for row, name in enumerate(names):
        if name in panel.gaps:
            gap, p = panel.gaps[name]
            face = "black" if p is not None and p < LEVEL else "white"
            axes.errorbar(gap.mean, row, xerr=gap.half, fmt="o", color="black", markerfacecolor=face, capsize=3, lw=1)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(title_of(panel), fontsize=9)
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)


def title_of(panel: Panel) -> str:
    """The setting's name, and each base's accuracy and teachers; its student too, where there are several."""
    told = []
    for base in panel.bases:
        run, student = base.first, f" of {base.first.model}" if len(panel.bases) > 1 else ""
        teachers = ", ".join(f"{each['arch']} {each['accuracy']:.1f}" for each in run.result["teachers"])
        accuracy = spread(*base.mean_std(lambda one: one.accuracy("last")))
        told.append(f"{run.setting['ensemble_method']}{student} {accuracy} %\n{teachers}")
    return f"{panel.title}: " + "\n".join(told)


def main(words: Sequence[str]) -> None:
    """Read and draw."""
    opt = options().parse_args(words)
    require_figure("--out", opt.out)
    figure = drawn([panel_of(folder) for folder in opt.folders])
    folder_for("--out", opt.out.parent)
    figure.savefig(opt.out, dpi=130)
    print(f"written to {opt.out}")


if __name__ == "__main__":
    run_script(main)
