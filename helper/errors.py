"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class UsageError(Exception):
    """Bad input: the scripts print its single line and leave with exit code 2, before anything is written."""


class InputError(UsageError):
    """An image cannot be read or evaluated; raised between two updates, so that what is trained can be saved first."""


def nearest(value: str, choices: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the choice that is most like ``value``; empty where none is."""
    folded = {name.lower(): name for name in choices}
    near = difflib.get_close_matches(str(value).lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def unknown(what: str, value: str, choices: Iterable[str]) -> UsageError:
    """The error for ``value`` not being one of ``choices``: names ``what``, the nearest choice and all of them."""
    names = [str(choice) for choice in choices]
    hint = nearest(value, names).removeprefix(";")
    return UsageError(f"{what}: unknown value {value!r}.{hint} choose from: {', '.join(names)}")


def require_positive(**values: float) -> None:
    """UsageError unless hyperparameters, given by their names, are finite numbers above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"--{name}: expected a number above 0, got {value:g}")


def require_not_negative(**values: float) -> None:
    """UsageError unless hyperparameters, given by their names, are finite numbers of at least 0."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"--{name}: expected a number of at least 0, got {value:g}")
