"""Peak memory of training steps: what PyTorch allocates from the building of all networks to the second step's end."""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from scripts.bench.subjects import AVERAGE, LOSSES, METHODS, Offline, Pair, Setting, step_of
from scripts.bench.timing import Rows

TITLE = "peak memory"
ALONE = "student"


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Rows]:
    """Of each setting the peaks of the student alone and of the pairs, in MB."""
    tables = {}
    for setting in opt.settings:
        say(str(setting))
        with Offline(setting, opt) as bench:
            pairs = few(bench.pairs()) if opt.quick else bench.pairs()
        rows: Rows = {str(pair or ALONE): {"MB": peak_of(pair, setting, opt)} for pair in (None, *pairs)}
        for pair in pairs:
            rows[str(pair)]["vs_average"] = rows[str(pair)]["MB"] / rows[str(Pair(pair.distill, AVERAGE))]["MB"]
        tables[str(setting)] = rows
    return tables


def few(pairs: Sequence[Pair]) -> list[Pair]:
    """For a look at whether all runs."""
    return [pair for pair in pairs if pair.distill in LOSSES and pair.ensemble in METHODS]


def peak_of(pair: Pair | None, setting: Setting, opt: argparse.Namespace) -> float:
    """Peak memory under a pair, or of the student alone, above what is in use before: in MB."""
    with Offline(setting, opt) as bench:

        def train() -> None:
            step = step_of(bench.fit(pair)) if pair else bench.alone()
            step()
            step()

        gc.collect()
        return peak_during(train, bench.device)


def peak_during(call: Callable[[], object], device: torch.device) -> float:
    """Peak memory of a call above what is in use before: in MB."""
    if device.type != "cuda":
        return peak_on_cpu(call) / 1e6
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def peak_on_cpu(call: Callable[[], object]) -> int:
    """Bytes in use at most during a call: the largest sum of what was allocated and freed up to any moment."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate(change for _, change in changes))
