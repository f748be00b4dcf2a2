"""Training steps of every online method, against the same maths as released."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from scripts.bench.steps import ALONE, row, table_line
from scripts.bench.subjects import Online, alone_online, online_methods
from scripts.bench.timing import alternate, ratio

Figures = dict[str, Any]

MODEL, QUICK_MODEL = "resnet32", "resnet8"


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """Each method in alternation with one network alone and with itself as released."""
    model = QUICK_MODEL if opt.quick else MODEL
    alone = alone_online(model, opt)
    rows = {}
    for method in online_methods():
        say(f"{method}, {model}")
        bench = Online(method, model, opt)
        variants = {ALONE: alone, "ours": bench.step, "released": bench.released}
        times = alternate(variants, opt.steps, opt.seconds / 2, bench.session.device)
        rows[method] = {
            **row(times, "ours", opt.batch_size),
            "rounds": len(times["ours"]),
            "against_alone": ratio(times, "ours", ALONE),
            "released_ms": row(times, "released", opt.batch_size)["ms"],
            "speed_up": ratio(times, "released", "ours"),
        }
    return {"model": model, "precision": bench.session.precision, "batch_size": opt.batch_size, "rows": rows}


def text(figures: Figures) -> list[str]:
    """For people."""
    heads = ("ms", "images/s", "/alone", "released", "ours", "rounds")
    lines = [
        f"{figures['model']}, batch {figures['batch_size']}, {figures['precision']}; "
        "released: ms in fp32 and NCHW, peers one by one",
        f"{'':28}" + "".join(f"{head:>10}" for head in heads),
    ]
    for method, values in figures["rows"].items():
        cells = [f"{values['ms']:.1f}", f"{values['images_per_second']:,.0f}", f"{values['against_alone']:.2f}"]
        cells += [f"{values['released_ms']:.1f}", f"{values['speed_up']:.2f}×", str(values["rounds"])]
        lines.append(table_line(method, cells))
    return lines
