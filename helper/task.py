"""What the loop trains. A training script describes one by overriding what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from helper.batch import Batch, When
from helper.meters import Scalars
from helper.recipe import PUBLISHED, Recipe

Context = Callable[[], AbstractContextManager[Any]]


class Task:
    """Networks, and what a step and an evaluation make of them.

    Attributes:
        trained: everything that has weights to train; ``trained["network"]`` is what inference needs.
        recipe: where the learning rate drops unless the options say so.
        rates: factors of the learning rate of children of ``trained``; 1 for those not named.
        decays: their weight decay; ``--weight_decay`` for those not named.
        keep_all: whether ``best.pth`` holds all of ``trained``, since more than ``network`` is used in the end.
        notes: go into ``result.json``, for example the teachers' accuracies.
        about: what every checkpoint says beside what it says of all networks.
        begun_for: so many epochs the run was to have when it began, for weights that grow or fall over a share of them:
            one that is extended leaves them where they are. The loop says it; None: as many as it has now.
    """

    trained: nn.ModuleDict
    recipe: Recipe = PUBLISHED
    rates: Mapping[str, float] = {}
    decays: Mapping[str, float] = {}
    keep_all: bool = False
    notes: Mapping[str, Any] = {}
    about: Mapping[str, Any] = {}
    begun_for: int | None = None

    def step(self, batch: Batch, when: When) -> Scalars:
        """A batch → ``loss``, ``accuracy`` (percent) and any named parts, all scalars.

        The names are the same in all steps of an epoch.
        """
        raise NotImplementedError

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Images → named logits, see :func:`helper.evaluation.evaluate`; the best epoch is chosen by the first name."""
        return {"network": self.trained["network"](images)}

    def compare(self, images: Tensor) -> dict[str, Tensor]:
        """Images → named measures of each ``[B]``; their means over the test set go into ``result.json``."""
        return {}

    @property
    def compares(self) -> bool:
        """Whether there is more to say of the network when training is over."""
        return type(self).compare is not Task.compare

    def fullest_epoch(self, epochs: int) -> int:
        """An epoch, of so many, in which everything is computed that ever is."""
        return epochs

    def idles(self, epoch: int) -> bool:
        """Whether some weights get no gradient in this epoch."""
        return False

    def before(self, batches: Callable[[int], Iterable[Batch]], inside: Context) -> None:
        """Called once, before the first epoch of a run that begins; ``batches(n)`` are those of an epoch, from 1.

        Networks run within ``inside()``, which is entered anew for each batch, as each step changes the weights that
        autocast keeps copies of.
        """

    def after_step(self) -> None:
        """Called after each update."""

    def after_epoch(self) -> None:
        """Called once after each epoch, before it is saved."""
