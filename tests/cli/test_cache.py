"""The teacher cache from the command line: whoever fills it, and whatever happens on the way, the run is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import call, distil, metrics, same, weights, without_times
from torch import nn

from helper.record import Record
from scripts import fill_cache

pytestmark = pytest.mark.usefixtures("little_data")


def cache_of(tmp_path: Path) -> str:
    return f"--teacher_cache {tmp_path / 'cache'}"


def silence_teachers(patch: pytest.MonkeyPatch) -> None:
    """From now on no teacher is evaluated on training images, which alone are looked up in the cache."""
    patch.setattr("helper.teachers.asked._asking", lambda *_: Silent())


class Silent(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("evaluated again")


@pytest.mark.parametrize("method", ["AVERAGE_LOSS", "AEKD", "EBKD", "CAMKD"])
def test_methods_and_schedules_share_what_is_stored(
    method: str, tmp_path: Path, teachers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"{teachers} {cache_of(tmp_path)}"
    first = distil(tmp_path, f"{words} --epochs 2").folder
    assert "cached" in first.name
    silence_teachers(monkeypatch)
    second = distil(tmp_path, f"{words} --epochs 2 --ensemble_method {method} -a 0.7").folder
    assert metrics(second)[-1]["train_loss_kd"] > 0


def test_filling_replaying_and_resuming_are_bitwise_the_same_run(
    tmp_path: Path, teachers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"{teachers} --epochs 2 --ensemble_method AEKD"
    filled = distil(tmp_path / "a", f"{words} {cache_of(tmp_path / 'a')}").folder
    replayed = distil(tmp_path / "b", f"{words} {cache_of(tmp_path / 'a')}").folder

    save = Record.save

    def stop(self: Record, seconds: float) -> None:
        if self.contents.progress.epoch == 2:
            raise KeyboardInterrupt
        save(self, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "save", stop)
        assert distil(tmp_path / "c", f"{words} {cache_of(tmp_path / 'c')}").code != 0
    resumed = distil(tmp_path / "c", f"{words} {cache_of(tmp_path / 'c')} --resume").folder
    for other in (replayed, resumed):
        assert same(weights(filled), weights(other))
        assert without_times(metrics(filled)) == without_times(metrics(other))


def test_a_cached_run_learns_what_a_plain_one_does(tmp_path: Path, teachers: str) -> None:
    plain = metrics(distil(tmp_path, teachers).folder)[0]
    cached = metrics(distil(tmp_path, f"{teachers} {cache_of(tmp_path)}").folder)[0]
    assert cached["train_loss_kd"] == pytest.approx(plain["train_loss_kd"], rel=2e-3)


@pytest.mark.parametrize("words", ["--epochs 2", "--all_views"])
def test_filling_ahead(words: str, tmp_path: Path, teachers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"--dataset digits --device cpu {teachers} {cache_of(tmp_path)} {words}"
    for _ in range(2):
        filled = call(fill_cache.main, "fill_cache.py", command)
        assert filled.code == 0, filled.err
        assert "views of 3 teachers are there" in filled.out
    silence_teachers(monkeypatch)
    assert distil(tmp_path, f"{teachers} {cache_of(tmp_path)} --epochs 2").code == 0


def test_what_has_no_room_is_not_there(tmp_path: Path, teachers: str) -> None:
    command = f"--dataset digits --device cpu {teachers} {cache_of(tmp_path)} --all_views --teacher_cache_gb 0.00002"
    refused = call(fill_cache.main, "fill_cache.py", command)
    assert refused.code == 2
    assert "views are there" not in refused.out
    assert "--teacher_cache_gb" in refused.err.splitlines()[-1]


def test_filling_needs_a_folder(teachers: str) -> None:
    refused = call(fill_cache.main, "fill_cache.py", f"--dataset digits {teachers}")
    assert refused.code == 2
    assert "--teacher_cache" in refused.err


def test_losses_on_maps_go_on_without(tmp_path: Path, teachers: str) -> None:
    outcome = distil(tmp_path, f"{teachers} {cache_of(tmp_path)} --distill inter -b 50 --teacher_num 1")
    assert outcome.code == 0
    assert "--teacher_cache: --distill inter compares maps, which are not kept; going on without" in outcome.out
    assert "cached" not in outcome.folder.name
    assert not (tmp_path / "cache").exists()


def test_data_with_countless_views_is_refused(tmp_path: Path, teachers: str) -> None:
    for part in ("train", "val"):
        for label in range(10):
            folder = tmp_path / "data" / part / str(label)  # the teachers' classes
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(folder / "image.png")
    words = f"--dataset folder --data_dir {tmp_path / 'data'} --batch_size 2 --num_workers 0 --teacher_num 1"
    refused = distil(tmp_path, f"{teachers} {cache_of(tmp_path)} {words}")
    assert refused.code == 2
    assert refused.err.startswith("train_student.py: error: --teacher_cache: --dataset folder is cropped in countless")
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "students").exists()
