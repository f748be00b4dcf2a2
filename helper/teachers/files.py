"""Where teachers lie: what ``setting.py`` or ``--teachers`` says, and what runs call and record of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from helper import foreign
from helper.checkpoint import Damaged
from helper.errors import UsageError, unknown
from helper.names import local, recorded
from helper.registry import Registry
from helper.teachers.record import Classes, Eyes, Teacher
from helper.weights import architecture, located, publishes

Architectures: TypeAlias = Registry[Any]

SPECIAL = ("mean", "std", "size", "channels", "classes")
"""What may be said of a teacher beside where it lies."""

PLAIN = Eyes()


@dataclass(frozen=True)
class TeacherFile:
    """One teacher.

    Attributes:
        arch: its architecture.
        path: its checkpoint; None where the weights come from where the architecture comes from.
        key: which of several weights in it.
        eyes: how it wants its images, as far as a person has said it.
        classes: of :class:`Teacher`.
        run_name: what the names of runs call the architecture, if not ``arch``.
    """

    arch: str
    path: Path | None
    key: str | None = None
    eyes: Eyes = PLAIN
    classes: Classes | None = None
    run_name: str | None = None

    def __str__(self) -> str:
        """As ``--teachers`` takes it: ``PATH:ARCH[@KEY]`` or ``ARCH``, then as JSON what is special about it."""
        plain = f"{self.path}:{self.arch}" + (f"@{self.key}" if self.key else "") if self.path else self.arch
        return f"{plain} {json.dumps(self.special, default=str)}" if self.special else plain

    @property
    def name(self) -> str:
        """What the architecture is, where that matters: the name does not tell what is in a person's file."""
        return self.run_name or self.arch

    @property
    def special(self) -> dict[str, Any]:
        """What is said of its images and its classes, such that JSON can hold it."""
        classes = self.classes if self.classes is None else {"classes": _in_json(self.classes)}
        return {**self.eyes.said(), **(classes or {})}

    def about(self) -> dict[str, Any]:
        """What a run's record says of it."""
        plain = {"arch": self.arch, "path": self.path and str(self.path), "key": self.key, "run_name": self.run_name}
        return {name: value for name, value in plain.items() if value} | self.special

    @classmethod
    def recorded(cls, about: Mapping[str, Any]) -> TeacherFile:
        """The teacher that :meth:`about` has described, among other things."""
        path, special = about.get("path"), _special("result.json", about)
        return cls(about["arch"], path and Path(path), about.get("key"), *special, about.get("run_name"))


def chosen_teachers(
    listed: Sequence[tuple[str, str | None] | Teacher],
    given: Sequence[str] | None,
    teacher_num: int | None,
    dataset: str,
    known: Architectures,
) -> list[TeacherFile]:
    """The teachers that the options choose.

    Args:
        listed: of ``setting.py`` for the dataset: ``(architecture, path[@key])``, or a :class:`Teacher`; None for the
            path means the weights that the architecture's source has.
        given: ``--teachers path[:arch][@key] …`` or ``arch``, which override the list; see :meth:`TeacherFile.__str__`.
        teacher_num: how many of them, from the first; None means all.
        known: the architectures that exist, and what builds them.

    Raises:
        UsageError: none is listed, fewer than ``--teacher_num``, an architecture is unknown, or what is said of its
            images makes no sense.
    """
    files = [_parse(text, known) for text in given] if given else [_listed(entry) for entry in listed]
    if not files:
        raise UsageError(f"--dataset: setting.py lists no teachers for {dataset}; add them, or give --teachers")
    source = "--teachers" if given else "setting.py"
    if teacher_num is not None and teacher_num > len(files):
        raise UsageError(
            f"--teacher_num: {teacher_num}, but {source} lists {len(files)} for {dataset}; choose up to that"
        )
    for file in files:
        if file.arch not in known:
            why = (
                known.refusal(file.arch)
                or f"unknown architecture {file.arch!r} of {str(file.path)!r}; see models/__init__.py"
            )
            raise UsageError(f"{source}: {why}")
        if file.path is None and not publishes(known[file.arch], "whole"):
            raise UsageError(f"{source}: there are no published weights of {file.arch}; name a checkpoint")
    names = [known.run_name(file.arch) for file in files[:teacher_num]]
    return [
        file if name == file.arch else replace(file, run_name=name) for file, name in zip(files, names, strict=False)
    ]


