"""What every distillation loss has in common: one student, one teacher, one value per sample."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from helper.batch import Batch, When
from helper.errors import UsageError, nearest
from helper.kl import full_precision
from helper.registry import Registry, Unread
from helper.seen import Reads, Seen, Shape


class Pair(NamedTuple):
    """What a loss is built from.

    Attributes:
        student, teacher: shapes of the stage outputs and of the pooled vector, which comes last; empty for a network of
            which only logits are read.
        num_classes: C.
        labels: of all images that are trained on, int64 ``[N]``, as ``Batch.places`` numbers them, if any.
        batch_size: how many samples a process compares at once in training; 0: not known.
        teacher_norms: for each entry of ``teacher`` scale and shift ``[C]`` of the batch normalisation that the map
            before the ReLU comes from, or None; empty unless such maps are read.
    """

    student: Sequence[Shape] = ()
    teacher: Sequence[Shape] = ()
    num_classes: int = 0
    labels: Tensor | None = None
    batch_size: int = 0
    teacher_norms: Sequence[tuple[Tensor, Tensor] | None] = ()


class Distiller(nn.Module):
    """A loss between one student and one teacher.

    A subclass says what it reads of either network and answers :meth:`compare`. Its constructor takes a :class:`Pair`;
    keyword-only arguments are hyperparameters, which the command line offers as flags. What it remembers from batch to
    batch are buffers, so that checkpoints hold it; under several processes each of them has to remember the same
    (``helper.distributed.gathered`` gives the batch of all).

    A loss that reads logits only takes ``kd``'s place under ``-a``; any other stands beside it under ``-b``.
    """

    student: Reads = Reads()
    teacher: Reads = Reads()
    broadcasts: ClassVar[bool] = False
    """Of a loss on logits: whether :meth:`compare` takes all teachers' logits ``[K, B, C]`` at once → ``[K, B]``.

    The student's are ``[B, C]`` where there are :meth:`slopes`, else ``[K, B, C]`` too, once for each teacher.
    """
    sums_to_zero: ClassVar[bool] = False
    """Whether its gradient with respect to what it reads of the student has the mean 0 over every batch.

    It says nothing then, and weightings that look at gradients get those of all samples, one after the other.
    """
    predicts: ClassVar[bool] = False
    """Whether the student's answers are what the teacher's classifier makes of :meth:`as_teacher_reads`."""
    unread: ClassVar[Unread] = {}
    """Of hyperparameters: another option, and at which of its values it is no use to type them."""
    warmup: int = 0
    """Over so many epochs its weight rises to what ``-a`` or ``-b`` says: of n, the first has 1/n of it."""

    def __init__(self, pair: Pair = Pair()) -> None:  # noqa: B008 a tuple
        super().__init__()

    @classmethod
    def on_logits(cls) -> bool:
        """Whether it reads logits and nothing else, so that cached logits serve it."""
        return not (cls.student.features or cls.teacher.features)

    def factor(self, when: When) -> float:
        """What ``-a`` or ``-b`` is multiplied by in an epoch, see :attr:`warmup`."""
        return min(when.epoch / self.warmup, 1.0) if self.warmup else 1.0

    def first_epochs(self, epochs: int) -> int:
        """Before a run of so many epochs, in how many others a part of the loss learns from the teacher alone.

        That part are the parameters that require no gradient, so that they stay afterwards.
        """
        return 0

    def first_loss(self, teacher: Seen) -> Tensor:
        """What they learn, a scalar; ``teacher`` as in :meth:`compare`."""
        raise NotImplementedError

    def prepare(self, student: Seen) -> Any:
        """What the loss makes of the student before it looks at the teacher; the student as it is, by default."""
        return student

    def compare(self, prepared: Any, teacher: Seen, batch: Batch, when: When) -> Tensor:
        """The loss of each sample ``[B]``; or of the batch as a whole, a scalar, which counts for each sample.

        Args:
            prepared: what :meth:`prepare` returned.
            teacher: what it reads of the teacher, without gradients.
            batch: images, labels and numbers of the samples.
            when: epoch and step.
        """
        raise NotImplementedError

    def forward(self, student: Seen, teacher: Seen, batch: Batch, when: When) -> Tensor:
        return self.compare(self.prepare(student), teacher, batch, when)

    def as_teacher_reads(self, prepared: Any) -> Tensor | None:
        """A map ``[B, C_t, H, W]`` of the student that the teacher's own classifier can read, if the loss makes one."""
        return None

    def as_vectors(self, prepared: Any, teacher: Seen) -> tuple[Tensor, Tensor] | None:
        """Of student and teacher a vector ``[B, D]`` each, if what is compared can be pooled to such."""
        return None

    def slopes(self, student: Seen, teacher: Seen) -> Tensor:
        """``[K, N]``, where there is a closed form, for :attr:`broadcasts`: see ``TeacherLosses.gradients_of``."""
        raise NotImplementedError


