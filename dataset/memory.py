"""Loaders for datasets that fit in memory: uint8 on the training device, whole batches made by one gather.

One CPU core makes over 100,000 augmented 32×32 images a second at batch 64, so that there is nothing for worker
processes to do; on an accelerator no batch waits for the host.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from dataset.augment import distortion, drawing_from
from dataset.base import DatasetInfo, Pictures, Split
from dataset.order import (
    ALONE,
    Purpose,
    Shard,
    augmentation_seed,
    batches_of,
    derive_seed,
    epoch_crops,
    epoch_draws,
)
from dataset.views import crops_of, numbers_of, views_per_image
from helper.batch import Batch, ViewSpace

AT_ONCE = 8
"""Batches made together on a GPU, which takes longer to be told of the operations than to carry them out."""


class Normalise:
    """uint8 [B, H, W, 3] → float32 [B, 3, H, W] in channels_last: ``(x/255 − mean)/std``, as ToTensor and Normalize."""

    def __init__(self, info: DatasetInfo, device: torch.device) -> None:
        mean = torch.tensor(info.mean, dtype=torch.float64)
        std = torch.tensor(info.std, dtype=torch.float64)
        pixels = info.image_size**2
        # repeated for each pixel of an image: a row of 3 numbers is too short to vectorise over
        self.scale = (1 / (255 * std)).float().repeat(pixels).to(device)  # [H·W·3]
        self.shift = (-mean / std).float().repeat(pixels).to(device)  # [H·W·3]

    def __call__(self, images: Tensor) -> Tensor:
        flat = images.flatten(1).float()  # [B, H·W·3]
        return torch.addcmul(self.shift, flat, self.scale).view(images.shape).permute(0, 3, 1, 2)


class MemoryTrainLoader:
    """Shuffled batches of randomly cropped and mirrored images; the last incomplete batch is dropped.

    Args:
        split: the images to train on.
        info: their description.
        batch_size: images per batch.
        device: where the batches are wanted, and where the images are kept.
        seed: of order and augmentation.
        views: all views of the dataset; None where nobody asks for them.
        shard: this process's part of each batch.
        balanced: see :func:`dataset.order.balanced_order`.
    """

    def __init__(
        self,
        split: Split | Pictures,
        info: DatasetInfo,
        batch_size: int,
        device: torch.device,
        seed: int,
        views: ViewSpace | None = None,
        shard: Shard = ALONE,
        balanced: bool = False,
    ) -> None:
        self.num_images = len(split.labels)
        self.batch_size, self.device, self.seed, self.shard = batch_size, device, seed, shard
        self.augmentation_seed = seed
        self.epoch, self.start, self.balanced = 0, 0, balanced
        self.info, self.views = info, views
        self.size, self.black = info.image_size, self.num_images * info.image_size**2
        self.keep(split)
        self.host_labels, self.labels = split.labels, split.labels.to(device)  # [N]
        self.positions = split.positions  # on the host, [N]
        self.normalise = Normalise(info, device)
        self.range = torch.arange(self.size, device=device)  # [H]
        self.distortion = distortion(info)
        self.at_once = AT_ONCE if device.type == "cuda" else 1  # batches made together

    def of_view(self, view: int) -> MemoryTrainLoader:
        """A loader of the same batches, from the same pixels, that augments otherwise."""
        twin = copy.copy(self)
        twin.augmentation_seed = augmentation_seed(self.seed, view)
        return twin

    def keep(self, split: Split | Pictures) -> None:
        """Bring the pixels to the device."""
        assert isinstance(split, Split)
        self.pixels = torch.zeros(self.black + 1, 3, dtype=torch.uint8, device=self.device)  # [N·H·W + 1, 3]
        self.pixels[:-1].view(split.images.shape).copy_(split.images)  # the last one is the black border

    def __len__(self) -> int:
        return self.num_images // self.batch_size

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration runs through, and how many of its first batches are left out."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[Batch]:
        order, draws = epoch_draws(self.host_labels, self.seed, self.epoch, self.balanced)  # [N] each
        padding, flip = self.info.padding, self.info.flip
        crops = epoch_crops(self.num_images, padding, flip, self.augmentation_seed, self.epoch)[draws]  # [N, 3]
        numbers = None if self.distortion else numbers_of(self.positions[order], crops, self.info)  # [N]
        plan = torch.cat([order[:, None], crops], dim=1)  # [N, 4]
        rows = torch.cat([plan, draws[:, None]], dim=1) if self.distortion else plan
        if self.device.type == "cuda":
            plan = plan.pin_memory()  # one copy for the whole epoch, and none that the host waits for
        plan = plan.to(self.device, non_blocking=True)
        parts = list(batches_of(self.num_images, self.batch_size, self.shard, self.start))
        for first in range(0, len(parts), self.at_once):
            some = parts[first : first + self.at_once]
            columns = torch.cat([plan[part] for part in some])  # [B, 4]
            pixels = self.made(torch.cat([rows[part] for part in some]) if self.distortion else columns, columns)
            index = columns[:, 0]
            images, labels = self.normalise(pixels), self.labels[index]
            each = len(images) // len(some)
            for part, *made in zip(some, images.split(each), labels.split(each), index.split(each), strict=True):
                mine, target, places = made
                yield Batch(mine, target, None if numbers is None else numbers[part], places)

    def made(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Images as they are trained on, uint8 [B, H, W, 3].

        Args:
            rows: place in the set, top, left, mirrored, and which number what is drawn for each image by itself follows
                from, int64 [B, 5] on the host; of no use where nothing is.
            columns: all but the last of these on the device, int64 [B, 4].
        """
        pixels = self.crop(*columns.unbind(1))
        if self.distortion is None:
            return pixels
        made = []
        for image, draw in zip(pixels.permute(0, 3, 1, 2).contiguous(), rows[:, 4].tolist(), strict=True):
            with drawing_from(derive_seed(self.augmentation_seed, Purpose.AUGMENT, self.epoch, draw)):
                made.append(self.distortion(image))
        return torch.stack(made).permute(0, 2, 3, 1).contiguous()

    def all_views(self) -> Tensor:
        """The numbers of all views of all images that are trained on, int64 [N·V] on the host."""
        per_image = views_per_image(self.info)
        return (self.positions[:, None] * per_image + torch.arange(per_image)).flatten()

    def images_of(self, numbers: Tensor) -> Tensor:
        """The views of these numbers, int64 [B] on the host → float32 [B, 3, H, W] in channels_last.

        Every number's image has to be among those that are trained on.
        """
        positions, crops = crops_of(numbers, self.info)
        index = torch.searchsorted(self.positions, positions)
        columns = torch.cat([index[:, None], crops], dim=1).to(self.device)
        return self.normalise(self.crop(*columns.unbind(1)))

    def crop(self, index: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """Windows of the images in their black border, each [B] → uint8 [B, H, W, 3]."""
        rows = top[:, None] + self.range - self.info.padding  # [B, H]
        across = torch.where(mirrored[:, None] == 1, self.range.flip(0), self.range)  # [B, W]
        columns = left[:, None] + across - self.info.padding  # [B, W]
        first = (index[:, None] * self.size + rows) * self.size  # [B, H]
        # whatever is outside, in either direction, ends at or beyond the black pixel
        first = torch.where(self.inside(rows), first, self.black)
        columns = torch.where(self.inside(columns), columns, self.black)
        places = (first[:, :, None] + columns[:, None, :]).clamp_max_(self.black)  # [B, H, W]
        return self.pixels.index_select(0, places.view(-1)).view(*places.shape, 3)

    def inside(self, places: Tensor) -> Tensor:
        """Whether rows or columns lie within the image."""
        return (places >= 0) & (places < self.size)


class ViewsLoader:
    """The batches of a loader, each with further views of its images.

    Args:
        loader: of the first view.
        count: how many views there are of each image.
    """

    views: ViewSpace | None = None

    def __init__(self, loader: MemoryTrainLoader, count: int) -> None:
        self.loaders = [loader, *(loader.of_view(view) for view in range(1, count))]
        self.num_images, self.labels = loader.num_images, loader.labels

    def __len__(self) -> int:
        return len(self.loaders[0])

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration runs through, and how many of its first batches are left out."""
        for loader in self.loaders:
            loader.set_epoch(epoch, start)

    def __iter__(self) -> Iterator[Batch]:
        for batch, *others in zip(*self.loaders, strict=True):
            yield batch._replace(again=tuple(other.images for other in others))


class MemoryEvalLoader:
    """Every image once, in order, as it is; yields what :class:`MemoryTrainLoader` yields."""

    def __init__(self, split: Split, info: DatasetInfo, batch_size: int, device: torch.device) -> None:
        self.num_images = len(split.labels)
        self.batch_size = batch_size
        self.images = split.images.to(device)  # uint8 [N, H, W, 3]
        self.labels = split.labels.to(device)  # [N]
        self.normalise = Normalise(info, device)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for images, target in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            yield Batch(self.normalise(images), target)
