"""Fill a teacher cache ahead: what a run of ``train_student.py`` with the same options will ask for, or all views.

python -m scripts.fill_cache --dataset cifar100 --epochs 240 --trial 0 --teacher_cache save/cache
python -m scripts.fill_cache --dataset cifar100 --all_views --teacher_cache save/cache
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

import setting
import train_student
from dataset import get_loaders, info_of
from helper.batch import Batch
from helper.errors import UsageError
from helper.machine import autocast
from helper.options import Options
from helper.script import run_script
from helper.session import Session
from helper.teachers.files import chosen_teachers, require_files
from helper.teachers.loading import load_teachers
from models import model_dict


def options() -> Options:
    """Those of ``train_student.py``, so that its command line can be repeated, and one more."""
    parser = train_student.options()
    add = parser.section("filling the cache")
    add("--all_views", action="store_true", named=False, help="every view of every image, not only those of a run")
    return parser


def batches_of_run(loader: Any, epochs: int) -> Iterator[Batch]:
    """What a run of so many epochs trains on."""
    for epoch in range(1, epochs + 1):
        loader.set_epoch(epoch)
        yield from loader


def all_batches(loader: Any, batch_size: int) -> Iterator[Batch]:
    """Every view of every image once."""
    for part in loader.all_views().split(batch_size):
        yield Batch(loader.images_of(part), loader.labels[:0], part)


def main(arguments: Sequence[str]) -> None:
    """Evaluate the teachers on views that are not in the cache yet."""
    parser = options()
    opt: argparse.Namespace = parser.parse(arguments)
    if opt.teacher_cache is None:
        raise UsageError("--teacher_cache: say which folder to fill")
    session = Session(opt, model_dict, get_loaders, info_of)
    listed = setting.TEACHERS.get(opt.dataset, [])
    files = chosen_teachers(listed, opt.teachers, opt.teacher_num, opt.dataset, model_dict)
    require_files(files, opt.dataset, "--teachers" if opt.teachers else "setting.py")
    teachers, _ = load_teachers(files, session.construct, session.around, session.precision)
    train_student.attach_cache(opt, teachers, session)
    loader = session.loaders.train
    batches = all_batches(loader, opt.batch_size) if opt.all_views else batches_of_run(loader, opt.epochs)
    total = len(loader.all_views()) if opt.all_views else opt.epochs * len(loader) * opt.batch_size
    with tqdm(total=total, unit=" views") as bar, autocast(session.device, session.precision):
        for batch in batches:
            teachers.logits(batch.images, batch.views)
            if teachers.cache is not None and teachers.cache.full:
                raise UsageError(
                    f"--teacher_cache: {opt.teacher_cache} took {bar.n:,} of {total:,} views; make room, or choose a "
                    "larger --teacher_cache_gb, and start it again to go on"
                )
            bar.update(len(batch.images))
    print(f"{opt.teacher_cache}: {total:,} views of {len(files)} teachers are there")


if __name__ == "__main__":
    run_script(main, stopped="what has been filled is kept; the same command goes on")
