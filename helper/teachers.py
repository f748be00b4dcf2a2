"""Frozen teachers: where they lie, and what they say of a batch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from helper import foreign
from helper.checkpoint import Damaged
from helper.errors import UsageError
from helper.frozen import freeze
from helper.names import local, recorded
from helper.seen import Observed, Reads, observe
from helper.teacher_cache import TeacherCache, weights_checksum
from helper.weights import Labels, architecture, load_network, located


@dataclass(frozen=True)
class TeacherFile:
    """One teacher: its architecture, its checkpoint, and which of several weights in it."""

    arch: str
    path: Path
    key: str | None = None

    def __str__(self) -> str:
        """As ``--teachers`` takes it."""
        return f"{self.path}:{self.arch}" + (f"@{self.key}" if self.key else "")


def chosen_teachers(
    listed: Sequence[tuple[str, str]],
    given: Sequence[str] | None,
    teacher_num: int | None,
    dataset: str,
    known: Mapping[str, Callable[..., nn.Module]],
) -> list[TeacherFile]:
    """The teachers that the options choose.

    Args:
        listed: of ``setting.py`` for the dataset: ``(architecture, path[@key])``.
        given: ``--teachers path[:arch][@key] …``, which override the list.
        teacher_num: how many of them, from the first; None means all.
        known: the architectures that exist, and what builds them.

    Raises:
        UsageError: none is listed, fewer than ``--teacher_num``, or an architecture is unknown.
    """
    files = (
        [_parse(text, known) for text in given]
        if given
        else [TeacherFile(arch, *located(local(path))) for arch, path in listed]
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
            raise UsageError(
                f"{source}: unknown architecture {file.arch!r} of {str(file.path)!r}; see models/__init__.py"
            )
    return files[:teacher_num]


def _parse(text: str, known: Mapping[str, Callable[..., nn.Module]]) -> TeacherFile:
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
    lines = (f"{file.arch} {file.path.as_posix()}" + (f"@{file.key}" if file.key else "") for file in files)
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
        self, images: torch.Tensor, reads: Reads, views: torch.Tensor | None = None
    ) -> tuple[list[Observed], torch.Tensor]:
        """Images ``[B, 3, H, W]`` → what each teacher makes of them, and all logits ``[K, B, C]``.

        From the cache where logits are all that is read; ``views``: see :meth:`logits`.
        """
        if reads.features:
            images = as_autocast(images)
            observed = [observe(network, images, reads) for network in self.networks]
            return observed, torch.stack([each.logits for each in observed])
        logits = self.logits(images, views)
        return [Observed(*each) for each in zip(logits, [()] * len(logits), self.networks, strict=True)], logits


def as_autocast(images: torch.Tensor) -> torch.Tensor:
    """``images`` in the type that autocast would convert them to for each network anew."""
    kind = images.device.type
    return images.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else images


def load_teachers(
    files: Sequence[TeacherFile],
    build: Callable[[str], nn.Module],
    labels: Labels,
    images: torch.Tensor,
    precision: str,
) -> tuple[Teachers, list[str]]:
    """Construct, load and freeze the teachers.

    Args:
        files: where they lie.
        build: architecture → network, on the device.
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
        network = build(file.arch)
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
