"""From a checkpoint of anybody's to a network: which of its weights fit, and whether they are for these classes."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from helper import foreign
from helper.checkpoint import Damaged
from helper.errors import UsageError

HARMLESS = ("total_ops", "total_params", "num_batches_tracked", "n_averaged")
"""Last parts of the names of counters (of thop, BatchNorm and averages), which no prediction depends on."""

WRAPPERS = ("", "model", "state_dict", "net", "model_state_dict", "network", "module", "params", "weights")
"""Keys under which weights lie, the usual ones first; any other will do if only it fits."""

AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?|shadow)(?:[._]|$)", re.IGNORECASE)
"""In the key of weights that were averaged over training."""

INNER = re.compile(r"(?:(?<=\.)|^)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
"""What torch's own wrappers put into names, wherever the wrapped module is."""

MANY = 12
"""Keys that a message lists at most."""

DEPTH = 4
"""Dictionaries within dictionaries that are looked into."""

HEADS = "through the teachers' heads"
"""What a checkpoint says under ``answers`` whose network does not answer by itself."""

TRANSFORMERS = "hf/"
"""What the names of networks begin with whose library saves their weights under other names."""

Weights = dict[str, Tensor]


class Labels(NamedTuple):
    """What logits stand for: a dataset, how many classes it has, and their names in label order, where known.

    Without a dataset it is known what each stands for, and nothing but their number is to be compared.
    """

    dataset: str
    num_classes: int
    classes: tuple[str, ...] | None = None


class Loaded(NamedTuple):
    """What a checkpoint says beside its weights, lines that the user should see, and whether it is one of ours."""

    about: dict[str, Any]
    notes: list[str]
    ours: bool = False


class Found(NamedTuple):
    """Weights in a checkpoint; ``key`` is where: of the dictionaries, then what their names have in front."""

    key: str
    weights: Weights


def located(path: str | Path) -> tuple[Path, str | None]:
    """``PATH[@KEY]``, also of a run's folder → the checkpoint and the key. What exists as it is written has no key."""
    path = Path(path)
    rest, _, key = str(path).rpartition("@")
    if rest and "/" not in key and not path.exists() and Path(rest).exists():
        return located(rest)[0], key
    return (path / "last.pth" if path.is_dir() else path), None


def load_network(
    network: nn.Module, path: Path, arch: str, labels: Labels, option: str, key: str | None = None
) -> Loaded:
    """Load weights into ``network``.

    Args:
        network: constructed as ``arch`` with ``labels.num_classes``.
        path: the checkpoint, ours or another's.
        arch: for the messages; the shapes decide, whatever the checkpoint calls itself.
        labels: compared with what our checkpoints say of theirs.
        option: what named the file, for the messages.
        key: which of several weights in the file.

    Raises:
        UsageError: the file is missing or damaged, or its weights are of another architecture, of other classes, not
            finite, or not numbers that can be trained.
    """
    what = f"{option}: {str(path)!r}"
    if not path.is_file():
        raise UsageError(f"{option}: there is no checkpoint {str(path)!r}")
    try:
        state = foreign.read(path)
    except Damaged as error:
        raise UsageError(f"{what} cannot be loaded: {error}") from None
    if state.get("answers") == HEADS:
        raise UsageError(
            f"{what} holds a student whose answers come through its teachers' classifiers: --evaluate it with --config "
            "of its run's parameters.json; python -m scripts.export writes it as one network"
        )
    notes = compare_labels(what, state, labels)
    own = network.state_dict()
    chosen, note = _chosen(what, state, network, arch, labels.num_classes, key)
    network.load_state_dict(_as_trained(what, chosen.weights, own), strict=False)
    about = {name: value for name, value in state.items() if not isinstance(value, Mapping)}
    return Loaded(about, [*notes, *note], is_ours(state))


