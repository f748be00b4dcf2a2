"""Figures. Lines can be told apart without colour, legends lie outside the data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import mean

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from scripts.reporting.runs import Group, Run
from scripts.reporting.statistics import half_width
from scripts.reporting.tables import chosen_on, spread

matplotlib.use("Agg")  # no display is needed

LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)))
MARKERS = "osD^vPX*"
FILLED = {"alone": ("white", "///"), "student": ("lightsteelblue", ""), "online": ("gainsboro", "..")}
Series = tuple[str, Group, str]
"""A label, whose it is, and which metric."""


def draw_accuracy(groups: Sequence[Group]) -> Figure:
    """Bars: mean accuracy after the last epoch, with its interval; dots: each seed; diamonds: the best epoch."""
    figure, axes = plt.subplots(figsize=(8.5, 1.3 + 0.42 * len(groups)), layout="constrained")
    for row, each in enumerate(groups):
        values = [run.accuracy("last") for run in each.runs]
        last, std = each.mean_std(partial(Run.accuracy, which="last"))
        best, _ = each.mean_std(partial(Run.accuracy, which="best"))
        color, hatch = FILLED[each.first.kind]
        half = half_width(values)
        axes.barh(row, last, 0.62, xerr=half, color=color, hatch=hatch, edgecolor="black", linewidth=0.6, capsize=4)
        if len(values) > 1:
            places = [row - 0.26 + 0.18 * i / (len(values) - 1) for i in range(len(values))]  # equal seeds both show
            axes.plot(values, places, "o", color="black", markerfacecolor="white", markersize=4)
        axes.plot(best, row + 0.2, "D", color="black", markerfacecolor="white", markersize=5)
        axes.annotate(spread(last, std), (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    start = cut(axes, groups)
    axes.set_yticks(range(len(groups)), [each.label for each in groups])
    axes.invert_yaxis()
    words = f"test accuracy (%): bar last epoch{', whisker 95 % interval, dots seeds' * repeated(groups)}"
    axes.set_xlabel(f"{words};\n◇ best epoch{f'; axis from {start:.0f}' if start else ''}")
    axes.set_title("mean ± std" if repeated(groups) else "last epoch", loc="right", fontsize=9)
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
    return figure


def cut(axes: Axes, groups: Sequence[Group]) -> float:
    """Begin the axis a little below the lowest value; returns where."""
    values = [run.accuracy(which) for each in groups for run in each.runs for which in ("last", "best")]
    seeds = [[run.accuracy("last") for run in each.runs] for each in groups]
    tips = [mean(each) + (half_width(each) or 0.0) for each in seeds]
    spread_of_all = max(values) - min(values)
    margin = max(0.25 * spread_of_all, 0.5)
    start = max(0.0, float(int(min(values) - margin)))
    end = min(100.0, max(max(values), min(max(tips), max(values) + spread_of_all)) + margin / 4)
    axes.set_xlim(start, end if end < 100 else 100.4)
    return start


def repeated(groups: Sequence[Group]) -> bool:
    """Whether some row has more than one seed."""
    return any(len(each.runs) > 1 for each in groups)


def draw_curves(groups: Sequence[Group]) -> Figure:
    """Accuracy in every epoch, and in the last third closer by; with and without teachers in rows of their own."""
    families = [[each for each in groups if (each.first.kind == "online") == online] for online in (False, True)]
    families = [family for family in families if family]
    sizes = [max(3.2, 0.5 + 0.23 * len(family)) for family in families]
    shares = {"height_ratios": sizes, "width_ratios": (3, 2)}
    size = (12, 0.5 + sum(sizes))
    figure, grid = plt.subplots(len(families), 2, figsize=size, gridspec_kw=shares, squeeze=False, layout="constrained")
    for (left, right), family in zip(grid, families, strict=True):
        held_out = ["validation_accuracy" in each.names() for each in family]  # the best epoch is chosen by it then
        names = ["validation_accuracy" if held else "test_accuracy" for held in held_out]
        series = [(each.label, each, name) for each, name in zip(family, names, strict=True)]
        draw_series(left, series, legend=False)
        draw_series(right, series)
        left.set_ylabel(f"{chosen_on(family)} accuracy (%){bands(family)}", fontsize=9)
        right.set_title("the last third", fontsize=9)
        zoom(right, series)
    return figure


def zoom(axes: Axes, series: Sequence[Series]) -> None:
    """Show the last third of the epochs, and only what accuracies lie there."""
    points = [point for _, each, name in series for point in zip(*each.curve(name), strict=True)]
    end = max(epoch for epoch, _, _ in points)
    start = min(end - 1, end - end // 3)
    values = [mean + sign * std for epoch, mean, std in points if epoch >= start for sign in (-1, 1)]
    margin = max(0.1, 0.05 * (max(values) - min(values)))
    axes.set_xlim(start - 0.05 * (end - start), end + 0.05 * (end - start))
    axes.set_ylim(min(values) - margin, max(values) + margin)


def bands(groups: Sequence[Group]) -> str:
    """What to say of bands, if there are any."""
    return "\nmean, band ± std over seeds" if repeated(groups) else ""


def draw_series(axes: Axes, series: Sequence[Series], legend: bool = True) -> None:
    """A line with a band per series, over epochs."""
    for index, (label, each, name) in enumerate(series):
        epochs, means, stds = each.curve(name)
        draw_line(axes, index, epochs, means, label)
        if len(each.runs) > 1:
            low, high = ([mean + sign * std for mean, std in zip(means, stds, strict=True)] for sign in (-1, 1))
            axes.fill_between(epochs, low, high, color=f"C{index % 10}", alpha=0.2, linewidth=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.4)
    if legend:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, handlelength=3.5)


def draw_line(axes: Axes, index: int, x: Sequence[float], y: Sequence[float], label: str) -> None:
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


def levels_of(groups: Sequence[Group]) -> list[tuple[Group, str, str]]:
    """Each group at each level: what the names of its curves there begin with, and what its losses compare."""
    return [(each, prefix, level) for each in groups for prefix, level in each.levels.items()]


def draw_weights(groups: Sequence[Group]) -> Figure | None:
    """Each teacher's mean weight in every epoch, a panel per method and level. None without two teachers or more."""
    panels = [
        (f"{each.label}\n{level}", [(f"teacher {k}", each, name) for k, name in enumerate(names)])
        for each, prefix, level in levels_of(groups)
        if len(names := each.names(f"{prefix}weight_")) > 1
    ]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (1.0 + 3.2 * columns, 1.0 + 2.6 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, (title, series) in zip(grid.flat, panels, strict=False):
        draw_series(axes, series, legend=False)
        axes.set_title(title, fontsize=8.5)
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
        axes.set_xlim(0.5, series[0][1].first.result["epochs"] + 0.5)  # as another level of the same run
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    most = max(grid.flat[: len(panels)], key=lambda axes: len(axes.lines))
    figure.legend(*most.get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False)
    figure.supylabel(f"weight of the teacher's loss, averaged over the epoch{bands(groups)}", fontsize=10, ma="center")
    return figure


def draw_conflict(groups: Sequence[Group]) -> Figure | None:
    """Mean cosine between the teachers' gradients; None where no method has looked at them."""
    series = [
        (f"{each.label}: {level}", each, f"{prefix}gradient_cosine")
        for each, prefix, level in levels_of(groups)
        if each.names(f"{prefix}gradient_cosine")
    ]
    return one_panel(series, "mean cosine between two teachers' gradients\n(1 agree, 0 unrelated, below 0 conflict)")


def draw_solver(groups: Sequence[Group]) -> Figure | None:
    """Solvers beside the exact one: the length of the combined gradient with either's weights, and how often a solver
    left its start; None where only the exact one was used."""
    solved = [one for one in levels_of(groups) if one[0].names(f"{one[1]}exact_combined_gradient")]
    if not solved:
        return None
    lengths: list[Series] = []
    for each, prefix, level in solved:
        lengths.append((f"{each.label}: {level}", each, f"{prefix}combined_gradient"))
        lengths.append(("the same run's gradients, exact weights", each, f"{prefix}exact_combined_gradient"))
    starts = [(f"{each.label}: {level}", each, f"{prefix}at_start") for each, prefix, level in solved]
    figure, (left, right) = plt.subplots(2, 1, figsize=(9.5, 6.4), sharex=True, layout="constrained")
    draw_series(left, lengths)
    left.set_ylim(bottom=0)
    left.set_xlabel("")
    left.set_ylabel(f"length of the combined gradient{bands(groups)}", fontsize=9)
    draw_series(right, starts)
    right.set_ylim(-0.03, 1.03)
    right.set_ylabel("share of the steps whose weights are\nthose that the solver starts from", fontsize=9)
    return figure


def draw_diversity(groups: Sequence[Group]) -> Figure | None:
    """How far the peers are from each other; None without peers."""
    series = [(each.label, each, name) for each in groups for name in each.names() if name.endswith("_diversity")]
    return one_panel(series, "diversity: mean L2 distance between\ntwo peers' softmax outputs (0 equal, √2 most)")


def one_panel(series: Sequence[Series], label: str) -> Figure | None:
    """A figure of these lines alone, or None for none."""
    if not series:
        return None
    figure, axes = plt.subplots(figsize=(9.5, max(3.8, 0.8 + 0.23 * len(series))), layout="constrained")
    draw_series(axes, series)
    axes.set_ylabel(label + bands([each for _, each, _ in series]), fontsize=9)
    return figure


def draw_cost(groups: Sequence[Group]) -> Figure | None:
    """Each peer's accuracy against its parameters and MACs; None unless some peers are thinner than others."""
    online = [each for each in groups if each.first.kind == "online"]
    sizes = [{cost["parameters"] for cost in each.first.result.get("peers", [])} for each in online]
    thin = {each.first.setting["method"] for each, of_peers in zip(online, sizes, strict=True) if len(of_peers) > 1}
    chosen = [each for each in online if each.first.setting["method"] in thin]
    if not chosen:
        return None
    figure, grid = plt.subplots(1, 2, figsize=(9.5, 4.4 + 0.2 * len(chosen)), sharey=True, layout="constrained")
    kinds = (("parameters", 1e3, "parameters (thousands)"), ("macs", 1e6, "multiply-accumulates (millions)"))
    for axes, (name, scale, label) in zip(grid, kinds, strict=True):
        for index, each in enumerate(chosen):
            costs = [cost[name] / scale for cost in each.first.result["peers"]]
            scores = [each.last(f"test_peer_{j}_accuracy") or (float("nan"), None) for j in range(len(costs))]
            means, deviations = [score for score, _ in scores], [std or 0.0 for _, std in scores]
            draw_line(axes, index, costs, means, each.label)
            if any(deviations):
                axes.errorbar(costs, means, deviations, fmt="none", color=f"C{index % 10}", capsize=3)
        axes.set_xscale("log")  # with few and plain numbers
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{label}, logarithmic")
        axes.grid(alpha=0.4, which="both")
    grid[0].set_ylabel("test accuracy of one peer after the last epoch (%)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


FIGURES = {
    "accuracy": ("Final accuracy", draw_accuracy),
    "curves": ("Accuracy in every epoch", draw_curves),
    "weights": ("Each teacher's weight", draw_weights),
    "conflict": ("Conflict between the teachers' gradients", draw_conflict),
    "solver": ("Solvers beside the exact one", draw_solver),
    "diversity": ("Diversity of the peers", draw_diversity),
    "cost": ("Accuracy against size", draw_cost),
}
"""File names, titles, and what draws them."""
