"""The options that every training script has: data, optimisation, run, machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helper.errors import UsageError
from helper.images import add_images, require_sound_images
from helper.optimisation import WITHOUT_DROPS, WITHOUT_MOMENTUM, optimizer_dict, schedule_dict
from helper.options import (
    Flatten,
    Options,
    epoch_numbers,
    fraction,
    natural,
    one_of,
    positive_float,
    positive_int,
    weight,
)


@dataclass(frozen=True)
class Recipe:
    """How a publication trains its networks.

    Attributes:
        epochs: passes over the training images.
        drops: the epochs after which the learning rate drops.
        learning_rate: the first one; None asks the network.
        lr_decay_rate: factor of each drop.
        settings: hyperparameters of the method that belong to the recipe.
    """

    epochs: int = 240
    drops: tuple[int, ...] = (150, 180, 210)
    batch_size: int = 64
    learning_rate: float | None = None
    lr_decay_rate: float = 0.1
    weight_decay: float = 5e-4
    nesterov: bool = False
    optimizer: str = "sgd"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def defaults(self) -> dict[str, Any]:
        """Defaults of the options of :func:`add_recipe`; the drops follow ``--epochs``, see :func:`lr_drops`."""
        names = ("epochs", "batch_size", "learning_rate", "lr_decay_rate", "weight_decay", "nesterov", "optimizer")
        return {name: getattr(self, name) for name in names}


PUBLISHED = Recipe()
"""The common recipe of AE-KD and CA-MKD."""

PUBLISHED_EPOCHS = PUBLISHED.epochs
PUBLISHED_DROPS = PUBLISHED.drops


RATE_HELP = "0.05, or 0.01 for the models that ask for it (MobileNetV2, ShuffleNets), unless given"


def add_recipe(
    options: Options, datasets: Mapping[str, object], nesterov_help: str, rate_help: str = RATE_HELP
) -> None:
    """Add the shared options, with the defaults of AE-KD's and CA-MKD's common recipe."""
    _add_data(options, datasets)
    add_images(options)
    _add_optimisation(options, nesterov_help, rate_help)
    _add_run(options)
    _add_machine(options)


def _add_data(options: Options, datasets: Mapping[str, object]) -> None:
    add = options.section("data")
    add(
        "--dataset",
        type=one_of("--dataset", datasets, fold_case=True),
        default="cifar100",
        metavar="|".join(datasets),
        help="what to train on",
    )
    add("--data_dir", type=Path, default=Path("data"), named=False, help="where datasets lie or are downloaded to")
    add(
        "--skip_damaged",
        action="store_true",
        named=False,
        help="leave out image files that cannot be read, instead of refusing them",
    )
    add("--batch_size", type=positive_int, default=64, help="images in a training step")
    add(
        "--validation",
        type=fraction,
        default=0.0,
        help="share of the training images held out to choose the best epoch on; 0 chooses on the test set, as "
        "every released script does",
    )


def _add_optimisation(options: Options, nesterov_help: str, rate_help: str) -> None:
    add = options.section("optimisation")
    add("--epochs", "--num_epochs", type=positive_int, default=PUBLISHED_EPOCHS, help="passes over the training images")
    add(
        "--learning_rate",
        "--lr",
        type=positive_float,
        default=None,
        help=rate_help,
    )
    add(
        "--lr_decay_epochs",
        "--schedule",
        type=epoch_numbers,
        nargs="+",
        action=Flatten,
        default=None,
        help="epochs after which the learning rate drops; the published fractions of --epochs, unless given "
        "(150,180,210 of 240 in the offline recipe)",
    )
    add(
        "--lr_decay_rate",
        type=positive_float,
        default=0.1,
        unread=("lr_schedule", lambda schedule: schedule in WITHOUT_DROPS),
        help="factor of each drop",
    )
    add(
        "--lr_schedule",
        type=one_of("--lr_schedule", schedule_dict),
        default="steps",
        metavar="|".join(schedule_dict),
        help="steps drops after --lr_decay_epochs; cosine and onecycle change the rate in each step",
    )
    add("--warmup_epochs", type=weight, default=0.0, help="the rate grows from 0 over the first epochs, step by step")
    add(
        "--clip_grad", type=positive_float, default=None, help="largest norm of the whole gradient; shortened if longer"
    )
    add(
        "--ema",
        type=fraction,
        default=0.0,
        help="share of a moving average of the weights that stays in a step, such as 0.999; the average is what is "
        "evaluated, saved as the network and exported; 0 for none",
    )
    add("--label_smoothing", type=fraction, default=0.0, help="share of each label that goes to all classes alike")
    add("--weight_decay", "--wd", type=weight, default=5e-4, help="L2 penalty")
    add(
        "--momentum",
        type=fraction,
        default=0.9,
        unread=("optimizer", lambda optimizer: optimizer in WITHOUT_MOMENTUM),
        help="of SGD",
    )
    add(
        "--optimizer",
        type=one_of("--optimizer", optimizer_dict),
        default="sgd",
        metavar="|".join(optimizer_dict),
        help="momentum and Nesterov are sgd's; adam takes weight decay as an L2 penalty, adamw by itself",
    )
    add(
        "--nesterov",
        action=argparse.BooleanOptionalAction,
        default=False,
        unread=("optimizer", lambda optimizer: optimizer in WITHOUT_MOMENTUM),
        help=nesterov_help,
    )


def _add_run(options: Options) -> None:
    add = options.section("run")
    add("-t", "--trial", default="0", help="a name that tells repetitions apart; a number is also the seed")
    add("--seed", type=natural, default=None, help="seeds everything; the trial, when that is a number, unless given")
    add("--save_dir", type=Path, default=Path("save"), named=False, help="where run folders go")
    add(
        "--resume",
        nargs="?",
        type=Path,
        const=True,
        default=None,
        metavar="FOLDER",
        named=False,
        help="continue an unfinished run; with none there, start. With FOLDER, a run of fewer epochs: go on from its "
        "end, to more --epochs",
    )
    add(
        "--checkpoint_minutes",
        type=positive_float,
        default=15.0,
        named=False,
        help="save in the middle of an epoch after so long without a checkpoint",
    )
    add("--overwrite", action="store_true", named=False, help="discard what the run folder holds and start again")
    add(
        "--evaluate",
        type=Path,
        default=None,
        metavar="CHECKPOINT",
        named=False,
        help="only print the test accuracy of this checkpoint, or of a run folder's last one",
    )


def _add_machine(options: Options) -> None:
    add = options.section("machine")
    add(
        "--accumulate",
        type=positive_int,
        default=1,
        help="micro-batches per step, for less memory; BatchNorm's statistics and AEKD's gradients are then those of a "
        "micro-batch",
    )
    add(
        "--sync_bn",
        action="store_true",
        help="under torchrun: BatchNorm over the batches of all processes, as one process would have it",
    )
    add("--device", default="auto", named=False, help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    add(
        "--gpu_id",
        type=natural,
        default=None,
        named=False,
        unread=("device", lambda device: device != "auto"),
        help="the same as --device cuda:N where there is a GPU",
    )
    add(
        "--precision",
        type=one_of("--precision", ("auto", "fp32", "bf16")),
        default="auto",
        metavar="auto|fp32|bf16",
        help="arithmetic of the networks; bf16 is autocast, losses and weights stay float32; auto is bf16 where the "
        "hardware has instructions for it, else fp32; a resumed run goes on as it began",
    )
    add(
        "--compile",
        action="store_true",
        help="torch.compile of the networks in training, with CUDA graphs on a GPU: slow to start, then faster; it "
        "rounds otherwise",
    )
    add("--num_workers", type=natural, default=4, named=False, help="processes that read images too large for memory")


def require_sound_recipe(opt: argparse.Namespace) -> None:
    """Refuse options that contradict each other or cannot be part of a name; drop a seed that the trial implies.

    Raises:
        UsageError: naming the option and what to choose instead.
    """
    require_sound_images(opt)
    if opt.resume and opt.overwrite:
        raise UsageError("--resume and --overwrite: choose one of them")
    if opt.nesterov and opt.momentum == 0:
        raise UsageError("--nesterov: needs --momentum above 0")
    if opt.lr_decay_epochs and opt.lr_schedule != "steps":
        raise UsageError(f"--lr_decay_epochs: belongs to --lr_schedule steps, not to {opt.lr_schedule}")
    if opt.warmup_epochs > opt.epochs:
        raise UsageError(f"--warmup_epochs: {opt.warmup_epochs:g} are more than the {opt.epochs} --epochs")
    if opt.compile and opt.sync_bn:
        raise UsageError(
            "--compile and --sync_bn: processes cannot exchange statistics in compiled networks; choose one"
        )
    if not opt.trial or not set(opt.trial) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_."):
        raise UsageError(f"--trial: {opt.trial!r} becomes part of a folder's name; use letters, digits, '_' and '.'")
    if opt.trial.isdecimal() and opt.seed == int(opt.trial):
        opt.seed = None


def seed_of(opt: argparse.Namespace) -> int:
    """``--seed``, or the trial when that is a number, or 0."""
    if opt.seed is not None:
        return opt.seed
    return int(opt.trial) if opt.trial.isdecimal() else 0


def lr_drops(epochs: int, given: Sequence[int] | None, recipe: Recipe = PUBLISHED) -> list[int]:
    """The epochs after which the learning rate drops: as given, or at the recipe's fractions of ``epochs``."""
    return list(given) if given else [round(drop * epochs / recipe.epochs) for drop in recipe.drops]