def architecture(state: Mapping[str, Any], known: Mapping[str, Callable[..., nn.Module]]) -> str | None:
    """The name here of the network in a checkpoint, as far as what it calls itself tells; None where it does not.

    Others use their own names, so theirs is believed only if the weights fit.
    """
    said = state.get("arch")
    if not isinstance(said, str):
        return None
    names = [name for name in known if name.lower() in (said.lower(), f"torchvision/{said.lower()}")]
    if said in known and (is_ours(state) or names == [said]):
        return said
    names.sort(key=lambda name: name != said)
    closest = said if said in known else None  # whose misfit loading it will explain
    return next((name for name in names if _resembles(state, known[name])), closest)


def publishes(build: Callable[..., nn.Module], what: Literal["pretrained", "whole"]) -> bool:
    """Whether a network can be built with weights of its source's: with a new last layer, or as a whole."""
    return what in inspect.signature(build).parameters


def is_ours(state: Mapping[str, Any]) -> bool:
    """Whether a training script of this collection wrote it, so that what it says of itself is so."""
    says = {"arch", "num_classes", "model"} <= state.keys() and not {"dataset", "precision"}.isdisjoint(state)
    return says and isinstance(state["arch"], str) and isinstance(state["num_classes"], int)


def classes_in(path: Path, build: Callable[..., nn.Module], key: str | None = None) -> int | None:
    """For how many classes the network in a checkpoint is; None where that cannot be told, which loading it explains.

    Args:
        path: the checkpoint, ours or another's.
        build: makes the network for ``num_classes=``.
        key: which of several weights in the file.
    """
    try:
        state = foreign.read(path)
    except Damaged:
        return None
    return state["num_classes"] if is_ours(state) else _classes(state, build, key)


def _resembles(state: Mapping[str, Any], build: Callable[..., nn.Module]) -> bool:
    """Whether a checkpoint holds the network's weights, for any number of classes."""
    return _classes(state, build) is not None


def _classes(state: Mapping[str, Any], build: Callable[..., nn.Module], key: str | None = None) -> int | None:
    """For how many classes the network's weights in a checkpoint, or under a key of it, are; None if there are none."""
    classes = 7  # a number of channels that no layer has but the classifier
    with torch.random.fork_rng(devices=[]):  # the student's initial weights depend on the seed alone
        network = build(num_classes=classes)
    own = network.state_dict()
    found = (each for each in _found(state, network) if key is None or _is_under(each, key))
    named = [each.weights for each in found if not any(_differing_names(each.weights, own))]
    counts = [_other_classes(each, own, classes) if _differing_shapes(each, own) else classes for each in named]
    return next(filter(None, counts), None)


# ---- where weights lie


def _found(state: Mapping[str, Any], network: nn.Module) -> Iterator[Found]:
    """All weights in a checkpoint that the network may use, named as its own as far as one prefix can make them so."""
    own, unused = network.state_dict(), getattr(network, "unused_weights", ())
    for path, mapping in _mappings(state, ()):
        tensors = {INNER.sub("", str(name)): value for name, value in mapping.items() if isinstance(value, Tensor)}
        for prefix in _prefixes(tensors, own) if tensors else ():
            named = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            used = {name: value for name, value in named.items() if not name.startswith(unused)}
            yield Found(".".join(filter(None, (*path, prefix.rstrip(".")))), used)