class FeatureDistiller(Distiller):
    """A loss on one map of either side: an adapter brings the student's into the teacher's shape, both are compared.

    Args:
        pair: the networks' shapes.
        layer: which map, on both sides: a stage output by its number, -2 being the last map, or a stage or child by its
            name. ``STUDENT:TEACHER`` where they differ, and on either side ``A,B``: the first that the network has.

    Raises:
        UsageError: the layer is out of range or no map on either side.
    """

    student = teacher = Reads(maps=(-2,))

    def __init__(self, pair: Pair, layer: int | str = -2) -> None:
        super().__init__(pair)
        mine, _, theirs = str(layer).partition(":")
        self.student, self.student_shape = _map_of(pair.student, mine, "student")
        self.teacher, self.teacher_shape = _map_of(pair.teacher, theirs or mine, "teacher")

    def adapt(self, student_map: Tensor) -> Tensor:
        """Student map ``[B, C, H, W]`` → what is compared: the teacher's shape ``[B, C_t, H_t, W_t]``, usually."""
        raise NotImplementedError

    def distance(self, adapted: Tensor, teacher_map: Tensor) -> Tensor:
        """Mean squared error over C, H and W of each sample: two maps ``[B, C_t, H_t, W_t]`` → ``[B]``."""
        return (full_precision(adapted) - full_precision(teacher_map)).square().flatten(1).mean(1)

    def prepare(self, student: Seen) -> Tensor:
        return self.adapt(student.maps[0])

    def compare(self, prepared: Tensor, teacher: Seen, batch: Batch, when: When) -> Tensor:
        return self.distance(prepared, teacher.maps[0])

    def as_vectors(self, prepared: Tensor, teacher: Seen) -> tuple[Tensor, Tensor] | None:
        maps = (prepared, teacher.maps[0])
        mine, theirs = (full_precision(each.detach()).mean((2, 3)) for each in maps)
        return (mine, theirs) if mine.shape == theirs.shape else None


def _map_of(shapes: Sequence[Shape], layers: str, whose: str) -> tuple[Reads, tuple[int, int, int]]:
    """How to read the first of the layers ``A,B,…`` that a network has, and the shape of that map."""
    stages, named = getattr(shapes, "stages", ()), getattr(shapes, "named", {})
    whose = " ".join(filter(None, (whose, getattr(shapes, "label", ""))))
    for layer in layers.split(","):
        if layer in named and layer not in stages:
            return Reads(named=(layer,)), named[layer]
        number = stages.index(layer) if layer in stages else int(layer) if re.fullmatch(r"-?\d+", layer) else None
        if number is not None:
            position, maps = number + len(shapes) if number < 0 else number, _maps_in(shapes, whose)
            if position in maps:
                return Reads(maps=(number,)), maps[position]
    if number is None:
        near = nearest(layer, [*stages, *named])
        raise UsageError(f"--hint_layer: {layers!r} is no child of the {whose} that returns a map{near}")
    raise UsageError(
        f"--hint_layer: {layers} is no feature map of the {whose}; choose from 0 to {max(maps)} (-2 is the last map), "
        "or a child's name"
    )


def _maps_in(shapes: Sequence[Shape], whose: str) -> dict[int, tuple[int, int, int]]:
    """The number of each stage output that is a map → its shape."""
    maps = {index: (shape[0], shape[1], shape[2]) for index, shape in enumerate(shapes) if len(shape) == 3}
    if not maps:
        raise UsageError(f"--distill: the {whose} has no feature maps to compare; choose kd")
    return maps


def logits_of(*networks: Seen) -> list[Tensor]:
    """Each network's logits in float32 or better, for a loss that has declared them."""
    return [full_precision(each.logits) for each in networks if each.logits is not None]


def vectors_of(*networks: Seen) -> list[Tensor]:
    """Each network's pooled vectors in float32 or better, for a loss that has declared them."""
    return [full_precision(each.vector) for each in networks if each.vector is not None]


distill_dict: Registry[type[Distiller]] = Registry("--distill")
