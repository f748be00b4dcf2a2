"""What a weighting method is told about the teachers, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch

from helper import distributed
from helper.batch import When
from helper.registry import Registry, Unread


@dataclass
class TeacherLosses:
    """K teachers' losses on one batch of B samples, described once for every weighting method.

    What is costly is given as a function and computed only when a method asks for it.

    Args:
        losses: ``[K, B]``, teacher k's loss on each sample.
        target: ``[B]``, the labels.
        level: whether the losses compare logits or feature maps.
        logits_of: → ``[K, B, C]``: the teachers' own logits, or, where the student's adapted map can be read by the
            teachers' classifiers, what those make of it (with a gradient to the student).
        gradients_of: → ``[K, N]``: the mean over the batch of the gradient of teacher k's batch-mean loss with
            respect to what the loss reads of the student, flattened and joined (logits: N = C, a map: N = C·H·W); the
            batch is this process's part. Of a loss whose mean gradient is always 0 the gradients of all samples of all
            processes instead (N = B·D).
        student_logits: ``[B, C]``, without a gradient.
        when: epoch and step.
        knows: bool ``[K, C]``: which classes each teacher knows; None: all. On a sample of a class that it does not
            know its loss is 0; the losses of the others are K/n times as large where n of K know the class. A class
            that it does not know has the probability 0 in its logits.
        own_logits: ``[K, B, C]``, see :attr:`teacher_logits`.
        vectors: for methods that read it, of student and teacher k ``[B, D_k]`` each, without a gradient: what a loss
            on maps compares, pooled; empty where there is no such thing.
    """

    losses: torch.Tensor
    target: torch.Tensor
    level: Literal["logit", "feature"]
    logits_of: Callable[[], torch.Tensor]
    gradients_of: Callable[[], torch.Tensor]
    student_logits: torch.Tensor | None = None
    when: When = When(1, 1)  # noqa: RUF009 a tuple
    knows: torch.Tensor | None = None
    own_logits: torch.Tensor | None = None
    vectors: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()

    @property
    def teacher_logits(self) -> torch.Tensor:
        """``[K, B, C]``, the teachers' own at either level."""
        return self.logits if self.own_logits is None else self.own_logits

    @cached_property
    def logits(self) -> torch.Tensor:
        """``[K, B, C]``"""
        return self.logits_of()

    @cached_property
    def gradients(self) -> torch.Tensor:
        """``[K, N]`` in float64, without a graph, of the batch of all processes together."""
        mine = self.gradients_of().detach().double()
        return distributed.mean(mine) / distributed.size()  # the loss, too, is a mean over as many times more samples

    @cached_property
    def gram(self) -> torch.Tensor:
        """``[K, K]`` inner products of the gradients, in float64: squares of 1e-12 still have all their digits."""
        return self.gradients @ self.gradients.T

    @cached_property
    def has_say(self) -> torch.Tensor | None:
        """Which teachers know the class of each sample, bool ``[K, B]``; None: all."""
        return None if self.knows is None else self.knows[:, self.target]

    def where_known(self, values: torch.Tensor, otherwise: float) -> torch.Tensor:
        """``values`` ``[K, B]`` of the teachers that know a sample's class; ``otherwise`` for those that do not."""
        return values if self.has_say is None else values.masked_fill(~self.has_say, otherwise)