def _mappings(state: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    yield path, state
    if len(path) < DEPTH:
        for name, value in state.items():
            if isinstance(value, Mapping):
                yield from _mappings(value, (*path, str(name)))


def _prefixes(names: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What may stand before the network's own names: nothing, and what stands before at least half as many as any."""
    counts = Counter({"": 0})
    for name in names:
        parts = [f"{part}." for part in name.split(".")]
        counts.update("".join(parts[:n]) for n in range(len(parts)) if "".join(parts[n:])[:-1] in own)
    return [prefix for prefix, count in counts.items() if not prefix or 2 * count >= max(counts.values())]


# ---- which weights


def _chosen(
    what: str, state: Mapping[str, Any], network: nn.Module, arch: str, num_classes: int, key: str | None
) -> tuple[Found, list[str]]:
    """The weights that fit, and a line where there was a choice; UsageError where none do."""
    own, found = network.state_dict(), list(_found(state, network))
    if key is not None:
        found = _under(what, found, key, own)
    elif is_ours(state):
        found = [each for each in found if each.key.partition(".")[0] == "model"]
    if not found:
        raise UsageError(f"{what} cannot be loaded: it holds no weights under 'model', 'state_dict' or any other name")
    fitting = [each for each in found if not _misfit(each.weights, own, arch, num_classes)]
    if not fitting:
        raise _refusal(what, found, state, own, arch, num_classes)
    return _preferred(what, [each for each in fitting if each.key == key] or fitting)


def _preferred(what: str, fitting: Sequence[Found]) -> tuple[Found, list[str]]:
    """One of the weights that fit, and a line where there was a choice; UsageError where nothing speaks for any."""
    first, *others = sorted(fitting, key=lambda each: _rank(each.key))
    others = [each for each in others if not _equal(each.weights, first.weights)]
    if not others:
        return first, []
    names = ", ".join(repr(each.key) for each in (first, *others))
    if _rank(others[0].key) == _rank(first.key):
        raise UsageError(f"{what} holds several networks that fit: {names}; choose one by …@KEY after the path")
    return first, [f"{what}: of {names} the first is taken; …@KEY after the path takes another"]


def _under(what: str, found: Sequence[Found], key: str, own: Mapping[str, Tensor]) -> list[Found]:
    """Those that ``key`` or a part of it names."""
    chosen = [each for each in found if _is_under(each, key)]
    if not chosen:
        alike = [each.key for each in found if each.weights.keys() & own.keys()] or [each.key for each in found]
        keys = ", ".join(map(repr, filter(None, alike[:MANY]))) or "none"
        more = ", …" if len(alike) > MANY else ""
        raise UsageError(f"{what} has no weights under {key!r}; the keys found are {keys}{more}")
    return chosen


def _is_under(found: Found, key: str) -> bool:
    return f".{key}." in f".{found.key}."


def _rank(key: str) -> tuple[bool, int]:
    """Which of several to prefer, the smallest first: what was trained before its average, usual keys before others."""
    first = key.partition(".")[0]
    return bool(AVERAGED.search(key)), WRAPPERS.index(first) if first in WRAPPERS else len(WRAPPERS)


def _equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


# ---- whether they fit


def _refusal(
    what: str, found: Sequence[Found], state: Mapping[str, Any], own: Mapping[str, Tensor], arch: str, num_classes: int
) -> UsageError:
    """Why none of the weights in a file fit, by those that come closest."""
    said = state.get("arch")
    if is_ours(state) and said != arch:
        return UsageError(f"{what} holds a {said}, not a {arch}")
    nearest = max(found, key=lambda each: (len(each.weights.keys() & own.keys()), len(each.weights)))
    says = f"; it calls itself {said!r}" if isinstance(said, str) and said != arch else ""
    return UsageError(f"{what} {_misfit(nearest.weights, own, arch, num_classes)}{says}")


def _misfit(weights: Weights, own: Mapping[str, Tensor], arch: str, num_classes: int) -> str:
    """Why weights are not the network's, in words that follow the file's name; empty where they are."""
    missing, extra = _differing_names(weights, own)
    if missing or extra:
        name, word = (missing[0], "lacks") if missing else (extra[0], "has an extra")
        counts = f"({len(missing)} missing, {len(extra)} extra)"
        saved = (
            "; transformers saves weights under other names: copy its config.json beside it and name the folder alone, "
        )
        hint = f"{saved}{TRANSFORMERS}FOLDER" if arch.startswith(TRANSFORMERS) else ""
        return f"is not a {arch}: it {word} {name!r} {counts}{hint}"
    for name, value in own.items():
        kind = _unusable(weights[name], value) if name in weights else ""
        if kind:
            return f"cannot be loaded: {name!r} is {kind}"
    differing = _differing_shapes(weights, own)
    if not differing:
        return ""
    shapes = f"{differing[0]!r} is {list(weights[differing[0]].shape)}, expected {list(own[differing[0]].shape)}"
    classes = _other_classes(weights, own, num_classes)
    if classes is not None:
        return f"was trained for {classes} classes, not for {num_classes} classes: {shapes}"
    return f"does not fit a {arch} with {num_classes} classes: {shapes}"


def _differing_names(weights: Weights, own: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """What is missing and what is extra, but for counters."""
    # Checkpoints from before PyTorch 0.4.1 have no batch counters; nothing here reads them.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    extra = [name for name in weights if name not in own and name.rpartition(".")[2] not in HARMLESS]
    return missing, extra


def _differing_shapes(weights: Weights, own: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in own.items() if name in weights and weights[name].shape != value.shape]


def _other_classes(weights: Weights, own: Mapping[str, Tensor], num_classes: int) -> int | None:
    """The number of classes of weights that differ from the network's in nothing else."""
    shapes = [(weights[name].shape, own[name].shape) for name in _differing_shapes(weights, own)]
    counts = {theirs[0] for theirs, mine in shapes if theirs and mine and theirs[1:] == mine[1:]}
    whole = all(theirs and mine and theirs[1:] == mine[1:] and mine[0] == num_classes for theirs, mine in shapes)
    return counts.pop() if whole and len(counts) == 1 else None


def _unusable(value: Tensor, own: Tensor) -> str:
    """What kind of numbers these are that cannot take the place of the network's ``own``; empty for those that can."""
    if value.is_quantized:
        return "quantised; save its weights as floating-point numbers"
    if value.is_meta:
        return "on the meta device: it has no values"
    if value.is_nested or value.layout is not torch.strided:
        return "sparse or nested; save it as a dense tensor"
    if value.is_complex():
        return "of complex numbers"
    if own.is_floating_point() and not value.is_floating_point():
        return f"of whole numbers ({str(value.dtype).removeprefix('torch.')}), not of floating-point ones"
    return ""


def _as_trained(what: str, weights: Weights, own: Mapping[str, Tensor]) -> Weights:
    """The network's weights in its own types; UsageError where one is not finite."""
    converted = {name: weights[name].detach().to(value.dtype) for name, value in own.items() if name in weights}
    for name, value in converted.items():
        if not value.isfinite().all():
            raise UsageError(f"{what} is broken: {name!r} has values that are not finite (NaN or too large)")
    return converted


# ---- whether they were trained for these classes


def compare_labels(what: str, state: Mapping[str, Any], labels: Labels) -> list[str]:
    """Refuse weights that are known to be for other classes; returns a line where that is likely."""
    dataset = state.get("dataset")
    if is_ours(state):
        count, classes = state["num_classes"], state.get("classes")
        if count != labels.num_classes:
            known = f"; was --dataset {dataset} meant?" if dataset and dataset != labels.dataset else ""
            raise UsageError(
                f"{what} was trained on {dataset!r} for {count} classes, the dataset has {labels.num_classes} classes"
                f"{known}"
            )
        if labels.classes and isinstance(classes, list) and len(classes) == count:
            require_same(what, repr(dataset), [str(name) for name in classes], labels.dataset, labels.classes)
            return []
    if not isinstance(dataset, str) or not labels.dataset or _letters(dataset) == _letters(labels.dataset):
        return []
    return [f"{what} was trained on {dataset!r}, not on {labels.dataset!r}; its classes may be others"]


def require_same(what: str, source: str, theirs: Sequence[str], our_dataset: str, ours: Sequence[str]) -> None:
    """UsageError where the same label means another class; ``source`` says that it is one of ``theirs``."""
    differing = [k for k, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]]
    if differing:
        k = differing[0]
        how = "in another order" if sorted(theirs) == sorted(ours) else f"{len(differing)} of them"
        raise UsageError(
            f"{what} was trained on other classes, {how}: {k} is {theirs[k]!r} of {source}, but {ours[k]!r} of "
            f"{our_dataset!r} here"
        )


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
