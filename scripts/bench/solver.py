"""AEKD's solvers for K = 2 … 64 teachers, and the share of a training step that ours takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import torch

from ensemble.qp_solvers import qp_solver_dict
from helper.machine import device_of
from scripts.bench.subjects import LOSSES, SOLVED, Offline, Pair, step_of
from scripts.bench.timing import Rows, alternate, ratio

TITLE = "AEKD's solvers, ms"
SIZES, QUICK_SIZES = (2, 3, 5, 8, 16, 32, 64), (2, 3)
C, CLASSES = 0.6, 100
USUAL = 1e-3
"""Length of a gradient on CIFAR-100."""
ROUNDS = 30


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Rows]:
    """For each K a row: milliseconds of every solver, and the exact one's share of a step of the first setting."""
    rows = {}
    for K in QUICK_SIZES if opt.quick else SIZES:
        say(f"K = {K}")
        gram = alike(K).to(device_of(opt))
        with Offline(replace(opt.settings[0], teacher_num=K), opt) as bench:
            variants: dict[str, Callable[[], object]] = {"step": step_of(bench.fit(Pair(LOSSES[0], SOLVED)))}
            variants |= {name: partial(solve, gram, C) for name, solve in qp_solver_dict.items()}
            times = alternate(variants, min(opt.steps, ROUNDS), opt.seconds / 4, bench.device)
        rows[f"K = {K}"] = {name: 1e3 * median(each) for name, each in times.items()}
        rows[f"K = {K}"]["exact/step"] = ratio(times, "exact", "step")
    return {f"{opt.settings[0].teacher}:{opt.settings[0].student}": rows}


def alike(K: int) -> torch.Tensor:
    """The Gram matrix ``[K, K]`` of gradients as they are in training: much alike, and short."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
    gradients = USUAL * (draw(1, CLASSES) + 0.3 * draw(K, CLASSES))
    return gradients @ gradients.T
