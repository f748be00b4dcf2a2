"""Three trained teachers, and few images, for all tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import ARCHS, distil, few_digits, teach, teach_each_other


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


@pytest.fixture
def little_data_of_usual_size() -> Iterator[None]:
    """The same for networks that want larger images, and for runs of earlier versions."""
    with few_digits(32):
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, teacher_files: list[Path]) -> Path:
    """A --save_dir with a student alone and under methods, two seeds each, peers, and an unfinished run."""
    save_dir = tmp_path_factory.mktemp("runs")
    teachers = f"--teachers {teacher_files[0]} {teacher_files[1]} --epochs 2"
    with few_digits():
        for trial in range(2):
            teach(save_dir, f"--epochs 2 --trial {trial}")
            distil(save_dir, f"{teachers} --ensemble_method AEKD --trial {trial}")
            distil(save_dir, f"{teachers} --ensemble_method AEKD --qp_solver svm --trial {trial}")
            distil(save_dir, f"{teachers} --trial {trial}")
        distil(save_dir, f"{teachers} --distill inter --ensemble_method CAMKD -b 50 --validation 0.25")
        teach_each_other(save_dir, "--method BOC --num_students 2 --batch_size 64")
    (save_dir / "students" / "unfinished").mkdir()
    (save_dir / "students" / "unfinished" / "metrics.jsonl").touch()
    return save_dir
