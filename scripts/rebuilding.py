"""Networks of finished runs, built again by tools: what a run's files say is no reason to run others."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from helper.errors import UsageError
from models import model_dict


def add_arch(parser: argparse.ArgumentParser) -> None:
    """The option that says which files may be run."""
    parser.add_argument(
        "--arch",
        nargs="+",
        default=(),
        help="the name of the run's network, where that is outside of this collection, as FILE.py:CALLABLE; where its "
        "teachers are needed, their names too",
    )


def require_asked(run: Path, asked: Sequence[str], archs: Iterable[str]) -> None:
    """Called before any of the networks is built.

    Args:
        run: the folder that names them.
        asked: what ``--arch`` names.
        archs: of all networks that are needed.

    Raises:
        UsageError: ``--arch`` does not name one that is from outside.
    """
    outside = [each for each in dict.fromkeys(archs) if getattr(model_dict[each], "outside", False)]
    unasked = [each for each in outside if each not in asked]
    if unasked:
        what = "network is" if len(unasked) == 1 else "networks are"
        raise UsageError(f"{run} says that its {what} {', '.join(unasked)}; --arch {' '.join(unasked)} uses that")


@contextlib.contextmanager
def of_one_run(run: Path) -> Iterator[None]:
    """UsageError where what a checkpoint holds does not fit what parameters.json describes."""
    try:
        yield
    except (KeyError, RuntimeError):
        raise UsageError(f"{run}: its checkpoint holds other networks than its parameters.json describes") from None
