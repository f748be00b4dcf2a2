"""A copy of the collection in which somebody has worked for a while."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from checkout import ROOT, examples, own_files

RANDOM = '''"""Weights drawn anew in each step."""

import torch

from ensemble.base import EnsembleMethod, TeacherLosses, ensemble_dict


@ensemble_dict.register("RANDOM_WEIGHTS")
class Random(EnsembleMethod):
    """``w_k`` from a symmetric Dirichlet distribution."""

    def weights(self, teachers: TeacherLosses) -> torch.Tensor:
        return torch.rand_like(teachers.losses[:, 0]).log().softmax(0)
'''
SIGNED = '''"""Teachers that are worse than the others push the student away."""

import torch

from ensemble.base import EnsembleMethod, TeacherLosses, ensemble_dict


@ensemble_dict.register("SIGNED_WEIGHTS")
class Signed(EnsembleMethod):
    """``w_kb = mean_j(loss_jb) − loss_kb``."""

    symmetric, differentiable = True, False

    def total(self, teacher_num: int) -> float:
        return 0

    def weights(self, teachers: TeacherLosses) -> torch.Tensor:
        losses = teachers.losses.detach()
        return losses.mean(0) - losses
'''
SETTING = """import numpy as np
TEACHERS = { "digits": [("wrn_16_1", "/home/me/nets/wrn.pth")] , 'mine':[] }
seeds = np.arange( 3 )
"""
UNTIDY = 'import os, torch\ndef load(x): return torch.load(x).cuda()\nprint(open("/home/me/notes.txt").read())\n'


ADDED = {**examples(), "ensemble/random_weights.py": RANDOM, "ensemble/signed_weights.py": SIGNED}
"""What somebody adds: the file → its text."""

NAMES = re.findall(r'register\("(\w+)"\)', "".join(ADDED.values()))
"""What these files register."""


def make(root: Path, git: bool = True) -> None:
    """Copy the collection as it is in this folder to ``root``, and work in it.

    Args:
        root: a folder that is not there yet.
        git: whether it is a clone; else it is like a downloaded archive.
    """
    copy(root, git)
    write(root, "setting.py", SETTING)
    for name in ("my_notes.py", "train_mine.py", "my_package/__init__.py", "scripts/mine.py", "tests/data/mine.py"):
        write(root, name, UNTIDY)
    for name in (
        "my_experiment.sh",
        "notes.md",
        "docs/mine.md",
        "results/mine/notes.md",
        "scripts/presets/mine.sh",
        "my data.csv",
    ):
        write(root, name, "if then /home/me/data <!-- results/nowhere -->\n")
    write(root, "results/quickstart/table.md", "<!-- results/quickstart -->\n")
    write(root, "results/quickstart/runs.csv", "label\n")
    for name in ("save/teachers/resnet14-digits-epochs=8-trial=0", "save/students/mine", "save/online/mine"):
        write(root, f"{name}/parameters.json", json.dumps({"model": "resnet14"}))
        write(root, f"{name}/last.pth", "damaged")
    write(root, "data/digits", "not a folder")
    for name, text in ADDED.items():
        add(root, name, text)


def copy(root: Path, git: bool = True) -> None:
    """Copy the collection as it is in this folder to ``root``; see :func:`make`."""
    for path in (*own_files(), ROOT / "setting.py"):
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    if git:
        for words in ("init -q", "add -A"):
            subprocess.run(["git", *words.split()], cwd=root, check=True)
    # what a person has added here is not ours, but an __init__ that they have edited imports it
    for path in (path for folder in root.glob("*/__init__.py") for path in (ROOT / folder.parent.name).glob("*.py")):
        if not (root / path.relative_to(ROOT)).exists():
            shutil.copy(path, root / path.relative_to(ROOT))


def write(root: Path, name: str, text: str) -> None:
    """A file that nobody tracks."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add(root: Path, name: str, text: str) -> None:
    """One new file, and one import line in its folder's ``__init__.py``."""
    write(root, name, text)
    folder, stem = Path(name).parent.name, Path(name).stem
    init = root / folder / "__init__.py"
    line, text = f"from {folder} import {stem}\n", init.read_text()
    if line not in text:  # somebody has added it here already
        first, rest = text.split(f"from {folder} import ", 1)
        init.write_text(f"{first}{line}from {folder} import {rest}")
