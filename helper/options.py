"""The command line: typed, grouped options; a method's own hyperparameters become flags by reading its signature."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from helper.errors import UsageError, unknown
from helper.names import local
from helper.registry import Registry, Silence

Values = dict[str, Any]


def number(kind: type, valid: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """The type of an option that takes numbers for which ``valid`` holds; ``expected`` says which."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not valid(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


positive_int = number(int, lambda value: value >= 1, "a whole number of at least 1")
natural = number(int, lambda value: value >= 0, "a whole number of at least 0")
positive_float = number(float, lambda value: 0 < value < math.inf, "a number above 0")
weight = number(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
fraction = number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def weight_list(text: str) -> float | list[float]:
    """One :func:`weight`, or several separated by commas: ``1000,3000``."""
    each = [weight(part) for part in text.split(",")]
    return each if len(each) > 1 else each[0]


def number_or_name(text: str) -> int | str:
    """A whole number where it is one."""
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def epoch_numbers(text: str) -> list[int]:
    """Epoch numbers separated by commas, as RepDistiller writes them: ``150,180,210``."""
    numbers = [positive_int(part) for part in re.split(r"[,\s]+", text.strip()) if part]
    if not numbers:
        raise argparse.ArgumentTypeError(f"expected epoch numbers such as 150,180,210, got {text!r}")
    return numbers


class Flatten(argparse.Action):
    """With ``nargs="+"``: ``150,180 210`` and ``150 180 210`` are the same list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, [number for part in values for number in part])


def one_of(option: str, names: Mapping[str, object] | Sequence[str], fold_case: bool = False) -> Callable[[str], str]:
    """The type of an option that takes one of ``names``."""

    def parse(text: str) -> str:
        name = text.lower() if fold_case else text
        if name in names:
            return name
        if isinstance(names, Registry):
            raise names.unknown(text, option)
        raise unknown(option, text, names)

    return parse


def some_of(option: str, names: Mapping[str, object]) -> Callable[[str], str]:
    """The type of an option that takes one or several of ``names``, separated by commas."""
    one = one_of(option, names)

    def parse(text: str) -> str:
        chosen = [one(part.strip()) for part in text.split(",")]
        for name in chosen:
            if chosen.count(name) > 1:
                raise UsageError(f"{option}: {text!r} holds {name} twice; choose each once")
        return ",".join(chosen)

    return parse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if _unset(action.default) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose every error is a :class:`UsageError` of one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


class Options(Parser):
    """The parser of a training script: it knows which options change a result, and which belong to which method.

    ``--config parameters.json`` gives defaults from an earlier run.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)
        self._unnamed = {"config"}
        self._owners: dict[str, dict[str, Values]] = {}  # of each --dest: argument → method → default
        self._methods: dict[str, Mapping[str, Any]] = {}
        self._unread: dict[str, Silence] = {}
        self.add_argument(
            "--config", type=Path, metavar="FILE", help="repeat a run: its parameters.json; other options override it"
        )

    def section(self, title: str) -> Callable[..., None]:
        """A titled group; returns a function like ``add_argument`` with two more keywords.

        ``named=False`` marks an option that does not change what is learned, so that the run's name leaves it out.
        ``unread`` names another option and says at which of its values nothing reads this one. UsageError where a
        method has a hyperparameter of that name.
        """
        group = self.add_argument_group(title)

        def add(*flags: str, named: bool = True, unread: Silence | None = None, **settings: Any) -> None:
            name = flags[-1].lstrip("-")
            owners = sorted({method for each in self._owners.values() for method in each.get(name, ())})
            if owners and any(action.dest == name for action in self._actions):
                raise UsageError(
                    f"{', '.join(owners)}: an argument {name} would be the script's own --{name}; rename it"
                )
            action = group.add_argument(*flags, **settings)
            if not named:
                self._unnamed.add(action.dest)
            if unread:
                self._unread[action.dest] = unread

        return add

    def add_methods(
        self, title: str, dest: str, registry: Mapping[str, Any], default: str, help: str, several: bool = False
    ) -> None:
        """``--dest NAME`` picks from ``registry``, or ``--dest NAME,NAME``; keyword-only arguments become flags.

        An annotation ``Annotated[type, "help"]`` gives type and help; ``bool`` becomes ``--x/--no-x``, ``Literal`` a
        choice. Entries that share an argument share its flag; one that the script has as an option of its own is that.
        """
        self._methods[dest] = registry
        owners = self._owners.setdefault(dest, {})
        add = self.section(title)
        kind = some_of if several else one_of
        add(f"--{dest}", type=kind(f"--{dest}", registry), default=default, help=help, metavar="|".join(registry))
        taken = {action.dest for action in self._actions}
        for name, entry in registry.items():
            for parameter in _hyperparameters(entry):
                if parameter.name not in taken:
                    owners.setdefault(parameter.name, {})[name] = parameter.default
        for argument, defaults in owners.items():
            self._add_hyperparameter(add, registry[next(iter(defaults))], argument, defaults)

    def _add_hyperparameter(self, add: Callable[..., None], entry: Any, name: str, defaults: Mapping[str, Any]) -> None:
        """The flag of the argument ``name`` of ``entry``; ``defaults`` are those of all methods that have it."""
        kind, help_text = _annotation(entry, name)
        flags = [f"-{name}", f"--{name}"] if len(name) == 1 else [f"--{name}"]
        settings: Values = {"help": f"{'|'.join(defaults)}: {help_text}{_defaults_text(defaults)}"}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            settings.update(type=one_of(flags[-1], choices), metavar="|".join(choices))
        else:
            settings["type"] = kind
        add(*flags, default=argparse.SUPPRESS, **settings)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """As :meth:`read`, but with nothing typed that the other options leave without effect.

        Raises:
            UsageError: also for such an option, unless its value is the default or a config's.
        """
        options = self.read(arguments)
        given, _ = self.parse_known_args(arguments)
        for action in self._actions:
            value, other = getattr(given, action.dest, None), self._silenced_by(options, action.dest)
            if other and value is not None and value not in self._published_defaults(options, action):
                said, beside = (" ".join(words) for words in (_words(action, value), other))
                raise UsageError(f"{said}: nothing reads it with {beside}; leave it out")
        return options

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Options from the command line, over those of ``--config``, over the defaults.

        Raises:
            UsageError: an option or value is unknown, or an option belongs to a method that was not chosen.
        """
        given, rest = self.parse_known_args(arguments)
        if rest:
            self._refuse(rest[0])
        inherited = self._config_words(given.config) if given.config else []
        options = self.parse_args([*inherited, *arguments])
        for dest in self._methods:
            self._settle(options, given, dest)
        return options

    def _config_words(self, path: Path) -> list[str]:
        """What one would type to get the options in a ``parameters.json``."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"--config: cannot read {str(path)!r} ({error})") from None
        if not isinstance(values, dict):
            raise UsageError(f"--config: {str(path)!r} holds no options")
        known = {action.dest: action for action in self._actions if action.dest != "help"}
        words: list[str] = []
        for name, value in values.items():
            if name not in known:
                raise UsageError(f"--config: {str(path)!r} holds {name!r}, which is no option of this script")
            words += map(local, _words(known[name], value))
        return words

    def _refuse(self, word: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        word = word.split("=")[0]
        near = difflib.get_close_matches(word, flags, n=1, cutoff=0.5) if word.startswith("-") else []
        hint = f"; did you mean {near[0]}?" if near else "; see --help"
        raise UsageError(f"unknown option {word!r}{hint}")

    def _settle(self, options: argparse.Namespace, given: argparse.Namespace, dest: str) -> None:
        """Fill in the chosen methods' hyperparameters; refuse those of other methods unless a config brought them."""
        chosen = chosen_names(options, dest)
        for name, owners in self._owners[dest].items():
            if any(each in owners for each in chosen):
                continue
            if getattr(given, name, None) is not None:
                flag = f"-{name}" if len(name) == 1 else f"--{name}"
                raise UsageError(f"{flag}: belongs to --{dest} {'|'.join(sorted(owners))}, not to {','.join(chosen)}")
            if hasattr(options, name):
                delattr(options, name)
        for parameter in (each for name in chosen for each in _hyperparameters(self._methods[dest][name])):
            if not hasattr(options, parameter.name) and len(self._defaults_of(options, dest, parameter.name)) < 2:
                setattr(options, parameter.name, parameter.default)

    def _defaults_of(self, options: argparse.Namespace, dest: str, argument: str) -> list[Any]:
        """The different defaults that the chosen methods have of an argument."""
        owners, defaults = self._owners[dest][argument], []
        for name in chosen_names(options, dest):
            if name in owners and owners[name] not in defaults:
                defaults.append(owners[name])
        return defaults

    def _silenced_by(self, options: argparse.Namespace, name: str) -> list[str]:
        """What one types to get the option with which nothing reads this one; nothing if something does."""
        values, rules = vars(options), [self._unread.get(name)]
        dest = self._dest_of(name)
        if dest is not None:
            owners = [each for each in chosen_names(options, dest) if each in self._owners[dest][name]]
            rules = [getattr(self._methods[dest][each], "unread", {}).get(name) for each in owners]
        silent = [other for other, silences in filter(None, rules) if silences(values[other])]
        if not silent or len(silent) < len(rules):
            return []
        return _words(next(each for each in self._actions if each.dest == silent[0]), values[silent[0]])

    def hyperparameters(self, options: argparse.Namespace, dest: str, name: str | None = None) -> Values:
        """Keyword arguments for the constructor of the entry chosen as ``--dest``, or of another one beside it."""
        entry = self._methods[dest][name or getattr(options, dest)]
        return {each.name: getattr(options, each.name, each.default) for each in _hyperparameters(entry)}

    def changes_result(self, name: str) -> bool:
        """Whether an option of this name can make a difference to what is learned."""
        return name not in self._unnamed

    def changed(self, options: argparse.Namespace, leave_out: Sequence[str] = ()) -> list[str]:
        """``name=value`` of each option that changes the result and differs from its default, in order of --help."""
        parts = []
        for action in self._actions:
            name = action.dest
            if name in self._unnamed or name in leave_out or not hasattr(options, name):
                continue
            value = getattr(options, name)
            defaults = self._published_defaults(options, action)
            if defaults != [value] and value is not None:
                parts.append(name if value is True else f"{name}={text_of(value)}")
        return parts

    def _published_defaults(self, options: argparse.Namespace, action: argparse.Action) -> list[Any]:
        dest = self._dest_of(action.dest)
        return [action.default] if dest is None else self._defaults_of(options, dest, action.dest)

    def _dest_of(self, name: str) -> str | None:
        """The option that chooses among methods of which some have this hyperparameter; None if none has."""
        return next((dest for dest, owners in self._owners.items() if name in owners), None)


def chosen_names(options: argparse.Namespace, dest: str) -> list[str]:
    """The names in ``--dest NAME`` or ``--dest NAME,NAME``."""
    return str(getattr(options, dest)).split(",")


def _unset(default: Any) -> bool:
    """Whether a default says nothing: no value, or a switch that is off."""
    return default is None or default is False


def _defaults_text(defaults: Mapping[str, Any]) -> str:
    """What ``--help`` says of the methods' defaults of one hyperparameter."""
    told = {method: value for method, value in defaults.items() if not _unset(value)}
    if not told:
        return ""
    if len(told) == len(defaults) and len(set(map(str, told.values()))) == 1:
        return f" (default: {next(iter(told.values()))})"
    return f" (default: {', '.join(f'{method} {value}' for method, value in told.items())})"


def _hyperparameters(entry: Any) -> list[inspect.Parameter]:
    parameters = inspect.signature(entry).parameters.values()
    found = [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for each in found:
        if inspect.Parameter.empty in (each.default, each.annotation):
            raise TypeError(f"{entry.__qualname__}: its argument {each.name} needs a type and a default, as an option")
    return found


def _annotation(entry: Any, name: str) -> tuple[Any, str]:
    """What reads a keyword argument's text, its type where that can, and the help text; ``| None`` is taken off."""
    function = entry.__init__ if inspect.isclass(entry) else entry
    hint = typing.get_type_hints(function, include_extras=True)[name]
    kind, help_text = typing.get_args(hint)[:2] if typing.get_origin(hint) is typing.Annotated else (hint, "")
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        first, *others = (part for part in typing.get_args(kind) if part is not type(None))
        kind = number_or_name if (first, *others) == (int, str) else first
    return kind, help_text


def _words(action: argparse.Action, value: Any) -> list[str]:
    """An option as typed, such that it parses to ``value``; nothing for None and for a switch that is off."""
    flag = next(flag for flag in action.option_strings if flag.startswith("--"))
    if value is None:
        return []
    if isinstance(action, argparse.BooleanOptionalAction) and isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if action.nargs == 0 and isinstance(value, bool):
        return [flag] if value else []
    if action.nargs == "+" and isinstance(value, list):
        return [flag, *map(str, value)]
    return [f"{flag}={text_of(value) if isinstance(value, list) and len(value) > 1 else value}"]


def text_of(value: Any) -> str:
    """A value for a run's name: the shortest form that tells it from all others."""
    if isinstance(value, (list, tuple)):
        return ",".join(text_of(item) for item in value)
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def typed(value: Any) -> str:
    """An option's value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
