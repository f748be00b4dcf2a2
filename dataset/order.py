"""All that is random in the data: which image comes when, how it is cropped, which are held out.

Everything is a pure function of (seed, purpose, epoch, ...) and never touches the global generators, so that a resumed
run sees the batches that the uninterrupted run would have seen, without any saved state. How many processes share a
batch changes nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from helper.errors import UsageError

Shard: TypeAlias = "tuple[int, int]"
"""A process's number, and how many there are."""

ALONE: Shard = (0, 1)


class Purpose(IntEnum):
    """Keeps the streams of random numbers that share a seed apart."""

    ORDER = 0
    AUGMENT = 1
    HOLD_OUT = 2
    WORKERS = 3
    SPLIT = 4
    MIX = 5
    AGAIN = 6
    LABELS = 7
    SPECIALIST = 8


def derive_seed(*key: int) -> int:
    """A 64-bit seed from integers: neighbouring keys give unrelated seeds."""
    words = [part % 2**64 for part in key]  # SeedSequence takes no negative numbers
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def generator(seed: int, purpose: Purpose, epoch: int = 0) -> torch.Generator:
    """A private generator on the host."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, epoch))


def augmentation_seed(seed: int, view: int) -> int:
    """What the augmentation of the n-th view of all images follows from; that of view 0 is the run's own seed."""
    return derive_seed(seed, Purpose.AGAIN, view) if view else seed


