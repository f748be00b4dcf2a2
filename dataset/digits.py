"""scikit-learn's digits: 1,797 handwritten digits of 8×8, bundled with it, so that nothing has to be downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.augment import require_memory
from dataset.base import DatasetInfo, MemoryDataset, Split, dataset_dict, to_labels
from dataset.order import stratified_split

SIZE, NUM_TEST = 32, 500


@dataset_dict.register("digits")
class Digits(MemoryDataset):
    """Grey digits enlarged to 32×32, 1,297 to train and 500 to test on; the split is the same for every seed."""

    @property
    def info(self) -> DatasetInfo:
        mean, std = (0.3057, 0.3057, 0.3057), (0.3243, 0.3243, 0.3243)  # of the training images of 32×32
        return DatasetInfo("digits", 10, SIZE, mean, std, padding=4, flip=False, classes=tuple("0123456789"))

    def load(self) -> tuple[Split, Split]:
        pixels, labels = bundled_digits()
        small = pixels[:, None] * (255 / 16)  # [N, 1, 8, 8]
        size = self.wanted.image_size or SIZE
        if self.wanted.image_size:
            require_memory(len(labels), size, self.wanted)
        grey = F.interpolate(small, (size, size), mode="bilinear").round().to(torch.uint8)  # [N, 1, size, size]
        everything = Split(grey.permute(0, 2, 3, 1).expand(-1, -1, -1, 3), to_labels(labels))
        # NumPy promises that this legacy generator never changes
        shuffle = torch.as_tensor(np.random.RandomState(0).permutation(len(labels)))
        train, test = stratified_split(everything.labels, NUM_TEST, shuffle)
        return everything.subset(train), everything.subset(test)


def bundled_digits() -> tuple[Tensor, list[int]]:
    """Grey values from 0 to 16, float64 ``[N, 8, 8]``, and labels."""
    found = find_spec("sklearn")
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if file is not None and file.is_file():
        table = np.loadtxt(file, delimiter=",")  # 64 values and the label in a line
    else:
        from sklearn.datasets import load_digits  # which reads the same, but takes more than a second to import

        table = np.column_stack(load_digits(return_X_y=True))
    return torch.from_numpy(table[:, :64]).view(-1, 8, 8), table[:, 64].astype(int).tolist()
