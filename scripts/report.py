"""Tables, figures and a page of finished runs.

python -m scripts.report --dataset cifar100 --out results/cifar100
python -m scripts.report --folders save/students/vgg8-* --out results/vgg8
python -m scripts.report --folders results/vgg8 save/students/vgg8-*-trial=3 --out results/vgg8
python -m scripts.report --readme

Writes runs.csv (a line per run), table.md (mean ± standard deviation over seeds, differences, published values,
commands), figures as PNG, index.html, which holds all of that (and is not committed: --folders results/NAME makes it
anew), and records.jsonl, from which a later report can take the runs again (a results folder among --folders stands for
its runs). --readme writes the tables in README.md, docs/*.md and results/*.md anew from the folders of results/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from matplotlib import pyplot as plt

from helper.errors import UsageError
from helper.script import run_script
from scripts.outputs import folder_for
from scripts.reporting import tables
from scripts.reporting.figures import FIGURES
from scripts.reporting.page import page
from scripts.reporting.readme import filled_in, texts
from scripts.reporting.runs import Group, Run, best_of, group, runs_in, write_records

ROOT = Path(__file__).parents[1]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Tables, figures and a page of finished runs.")
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--save_dir", type=Path, default=Path("save"), help="where the run folders are")
    parser.add_argument(
        "--folders",
        type=Path,
        nargs="+",
        help="run folders, or results of an earlier report, in the table's order; all of --save_dir, unless given",
    )
    parser.add_argument("--dataset", help="only runs on this dataset")
    parser.add_argument(
        "--against", metavar="METHOD", help="the row that others are compared with, by its name in the table"
    )
    parser.add_argument(
        "--choose",
        metavar="OPTION",
        help="of rows that differ in this option alone only the one that is best on the images of --validation: alpha",
    )
    parser.add_argument(
        "--readme", action="store_true", help="write the tables in README.md, docs/*.md and results/*.md anew"
    )
    opt = parser.parse_args(words)
    if opt.out is None and not opt.readme:
        refuse("--out: say which folder to write to, or --readme")
    return opt


def refuse(text: str) -> NoReturn:
    """End with one line."""
    print(f"report: error: {text}", file=sys.stderr)
    sys.exit(2)


def find_runs(opt: argparse.Namespace) -> list[Run]:
    """The finished runs that are asked for; of the same folder the one named last."""
    folders = opt.folders or sorted(
        (path.parent for path in opt.save_dir.glob("*/*/result.json")),
        key=lambda folder: (folder.parent.name == "online", folder.parent.name != "teachers", folder),
    )  # single networks first, to compare with
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        refuse(f"--folders: there is no folder {', '.join(missing)}")
    found = {run.path.resolve(): run for folder in folders for run in runs_in(folder)}
    runs = [run for run in found.values() if opt.dataset in (None, run.result["dataset"])]
    if not runs:
        where = f"among the {len(folders)} folders" if opt.folders else f"below {opt.save_dir}"
        refuse(f"there is no finished run {where}")
    return runs


def rows_of(opt: argparse.Namespace) -> list[Group]:
    """The runs as rows, all or those that are chosen."""
    groups = group(find_runs(opt))
    if opt.choose is None:
        return groups
    try:
        return best_of(groups, opt.choose)
    except UsageError as error:
        return refuse(str(error))


def require_row(label: str | None, groups: Sequence[Group]) -> None:
    """Refuse to compare with what is not there."""
    labels = [each.label for each in groups]
    if label is not None and label not in labels:
        refuse(f"--against: {label!r} is none of the rows: {'; '.join(labels)}")


def write_tables(groups: Sequence[Group], out: Path, against: str | None = None) -> str:
    """What is quickly made: the runs and their tables, into ``out``; returns the Markdown."""
    folder_for("--out", out)
    write_records([run for each in groups for run in (*each.repeats, *each.runs)], out)
    tables.write_runs(groups, out / "runs.csv")
    text = tables.markdown(groups, against)
    (out / "table.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    return text


def write_figures(groups: Sequence[Group], out: Path, against: str | None = None) -> None:
    """The figures, and the page that holds them and the tables."""
    for name, (_, draw) in FIGURES.items():
        path, figure = out / f"{name}.png", draw(groups)
        path.unlink(missing_ok=True)  # of runs that are no longer among these
        if figure is not None:
            figure.savefig(path, dpi=130)
            plt.close(figure)
    commands = {each.label: each.first.command for each in groups}
    html = page(out.resolve().name, tables.all_tables(groups, against), tables.notes(groups), commands, out)
    (out / "index.html").write_text(html, encoding="utf-8", errors="backslashreplace")


def write_pages() -> None:
    """The tables in all pages, or in none where one of them cannot be made."""
    pages = {}
    for path in texts(ROOT):
        try:
            pages[path] = filled_in(path.read_text(encoding="utf-8"), ROOT / "results")
        except UsageError as error:
            refuse(f"--readme: {path}: {error}")
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Read, write, and print the tables."""
    opt = arguments(words)
    if opt.readme:
        write_pages()
    if opt.out is not None:
        groups = rows_of(opt)
        require_row(opt.against, groups)
        text = write_tables(groups, opt.out, opt.against)
        write_figures(groups, opt.out, opt.against)
        print(f"{text}\nwritten to {opt.out}/: {', '.join(sorted(path.name for path in opt.out.iterdir()))}")


if __name__ == "__main__":
    run_script(main)
