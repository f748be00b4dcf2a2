"""Three trained teachers, and few images, for all tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import ARCHS, few_digits, teach


@pytest.fixture(scope="session")
def teacher_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints of a teacher of each of ``ARCHS``."""
    save_dir = tmp_path_factory.mktemp("teachers")
    with few_digits():
        return [teach(save_dir, f"--model {arch}").folder / "last.pth" for arch in ARCHS]


@pytest.fixture
def teachers(teacher_files: list[Path]) -> str:
    """The option that chooses all three."""
    return f"--teachers {' '.join(map(str, teacher_files))}"


@pytest.fixture
def little_data() -> Iterator[None]:
    """Fewer digits for one test."""
    with few_digits():
        yield
