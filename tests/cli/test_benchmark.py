"""scripts/benchmark.py made tiny: what it prints and writes, never how fast anything was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import own_names
from objectives import LOSSES, METHODS, pairs
from tiny_runs import call

from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from ensemble.qp_solvers import qp_solver_dict
from online import online_dict
from scripts import benchmark
from scripts.bench.released_losses import released_losses

ROOT = Path(__file__).parents[2]
SETTING = "resnet8x2:resnet8"


def process(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = ROOT / "scripts" / "benchmark.py"
    return subprocess.run([sys.executable, str(script), *words], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """What a quick run prints, its figures, and its plot."""
    folder = tmp_path_factory.mktemp("benchmark")
    done = process("--quick", "--json", str(folder / "figures.json"), "--plot", str(folder / "figures.png"))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "figures.json").read_text()), folder / "figures.png"


def test_all_is_measured(quick: tuple[str, dict[str, Any], Path]) -> None:
    _, figures, _ = quick
    assert figures.keys() == {"machine", "quick", *benchmark.SECTIONS}
    steps, memory = figures["steps"][SETTING], figures["memory"][SETTING]
    for names in map(" ".join, pairs()):
        assert steps[names].keys() >= {"ms", "images_per_s", "vs_student", "vs_average", "vs_teachers_and_student"}
        assert names not in memory or memory[names].keys() == {"MB", "vs_average"}
    assert memory.keys() == {"student", *(f"{distill} {method}" for distill in LOSSES for method in METHODS)}
    assert distill_dict.keys() | ensemble_dict.keys() <= {word for name in steps for word in name.split()}
    for method in METHODS:
        assert steps[f"{LOSSES[0]} {method}, as released"].keys() >= {"ms", "vs_ours"}
        assert f"{LOSSES[0]} {method}, cached" in steps
    for distill, row in figures["losses"][SETTING].items():
        beside = {"vs_released", "MB_vs_released"} if distill in released_losses else set()
        assert row.keys() == {"ms", "MB", "AEKD_vs_average", *beside}
    assert figures["losses"][SETTING].keys() >= own_names(distill_dict)
    (online,), (solver,) = (figures[name].values() for name in ("online", "solver"))
    assert online.keys() == {*online_dict, *(f"{method}, as released" for method in online_dict)}
    assert all(row.keys() == {"step", *qp_solver_dict, "exact/step"} for row in solver.values())
    tables = [table for section in benchmark.SECTIONS for table in figures[section].values()]
    assert all(figure > 0 for table in tables for row in table.values() for figure in row.values())


def test_the_tables_are_printed_and_drawn(quick: tuple[str, dict[str, Any], Path]) -> None:
    out, figures, plot = quick
    for section, module in benchmark.SECTIONS.items():
        for title, rows in figures[section].items():
            _, found, table = out.partition(f"== {module.TITLE}: {title}\n")
            assert found
            printed = table.splitlines()[1:]
            assert len(printed) >= len(rows)
            assert all(line.startswith(name) for line, name in zip(printed, rows, strict=False))
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--settings resnet8", "--settings: 'resnet8' is not of the form TEACHERxK:STUDENT"),
        ("--settings resnet8x2:resnet7", "--settings: unknown value 'resnet7'"),
        ("--only steps,inputs", "--only: unknown value 'inputs'"),
        ("--precision fp8", "--precision: unknown value 'fp8'"),
        ("--json nowhere/figures.json", "--json: there is no folder nowhere"),
        ("--json .", "--json: . is a folder; name the file"),
        ("--stepps 3", "unknown option '--stepps'; did you mean --steps?"),
    ],
)
def test_bad_input(words: str, message: str) -> None:
    done = call(benchmark.main, "benchmark.py", words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
