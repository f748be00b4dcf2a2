"""scikit-learn's digits: 1,797 handwritten digits of 8×8, bundled with it, so that nothing has to be downloaded."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from dataset.base import DatasetInfo, MemoryDataset, Split, dataset_dict, to_labels
from dataset.order import stratified_split

SIZE, NUM_TEST = 32, 500


@dataset_dict.register("digits")
class Digits(MemoryDataset):
    """Grey digits enlarged to 32×32, 1,297 to train and 500 to test on; the split is the same for every seed."""

    scales = True

    @property
    def info(self) -> DatasetInfo:
        mean, std = (0.3057, 0.3057, 0.3057), (0.3243, 0.3243, 0.3243)  # of the training images of 32×32
        return DatasetInfo("digits", 10, SIZE, mean, std, padding=4, flip=False, classes=tuple("0123456789"))

    def load(self) -> tuple[Split, Split]:
        from sklearn.datasets import load_digits  # here, since importing scikit-learn takes a second

        data = load_digits()
        small = torch.as_tensor(data.images, dtype=torch.float64)[:, None] * (255 / 16)  # [N, 1, 8, 8]
        size = self.wanted.image_size or SIZE
        grey = F.interpolate(small, (size, size), mode="bilinear").round().to(torch.uint8)  # [N, 1, size, size]
        everything = Split(grey.permute(0, 2, 3, 1).expand(-1, -1, -1, 3), to_labels(data.target))
        # NumPy promises that this legacy generator never changes
        shuffle = torch.as_tensor(np.random.RandomState(0).permutation(len(data.target)))
        train, test = stratified_split(everything.labels, NUM_TEST, shuffle)
        return everything.subset(train), everything.subset(test)