def epoch_order(num_images: int, seed: int, epoch: int) -> Tensor:
    """The order of the training images in an epoch: a permutation, int64 [num_images]."""
    return torch.randperm(num_images, generator=generator(seed, Purpose.ORDER, epoch))


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """As many images as there are, of each class as many as of any other to within one, int64 [N].

    A class's images come in random order, none of them again before all have come; which of a large class come, is
    drawn anew in each epoch.

    Args:
        labels: int64 [N].
    """
    source, total = generator(seed, Purpose.ORDER, epoch), len(labels)
    classes = [part for part in labels.argsort(stable=True).split(labels.bincount().tolist()) if len(part)]
    shares = torch.full((len(classes),), total // len(classes))
    shares[torch.randperm(len(classes), generator=source)[: total % len(classes)]] += 1
    drawn = []
    for members, share in zip(classes, shares.tolist(), strict=True):
        rounds = range(-(-share // len(members)))
        drawn += [torch.cat([members[torch.randperm(len(members), generator=source)] for _ in rounds])[:share]]
    return torch.cat(drawn)[torch.randperm(total, generator=source)]


def mislabelled(labels: Tensor, share: float, num_classes: int, seed: int) -> Tensor:
    """The labels, int64 [N], of which a share is another class's: of N·share images, drawn once, any other alike."""
    source = generator(seed, Purpose.LABELS)
    chosen = torch.randperm(len(labels), generator=source)[: round(share * len(labels))]
    shifts = torch.randint(1, num_classes, (len(chosen),), generator=source)
    return labels.index_put((chosen,), (labels[chosen] + shifts) % num_classes)


def of_specialist(labels: Tensor, which: str, others: float, num_classes: int, seed: int) -> Tensor:
    """Where a specialist's images stand among labels, int64 [N]: ascending int64.

    Those of the k-th of n parts of the classes, for ``which`` ``kofn``; the parts are as equal as they can be and
    follow the classes' order. Of each other class the share ``others``, rounded.

    Raises:
        UsageError: there are fewer classes than parts.
    """
    part, parts = map(int, which.split("of"))
    if parts > num_classes:
        raise UsageError(f"--specialist: {which} makes more parts than there are classes, {num_classes}")
    source = generator(seed, Purpose.SPECIALIST)
    known = torch.arange(num_classes) * parts // num_classes == part - 1
    kept = []
    for label, own in enumerate(known.tolist()):
        members = (labels == label).nonzero().flatten()
        drawn = members[torch.randperm(len(members), generator=source)]
        kept.append(drawn if own else drawn[: round(others * len(drawn))])
    return torch.cat(kept).sort().values


def epoch_draws(labels: Tensor, seed: int, epoch: int, balanced: bool) -> tuple[Tensor, Tensor]:
    """Which image comes when in an epoch, and which number its augmentation follows from, int64 [N] each.

    That is the image's place in the set or, where an image may come twice, its place in the epoch.
    """
    if balanced:
        return balanced_order(labels, seed, epoch), torch.arange(len(labels))
    order = epoch_order(len(labels), seed, epoch)
    return order, order


def batches_of(num_images: int, batch_size: int, shard: Shard = ALONE, start: int = 0) -> list[slice]:
    """Which places of an epoch's order a process takes, batch by batch; incomplete batches are left out.

    Args:
        num_images: in the epoch.
        batch_size: of all processes together.
        shard: consecutive parts of a batch go to the processes in their order.
        start: so many batches are skipped.
    """
    rank, size = shard
    own = batch_size // size
    firsts = range(start * batch_size, num_images - batch_size + 1, batch_size)
    return [slice(first + rank * own, first + (rank + 1) * own) for first in firsts]


def epoch_crops(num_images: int, padding: int, flip: bool, seed: int, epoch: int) -> Tensor:
    """Top, left (each uniform on 0..2·padding) and mirrored (0 or 1) of every image, int64 [num_images, 3]."""
    source = generator(seed, Purpose.AUGMENT, epoch)
    corner = torch.randint(0, 2 * padding + 1, (num_images, 2), generator=source)  # [N, 2]
    if flip:
        mirrored = torch.randint(0, 2, (num_images, 1), generator=source)  # [N, 1]
    else:
        mirrored = torch.zeros(num_images, 1, dtype=torch.int64)
    return torch.cat([corner, mirrored], dim=1)


def apart(labels: Tensor, numbers: Tensor, split: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Divide a set in which images come several times, such that each of them is in one part alone.

    Args:
        labels: int64 [N].
        numbers: of the images, int64 [N], counted from 0 in the order in which they first come.
        split: labels of M distinct images → sorted indices of each part.

    Returns:
        Sorted indices of each part, int64; where nothing comes twice, those that ``split`` gives.
    """
    of_images = torch.empty(int(numbers.max()) + 1, dtype=torch.int64).index_put((numbers,), labels)  # [M]
    return tuple(torch.isin(numbers, part).nonzero().squeeze(1) for part in split(of_images))


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split at random into kept and held-out images, with every class in proportion.

    Args:
        labels: int64 [N].
        fraction: of the images to hold out, in [0, 1].

    Returns:
        Sorted indices, int64 [N - M] and [M] with M = round(fraction·N).
    """
    shuffle = torch.randperm(len(labels), generator=generator(seed, Purpose.HOLD_OUT))
    return stratified_split(labels, round(fraction * len(labels)), shuffle)


def split_for_good(labels: Tensor, train: float | None, test: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Divide a set that comes in one part, with every class in proportion, the same for every seed.

    Args:
        labels: int64 [N].
        train, test: shares; of the one that is None, what the other leaves.

    Returns:
        Sorted indices to train on, to choose the best epoch on (none where the shares sum to 1), and to test on.
    """
    total, source = len(labels), generator(0, Purpose.SPLIT)
    tested = round(total * (1 - train if test is None and train is not None else test or 0))
    kept, test_places = stratified_split(labels, tested, torch.randperm(total, generator=source))
    trained = len(kept) if train is None or test is None else min(round(total * train), len(kept))
    shuffle = torch.randperm(len(kept), generator=source)
    train_places, chosen_on = stratified_split(labels[kept], len(kept) - trained, shuffle)
    return kept[train_places], kept[chosen_on], test_places


def stratified_split(labels: Tensor, count: int, shuffle: Tensor) -> tuple[Tensor, Tensor]:
    """Hold out ``count`` images with every class in proportion.

    Within its class the image of rank r (in ``shuffle`` order) out of n stands at (r + ½)/n; the ``count`` images that
    stand first are held out. So each class gives its share to within one image, and the total is exact.

    Args:
        labels: int64 [N].
        count: images to hold out.
        shuffle: a permutation, int64 [N].

    Returns:
        Sorted indices of the kept and of the held-out images.
    """
    shuffled = labels[shuffle]  # [N]
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in shuffled.unique():
        members = (shuffled == label).nonzero().squeeze(1)
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    by_place = shuffle[place.argsort(stable=True)]  # [N]
    return by_place[count:].sort().values, by_place[:count].sort().values