def _listed(entry: tuple[str, str | None] | Teacher) -> TeacherFile:
    """An entry of ``setting.py``; UsageError for what is none."""
    pair = isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[0], str)
    if not isinstance(entry, Teacher) and not pair:
        raise UsageError(f'setting.py: {entry!r} is no teacher; list pairs ("ARCHITECTURE", "CHECKPOINT"), or Teachers')
    teacher = entry if isinstance(entry, Teacher) else Teacher(*entry)
    path, key = (None, None) if teacher.path is None else located(local(str(teacher.path)))
    eyes, classes = _special(f"setting.py: {str(path or teacher.arch)!r}", vars(teacher))
    return TeacherFile(teacher.arch, path, key, eyes, classes)


def _in_json(classes: Classes) -> list[Any]:
    """A mapping as pairs: the keys of a dictionary in JSON would all be texts."""
    return [list(each) for each in classes.items()] if isinstance(classes, Mapping) else list(classes)


def _of_json(classes: Any, what: str) -> Classes | None:
    """The same back; UsageError for what is neither a list nor a mapping."""
    if isinstance(classes, list) and all(isinstance(each, list) and len(each) == 2 for each in classes):
        classes = {str(name) if isinstance(name, list) else name: logit for name, logit in classes}
    sound = isinstance(classes, (Sequence, Mapping)) and not isinstance(classes, str) and classes
    if classes is not None and not sound:
        raise UsageError(f"{what}: classes: {classes!r} names no classes; give a list of them")
    return classes


def _special(what: str, said: Mapping[str, Any]) -> tuple[Eyes, Classes | None]:
    """What is said of a teacher's images and classes, checked; ``what`` begins the line of an error."""
    eyes = Eyes(**{name: said.get(name) for name in SPECIAL[:-1]})
    return eyes.checked(what), _of_json(said.get("classes"), what)


def _parse(text: str, known: Architectures) -> TeacherFile:
    """As :meth:`TeacherFile.__str__` has it, or a path whose checkpoint or folder says the architecture."""
    plain, brace, said = text.partition(" {")
    if not brace:
        return _plain(text, known)
    what = f"--teachers: {plain!r}"
    try:
        special = json.loads("{" + said)
    except ValueError as error:
        raise UsageError(f"{what}: what stands behind it is no JSON: {error}") from None
    for name in special:
        if name not in SPECIAL:
            raise unknown(what, name, SPECIAL)
    eyes, classes = _special(what, special)
    return replace(_plain(plain, known), eyes=eyes, classes=classes)


def _plain(text: str, known: Architectures) -> TeacherFile:
    """``arch`` alone, ``path:arch``, or a path whose checkpoint or folder says the architecture; ``@key`` after it."""
    if text in known and publishes(known[text], "whole"):
        return TeacherFile(text, None)
    parts = text.split(":")
    splits = [(":".join(parts[:n]), ":".join(parts[n:])) for n in range(1, len(parts))]
    for head, tail in splits if not Path(text).exists() else ():
        name, _, key = tail.rpartition("@")
        for arch, last in ((tail, None), (name, key)):
            if head and arch in known:
                path, inner = located(head)
                return TeacherFile(arch, path, last or inner)
    path, inner = located(text)
    refusals = [known.refusal(name) for name in (text, *(tail for _, tail in splits))]
    if not path.exists() and any(refusals):
        raise UsageError(f"--teachers: {[each for each in refusals if each][-1]}")
    if splits and not path.exists():
        arch = parts[-1].partition("@")[0]
        raise UsageError(f"--teachers: {text!r}: unknown architecture {arch!r}; see models/__init__.py")
    if not path.is_file():
        raise UsageError(f"--teachers: there is no checkpoint {str(path)!r}")
    return TeacherFile(_arch_of(path, known), path, inner)


