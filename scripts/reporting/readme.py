"""Tables of results in README and pages, written from the files in results/<name>/ between two marks."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import mean, stdev

from helper.errors import UsageError
from scripts.reporting.runs import group, runs_in
from scripts.reporting.tables import Table, all_tables, spread

MARKS = re.compile(r"(<!-- results/([\w./-]+)(?:: (.+?))? -->\n).*?(<!-- end -->)", re.DOTALL)

TO = "Differences to "


def texts(root: Path) -> list[Path]:
    """The files that hold such tables, of README.md, docs/*.md and results/*.md."""
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md")), *sorted((root / "results").glob("*.md"))]
    return [page for page in pages if MARKS.search(page.read_text(encoding="utf-8"))]


def filled_in(text: str, results: Path) -> str:
    """The text with what lies between ``<!-- results/NAME -->`` and ``<!-- end -->`` made anew.

    ``<!-- results/NAME: TITLE -->`` stands for the table of that title in its ``table.md``, ``Differences to METHOD``
    for that of the row that is called so.

    Raises:
        UsageError: there is no such table.
    """

    def between(match: re.Match[str]) -> str:
        folder = results / match[2]
        return f"{match[1]}{table_of(folder, match[3]) if match[3] else part(folder / 'runs.csv')}{match[4]}"

    return MARKS.sub(between, text)


def table_of(folder: Path, title: str) -> str:
    """One of the report's tables, from the runs that it has kept.

    Raises:
        UsageError: it is none of them, or there are no runs.
    """
    against = title.removeprefix(TO) if title.startswith(TO) else None
    groups = group(runs_in(folder))
    tables = {table.title: table for table in all_tables(groups, against)} if groups else {}
    if title not in tables:
        raise UsageError(f"{folder}: no table {title!r} among {', '.join(tables) or 'those of no runs'}")
    return f"{tables[title].words}\n\n{tables[title].markdown()}\n"


def part(path: Path) -> str:
    """The table of one file.

    Raises:
        UsageError: it is not there.
    """
    if not path.is_file():
        raise UsageError(f"there is no {path}; name a folder of a report")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = Table("", "", ["method", "last epoch", "best epoch", "seeds", "epochs", "images/s"])
    for label in dict.fromkeys(row["method"] for row in rows):
        runs = [row for row in rows if row["method"] == label]
        last, best, speed = (
            [float(run[name]) for run in runs] for name in ("last_accuracy", "best_accuracy", "images_per_second")
        )
        scores = [spread(mean(each), stdev(each) if len(runs) > 1 else None) for each in (last, best)]
        table.rows.append([label, *scores, str(len(runs)), runs[0]["epochs"], f"{mean(speed):.0f}"])
    on = " or ".join(sorted({row["best_chosen_on"] for row in rows}))
    words = f"Test accuracy in %, mean ± standard deviation over seeds; the best epoch is chosen on the {on} set."
    devices = ", ".join(dict.fromkeys(row["device"].replace(" 1 threads", " 1 thread") for row in rows))
    return f"{words}\n\n{table.markdown()}\n\nEach run on: {devices}.\n"
