"""Training steps of every online method, against the same maths as released: float32, NCHW, peers one by one."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from online import online_dict
from scripts.bench.subjects import Offline, Online, Setting
from scripts.bench.timing import Rows, alternate, ratio, rows_of

TITLE = "training steps of peers"
ALONE = "network"
MODEL, QUICK_MODEL = "resnet32", "resnet8"


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Rows]:
    """Each method in alternation with one network alone and with itself as released."""
    model = QUICK_MODEL if opt.quick else MODEL
    rows: Rows = {}
    with Offline(Setting(model, 1, model), opt) as single:
        alone = single.alone()
    for method in online_dict:
        say(f"{method}, {model}")
        bench, then = Online(method, model, opt), f"{method}, as released"
        variants = {ALONE: alone, method: bench.step, then: bench.released}
        times = alternate(variants, opt.steps, opt.seconds / 2, bench.session.device)
        rows |= rows_of(times, opt.batch_size, [method, then], ALONE)
        rows[then]["vs_ours"] = ratio(times, then, method)
    return {model: rows}
