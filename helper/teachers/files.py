"""Where teachers lie: what ``setting.py`` or ``--teachers`` says, and what runs call and record of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from helper import foreign
from helper.checkpoint import Damaged
from helper.errors import UsageError, unknown
from helper.names import local, recorded
from helper.teachers.record import Classes, Eyes, Teacher
from helper.weights import architecture, located

SPECIAL = ("mean", "std", "size", "channels", "classes")
"""What may be said of a teacher beside where it lies."""

PLAIN = Eyes()


@dataclass(frozen=True)
class TeacherFile:
    """One teacher.

    Attributes:
        arch: its architecture.
        path: its checkpoint.
        key: which of several weights in it.
        eyes: how it wants its images, as far as a person has said it.
        classes: of :class:`Teacher`.
    """

    arch: str
    path: Path
    key: str | None = None
    eyes: Eyes = PLAIN
    classes: Classes | None = None

    def __str__(self) -> str:
        """As ``--teachers`` takes it: ``PATH:ARCH[@KEY]``, then as JSON what is special about it."""
        plain = f"{self.path}:{self.arch}" + (f"@{self.key}" if self.key else "")
        return f"{plain} {json.dumps(self.special, default=str)}" if self.special else plain

    @property
    def special(self) -> dict[str, Any]:
        """What is said of its images and its classes, such that JSON can hold it."""
        classes = self.classes if self.classes is None else {"classes": _in_json(self.classes)}
        return {**self.eyes.said(), **(classes or {})}

    def about(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return {"arch": self.arch, "path": str(self.path), **({"key": self.key} if self.key else {}), **self.special}

    @classmethod
    def recorded(cls, about: Mapping[str, Any]) -> TeacherFile:
        """The teacher that :meth:`about` has described, among other things."""
        return cls(about["arch"], Path(about["path"]), about.get("key"), *_special("result.json", about))


def chosen_teachers(
    listed: Sequence[tuple[str, str] | Teacher],
    given: Sequence[str] | None,
    teacher_num: int | None,
    dataset: str,
    known: Mapping[str, Callable[..., nn.Module]],
) -> list[TeacherFile]:
    """The teachers that the options choose.

    Args:
        listed: of ``setting.py`` for the dataset: ``(architecture, path[@key])``, or a :class:`Teacher`.
        given: ``--teachers path[:arch][@key] …``, which override the list; see :meth:`TeacherFile.__str__`.
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
            raise UsageError(
                f"{source}: unknown architecture {file.arch!r} of {str(file.path)!r}; see models/__init__.py"
            )
    return files[:teacher_num]


def _listed(entry: tuple[str, str] | Teacher) -> TeacherFile:
    """An entry of ``setting.py``."""
    teacher = entry if isinstance(entry, Teacher) else Teacher(*entry)
    if teacher.path is None:
        raise UsageError(f"setting.py: a teacher {teacher.arch!r} has no checkpoint; name its file")
    path, key = located(local(str(teacher.path)))
    return TeacherFile(teacher.arch, path, key, *_special(f"setting.py: {str(path)!r}", vars(teacher)))


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


def _parse(text: str, known: Mapping[str, Callable[..., nn.Module]]) -> TeacherFile:
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


def _plain(text: str, known: Mapping[str, Callable[..., nn.Module]]) -> TeacherFile:
    """``path:arch``, or a path whose checkpoint or folder says the architecture; ``@key`` behind either."""
    head, _, tail = text.rpartition(":")
    arch, _, key = tail.partition("@")
    if head and arch in known and not Path(text).exists():
        path, inner = located(head)
        return TeacherFile(arch, path, key or inner)
    path, inner = located(text)
    if head and not path.exists():
        raise UsageError(f"--teachers: {text!r}: unknown architecture {arch!r}; see models/__init__.py")
    if not path.is_file():
        raise UsageError(f"--teachers: there is no checkpoint {str(path)!r}")
    return TeacherFile(_arch_of(path, known), path, inner)


def _arch_of(path: Path, known: Mapping[str, Callable[..., nn.Module]]) -> str:
    """The architecture that a checkpoint or its folder says."""
    try:
        state = foreign.read(path)
    except Damaged as error:
        raise UsageError(f"--teachers: {str(path)!r} cannot be loaded: {error}") from None
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
    return arch


def require_files(files: Sequence[TeacherFile], dataset: str, source: str) -> None:
    """Raise one UsageError with the commands that train what is missing; ``source`` is what lists the files."""
    missing = [file for file in files if not file.path.is_file()]
    if missing:
        commands = "\n".join(f"  {training_command(file, dataset)}" for file in missing)
        what = ", ".join(str(file.path) for file in missing)
        elsewhere = any(run_prefix(file, dataset) is None for file in missing)
        how = f"train it, and name its last.pth in {source}:" if elsewhere else "train it with"
        raise UsageError(f"{source}: there is no {what}; {how}\n{commands}")


def run_prefix(file: TeacherFile, dataset: str) -> str | None:
    """What the name of its run folder begins with, if ``train_teacher.py`` would have named that folder so."""
    prefix = f"{file.arch.replace('/', '.')}-{dataset}-"
    return prefix if file.path.parent.name.startswith(prefix) else None


def training_command(file: TeacherFile, dataset: str) -> str:
    """The command whose run folder holds ``file``: its name spells the options out. For other folders, a plain one."""
    command = f"python train_teacher.py --model {file.arch} --dataset {dataset}"
    prefix = run_prefix(file, dataset)
    if prefix is None:
        return f"{command} --trial 0"
    words = re.split(r"-(?=[A-Za-z_]+(?:=|-|$))", file.path.parent.name.removeprefix(prefix))
    options = [f"--{word.replace('=', ' ', 1)}" for word in words]
    kind = file.path.parent.parent
    if kind.name == "teachers" and kind.parent != Path("save"):
        options.append(f"--save_dir {shlex.quote(str(kind.parent))}")
    return " ".join([command, *options])


def fingerprint(files: Sequence[TeacherFile]) -> str:
    """``3xresnet20@1a2b3c``: how many of what, and six letters of the paths' checksum, for the run's name."""
    archs = [file.arch for file in files]
    kinds = "+".join(f"{archs.count(arch)}x{arch}" for arch in dict.fromkeys(archs))
    kinds = kinds if len(kinds) <= 60 else f"{len(files)}xmixed"
    lines = (
        f"{file.arch} {file.path.as_posix()}"
        + (f"@{file.key}" if file.key else "")
        + (f" {json.dumps(file.special, default=str)}" if file.special else "")
        for file in files
    )
    told = recorded("\n".join(lines)).encode("utf-8", "surrogateescape")
    return f"{kinds}@{sha256(told).hexdigest()[:6]}"
