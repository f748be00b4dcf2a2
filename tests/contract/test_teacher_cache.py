"""What the teacher cache promises: what was stored is what is read, whatever happens to the writers and the files."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dataset.base import DatasetInfo, Split
from dataset.memory import MemoryTrainLoader
from dataset.views import crops_of, numbers_of, view_space, views_per_image
from helper.batch import ViewSpace
from helper.errors import UsageError
from helper.teachers import cache as teacher_cache
from helper.teachers.asked import Teachers
from helper.teachers.cache import HEADER, LogitsFile, Room, TeacherCache, header_of, weights_checksum

INFO = DatasetInfo("noise", 7, 8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), padding=2, flip=True)
CPU = torch.device("cpu")
VIEWS, CLASSES = 1000, 7
SPACE = ViewSpace("noise", VIEWS)


def logits_of(views: Any, salt: int = 0) -> Any:
    """Some logits for each view, float16 ``[B, C]``."""
    return -((np.asarray(views)[:, None] * 31 + np.arange(CLASSES) * 7 + salt) % 97).astype(np.float16)


def opened(folder: Path, gigabytes: float = 1.0, classes: int = CLASSES) -> LogitsFile:
    return LogitsFile(folder / "a.logits", {"of": "a"}, VIEWS, classes, Room(folder, gigabytes))


def steps(count: int, size: int = 10) -> list[Any]:
    """Disjoint batches of views."""
    return list(np.random.default_rng(0).permutation(VIEWS)[: count * size].reshape(count, size))


def noise_loader(seed: int = 0, validation: bool = False) -> MemoryTrainLoader:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (40, 8, 8, 3), generator=generator).to(torch.uint8)
    split = Split(pixels, torch.arange(40) % 7)
    views = view_space(split, INFO)
    kept = split.subset(torch.arange(1, 40, 2)) if validation else split
    return MemoryTrainLoader(kept, INFO, 10, CPU, seed, views)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).to(memory_format=torch.channels_last)


def cached(folder: Path, networks: list[nn.Module], precision: str = "fp32", gigabytes: float = 1.0) -> Teachers:
    teachers = Teachers(networks)
    described = [("mlp", weights_checksum(network), {}) for network in networks]
    views = noise_loader().views
    assert views is not None
    teachers.cache = TeacherCache(folder, gigabytes, views, described, precision, CLASSES)
    return teachers


def epoch_of(teachers: Teachers, seed: int = 0, epoch: int = 1) -> torch.Tensor:
    loader = noise_loader(seed)
    loader.set_epoch(epoch)
    return torch.stack([teachers.logits(batch.images, batch.views) for batch in loader])


def test_numbers_of_views_are_one_to_one() -> None:
    per_image = views_per_image(INFO)
    assert per_image == 50
    assert views_per_image(DatasetInfo("cifar", 100, 32, INFO.mean, INFO.std, padding=4, flip=True)) == 162
    numbers = torch.arange(3 * per_image)
    positions, crops = crops_of(numbers, INFO)
    assert torch.equal(numbers_of(positions, crops, INFO), numbers)
    assert len(torch.cat([positions[:, None], crops], 1).unique(dim=0)) == len(numbers)


@pytest.mark.parametrize("validation", [False, True])
def test_a_number_tells_the_pixels(validation: bool) -> None:
    loader = noise_loader(seed=3, validation=validation)
    for batch in loader:
        assert batch.views is not None
        assert batch.views.device == CPU
        assert torch.equal(loader.images_of(batch.views), batch.images)


def test_a_held_out_part_does_not_renumber_the_rest() -> None:
    everything, part = noise_loader(), noise_loader(validation=True)
    assert everything.views == part.views
    for batch in part:
        assert batch.views is not None
        assert torch.equal(everything.images_of(batch.views), batch.images)


def test_other_pixels_or_other_preprocessing_is_another_identity() -> None:
    split = Split(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.arange(4))
    other_pixels = Split(split.images + 1, split.labels)
    infos = [INFO, DatasetInfo("noise", 7, 8, (0.5, 0.4, 0.2), INFO.std, 2, True)]
    infos += [
        DatasetInfo("noise", 7, 8, INFO.mean, INFO.std, 2, False),
        DatasetInfo("b", 7, 8, INFO.mean, INFO.std, 2, True),
    ]
    identities = {view_space(split, info).identity for info in infos}
    assert len(identities | {view_space(other_pixels, INFO).identity}) == 5


@pytest.mark.parametrize("classes", [7, 10])
def test_what_was_stored_is_read(tmp_path: Path, classes: int) -> None:
    with_all = np.zeros((10, classes), np.float16)
    with_all[:, :7] = logits_of(range(10))
    file = opened(tmp_path, classes=classes)
    file.commit(np.arange(10), with_all)
    for reader in (file, opened(tmp_path, classes=classes)):
        assert np.array_equal(reader.read(reader.find(np.arange(10)[::-1])), with_all[::-1])
        assert (reader.find(np.arange(10, 20)) == -1).all()
    assert (tmp_path / "a.logits").stat().st_size == HEADER + 10 * file.slot.itemsize


def test_a_step_that_was_cut_off_anywhere_leaves_nothing_behind(tmp_path: Path) -> None:
    first, second = steps(2)
    file = opened(tmp_path)
    file.commit(first, logits_of(first))
    whole = (tmp_path / "a.logits").stat().st_size
    file.commit(second, logits_of(second))
    content = (tmp_path / "a.logits").read_bytes()
    for length in range(whole, len(content)):
        (tmp_path / "a.logits").write_bytes(content[:length])
        again = opened(tmp_path)
        assert np.array_equal(again.read(again.find(first)), logits_of(first))
        assert (again.find(second) == -1).all()
        again.commit(second, logits_of(second))
        assert (tmp_path / "a.logits").read_bytes() == content
        again.close()


def test_damage_is_a_miss_and_never_a_wrong_value(tmp_path: Path) -> None:
    batches = steps(4)
    file = opened(tmp_path)
    for views in batches:
        file.commit(views, logits_of(views))
    content = (tmp_path / "a.logits").read_bytes()
    everything = np.concatenate(batches)
    for place in np.random.default_rng(1).integers(HEADER, len(content), 200):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (int(place) % 8)
        (tmp_path / "a.logits").write_bytes(damaged)
        again = opened(tmp_path)
        slots = again.find(everything)
        found = slots >= 0
        assert found.sum() < len(everything)
        assert np.array_equal(again.read(slots[found]), logits_of(everything[found]))
        again.commit(everything[~found], logits_of(everything[~found]))
        assert np.array_equal(again.read(again.find(everything)), logits_of(everything))
        again.close()


def test_a_damaged_header_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path).commit(np.arange(10), logits_of(range(10)))
    path = tmp_path / "a.logits"
    path.write_bytes(b"?" + path.read_bytes()[1:])
    assert (opened(tmp_path).find(np.arange(10)) == -1).all()
    assert "a.logits is damaged; it is kept as a.damaged" in capsys.readouterr().out
    assert (tmp_path / "a.damaged").exists()


@pytest.mark.parametrize("count", [10, 800, 1000, 20_000])
def test_a_description_of_any_length_has_its_page(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was stored is read by the next run, and other logits are another file."""
    computed = []

    def compute(images: torch.Tensor) -> torch.Tensor:
        computed.append(len(images))
        return torch.zeros(len(images), CLASSES)

    def ask(order: list[int]) -> None:
        teacher = ("mlp", "0" * 64, {"classes": CLASSES, "logits": order})
        cache = TeacherCache(tmp_path, 1.0, SPACE, [teacher], "fp32", CLASSES)
        cache.logits(torch.zeros(8, 3, 4, 4), torch.arange(8), [compute])

    for _ in range(3):
        ask(list(range(count, 0, -1)))
    assert computed == [8]
    ask(list(range(count)))
    assert computed == [8, 8]
    assert "damaged" not in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.logits"))) == 2


