"""Name → class, one registry per folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from helper.errors import UsageError, unknown

Entry = TypeVar("Entry", bound=Callable[..., Any])
Value = TypeVar("Value")
Silence: TypeAlias = tuple[str, Callable[[Any], bool]]
"""Another option, and at which of its values nothing reads the one that it is said of."""
Unread: TypeAlias = Mapping[str, Silence]


class Registry(Mapping[str, Value], Generic[Value]):
    """A read-only mapping that is filled by decorators.

    Args:
        option: the command line option that picks from this registry; error messages name it.

    Raises:
        ValueError: a name is registered twice.
        UsageError: an unknown name is looked up; the message lists the valid ones.
    """

    def __init__(self, option: str) -> None:
        self.option = option
        self._entries: dict[str, Value] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator: make the class or function below it available as ``name``."""

        def add(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f"{self.option} {name!r} is registered twice")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def __getitem__(self, name: str) -> Value:
        if name not in self._entries:
            raise self.unknown(name)
        return self._entries[name]

    def unknown(self, name: str, option: str | None = None) -> UsageError:
        """The error for a name that is not registered; ``option`` replaces the registry's own."""
        return unknown(option or self.option, name, self)

    def run_name(self, name: str) -> str:
        """What the names of runs call an entry."""
        return name

    def refusal(self, name: str) -> UsageError | None:
        """Why a name cannot be had that is meant for this registry, but is not among those it lists."""
        return None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