def _arch_of(path: Path, known: Architectures) -> str:
    """The architecture that a checkpoint or its folder says."""
    try:
        state = foreign.read(path)
    except Damaged as error:
        why = known.refusal(str(path))
        raise UsageError(f"--teachers: {str(path)!r} cannot be loaded: {error}{f'; {why}' if why else ''}") from None
    # The originals name the folder: resnet32x4_vanilla, wrn_40_2_cifar100_lr_0.05…
    named = [name for name in known if path.parent.name.startswith(name)]
    arch = architecture(state, known) or max(named, key=len, default=None)
    if arch is None:
        said = state.get("arch")
        named_otherwise = isinstance(said, str) and said
        says = (
            f"calls itself {said!r}, which fits no network here" if named_otherwise else "does not say its architecture"
        )
        raise UsageError(f"--teachers: {str(path)!r} {says}; write {path}:ARCH")
    if getattr(known[arch], "outside", False):
        raise UsageError(f"--teachers: {str(path)!r} says that its network is {arch}; write {path}:{arch} to use that")
    return arch


def require_files(files: Sequence[TeacherFile], dataset: str, source: str) -> None:
    """Raise one UsageError with the commands that train what is missing; ``source`` is what lists the files."""
    missing = [file for file in files if file.path and not file.path.is_file()]
    if missing:
        commands = "\n".join(f"  {training_command(file, dataset)}" for file in missing)
        what = ", ".join(str(file.path) for file in missing)
        elsewhere = any(run_prefix(file, dataset) is None for file in missing)
        how = f"train it, and name its last.pth in {source}:" if elsewhere else "train it with"
        raise UsageError(f"{source}: there is no {what}; {how}\n{commands}")


def run_prefix(file: TeacherFile, dataset: str) -> str | None:
    """What the name of its run folder begins with, if ``train_teacher.py`` would have named that folder so."""
    prefix = f"{file.name.replace('/', '.')}-{dataset}-"
    return prefix if file.path and file.path.parent.name.startswith(prefix) else None


def training_command(file: TeacherFile, dataset: str) -> str:
    """The command whose run folder holds ``file``: its name spells the options out. For other folders, a plain one."""
    command = f"python train_teacher.py --model {file.arch} --dataset {dataset}"
    prefix = run_prefix(file, dataset)
    if prefix is None or file.path is None:
        return f"{command} --trial 0"
    words = re.split(r"-(?=[A-Za-z_]+(?:=|-|$))", file.path.parent.name.removeprefix(prefix))
    options = [f"--{word.replace('=', ' ', 1)}" for word in words]
    kind = file.path.parent.parent
    if kind.name == "teachers" and kind.parent != Path("save"):
        options.append(f"--save_dir {shlex.quote(str(kind.parent))}")
    return " ".join([command, *options])


def fingerprint(files: Sequence[TeacherFile]) -> str:
    """``3xresnet20@1a2b3c``: how many of what, and six letters of the paths' checksum, for the run's name."""
    archs = [file.name for file in files]
    kinds = "+".join(f"{archs.count(arch)}x{arch}" for arch in dict.fromkeys(archs))
    kinds = kinds if len(kinds) <= 60 else f"{len(files)}xmixed"
    lines = (
        f"{file.name} {file.path.as_posix() if file.path else ''}"
        + (f"@{file.key}" if file.key else "")
        + (f" {json.dumps(file.special, default=str)}" if file.special else "")
        for file in files
    )
    told = recorded("\n".join(lines)).encode("utf-8", "surrogateescape")
    return f"{kinds}@{sha256(told).hexdigest()[:6]}"