def test_a_header_that_fits_is_the_description_itself() -> None:
    """As in the files of earlier versions, up to the last byte."""
    for count in (0, 1, 500, HEADER - len(json.dumps({"logits": ""})) - 1):
        about = {"logits": "x" * count}
        assert json.loads(header_of(about)) == about
    longer = header_of({"logits": "x" * (count + 1)})
    assert len(longer) == HEADER
    assert longer != header_of({"logits": "x" * (count + 2)})


def test_the_first_of_two_writers_is_believed_by_both(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    views = np.arange(10)
    one.commit(views[:6], logits_of(views[:6], salt=1))
    stored = other.commit(views, logits_of(views, salt=2))  # it did not look before
    assert np.array_equal(stored[:6], logits_of(views[:6], salt=1))
    assert np.array_equal(stored[6:], logits_of(views[6:], salt=2))
    assert np.array_equal(one.read(one.find(views)), stored)


def write_until_killed(folder: Path, salt: int) -> None:
    file = opened(folder)
    for views in steps(100):
        slots = file.find(views)
        missing = views[slots < 0]
        if len(missing):
            file.commit(missing, logits_of(missing, salt))
        time.sleep(0.001)


def test_writers_at_once_and_killed(tmp_path: Path) -> None:
    """Three processes fill one file, two of them are killed on the way; what is left is whole, and goes on."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_until_killed, args=(tmp_path, salt)) for salt in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers[:2]:
        time.sleep(0.03)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
    for writer in writers:
        writer.join()
    assert writers[2].exitcode == 0
    file = opened(tmp_path)
    views = np.arange(VIEWS)
    stored = file.read(file.find(views))
    by_salt = np.stack([(stored == logits_of(views, salt)).all(1) for salt in range(3)])
    assert by_salt.any(0).all()


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = steps(2)
    file = opened(tmp_path)
    file.commit(first, logits_of(first))
    size = (tmp_path / "a.logits").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
    try:
        stored = file.commit(second, logits_of(second))
        file.commit(second, logits_of(second))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert np.array_equal(stored, logits_of(second))
    assert (tmp_path / "a.logits").stat().st_size == size
    assert capsys.readouterr().out.count("cannot grow") == 1
    again = opened(tmp_path)
    assert np.array_equal(again.read(again.find(first)), logits_of(first))


def test_the_folder_stays_within_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = 8000
    file = opened(tmp_path, gigabytes=limit / 1e9)
    for views in steps(50):
        file.commit(views, logits_of(views))
    assert HEADER < sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    assert capsys.readouterr().out.count("has reached --teacher_cache_gb 8e-06") == 1


def test_filling_reading_and_resuming_give_the_same_bits(tmp_path: Path) -> None:
    networks = [network(0), network(1)]
    filled = epoch_of(cached(tmp_path / "a", networks))
    assert torch.equal(epoch_of(cached(tmp_path / "a", networks)), filled)
    # cut off in its third step, then run again from the start
    cut = cached(tmp_path / "b", networks)
    for batch, _ in zip(noise_loader(), range(2), strict=False):
        cut.logits(batch.images, batch.views)
    plain = torch.stack([Teachers(networks).logits(batch.images) for batch in noise_loader()]).log_softmax(-1)
    loader = noise_loader()
    loader.set_epoch(0)
    resumed = cached(tmp_path / "b", networks)
    again = torch.stack([resumed.logits(batch.images, batch.views) for batch in loader])
    whole = cached(tmp_path / "c", networks)
    assert torch.equal(again, torch.stack([whole.logits(batch.images, batch.views) for batch in loader]))
    torch.testing.assert_close(again.log_softmax(-1), plain, atol=2e-3, rtol=0)


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    networks = [network(0), network(1)]
    epoch_of(cached(tmp_path, networks))
    reader = cached(tmp_path, networks)
    calls: list[Any] = []
    for each in reader.networks:
        each.register_forward_hook(lambda *_: calls.append(_))
    epoch_of(reader)
    assert not calls
    epoch_of(reader, seed=1)
    assert calls


def test_a_changed_teacher_or_precision_is_another_file(tmp_path: Path) -> None:
    first = epoch_of(cached(tmp_path, [network(0)]))
    changed = network(0)
    with torch.no_grad():
        changed[1].bias += 1e-3 * torch.arange(CLASSES)
    second = epoch_of(cached(tmp_path, [changed]))
    assert not torch.equal(first, second)
    epoch_of(cached(tmp_path, [network(0)], precision="bf16"))
    assert len(list(tmp_path.iterdir())) == 3


def test_memory_and_file_are_small(tmp_path: Path) -> None:
    """Two bytes for each logit, and one 32-bit number for each view that could be asked for."""
    file = opened(tmp_path)
    assert file.index.nbytes == 4 * VIEWS
    assert file.slot.itemsize <= 2 * (CLASSES + 1) + 12
    for views in steps(3):
        file.commit(views, logits_of(views))
    file.read(file.find(steps(3)[2]))
    assert file.table.base is not None  # a mapping, no copy
    assert not file.table.flags.owndata


def test_large_logits_keep_their_order(tmp_path: Path) -> None:
    class Huge(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linspace(-1e5, 1e5, CLASSES).expand(len(images), -1)

    logits = epoch_of(cached(tmp_path, [Huge()]))
    assert logits.isfinite().all()
    assert (logits.argmax(-1) == CLASSES - 1).all()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--teacher_cache: .*file/cache cannot be written"):
        cached(tmp_path / "file" / "cache", [network(0)])


def test_the_folder_is_counted_again_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "RECOUNT", 2)
    room = Room(tmp_path, 1e-5)
    assert room.take(100)
    (tmp_path / "another").write_bytes(bytes(9_950))
    assert not room.take(100)
