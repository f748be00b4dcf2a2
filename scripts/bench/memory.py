"""Peak memory of training steps, each in a process of its own: what is allocated once never shows again in another.

On a CPU the resident memory above that of the process with the images but no network; on CUDA what is allocated.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from helper.errors import UsageError
from scripts.bench.steps import ALONE, of_logits, table_line
from scripts.bench.subjects import AVERAGE, Offline, Pair, Setting, Step, pairs, step_of

Figures = dict[str, Any]

ONE_TEACHER = "one teacher, inference"
STEPS = 2
SMALL, SMALL_BATCH = "resnet8x2:resnet8", 4
M_MMAP_THRESHOLD, LARGE = -3, 1 << 16  # as malloc.h has it; bytes
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(opt: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """The figures of each setting, in MB."""
    return {str(setting): measure_setting(setting, opt, say) for setting in opt.settings}


def measure_setting(setting: Setting, opt: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """Peaks of the student alone, of a teacher, and of every pair; and how they compare."""
    peaks, weights = {}, 0.0
    for name in (ALONE, ONE_TEACHER, *map(str, pairs())):
        say(f"{setting}: {name}")
        peaks[name], weights = in_a_process(name, setting, opt)  # the last is a pair's
    average = of_logits()[1]
    return {
        "peaks": peaks,
        "teacher_weights": weights,
        "against_average": {str(pair): peaks[str(pair)] / peaks[str(Pair(pair.distill, AVERAGE))] for pair in pairs()},
        "against_needed": peaks[average] / (peaks[ALONE] + setting.teacher_num * weights + peaks[ONE_TEACHER]),
    }


def check(device: torch.device) -> None:
    """Refuse where the peak cannot be read.

    Raises:
        UsageError: not Linux, and not CUDA.
    """
    if device.type == "cpu" and not RESET.exists():
        raise UsageError(f"--only: memory is read from {STATUS}, which this system does not have; name the others")


def in_a_process(name: str, setting: Setting, opt: argparse.Namespace) -> tuple[float, float]:
    """Peak memory of a variant and the weights of a teacher, in MB."""
    processes = multiprocessing.get_context("forkserver")  # forks of a process that has imported all and run nothing
    processes.set_forkserver_preload([__name__])
    mine, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=child, args=(theirs, name, setting, opt))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    except EOFError:
        raise UsageError(f"memory: the process that measures {setting}, {name} ended without an answer") from None
    finally:
        process.join()


def child(answer: Connection, name: str, setting: Setting, opt: argparse.Namespace) -> None:
    """Measure, and send the answer."""
    torch.set_num_threads(opt.threads)
    if hasattr(ctypes.CDLL(None), "mallopt"):
        # The C library keeps some of what is freed, by chance up to a fifth; let it give back the large blocks.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    with Offline(setting, opt) as bench:
        answer.send(peak_and_weights(bench, name))


def peak_and_weights(bench: Offline, name: str) -> tuple[float, float]:
    """Peak memory of a variant above what is there before it, and the weights of a teacher, in MB."""
    warm_libraries(bench, name)
    if name == ONE_TEACHER:
        weights_of(bench)  # its activations are asked for: the weights are there before
    before = reset_peak(bench.device)
    step = build(bench, name)
    for _ in range(STEPS):
        step()
    return (peak_memory(bench.device) - before) / 1e6, (0.0 if name == ALONE else weights_of(bench) / 1e6)


def build(bench: Offline, name: str) -> Step:
    """The step that is called ``name`` in the figures."""
    special = {ALONE: bench.alone, ONE_TEACHER: bench.one_teacher}
    return special[name]() if name in special else step_of(bench.fit(Pair(*name.split())))


def weights_of(bench: Offline) -> float:
    """Bytes of one teacher as it is kept for training."""
    state = bench.teachers.networks[0].state_dict()
    return float(sum(tensor.nbytes for tensor in state.values()))


def warm_libraries(bench: Offline, name: str) -> None:
    """Let the libraries load what such a step makes them load once in a process: take it with small networks."""
    opt = argparse.Namespace(**{**vars(bench.bench), "batch_size": SMALL_BATCH})
    with Offline(Setting.parse(SMALL), opt) as small:
        build(small, name)()


def reset_peak(device: torch.device) -> int:
    """Start to watch the peak from here; returns what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # give back what the preparations left
    RESET.write_text("5", encoding="utf-8")
    return resident("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Bytes in use at most since :func:`reset_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")


def resident(field: str) -> int:
    """A figure of this process as Linux reports it, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, field
    return 1024 * int(found[1])


def text(figures: Figures) -> list[str]:
    """For people."""
    lines = [table_line("", ["MB", "/average"])]
    for name, setting in figures.items():
        lines.append(f"{name}; a teacher's weights {setting['teacher_weights']:.1f} MB")
        for variant, peak in setting["peaks"].items():
            against = setting["against_average"].get(variant)
            lines.append(table_line(variant, [f"{peak:.1f}", "" if against is None else f"{against:.3f}"]))
        lines.append(f"K teachers / (student + K sets of weights + one inference): {setting['against_needed']:.3f}")
    return lines
