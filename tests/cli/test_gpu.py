"""The scripts on a GPU: the same commands, what they write fits everywhere, and --compile with its CUDA graphs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from tiny_runs import distil, distil_under, metrics, result, teach, teach_each_other, weights

from distiller_zoo import distill_dict
from ensemble import ensemble_dict
from helper.record import Record
from online import online_dict

pytestmark = [
    pytest.mark.usefixtures("little_data"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = "--device cuda --batch_size 32"
AEKD = "--distill hint --ensemble_method AEKD -b 1 --feat_start_epoch 1"


def assert_learned(folder: Path) -> None:
    """On the GPU, with numbers that are finite."""
    assert result(folder)["device"] == torch.cuda.get_device_name()
    for row in metrics(folder):
        assert all(math.isfinite(value) for value in row.values() if not isinstance(value, str))


@pytest.mark.parametrize("options", ["--precision fp32", "--precision bf16", "--accumulate 2", "--gpu_id 0"])
def test_teacher(tmp_path: Path, options: str) -> None:
    device = "" if "gpu_id" in options else GPU
    assert_learned(teach(tmp_path, f"--device auto {device} {options}").folder)


PAIRS = list(itertools.product(distill_dict, ensemble_dict))


@pytest.mark.parametrize(
    ("distill", "method", "compiled"),
    [(*pair, "") for pair in PAIRS] + [(*pair, "--compile") for pair in PAIRS[:: len(ensemble_dict) + 1]],
)
def test_student(tmp_path: Path, teacher_files: list[Path], distill: str, method: str, compiled: str) -> None:
    beta = 0 if distill_dict[distill].on_logits() else 0.1
    late = "--feat_start_epoch 2" if beta else ""
    words = f"{GPU} --distill {distill} --ensemble_method {method} -b {beta} {late} --epochs 2 {compiled}"
    assert_learned(distil_under(teacher_files, tmp_path, words).folder)


@pytest.mark.parametrize(
    ("method", "compiled"), [*((name, "") for name in online_dict), ("OKDDip", "--compile"), ("BOC", "--compile")]
)
def test_peers(tmp_path: Path, method: str, compiled: str) -> None:
    assert_learned(teach_each_other(tmp_path, f"{GPU} --method {method} --epochs 2 {compiled}").folder)


@pytest.mark.parametrize("words", [AEKD, "--distill inter --ensemble_method CAMKD -b 1 --feat_start_epoch 1"])
def test_the_cpu_computes_the_same(tmp_path: Path, teachers: str, words: str) -> None:
    words = f"{teachers} {words} --precision fp32 --learning_rate 1e-4"
    here, there = (distil(tmp_path / device, f"{words} {GPU} --device {device}").folder for device in ("cuda", "cpu"))
    assert here.name == there.name
    (mine,), (other,) = metrics(here), metrics(there)
    for name in (name for name in other if name.startswith(("train_loss", "train_weight", "train_feature"))):
        assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-3)
    first, second = weights(here), weights(there)
    for name in first:
        torch.testing.assert_close(first[name].cpu(), second[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ends_on", ["cuda", "cpu"])
def test_resuming(tmp_path: Path, teachers: str, ends_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine without a GPU."""
    words = f"{GPU} {teachers} {AEKD} --epochs 3 --precision fp32"
    undisturbed = distil(tmp_path / "a", words).folder
    save = Record.save

    def stop(self: Record, seconds: float) -> None:
        if self.contents.progress.epoch == 3:
            raise KeyboardInterrupt
        save(self, seconds)

    monkeypatch.setattr(Record, "save", stop)
    assert distil(tmp_path / "b", words).code == 130
    monkeypatch.setattr(Record, "save", save)
    outcome = distil(tmp_path / "b", f"{words} --resume --device {ends_on}")
    assert "resuming after epoch 2" in outcome.out
    (before, after) = metrics(undisturbed)[-1], metrics(outcome.folder)[-1]
    assert after["train_loss"] == pytest.approx(before["train_loss"], rel=0.05)


def test_the_cache_keeps_what_the_teachers_say(tmp_path: Path, teachers: str) -> None:
    words = f"{GPU} {teachers} --ensemble_method AEKD --precision fp32 --epochs 2"
    live = distil(tmp_path / "live", words).folder
    for name in ("filled", "read"):
        cached = distil(tmp_path / name, f"{words} --teacher_cache {tmp_path / 'cache'}").folder
        for mine, other in zip(metrics(cached), metrics(live), strict=True):
            assert mine["train_loss_kd"] == pytest.approx(other["train_loss_kd"], rel=0.02)


def test_checkpoints_are_for_every_machine(tmp_path: Path) -> None:
    folder = teach(tmp_path, f"{GPU} --precision fp32").folder
    expected = f"accuracy {result(folder)['last']['test_accuracy']:.2f} %"
    for device in ("cuda", "cpu"):
        assert expected in teach(tmp_path, f"--device {device} --precision fp32 --evaluate {folder}/last.pth").out


def test_a_batch_that_does_not_fit(tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 80e6
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
    try:
        outcome = teach(tmp_path, "--model wrn_40_2 --device cuda --batch_size 128 --precision fp32")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert outcome.code == 2
    assert "--batch_size: 128 does not fit in the memory" in outcome.err
    assert "try --accumulate" in outcome.err
