"""Whatever cannot be written first: one line, nothing lost, and with space again the run goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import metrics, result, same, teach, weights, without_times

from helper.logger import SummaryWriter

WORDS = "--epochs 2 --validation 0.25"


def fill_disk(patch: pytest.MonkeyPatch, name: str, time: int) -> None:
    """From the so-manieth time on that the file ``name`` is to be written, nothing can be."""
    opened, flush = Path.open, SummaryWriter.flush
    left = [time]

    def full() -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def count(path: str) -> None:
        left[0] -= path == name
        if left[0] < 1:
            raise full()

    def open_(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode[0] in "wa":
            count(self.name.removesuffix(".partial"))
        return opened(self, mode, *rest, **more)

    def flush_(self: SummaryWriter) -> None:
        count("tensorboard")
        flush(self)

    patch.setattr(Path, "open", open_)
    patch.setattr(SummaryWriter, "flush", flush_)


@pytest.mark.usefixtures("little_data")
@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("parameters.json", 1),
        ("metrics.jsonl", 1),
        ("tensorboard", 1),
        ("metrics.jsonl", 3),
        ("tensorboard", 3),
        ("best.pth", 1),
        ("last.pth", 2),
        ("result.json", 1),
    ],
)
def test_full_disk(name: str, time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = teach(tmp_path / "a", WORDS).folder
    with monkeypatch.context() as patch:
        fill_disk(patch, name, time)
        refused = teach(tmp_path / "b", WORDS)
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    assert "No space left on device" in refused.err
    resumed = teach(tmp_path / "b", f"{WORDS} --resume").folder
    assert same(weights(undisturbed), weights(resumed))
    assert without_times(metrics(undisturbed)) == without_times(metrics(resumed))
    assert result(undisturbed)["best"] == result(resumed)["best"]
    assert not list(resumed.glob("*.partial"))


@pytest.mark.usefixtures("little_data")
@pytest.mark.parametrize("line", [0, 1])
def test_damaged_metrics_are_not_gone_on_from(line: int, tmp_path: Path) -> None:
    folder = teach(tmp_path, "--epochs 2").folder
    (folder / "result.json").unlink()
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"epoch"', b'\xff"epoch', 1)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))
    refused = teach(tmp_path, "--epochs 2 --resume")
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    assert f"metrics.jsonl is damaged: the lines from epoch {line + 1} on" in refused.err
    assert (folder / "metrics.jsonl").read_bytes() == b"".join(lines)


@pytest.mark.usefixtures("little_data")
def test_damaged_best_checkpoint(tmp_path: Path) -> None:
    """It was the best of a run whose test accuracy is still to be found out."""
    folder = teach(tmp_path, WORDS).folder
    (folder / "result.json").unlink()
    (folder / "best.pth").write_bytes((folder / "best.pth").read_bytes()[:-100])
    refused = teach(tmp_path, f"{WORDS} --resume")
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    assert "best.pth: it is no checkpoint or is damaged" in refused.err
