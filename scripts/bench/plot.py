"""The benchmark as a figure: milliseconds of every step that was timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

from scripts.bench.timing import figure

matplotlib.use("Agg")  # no display is needed


def draw(figures: dict[str, Any], path: Path) -> None:
    """A panel for each table of steps."""
    panels = [
        (f"{section}: {title}", rows)
        for section in ("steps", "online")
        for title, rows in figures.get(section, {}).items()
    ]
    count = max(1, len(panels))
    canvas, grid = plt.subplots(1, count, figsize=(6.5 * count, 7), squeeze=False, layout="constrained")
    for axes, (title, rows) in zip(grid.flat, panels, strict=False):
        axes.set_title(title, fontsize=10)
        for place, (name, row) in enumerate(rows.items()):  # the first on top; hatched: not what this collection does
            then = "as released" in name
            fill = {"color": "white", "hatch": "///"} if then else {"color": "0.6"}
            axes.barh(place, row["ms"], edgecolor="black", **fill)
            axes.annotate(f" {figure(row['ms'])}", (row["ms"], place), va="center", fontsize=7)
        axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel("ms per step")
    canvas.suptitle(figures["machine"], fontsize=9)
    canvas.savefig(path, dpi=150)
    plt.close(canvas)
