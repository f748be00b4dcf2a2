"""Datasets by name. To add one: write its file, and import that file here: one line."""

from __future__ import annotations

from dataset import cifar as cifar
from dataset import digits as digits
from dataset import folder as folder
from dataset import mnist as mnist
from dataset import stl10 as stl10
from dataset import svhn as svhn
from dataset import tinyimagenet as tinyimagenet
from dataset.base import DatasetInfo, dataset_dict
from dataset.loader import Loaders, get_loaders, info_of

__all__ = ["DatasetInfo", "Loaders", "dataset_dict", "get_loaders", "info_of"]
