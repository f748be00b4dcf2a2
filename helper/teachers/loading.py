"""From files to frozen teachers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from helper.errors import UsageError
from helper.seen import logits_shape, other_classes
from helper.teachers.asked import Teachers
from helper.teachers.cache import weights_checksum
from helper.teachers.classes import Chosen, ClassMap, Known, class_map
from helper.teachers.conversion import Conversion, conversion_for, narrowed
from helper.teachers.files import TeacherFile
from helper.teachers.frozen import freeze
from helper.teachers.record import Eyes
from helper.weights import Labels, Loaded, classes_in, load_network, require_same

SOURCE = "setting.py or --teachers"


class Around(NamedTuple):
    """What teachers are asked about.

    Attributes:
        labels: what logits stand for.
        shown: how images are handed out; complete.
        images: ``[B, 3, H, W]`` of any content.
    """

    labels: Labels
    shown: Eyes
    images: Tensor


class Ready(NamedTuple):
    """A teacher that can be asked.

    Attributes:
        network: frozen.
        conversion: see :class:`Teachers`.
        known: the classes that it knows, ascending; None: all.
        identity: architecture, checksum of the weights, and what else its logits depend on.
        notes: lines on what the user should know of it.
    """

    network: nn.Module
    conversion: Conversion | None
    known: tuple[int, ...] | None
    identity: tuple[str, str, dict[str, Any]]
    notes: list[str]


def load_teachers(
    files: Sequence[TeacherFile], build: Callable[..., nn.Module], data: Around, precision: str
) -> tuple[Teachers, list[str]]:
    """Construct, load and freeze the teachers.

    Args:
        files: where they lie.
        build: architecture → network for the dataset's classes, or with ``num_classes=`` others, on the device; with
            ``whole=True`` it has the weights that its source has.
        data: what they are asked about.
        precision: of ``--precision``, see :func:`helper.teachers.frozen.freeze`.

    Returns:
        the teachers, and lines on what the user should know of them.

    Raises:
        UsageError: a checkpoint is missing, damaged, of another architecture or for other classes, or a network cannot
            take the images.
    """
    ready = [_load(file, build, data, precision) for file in files]
    notes = [note for each in ready for note in each.notes]
    known = None
    if any(each.known for each in ready):
        known = Known([each.known for each in ready], data.labels.num_classes, data.images.device)
        notes += _nobody_knows(known, data.labels)
    made = {each.conversion: each.conversion for each in ready}  # equal ones become one
    conversions = [made[each.conversion] for each in ready]
    return Teachers([each.network for each in ready], conversions, known, [each.identity for each in ready]), notes


def _load(file: TeacherFile, build: Callable[..., nn.Module], data: Around, precision: str) -> Ready:
    what = f"{SOURCE}: {str(file.path or file.arch)!r}"
    classes = None if file.classes is None else class_map(file.classes, data.labels, what)
    network, loaded = _built(file, build, data.labels, classes, what)
    wants = (getattr(network, "wants", None) or Eyes()).checked(file.arch)
    eyes = file.eyes.over(eyes_of(loaded.about if loaded.ours else {}, what)).over(wants)
    conversion = conversion_for(network, eyes, data.shown, data.images, what)
    images = conversion(data.images) if conversion else data.images
    shape = logits_shape(network, images, file.arch, data.labels.dataset)
    if classes is not None:
        _require_named(shape[-1], classes, what)
    elif shape != (data.labels.num_classes,):
        raise other_classes(file.arch, shape, data.labels.dataset, data.labels.num_classes)
    special: dict[str, Any] = {"eyes": conversion.wanted.said()} if conversion else {}
    checksum = weights_checksum(network)
    network = freeze(network, images, precision)
    known = None
    if classes is not None:
        known = classes.known if len(classes.known) < data.labels.num_classes else None
        special |= {"classes": len(classes.known)}
        if classes.logits != tuple(range(shape[0])):
            network, special["logits"] = Chosen(network, classes.logits), list(classes.logits)
    notes = [*loaded.notes, *(_unfinished(file.path, loaded.about) if file.path else ())]
    notes += [f"{file.path or file.arch}: sees {conversion.wanted}"] if conversion else []
    return Ready(network, conversion, known, (file.name, checksum, special), notes)


def _built(
    file: TeacherFile, build: Callable[..., nn.Module], labels: Labels, classes: ClassMap | None, what: str
) -> tuple[nn.Module, Loaded]:
    """The network with its weights, and what was said of these."""
    if file.path is None:
        network = build(file.arch, whole=True)
        return network, Loaded({}, _compare_names(network, labels, what) if classes is None else [])
    if classes is None:
        network = build(file.arch)
        return network, _with_weights(network, file, file.path, labels)
    count = _number_of_logits(file, file.path, classes, build, what) or labels.num_classes
    network = build(file.arch, num_classes=count)
    return network, _with_weights(network, file, file.path, Labels("", count))


def _compare_names(network: Any, labels: Labels, what: str) -> list[str]:
    """Refuse a network that says that its classes are others; returns a line where they may only be spelt otherwise."""
    names, ours = [str(name) for name in getattr(network, "class_names", None) or ()], labels.classes
    if ours is None or len(names) != labels.num_classes:
        return []
    if network.own_spelling:
        spelt = {_spelling(name): name for name in ours}
        names = [name if name in ours else spelt.get(_spelling(name), name) for name in names]
    if not network.own_spelling or sorted(names) == sorted(ours):
        require_same(what, "its own", names, labels.dataset, ours)
    differing = [k for k, pair in enumerate(zip(names, ours, strict=True)) if pair[0] != pair[1]]
    return [
        f"{what} calls its classes otherwise than {labels.dataset} ({k} is {names[k]!r}, here {ours[k]!r}): are they "
        "in the same order?"
        for k in differing[:1]
    ]


def _spelling(name: str) -> str:
    """A class's name without what does not tell it from others."""
    return " ".join(re.split(r"[\W_]+", name.casefold())).strip()


