"""Teachers that know other classes than the dataset's: what their logits stand for, and which samples they teach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helper.batch import Batch
from helper.errors import UsageError, unknown
from helper.seen import Seen
from helper.teachers.record import Classes
from helper.weights import Labels

NOT_AT_ALL = 1e4
"""So far below its largest logit is a teacher's on a class that it does not know: finite, and of probability 0."""


class ClassMap(NamedTuple):
    """What a teacher's logits stand for.

    Attributes:
        known: the dataset's classes that it knows, ascending.
        logits: the number of its logit for each of them.
        outputs: how many logits it has; None where that is not said.
    """

    known: tuple[int, ...]
    logits: tuple[int, ...]
    outputs: int | None


def class_map(classes: Classes, labels: Labels, what: str) -> ClassMap:
    """What ``classes`` of a :class:`helper.teachers.record.Teacher` says.

    Args:
        classes: as a person has written it.
        labels: the dataset's.
        what: begins the line of an error.

    Raises:
        UsageError: a class is unknown, or a class or logit is there twice.
    """
    names = list(classes)
    logits = list(classes.values()) if isinstance(classes, Mapping) else list(range(len(names)))
    if not all(type(logit) is int and logit >= 0 for logit in logits):
        raise UsageError(f"{what}: classes: {logits} are to be the numbers of its logits, counted from 0")
    known = [_number(name, labels, what) for name in names]
    for kind, numbers, shown in (("class", known, names), ("logit", logits, logits)):
        for place, number in enumerate(numbers):
            if number in numbers[:place]:
                raise UsageError(f"{what}: classes: the {kind} {shown[place]!r} is there twice")
    pairs = sorted(zip(known, logits, strict=True))
    outputs = None if isinstance(classes, Mapping) else len(names)
    return ClassMap(tuple(number for number, _ in pairs), tuple(logit for _, logit in pairs), outputs)


def _number(name: Any, labels: Labels, what: str) -> int:
    """A class by its name or number → its number."""
    if isinstance(name, str) and labels.classes is not None:
        if name not in labels.classes:
            raise unknown(f"{what}: classes", name, labels.classes)
        return labels.classes.index(name)
    if type(name) is not int or not 0 <= name < labels.num_classes:
        raise UsageError(
            f"{what}: classes: {name!r} is no class of {labels.dataset}; choose from 0 to {labels.num_classes - 1}"
        )
    return name


class Chosen(nn.Module):
    """A network with some of its logits alone, in another order; all else is as it was, names too.

    Args:
        network: frozen.
        logits: the numbers of those that count.
    """

    def __init__(self, network: nn.Module, logits: Sequence[int]) -> None:
        super().__init__()
        # shared, and no child, whose name would be a prefix of all others
        self._parameters, self._buffers, self._modules = network._parameters, network._buffers, network._modules
        self._whole: tuple[Any, ...] = (network,)
        self._logits = torch.tensor(logits, device=next(iter(network.state_dict().values())).device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_whole"][0], name)

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        output = self._whole[0](*arguments, **settings)
        return (output[0], self._of(output[1])) if isinstance(output, tuple) else self._of(output)

    def classify(self, maps: Tensor) -> Tensor:
        """Logits ``[B, C]`` of its last map."""
        return self._of(self._whole[0].classify(maps))

    def classify_vector(self, vector: Tensor) -> Tensor:
        """Logits ``[B, C]`` of its pooled vector."""
        return self._of(self._whole[0].classify_vector(vector))

    def class_activation_maps(self, maps: Tensor) -> Tensor:
        """``[B, C, H, W]`` of its last map."""
        return self._of(self._whole[0].class_activation_maps(maps))

    def _of(self, logits: Tensor) -> Tensor:
        return logits.index_select(1, self._logits)


class Known:
    """Which of the dataset's C classes K teachers know, and what follows from it for a batch.

    A teacher has no say on a sample of a class that it does not know. On the others it is compared with the student
    over the classes that it knows: a loss on logits sees those of both networks, and the label's place among them.

    Args:
        known: of each teacher the classes, ascending; None: all.
        num_classes: C.
        device: of the batches.

    Attributes:
        knows: bool ``[K, C]``.
    """

    def __init__(self, known: Sequence[Sequence[int] | None], num_classes: int, device: torch.device) -> None:
        each = [list(range(num_classes)) if classes is None else list(classes) for classes in known]
        knows, places = torch.zeros(2, len(each), num_classes, dtype=torch.int64)
        for k, classes in enumerate(each):
            knows[k, classes], places[k, classes] = 1, torch.arange(len(classes))
        self.knows, self.places = knows.bool().to(device), places.to(device)  # [K, C]
        self.share = (knows * len(each) / knows.sum(0).clamp_min(1)).to(device)  # [K, C]
        self.numbers = [torch.tensor(classes, device=device) for classes in each]  # [C_k]

    def spread(self, logits: Iterable[Tensor]) -> Tensor:
        """Each teacher's logits ``[B, C_k]`` → ``[K, B, C]``."""
        return torch.stack([self._spread(each, numbers) for each, numbers in zip(logits, self.numbers, strict=True)])

    def _spread(self, logits: Tensor, numbers: Tensor) -> Tensor:
        lowest = logits.detach().amax(1, keepdim=True) - NOT_AT_ALL
        return lowest.expand(-1, self.knows.shape[1]).index_copy(1, numbers, logits)

    def of_student(self, seen: Sequence[Seen]) -> list[Seen]:
        """What each teacher's loss reads of the student → the same over the classes that this teacher knows."""
        return [each.of_classes(numbers) for each, numbers in zip(seen, self.numbers, strict=True)]

    def of_batch(self, batch: Batch) -> list[Batch]:
        """The batch for each teacher: labels are places among the classes that it knows, 0 for all others."""
        return [batch._replace(target=each) for each in self.places[:, batch.target]]

    def shared(self, losses: Tensor, target: Tensor) -> Tensor:
        """Losses ``[K, B]``, 0 for those who do not know the class; the others' are K/n times as large for n of them.

        So a sample that few know is taught as much as one that all know.
        """
        return losses * self.share[:, target].to(losses.dtype)
