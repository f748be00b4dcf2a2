"""One HTML file that shows everything, without any other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from scripts.reporting.figures import FIGURES
from scripts.reporting.tables import Table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #111; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #555; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; } tr:nth-child(even) td { background: #f6f6f6; }
img { max-width: 100%; height: auto; } pre { background: #f3f3f3; padding: 1rem; overflow-x: auto; font-size: 0.8rem; }
"""


def page(title: str, tables: Sequence[Table], words: Sequence[str], commands: Mapping[str, str], folder: Path) -> str:
    """The page, with the figures that lie in ``folder``."""
    parts = [f"<h1>{escape(title)}</h1>", *map(html_table, tables[:1]), *(f"<p>{escape(line)}</p>" for line in words)]
    for name, (caption, _) in FIGURES.items():
        if (path := folder / f"{name}.png").is_file():
            data = base64.b64encode(path.read_bytes()).decode()  # inlined
            alt = escape(caption)
            parts.append(f'<h2>{alt}</h2>\n<img alt="{alt}" src="data:image/png;base64,{data}">')
    parts += [*map(html_table, tables[1:]), "<h2>Commands</h2>"]
    parts += [f"<h3>{escape(label)}</h3>\n<pre>{escape(command)}</pre>" for label, command in commands.items()]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def html_table(table: Table) -> str:
    """One table under its title and words."""
    header, rows = table.filled()
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<h2>{escape(table.title)}</h2>\n<p>{escape(table.words)}</p>\n"
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )
