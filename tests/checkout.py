"""Which files are the collection's own, and not somebody's who works in it; as a program, names those in Python."""

from __future__ import annotations

import inspect
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHIPPED = ("train_*.py", "README.md", "LICENSE", "CITATION.cff", "requirements.txt", "pyproject.toml")
FOLDERS = ("helper", "models", "distiller_zoo", "ensemble", "online", "dataset", "scripts", "tests", ".ci")
"""Where all files count as ours where git does not know better, as in a downloaded archive."""


@cache
def own_files(root: Path = ROOT) -> list[Path]:
    """Every file of the collection but ``setting.py``, which belongs to whoever works here."""
    files = in_git(root)
    if files is None:
        inside = (path for folder in FOLDERS for path in (root / folder).rglob("*"))
        files = [*(path for pattern in SHIPPED for path in root.glob(pattern)), *inside]
    return sorted(path for path in files if path.is_file() and path.suffix != ".pyc" and path != root / "setting.py")


def in_git(root: Path) -> list[Path] | None:
    """What git tracks in ``root``; None where it is no checkout."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    return [root / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else None


def own_names(registry: Mapping[str, Any]) -> set[str]:
    """The names in a registry that our own files put there."""
    return {name for name, entry in registry.items() if defined_in(entry) in own_files()}


def defined_in(entry: Any) -> Path:
    """The file of a class, a function, or one with some of its arguments filled in."""
    return Path(inspect.getfile(entry.func if isinstance(entry, partial) else entry))


if __name__ == "__main__":
    print(*(path.relative_to(ROOT) for path in own_files() if path.suffix == ".py"), sep="\n")
