"""One process at a time trains in a run folder, on whatever file system it lies."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from helper.errors import UsageError
from helper.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def is_refused(folder: Path, overwrite: bool = False) -> None:
    with pytest.raises(UsageError, match="another process trains in this folder"):
        RunFolder(folder).open({}, overwrite)


def fail_to_lock(patch: pytest.MonkeyPatch, code: int, files: bool) -> None:
    """Only folders, or only files, can be locked; the others are not, with that error if it is not 0."""
    flock = fcntl.flock

    def lock(descriptor: int, operation: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) != files:
            flock(descriptor, operation)
        elif code:
            raise OSError(code, os.strerror(code))

    patch.setattr(fcntl, "flock", lock)


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_one_process_trains_in_a_folder(run: RunFolder, overwrite: bool) -> None:
    run.open({}, overwrite)
    is_refused(run.path, overwrite)
    run.close()
    RunFolder(run.path).open({}, overwrite)


def test_a_process_of_before_trains_in_it(run: RunFolder) -> None:
    """It has locked the folder alone."""
    run.path.mkdir()
    folder = os.open(run.path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    is_refused(run.path)
    os.close(folder)
    run.open({}, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_process_of_another_machine_trains_in_it(
    run: RunFolder, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS tells other machines of locked files, not of locked folders; overwritten, it is the same file as before."""
    fail_to_lock(monkeypatch, 0, files=False)
    run.open({}, overwrite)
    run.close()
    run.open({}, overwrite)
    is_refused(run.path, overwrite)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_that_locks_no_files(run: RunFolder, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's lock still tells those of one machine apart."""
    fail_to_lock(monkeypatch, code, files=True)
    run.open({}, overwrite=False)
    is_refused(run.path)


def test_who_only_looks_leaves_nothing(run: RunFolder) -> None:
    run.path.mkdir()
    run.require_permission(resume=False, overwrite=False)
    run.newest()
    assert not list(run.path.iterdir())
