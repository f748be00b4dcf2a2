"""The tests ask nothing of what a person makes or edits, and of what they add only what the contracts say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lived_in
import pytest
from checkout import ROOT, own_files

pytestmark = pytest.mark.skipif(not own_files(), reason="not a git checkout: what to copy is not known")

RULES = (
    "test_house",
    "test_pages",
    "test_options",
    "tables_in_texts",
    "quick_start_trains",
    "shell_scripts",
    "presets",
)
FILES = ("tests/contract", "tests/cli/test_report.py", "tests/cli/test_run_all.py", "tests/cli/test_scripts.py")


def python(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In ``root``, as if this were no test."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment = {**outside, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clone") / "collection"
    lived_in.make(root)
    return root


def test_the_worked_examples_are_there(clone: Path) -> None:
    """Each of them is registered, so that the tests walk it."""
    assert {name.split("/")[0] for name in lived_in.ADDED} == {"distiller_zoo", "ensemble", "models", "online"}
    registries = "distiller_zoo.distill_dict, ensemble.ensemble_dict, models.model_dict, online.online_dict"
    imports = "import distiller_zoo, ensemble, models, online"
    done = python(clone, "-c", f"{imports}; print(*(name for known in ({registries}) for name in known))")
    assert set(lived_in.NAMES) <= set(done.stdout.split()), done.stderr


def test_what_is_added_and_edited_fails_no_test(clone: Path) -> None:
    chosen = ("-k", " or ".join((*lived_in.NAMES, *RULES)), *FILES)
    done = python(clone, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr


def test_only_our_own_files_are_checked(clone: Path) -> None:
    ours = python(clone, "tests/checkout.py").stdout.split()
    assert ours == python(ROOT, "tests/checkout.py").stdout.split()
    for words in (("check",), ("format", "--check")):
        done = python(clone, "-m", "ruff", *words, *ours)
        assert done.returncode == 0, done.stdout


def test_a_downloaded_archive(tmp_path: Path) -> None:
    """Without git nobody can tell which files are ours: no rule is asked of any."""
    root = tmp_path / "collection"
    lived_in.make(root, git=False)
    assert python(root, "tests/checkout.py").stdout.strip() == ""
    files = ("tests/contract/test_house.py", "tests/contract/test_pages.py")
    done = python(root, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
