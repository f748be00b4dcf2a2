"""AEKD's solver alone: time and error for K = 2 … 64 against the reference solvers, and its share of a step."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ensemble.min_norm import Solver
from ensemble.qp_solvers import qp_solver_dict
from helper.recipe import device_of
from scripts.bench.steps import of_logits, table_line
from scripts.bench.subjects import Offline, Pair, step_of
from scripts.bench.timing import alternate, median, ratio

Figures = dict[str, Any]

SIZES, QUICK_SIZES = (2, 3, 5, 8, 16, 32, 64), (2, 3)
SHARED = 16
"""Up to so many teachers, and for the largest number, the share of a step is measured."""
C = 0.6
CLASSES = 100
USUAL, SCALES = 1e-3, (1e-8, 1e-3, 1e3)
"""Lengths of gradients: on CIFAR-100, for all solvers, and those that ours has to bear besides."""
ROUNDS = 30
REFUSED = "no answer"


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """For each K a row of figures per solver."""
    device, sizes = device_of(opt), QUICK_SIZES if opt.quick else SIZES
    solvers = {}
    for K in sizes:
        say(f"solvers, K = {K}")
        times = alternate(calls(K, device), min(opt.steps, ROUNDS), opt.seconds / 8, device)
        wrong = errors(K, device)
        solvers[K] = {name: {"ms": 1e3 * median(times[name]), "error": wrong[name]} for name in qp_solver_dict}
    shares = {}
    for K in sizes:
        if K <= SHARED or sizes[-1] == K:
            say(f"share of a step, K = {K}")
            shares[K] = share(K, opt)
    return {
        "C": C,
        "setting": f"{opt.settings[0].teacher}:{opt.settings[0].student}",
        "solvers": solvers,
        "shares": shares,
    }


def calls(K: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Every solver on gradients as they are on CIFAR-100: much alike, and a thousandth long."""
    gram = problems(K)["alike"].to(device) * USUAL**2
    return {name: partial(solve, gram, C) for name, solve in qp_solver_dict.items()}


def problems(K: int) -> dict[str, Tensor]:
    """Gram matrices ``[K, K]`` in float64, easy and hard."""
    source = torch.Generator().manual_seed(K)
    draw = partial(torch.randn, generator=source, dtype=torch.float64)
    independent = draw(K, CLASSES)
    gradients = {
        "independent": independent,
        "alike": draw(1, CLASSES) + 0.3 * independent,
        "rank 2": draw(K, 2) @ draw(2, CLASSES),
        "badly scaled": independent * torch.logspace(-3, 0, K, dtype=torch.float64)[:, None],
    }
    return {name: each @ each.T for name, each in gradients.items()}


def errors(K: int, device: torch.device) -> dict[str, float | None]:
    """Each solver's objective above the optimum over the longest gradient squared, the worst of all problems.

    None where a solver refuses one. The optimum is bounded from below by duality, so that no solver is trusted.
    """
    worst: dict[str, float | None] = dict.fromkeys(qp_solver_dict, 0.0)
    for gram in problems(K).values():
        answers = [(name, attempt(solve, (gram * USUAL**2).to(device))) for name, solve in qp_solver_dict.items()]
        ours = qp_solver_dict["exact"]
        answers += [("exact", attempt(ours, (gram * scale**2).to(device))) for scale in SCALES]
        optimum = max(lower_bound(gram, weights) for _, weights in answers if weights is not None)
        for name, weights in answers:
            before = worst[name]
            if weights is None or before is None:
                worst[name] = None
            else:
                above = float(0.5 * weights @ gram @ weights - optimum) / float(gram.diagonal().max())
                worst[name] = max(before, above)
    return worst


def attempt(solve: Solver, gram: Tensor) -> Tensor | None:
    """A solver's weights on the host; None where it raises or answers nonsense."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            weights = solve(gram, C).cpu()
        except Exception:  # each package has its own
            return None
    return weights if weights.isfinite().all() else None


def lower_bound(gram: Tensor, weights: Tensor) -> float:
    """``f(τ) − max_s ∇f(τ)·(τ − s)`` over all feasible s: no feasible point lies below, whatever τ is."""
    slope = gram @ weights
    room = 1.0
    cheapest = 0.0
    cap = max(C, 1 / len(weights))
    for value in slope.sort().values.tolist():
        part = min(cap, room)
        cheapest, room = cheapest + part * value, room - part
    return float(0.5 * weights @ slope - (weights @ slope - cheapest))


def share(K: int, opt: argparse.Namespace) -> float:
    """The exact solver's time over that of a step under K teachers."""
    with Offline(replace(opt.settings[0], teacher_num=K), opt) as bench:
        step = step_of(bench.fit(Pair(*of_logits()[0].split())))
        solve = calls(K, bench.device)["exact"]
        times = alternate({"step": step, "solver": solve}, min(opt.steps, ROUNDS), opt.seconds / 8, bench.device)
    return ratio(times, "solver", "step")


def text(figures: Figures) -> list[str]:
    """For people."""
    sizes = list(figures["solvers"])
    told = "ms, and the objective above the optimum / max‖g‖², the worst of 4 problems (exact: at several scales)"
    lines = [f"C = {figures['C']}; {told}"]
    lines.append(table_line("K", [str(K) for K in sizes]))
    for name in qp_solver_dict:
        each = [figures["solvers"][K][name] for K in sizes]
        lines.append(table_line(f"{name}, ms", [f"{values['ms']:.2f}" for values in each]))
        wrong = [REFUSED if values["error"] is None else f"{values['error']:.0e}" for values in each]
        lines.append(table_line(f"{name}, error", wrong))
    shares = [f"{100 * figures['shares'][K]:.1f} %" if K in figures["shares"] else "" for K in sizes]
    lines.append(table_line(f"share of a step, {figures['setting']}"[:27], shares))
    return lines