def _number_of_logits(
    file: TeacherFile, path: Path, classes: ClassMap, build: Callable[..., nn.Module], what: str
) -> int | None:
    """How many a teacher has whose classes are said, as its checkpoint tells; None where that does not."""
    count = classes_in(path, lambda **settings: build(file.arch, **settings), file.key)
    if count is not None:
        _require_named(count, classes, what)
    return count or classes.outputs


def _require_named(count: int, classes: ClassMap, what: str) -> None:
    """UsageError unless so many logits are what ``classes`` says of them."""
    said = classes.outputs or max(classes.logits) + 1
    if count < said or (classes.outputs and count != said):
        raise UsageError(f"{what}: classes: names {said} logits, but it has {count}")


def _with_weights(network: nn.Module, file: TeacherFile, path: Path, labels: Labels) -> Loaded:
    """Load them; of a network that is to see brightness alone the first convolution may have one channel for that."""
    try:
        return load_network(network, path, file.arch, labels, SOURCE, file.key)
    except UsageError:
        if file.eyes.channels != 1 or not narrowed(network):
            raise
    return load_network(network, path, file.arch, labels, SOURCE, file.key)


def eyes_of(about: Mapping[str, Any], what: str) -> Eyes:
    """How a network saw its images in training, as far as what a checkpoint of ours says of it tells."""
    size, channels = about.get("image_size"), about.get("channels")
    return Eyes(about.get("mean"), about.get("std"), size, channels).checked(what)


def _unfinished(path: Path, about: dict[str, Any]) -> list[str]:
    epoch, epochs = about.get("epoch"), about.get("epochs")
    unfinished = path.name.startswith("last") and isinstance(epochs, int) and epoch != epochs
    return [f"{path}: trained for {epoch} of {epochs} epochs only"] if unfinished else []


def _nobody_knows(known: Known, labels: Labels) -> list[str]:
    numbers = [c for c, some in enumerate(known.knows.any(0).tolist()) if not some]
    names = ", ".join(str(labels.classes[c] if labels.classes else c) for c in numbers)
    return [f"no teacher knows {names}: only the labels teach these"] if numbers else []
