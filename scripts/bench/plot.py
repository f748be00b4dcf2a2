"""The benchmark as a figure: where the time of each step goes, peers, and the solvers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from scripts.bench.steps import ALONE, PARTS, TEACHERS

matplotlib.use("Agg")  # no display is needed

Figures = dict[str, Any]

SHADES = dict(zip(PARTS, ("0.35", "white", "black", "0.75"), strict=True))
HATCHES = dict(zip(PARTS, ("", "///", "", ".."), strict=True))
LINES, MARKERS = ("-", "--", "-.", ":"), "osD^"


def draw(figures: Figures, path: Path) -> None:
    """A panel per setting, one for the peers and one for the solvers, as far as they were measured."""
    settings = figures.get("steps", {})
    panels: list[Any] = [(draw_steps, name, values) for name, values in settings.items()]
    panels += [(draw_peers, f"peers, {figures['online']['model']}", figures["online"])] if "online" in figures else []
    panels += [(draw_solvers, "AEKD's solver", figures["solver"])] if "solver" in figures else []
    rows = max(1, -(-len(panels) // 2))
    canvas, grid = plt.subplots(rows, 2, figsize=(13, 0.6 + 5 * rows), squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (draw_panel, title, values) in zip(grid.flat, panels, strict=False):
        axes.set_title(title, fontsize=10)
        draw_panel(axes, values)
    machine = figures["machine"]
    canvas.suptitle(f"{machine['device']}; {machine['cpu']}; PyTorch {machine['torch']}", fontsize=9)
    canvas.savefig(path, dpi=150)
    plt.close(canvas)


def draw_steps(axes: Axes, figures: Figures) -> None:
    """Milliseconds of a step by part, beside what it takes at least and what it took as released."""
    pairs = {name: values for name, values in figures["rows"].items() if "shares" in values}
    for place, values in enumerate(pairs.values()):
        left = 0.0
        for part in PARTS:
            width = values["ms"] * values["shares"][part]
            label = part if place == 0 else None
            axes.barh(
                place, width, 0.7, left, color=SHADES[part], hatch=HATCHES[part], edgecolor="black", lw=0.6, label=label
            )
            left += width
    for name, style in ((ALONE, ":"), (TEACHERS, "--")):
        axes.axvline(figures["rows"][name]["ms"], color="black", linestyle=style, lw=1.2, label=name)
    for name, values in figures["released"].items():
        place = list(pairs).index(name)
        text = f"  as released {values['ms']:,.0f} ms: {values['speed_up']:.1f}×"
        axes.annotate(text, (pairs[name]["ms"], place), va="center", fontsize=7)
    axes.set_xlim(0, 1.7 * max(values["ms"] for values in pairs.values()))
    label_rows(axes, list(pairs), f"ms per step, batch {figures['batch_size']}, {figures['precision']}")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3, frameon=False)


def draw_peers(axes: Axes, figures: Figures) -> None:
    """Milliseconds of a step of each online method, ours and as released."""
    for place, values in enumerate(figures["rows"].values()):
        axes.barh(place - 0.2, values["ms"], 0.38, color="0.35", edgecolor="black", label=None if place else "ours")
        axes.barh(
            place + 0.2,
            values["released_ms"],
            0.38,
            color="white",
            hatch="///",
            edgecolor="black",
            label=None if place else "fp32, NCHW, one by one",
        )
    label_rows(axes, list(figures["rows"]), f"ms per step, {figures['model']}, batch {figures['batch_size']}")
    axes.legend(fontsize=7)


def draw_solvers(axes: Axes, figures: Figures) -> None:
    """Milliseconds over the number of teachers."""
    sizes = list(figures["solvers"])
    for index, name in enumerate(figures["solvers"][sizes[0]]):
        times = [figures["solvers"][K][name]["ms"] for K in sizes]
        line, marker = LINES[index % len(LINES)], MARKERS[index % len(MARKERS)]
        axes.plot(sizes, times, linestyle=line, marker=marker, color="black", markerfacecolor="white", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(K) for K in sizes])
    axes.set_xlabel("teachers K")
    axes.set_ylabel("ms")
    axes.grid(alpha=0.4)
    axes.legend(fontsize=7)


def label_rows(axes: Axes, names: list[str], title: str) -> None:
    """Names on the left, the first on top."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
