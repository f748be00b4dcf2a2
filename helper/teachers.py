"""Frozen teachers: where they lie, and what they say of a batch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from helper import foreign
from helper.checkpoint import Damaged
from helper.errors import UsageError
from helper.frozen import freeze
from helper.names import local, recorded
from helper.registry import Registry
from helper.seen import Observed, Reads, observe
from helper.teacher_cache import TeacherCache, weights_checksum
from helper.weights import Labels, architecture, load_network, located, publishes

Architectures: TypeAlias = Registry[Any]


@dataclass(frozen=True)
class TeacherFile:
    """One teacher: its architecture, its checkpoint, and which of several weights in it.

    Attributes:
        path: None where the weights come from where the architecture comes from.
        run_name: what the names of runs call the architecture, if not ``arch``.
    """

    arch: str
    path: Path | None
    key: str | None = None
    run_name: str | None = None

    def __str__(self) -> str:
        """As ``--teachers`` takes it."""
        return f"{self.path}:{self.arch}" + (f"@{self.key}" if self.key else "") if self.path else self.arch

    @classmethod
    def recorded(cls, about: Mapping[str, Any]) -> TeacherFile:
        """The teacher that :meth:`about` has described."""
        path = about.get("path")
        return cls(about["arch"], path and Path(path), about.get("key"), about.get("run_name"))

    def about(self) -> dict[str, str]:
        """What a run's record says of it."""
        return {name: str(value) for name, value in vars(self).items() if value}

    @property
    def name(self) -> str:
        """What the architecture is, where that matters: the name does not tell what is in a person's file."""
        return self.run_name or self.arch


def chosen_teachers(
    listed: Sequence[tuple[str, str | None]],
    given: Sequence[str] | None,
    teacher_num: int | None,
    dataset: str,
    known: Architectures,
) -> list[TeacherFile]:
    """The teachers that the options choose.

    Args:
        listed: of ``setting.py`` for the dataset: ``(architecture, path[@key])``; None for the path means the weights
            that the architecture's source has.
        given: ``--teachers path[:arch][@key] …`` or ``arch``, which override the list.
        teacher_num: how many of them, from the first; None means all.
        known: the architectures that exist, and what builds them.

    Raises:
        UsageError: none is listed, fewer than ``--teacher_num``, or an architecture is unknown.
    """
    files = (
        [_parse(text, known) for text in given]
        if given
        else [TeacherFile(arch, *(located(local(path)) if path else (None,))) for arch, path in listed]
    )
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


def _parse(text: str, known: Architectures) -> TeacherFile:
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
    paths = [file.path.as_posix() + (f"@{file.key}" if file.key else "") if file.path else "" for file in files]
    lines = (f"{arch} {path}" for arch, path in zip(archs, paths, strict=True))
    told = recorded("\n".join(lines)).encode("utf-8", "surrogateescape")
    return f"{kinds}@{sha256(told).hexdigest()[:6]}"


class Teachers:
    """K trained networks that stay as they are: in eval mode, without gradients of their own.

    Args:
        networks: K networks on one device, of any architectures.
        checksums: of their weights as they were loaded.
    """

    # torch.inference_mode would gain nothing that can be measured over no_grad, and a loss that saves one of these
    # tensors for its backward pass would fail.

    def __init__(self, networks: Sequence[nn.Module], checksums: Sequence[str] = ()) -> None:
        self.networks = [network.eval().requires_grad_(False) for network in networks]
        self.checksums = list(checksums)
        self.cache: TeacherCache | None = None

    def __len__(self) -> int:
        return len(self.networks)

    @torch.no_grad()
    def logits(self, images: torch.Tensor, views: torch.Tensor | None = None) -> torch.Tensor:
        """Images ``[B, 3, H, W]`` → ``[K, B, C]``; from the cache, if there is one, where ``views`` numbers them."""
        images = as_autocast(images)
        if self.cache is not None and views is not None:
            return self.cache.logits(images, views, self.networks)
        return torch.stack([network(images) for network in self.networks])

    @torch.no_grad()
    def observe(
        self, images: torch.Tensor, reads: Reads | Sequence[Reads], views: torch.Tensor | None = None
    ) -> tuple[list[Observed], torch.Tensor]:
        """Images ``[B, 3, H, W]`` → what each teacher makes of them, and all logits ``[K, B, C]``.

        From the cache where logits are all that is read; ``views``: see :meth:`logits`.

        Args:
            reads: of all teachers, or K of them.
        """
        each = [reads] * len(self) if isinstance(reads, Reads) else reads
        if any(one.features for one in each):
            images = as_autocast(images)
            observed = [observe(network, images, one) for network, one in zip(self.networks, each, strict=True)]
            return observed, torch.stack([each.logits for each in observed])
        logits = self.logits(images, views)
        return [Observed(*each) for each in zip(logits, [()] * len(logits), self.networks, strict=True)], logits


def as_autocast(images: torch.Tensor) -> torch.Tensor:
    """``images`` in the type that autocast would convert them to for each network anew."""
    kind = images.device.type
    return images.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else images


def load_teachers(
    files: Sequence[TeacherFile],
    build: Callable[..., nn.Module],
    labels: Labels,
    images: torch.Tensor,
    precision: str,
) -> tuple[Teachers, list[str]]:
    """Construct, load and freeze the teachers.

    Args:
        files: where they lie.
        build: architecture → network, on the device; with ``whole`` it has the weights that its source has.
        labels: what their logits have to stand for.
        images: ``[B, 3, H, W]`` of any content and of the dataset's size.
        precision: of ``--precision``, see :func:`helper.frozen.freeze`.

    Returns:
        the teachers, and lines on what the user should know of them.

    Raises:
        UsageError: a checkpoint is missing, damaged, of another architecture or for other classes.
    """
    networks, checksums, notes = [], [], []
    for file in files:
        network = build(file.arch) if file.path else build(file.arch, whole=True)
        if file.path:
            about, said = load_network(network, file.path, file.arch, labels, "setting.py or --teachers", file.key)
            notes += said
            epoch, epochs = about.get("epoch"), about.get("epochs")
            if file.path.name.startswith("last") and isinstance(epochs, int) and epoch != epochs:
                notes.append(f"{file.path}: trained for {epoch} of {epochs} epochs only")
        checksums.append(weights_checksum(network))
        networks.append(freeze(network, images, precision))
    return Teachers(networks, checksums), notes


def ensemble_logits(logits: torch.Tensor) -> torch.Tensor:
    """The teachers' joint opinion: the logarithm of their mean probability, ``[K, B, C]`` → ``[B, C]``."""
    return logits.float().log_softmax(-1).logsumexp(0)
