"""What a run asks of its machine's memory."""

from __future__ import annotations

import ctypes
import platform
import resource

import pytest
import torch

from helper import machine
from helper.machine import keep_memory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.MALLOC:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_what_is_freed_serves_the_next_tensors() -> None:
    keep_memory(CPU)

    def fill() -> int:
        """Pages of 4 MB each that the system has to hand out."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(1 << 20) for _ in range(8)]
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    fill()
    assert min(fill() for _ in range(5)) < 1024, "of 8192 pages"


@pytest.mark.parametrize("why", ["cuda", *machine.MALLOC, "musl"])
def test_what_is_not_ours_to_choose_stays(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", pytest.fail)
    if why == "musl":
        monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    elif why != "cuda":
        monkeypatch.setenv(why, "1000000")
    keep_memory(torch.device("cuda", 0) if why == "cuda" else CPU)
