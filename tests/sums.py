"""Sums in place of products: each member of an axis with a few of the other; ``sh scripts/test.sh --all`` tries all."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from typing import TypeVar

A, B = TypeVar("A"), TypeVar("B")


def all_asked() -> bool:
    """Whether the tests are to walk the full products; known while they are collected."""
    return bool(os.environ.get("ALL_PAIRS"))


def crossed(
    first: Iterable[A], second: Iterable[B], few_first: Iterable[A], few_second: Iterable[B]
) -> list[tuple[A, B]]:
    """Each of the first with a few of the second, and a few of the first with each of the second."""
    firsts, seconds = list(first), list(second)
    if all_asked():
        return list(itertools.product(firsts, seconds))
    some = [*itertools.product(firsts, few_second), *itertools.product(few_first, seconds)]
    return list(dict.fromkeys(some))


def of_each_family(names: Iterable[str]) -> list[str]:
    """The first and the last network of each family, which is what its name says before the first digit."""
    names = list(names)
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(re.split(r"\d", name)[0], []).append(name)
    return names if all_asked() else [name for each in families.values() for name in dict.fromkeys((each[0], each[-1]))]
