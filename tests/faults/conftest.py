"""``--faults`` asks for the full form; at the end a table says what was tried."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from laboratory import Laboratory, Tally


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the full form was asked for."""
    return bool(request.config.getoption("--faults"))


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    made = Laboratory(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Where a test records its faults; the test fails if one cost something."""
    made = Tally(request.node.name.removeprefix("test_"), request.node.user_properties)
    yield made
    assert not made.problems, made.problems


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table."""
    reports = [report for each in ("passed", "failed", "error") for report in terminalreporter.stats.get(each, [])]
    rows = {value[0]: value for report in reports for name, value in report.user_properties if name == "faults"}
    if not rows:
        return
    terminalreporter.section(f"faults, FAULTS_SEED={os.environ.get('FAULTS_SEED', '0')}")
    sums = ("together", *(sum(row[column] for row in rows.values()) for column in (1, 2)))
    width = max(map(len, rows))
    terminalreporter.line(f"{'':{width}}  tried  survived  lost")
    for kind, tried, lost in [*rows.values(), sums]:
        terminalreporter.line(f"{kind:{width}}  {tried:5}  {tried - lost:8}  {lost:4}")
