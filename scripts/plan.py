"""Which runs a table needs: from variables such as TEACHER and METHODS to command lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import train_online
import train_student
import train_teacher
from dataset import dataset_dict
from dataset.base import MemoryDataset
from helper.errors import UsageError
from helper.optimisation import WITHOUT_MOMENTUM
from helper.options import Options, Parser, positive_int
from helper.recipe import lr_drops
from online import online_dict

DEFAULTS = {
    "DATASET": "cifar100",
    "TEACHER": "resnet32x4",
    "TEACHER_NUM": "3",
    "STUDENTS": "resnet8x4",
    "METHODS": "kd:AVERAGE_LOSS hint:AVERAGE_LOSS:100 kd:EBKD kd:AEKD inter:CAMKD:50",
    "ONLINE": "",
    "SEEDS": "0",
    "EPOCHS": "",
    "EXTRA": "",
}
"""The published commands of CA-MKD; no EPOCHS means each recipe's own."""

USERS = ("DATASET", "SEEDS", "EPOCHS", "EXTRA")
"""What the user of a preset may want otherwise in all its rows."""

ALONE = "alone"
RECIPE = "recipe="
COUNTED = ("crop_flip", "none")
"""Values of ``--augment`` under which each image has a number of views."""
SCRIPTS = {
    "train_teacher.py": train_teacher.options,
    "train_student.py": train_student.options,
    "train_online.py": train_online.options,
}


@dataclass(frozen=True)
class Job:
    """One run: a script with its options, and the runs whose networks teach it."""

    words: tuple[str, ...]
    teachers: tuple[Job, ...] = ()
    reported: bool = True

    def command(self, checkpoints: list[str]) -> list[str]:
        """What to start, once it is known where the teachers lie."""
        script, *options = self.words
        return [script, *options, *(["--teachers", *checkpoints] if checkpoints else [])]

    def require_valid(self) -> None:
        """UsageError where the script would not take the options."""
        script, *options = self.words
        if script == "train_online.py":
            train_online.parse(train_online.options(), options)  # a parser of its own: the method's recipe changes it
        else:
            parser_of(script).parse(options)


@cache
def parser_of(script: str) -> Options:
    """The command line of one script."""
    return SCRIPTS[script]()


def variables(row: str, environment: Mapping[str, str]) -> dict[str, str]:
    """A row such as ``TEACHER=vgg13 STUDENTS="vgg8 MobileNetV2"`` over the environment over the defaults.

    The environment decides in :data:`USERS` all the same. STUDENT is another name of STUDENTS there.

    Raises:
        UsageError: a variable is unknown, or makes no sense.
    """
    given = {name: environment[name] for name in DEFAULTS if name in environment}
    if "STUDENT" in environment:
        given.setdefault("STUDENTS", environment["STUDENT"])
    for word in words_of(row):
        name, equals, value = word.partition("=")
        if not equals or name not in DEFAULTS:
            raise UsageError(f"{word}: expected VARIABLE=value; choose from {', '.join(DEFAULTS)}")
        if name not in USERS or name not in environment:
            given[name] = value
    return {**DEFAULTS, **given}


def jobs_of(values: Mapping[str, str], store: str | None) -> list[Job]:
    """The runs of one row, teachers first; ``store`` is the folder of the teachers' answers."""
    teachers = tuple(teacher_jobs(values)) if values["STUDENTS"] else ()
    jobs = [*teachers, *student_jobs(values, teachers, store), *online_jobs(values)]
    for job in dict.fromkeys(jobs):
        job.require_valid()
    return jobs


def teacher_jobs(values: Mapping[str, str]) -> Iterator[Job]:
    """TEACHER_NUM teachers, with the seeds 0, 1, …; ``resnet14,epochs=10`` gives them options of their own.

    Of several words each is one teacher, and TEACHER_NUM is not asked.

    Raises:
        UsageError: there is no word.
    """
    count = number("TEACHER_NUM", values["TEACHER_NUM"])
    entries = values["TEACHER"].split()
    if not entries:
        raise UsageError("TEACHER: names no network, and STUDENTS need teachers; such as TEACHER=resnet32x4")
    for trial, entry in enumerate(entries if len(entries) > 1 else entries * count):
        model, *others = entry.split(",")
        words = f"--model {model} --dataset {values['DATASET']} {typed(others)}"
        yield job("train_teacher.py", words, values, str(trial), reported=False)


def student_jobs(values: Mapping[str, str], teachers: tuple[Job, ...], store: str | None) -> Iterator[Job]:
    """Each student alone, then under each method, once per seed; ``vgg8,no-nesterov`` gives it options of its own."""
    seeds = values["SEEDS"].split()
    for entry in values["STUDENTS"].split():
        student, *others = entry.split(",")
        for seed in seeds:
            words = f"--model {student} --dataset {values['DATASET']} --nesterov {typed(others)}"
            yield job("train_teacher.py", words, values, seed)
        for word in values["METHODS"].split():
            for seed in seeds:
                words = f"--model_s {student} --dataset {values['DATASET']} {method_options(word)}"
                yield with_cache(job("train_student.py", f"{words} {typed(others)}", values, seed, teachers), store)


