"""scripts/benchmark.py made tiny: what it prints and writes, never how fast anything was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import call

from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from ensemble.qp_solvers import qp_solver_dict
from online import online_dict
from scripts import benchmark

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
    assert figures.keys() == {"machine", "quick", "table", *benchmark.SECTIONS}
    assert figures["input"]["bytes_per_value"] == pytest.approx(1, rel=1e-5)
    pairs = {f"{distill} {method}" for distill in distill_dict for method in ensemble_dict}
    steps = figures["steps"][SETTING]
    assert pairs < steps["rows"].keys()
    for pair in pairs:
        assert steps["rows"][pair].keys() >= {"ms", "images_per_second", "against_alone", "against_average", "shares"}
        assert sum(steps["rows"][pair]["shares"].values()) == pytest.approx(1)
    logits_only = {name for name, kind in distill_dict.items() if not kind.feature_level}
    cached = {f"{distill} {method} cached" for distill in logits_only for method in ensemble_dict}
    assert cached < steps["rows"].keys()
    assert figures["online"]["rows"].keys() == set(online_dict)
    assert all(row.keys() == set(qp_solver_dict) for row in figures["solver"]["solvers"].values())
    assert all(speed > 0 for speed in figures["processes"]["images_per_second"].values())
    assert len(figures["processes"]["images_per_second"]) == 2
    memory = figures["memory"][SETTING]
    assert pairs < memory["peaks"].keys()
    assert all(peak > 0 for peak in memory["peaks"].values())


def test_the_table_is_printed(quick: tuple[str, dict[str, Any], Path]) -> None:
    out, figures, plot = quick
    assert figures["table"]
    assert {row["verdict"] for row in figures["table"]} <= {"ok", "missed", "reported"}
    printed = out.split("== what it must show\n")[1].splitlines()
    for row in figures["table"]:
        assert any(line.startswith(row["measure"]) and row["verdict"] in line for line in printed)
    missed = sum(row["verdict"] == "missed" for row in figures["table"])
    assert printed[-1].startswith(f"{missed} of ")
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--settings resnet8", "--settings: 'resnet8' is not of the form TEACHERxK:STUDENT"),
        ("--settings resnet8x2:resnet7", "--settings: unknown value 'resnet7'"),
        ("--only steps,inputs", "--only: unknown value 'inputs'"),
        ("--precision fp8", "--precision: unknown value 'fp8'"),
        ("--json nowhere/figures.json", "--json: there is no folder nowhere"),
        ("--stepps 3", "unknown option '--stepps'; did you mean --steps?"),
    ],
)
def test_bad_input(words: str, message: str) -> None:
    done = call(benchmark.main, "benchmark.py", words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
