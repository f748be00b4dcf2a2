"""Which files are the collection's own, and not somebody's who works in it; as a program, names those in Python."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@cache
def own_files() -> list[Path]:
    """What git tracks here, but for ``setting.py``, which belongs to whoever works here.

    Nothing where this is no checkout, as in a downloaded archive: then nobody can tell.
    """
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return []
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    paths = (ROOT / name for name in listed.stdout.split("\0") if name not in ("", "setting.py"))
    return sorted(path for path in paths if path.is_file())


def pages() -> list[Path]:
    """README.md and the pages that it leads to."""
    readme = ROOT / "README.md"
    linked = re.findall(r"\]\(([\w/-]+\.md)(?:#[\w-]+)?\)", readme.read_text())
    return [readme, *dict.fromkeys(ROOT / name for name in linked)]


def examples() -> dict[str, str]:
    """The worked examples of all pages: the file that each belongs into → its text."""
    text = "\n".join(page.read_text() for page in pages())
    return dict(re.findall(r"`(\w+/\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL))


def own_names(registry: Mapping[str, Any]) -> set[str]:
    """The names in a registry that our own files put there."""
    return {name for name, entry in registry.items() if defined_in(entry) in own_files()}


def defined_in(entry: Any) -> Path:
    """The file of a class, a function, or one with some of its arguments filled in."""
    return Path(inspect.getfile(entry.func if isinstance(entry, partial) else entry))


if __name__ == "__main__":
    print("\n".join(str(path.relative_to(ROOT)) for path in own_files() if path.suffix == ".py"))