def method_options(word: str) -> str:
    """``inter:CAMKD:50,convs=true`` → options; the published weights of the losses, unless given.

    Raises:
        UsageError: the word is no such thing.
    """
    main, *others = word.split(",")
    parts = main.split(":")
    if len(parts) not in (2, 3):
        raise UsageError(f"METHODS: expected LOSS:WEIGHTING[:b], with ,option=value behind, got {word!r}")
    beta = parts[2] if len(parts) == 3 else "0"
    return f"--distill {parts[0]} --ensemble_method {parts[1]} -b {beta} --nesterov -r 1 -a 1 {typed(others)}"


def with_cache(student: Job, store: str | None) -> Job:
    """The run, with the teachers' answers in ``store`` where it asks for nothing else and its images can be counted."""
    script, *options = student.words
    opt = parser_of(script).parse(options)
    counted = in_memory(opt.dataset) and opt.augment in (None, *COUNTED) and not opt.mixup and not opt.cutmix
    if store is None or opt.teacher_cache is not None or not counted:
        return student
    opt.teacher_cache = store
    words = (*student.words, "--teacher_cache", store)
    return replace(student, words=words) if train_student.uses_cache(opt) else student


def in_memory(dataset: str) -> bool:
    """Whether the augmented views of a dataset can be counted, so that a cache can hold them."""
    entry = dataset_dict[dataset]
    return isinstance(entry, type) and issubclass(entry, MemoryDataset)


def online_jobs(values: Mapping[str, str]) -> Iterator[Job]:
    """``BOC:resnet20,single_student=4`` → a run per seed; ``alone:resnet32`` is one network with the peers' recipe.

    With ``recipe=METHOD`` among the options, the recipe is that method's.
    """
    for word in values["ONLINE"].split():
        main, *others = word.split(",")
        method, colon, model = main.partition(":")
        if not colon:
            raise UsageError(f"ONLINE: expected METHOD:MODEL, with ,option=value behind, got {word!r}")
        for seed in values["SEEDS"].split():
            common = f"--model {model} --dataset {values['DATASET']}"
            if method == ALONE:
                yield job("train_teacher.py", f"{common} {recipe_options(model, others, values)}", values, seed)
            else:
                named = any(other.startswith(RECIPE) for other in others)
                options = recipe_options(model, others, values) if named else typed(others)
                yield job("train_online.py", f"--method {method} {common} {options}", values, seed)


def recipe_options(model: str, others: list[str], values: Mapping[str, str]) -> str:
    """What makes a script follow an online recipe: the default method's, or that of ``recipe=METHOD``."""
    named = [other.removeprefix(RECIPE) for other in others if other.startswith(RECIPE)]
    method = online_dict[named[0] if named else str(train_online.options().get_default("method"))]
    recipe = method.published(model, values["DATASET"])
    epochs = number("EPOCHS", values["EPOCHS"]) if values["EPOCHS"] else recipe.epochs
    drops = " ".join(str(max(1, drop)) for drop in lr_drops(epochs, None, recipe))
    options = f"--epochs {epochs} --batch_size {recipe.batch_size} --weight_decay {recipe.weight_decay} "
    options += f"--learning_rate {recipe.learning_rate} --optimizer {recipe.optimizer} --lr_decay_epochs {drops} "
    options += f"--lr_decay_rate {recipe.lr_decay_rate}"
    rest = [other for other in others if not other.startswith(RECIPE)]
    return f"{options}{' --nesterov' * recipe.nesterov} {typed(rest)}"


def as_read(options: list[str]) -> list[str]:
    """The options of a row without the ``--nesterov`` that rows have for SGD, where another optimizer is chosen."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--optimizer")
    opt, _ = parser.parse_known_args(options)
    return [word for word in options if word != "--nesterov" or opt.optimizer not in WITHOUT_MOMENTUM]


def typed(others: list[str]) -> str:
    """``["kd_T=3", "svm_norm=true"]`` → ``--kd_T 3 --svm_norm``."""
    pairs = (other.partition("=")[::2] for other in others)
    return " ".join(f"--{name}" if value in ("", "true") else f"--{name} {value}" for name, value in pairs)


def job(
    script: str,
    words: str,
    values: Mapping[str, str],
    trial: str,
    teachers: tuple[Job, ...] = (),
    reported: bool = True,
) -> Job:
    """A run with the options that all of a row have."""
    epochs = f"--epochs {values['EPOCHS']}" if values["EPOCHS"] and "--epochs" not in words else ""
    options = as_read(words_of(f"{words} {epochs} --trial {trial} {values['EXTRA']}"))
    return Job((script, *options), teachers, reported)


def words_of(text: str) -> list[str]:
    """The words of a row or of options, as a shell divides them; UsageError where a quotation does not end."""
    try:
        return shlex.split(text)
    except ValueError:
        raise UsageError(f"{text.strip()}: a quote is not closed; write another, or \\' for the letter") from None


def number(name: str, text: str) -> int:
    """A whole number of at least 1; UsageError names the variable."""
    try:
        return positive_int(text)
    except Exception as error:
        raise UsageError(f"{name}: {error}") from None