class EnsembleMethod:
    """K teachers → weights.

    Keyword-only arguments of a subclass's constructor are its hyperparameters: the command line offers them as flags.
    A subclass answers :meth:`weights`; the rest has defaults. What it promises (``symmetric``, ``nonnegative``,
    ``differentiable``, :meth:`total`) the contract tests hold it to; they ask for nothing that it does not promise.

    There is one instance for each level. A method that owns networks or remembers tensors derives from ``nn.Module``
    too, builds them in :meth:`attach`, and has them in every checkpoint; what gets a gradient from the student's loss
    is trained with it.
    """

    released_division: ClassVar[bool] = False
    """Whether the authors' code divides the weighted sum by K once more (``--kd_scale released``)."""
    constant: ClassVar[bool] = False
    """Of a method that looks at gradients: whether its weights are always ``[K]`` and have no gradient themselves.

    Then what led to the gradients need not be kept in memory.
    """
    reads_vectors: ClassVar[bool] = False
    """Whether it looks at ``TeacherLosses.vectors``."""
    symmetric: ClassVar[bool] = False
    """Whether the same teachers in another order get the same weights in that order: no chance, no favourites."""
    nonnegative: ClassVar[bool] = False
    """Whether no weight is below 0."""
    unread: ClassVar[Unread] = {}
    """Of hyperparameters: another option, and at which of its values it is no use to type them."""
    differentiable: bool | None = None
    """Whether, at the feature level, a gradient flows through the weights to the student; None: sometimes."""

    def require_valid(self, teacher_num: int) -> None:
        """Refuse hyperparameters that make no sense for so many teachers, before anything is trained.

        Raises:
            UsageError: naming the option, its value and the valid range.
        """

    def total(self, teacher_num: int) -> float | None:
        """What :meth:`weights` sum to over K ≥ 2 teachers, for every sample; None: not always the same."""
        return None

    def attach(self, teachers: TeacherLosses) -> None:
        """Build what depends on shapes; called once, before training, with what a batch of black images gives."""

    def weights(self, teachers: TeacherLosses) -> torch.Tensor:
        """Weights ``[K]``, or ``[K, B]`` where each sample has its own; called for K ≥ 2."""
        raise NotImplementedError

    def after_step(self, losses: torch.Tensor) -> None:
        """Called after each update with the student's whole loss on each sample of this process, ``[B]``."""

    def after_epoch(self) -> None:
        """Called after the last step of each epoch."""

    def diagnostics(self, teachers: TeacherLosses, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named scalars worth a curve in TensorBoard; ``weights`` are those that :func:`weigh` returned."""
        return {}


ensemble_dict: Registry[type[EnsembleMethod]] = Registry("--ensemble_method")

NOTHING = 1e-3
"""Positive and negative weights that sum to a smaller part of their size cancel out; scaled up they would explode."""
NOWHERE = 1e4
"""Of such a difference no exponential is left."""


def weigh(method: EnsembleMethod, teachers: TeacherLosses, kd_scale: str) -> torch.Tensor:
    """The weights that multiply the teachers' losses.

    Args:
        method: any entry of ``ensemble_dict``, constructed.
        teachers: K ≥ 1 teachers' losses.
        kd_scale: ``released`` divides by K where the authors' code does; ``unit`` makes every method's weights sum
            to 1, so that equal ``-a`` and ``-b`` mean equal strength; it needs a sum other than 0.

    Returns:
        ``[K]`` or ``[K, B]``; ones for a single teacher, whatever the method.

    Raises:
        TypeError: the method says that its weights are constant, and they are not; or they have another shape.
    """
    teacher_num = teachers.losses.shape[0]
    if teacher_num == 1:
        return torch.ones_like(teachers.losses[:, 0])
    weights = method.weights(teachers)
    if weights.shape not in (teachers.losses.shape, teachers.losses.shape[:1]):
        shapes = f"{list(weights.shape)}, which is neither [K] nor [K, B] of {list(teachers.losses.shape)}"
        raise TypeError(f"{type(method).__name__}.weights: {shapes}")
    if method.constant and (weights.ndim != 1 or weights.requires_grad):
        raise TypeError(f"{type(method).__name__}.constant is True, but its weights are per sample or have a gradient")
    if kd_scale == "unit":
        weights = unit_sum(weights)
    elif method.released_division:
        weights = weights / teacher_num
    return weights if weights.ndim == 1 or teachers.has_say is None else among_those(teachers.has_say, weights)


def among_those(has_say: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weights ``[K, B]`` → the same for teachers that know a sample's class: the others' are shared out among them.

    In proportion to their own, or in equal parts where one is negative or all are nothing; where all know it the
    weights stay. Since their losses are K/n times as large, the weights sum to n/K of what they did, so that every
    sample is taught as much.

    Args:
        has_say: bool ``[K, B]``.
        weights: ``[K, B]``.
    """
    total, count = weights.sum(0), has_say.sum(0)  # [B]
    own = weights * has_say
    left = own.sum(0)
    equal = (count <= 1) | (own.amin(0) < 0) | (left <= NOTHING * total.abs())
    # divided by 1 there: the gradient of what is not chosen has to be finite too
    shares = torch.where(equal, has_say / count.clamp_min(1), own / torch.where(equal, 1.0, left))
    return torch.where(count == len(weights), weights, shares * total * (count / len(weights)))


def unit_sum(weights: torch.Tensor) -> torch.Tensor:
    """Weights ``[K]`` or ``[K, B]`` over their sum; 1/K where they sum to nothing, compared with their size."""
    total = weights.sum(0)
    nothing = total.abs() <= NOTHING * weights.abs().sum(0)
    # divided by 1 there: the gradient of what is not chosen has to be finite too
    return torch.where(nothing, 1 / len(weights), weights / torch.where(nothing, 1.0, total))


def combine(weights: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """``Σ_k mean_b(w_kb · loss_kb)`` of weights ``[K]`` or ``[K, B]`` and losses ``[K, B]``: a scalar."""
    per_sample = weights if weights.ndim == 2 else weights[:, None]  # [K, B] or [K, 1]
    return (per_sample.to(losses.dtype) * losses).mean(1).sum()
