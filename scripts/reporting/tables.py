"""Tables: a line per run as CSV, and what is said of the rows, for Markdown and HTML alike."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scripts.reporting.published import OF, published
from scripts.reporting.runs import Group, Run, family
from scripts.reporting.statistics import MISSING, Difference, baseline_name, baseline_of, holm, paired

BEYOND = {
    "NLL (nats)": "test_loss",
    "ECE (%)": "test_ece",
    "balanced accuracy (%)": "test_balanced_accuracy",
    "agreement with the ensemble (%)": "test_ensemble_agreement",
    "KL to the ensemble (nats)": "test_ensemble_kl",
}
"""Column titles and what ``result.json`` calls the scores."""


MOST_CLASSES = 20
"""In the table of classes."""


@dataclass
class Table:
    """A title, words above it, and cells; columns with no entry are left out."""

    title: str
    words: str
    header: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def filled(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the columns in which some row has something."""
        columns = [i for i in range(len(self.header)) if any(row[i] for row in self.rows)]
        return [self.header[i] for i in columns], [[row[i] for i in columns] for row in self.rows]

    def markdown(self) -> str:
        """With ``\\|`` for what would divide a cell, such as a label's own."""
        header, rows = self.filled()
        lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (header, *rows)]
        lines.insert(1, "|" + "---|" * len(header))
        return "\n".join(lines)


def write_runs(groups: Sequence[Group], path: Path) -> None:
    """A line per run."""
    rows = [csv_row(each.label, run) for each in groups for run in each.runs]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def csv_row(label: str, run: Run) -> dict[str, Any]:
    """What the file says of one run; accuracies in percent."""
    result, last, best = run.result, run.result["last"], run.result["best"]
    return {
        "method": label,
        **{name: result[name] for name in ("dataset", "arch", "seed", "epochs")},
        "last_accuracy": f"{run.accuracy('last'):.4f}",
        "best_accuracy": f"{run.accuracy('best'):.4f}",
        "best_epoch": best["epoch"],
        "best_chosen_on": result["best_chosen_on"],
        **{name.replace("test", "last", 1): rounded(last.get(name)) for name in BEYOND.values()},
        **{name.replace("test", "best", 1): rounded(best.get(name)) for name in BEYOND.values()},
        "teacher_ensemble_accuracy": rounded(result.get("teacher_ensemble", {}).get("accuracy")),
        "peer_ensemble_accuracy": rounded(last.get("test_ensemble_accuracy")),
        "images_per_second": f"{result['images_per_second']:.1f}",
        "hours": f"{result['hours']:.4f}",
        "device": result["device"],
        "processes": result.get("processes", 1),
        "precision": run.precision,
        "machine": result.get("machine", ""),
        "git_revision": result["git_revision"],
        "command": run.command,
        "folder": run.path,
    }


def rounded(value: float | None) -> str:
    """Four decimals, or nothing."""
    return "" if value is None else f"{value:.4f}"


def spread(mean: float, std: float | None, digits: int = 2) -> str:
    """``97.20 ± 0.31``."""
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ± {std:.{digits}f}"


def all_tables(groups: Sequence[Group], against: str | None = None) -> list[Table]:
    """Those that have rows; ``against``: see :func:`differences_table`."""
    makers = (
        accuracy_table,
        partial(differences_table, against=against),
        *(options_table, beyond_table, class_table, weights_table, peer_table, published_table),
    )
    return [table for make in makers if (table := make(groups)).rows]


def accuracy_table(groups: Sequence[Group]) -> Table:
    """Last and best, and the paired difference to the default weighting."""
    words = (
        f"{reported_on(groups).capitalize()} accuracy in %, mean ± standard deviation over seeds; "
        f"the best epoch is chosen on the {chosen_on(groups)} set."
    )
    header = ["method", "last epoch", "best epoch", f"last − {baseline_name()}", "seeds", "epochs", "images/s", "hours"]
    table = Table("Accuracy", words, header)
    for each in groups:
        last, best = (each.mean_std(partial(Run.accuracy, which=which)) for which in ("last", "best"))
        speed, _ = each.mean_std(lambda run: run.result["images_per_second"])
        hours, _ = each.mean_std(lambda run: run.result["hours"])
        baseline = baseline_of(each, groups)
        gap = paired(each, baseline) if baseline else None
        row = [each.label, spread(*last), spread(*best), str(gap or ""), str(len(each.runs))]
        table.rows.append([*row, str(each.first.result["epochs"]), f"{speed:.0f}", f"{hours:.2f}"])
    if any(row[3] for row in table.rows):
        table.words += (
            f" − {baseline_name()}: mean difference to the same student under the same teachers over the same seeds, "
            "with Student's 95 % interval where there are two seeds or more."
        )
    return table


def differences_table(groups: Sequence[Group], against: str | None = None) -> Table:
    """Each row against the one that is called so, or against the default weighting, corrected for how many they are."""
    named = next((each for each in groups if each.label == against), None)
    told: list[tuple[Group, Difference, Difference]] = []
    for each in groups:
        other = named if against else baseline_of(each, groups)
        if other is None or other is each:
            continue
        last, best = (paired(each, other, which) for which in ("last", "best"))
        if last and best and last.pairs > 1:
            told.append((each, last, best))
    tested = [last.p for _, last, _ in told if last.p is not None]
    minus = against or f"{baseline_name()} of the same student and teachers"
    words = (
        f"Each row minus {minus}, in points of {reported_on(groups)} accuracy over the seeds that both have: mean, "
        "Student's 95 % interval of that comparison alone, and p of the paired t-test on the last epoch, alone and "
        f"corrected for the {len(tested)} rows of this table (Holm)."
    )
    if len(tested) < len(told):
        words += f" {MISSING}: all seeds differ by the same, of which there is no test."
    title = f"Differences to {against}" if against else "Differences"
    table = Table(title, words, ["method", "last epoch", "best epoch", "p", "p (Holm)", "seeds"])
    corrected = iter(holm(tested))
    for each, last, best in told:
        ps = [MISSING] * 2 if last.p is None else [shown(last.p), shown(next(corrected))]
        table.rows.append([each.label, str(last), str(best), *ps, str(last.pairs)])
    return table


def shown(p: float) -> str:
    """Three decimals, which never say 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def reported_on(groups: Sequence[Group]) -> str:
    """``test``, ``val`` or both: what the accuracies are of."""
    return " or ".join(sorted({run.result.get("reported_on", "test") for each in groups for run in each.runs}))


def chosen_on(groups: Sequence[Group]) -> str:
    """``test``, ``val``, ``validation`` or several of them."""
    return " or ".join(sorted({run.result["best_chosen_on"] for each in groups for run in each.runs}))


def options_table(groups: Sequence[Group]) -> Table:
    """Each row against the first one of the same network, method and loss, whose other options differ."""
    words = (
        "Each row minus the first one of the same network, method and loss, in points of test accuracy: mean over the "
        "seeds that both have, with Student's 95 % interval where there are two or more."
    )
    table = Table("Other options", words, ["method", "minus", "last epoch", "best epoch", "seeds"])
    first: dict[tuple[str, ...], Group] = {}
    for each in groups:
        other = first.setdefault(family(each), each)
        last, best = (paired(each, other, which) for which in ("last", "best"))
        if other is not each and last:
            table.rows.append([each.label, other.label, str(last), str(best), str(last.pairs)])
    return table


def beyond_table(groups: Sequence[Group]) -> Table:
    """Calibration, likelihood, and how close students are to their teachers' ensemble."""
    words = (
        "After the last epoch, on the test set. NLL: negative log-likelihood; ECE: expected calibration error, "
        "15 bins; balanced accuracy: the mean of the classes'; ensemble: the teachers' mean probability; gap: the "
        "student's accuracy minus the ensemble's."
    )
    table = Table("Beyond accuracy", words, ["method", *BEYOND, "gap to the ensemble"])
    for each in groups:
        scores = [each.last(name) for name in BEYOND.values()]
        decimals = (3, 2, 2, 2, 3)
        cells = [spread(*score, digits) if score else "" for score, digits in zip(scores, decimals, strict=True)]
        gap = f"{each.mean_std(ensemble_gap)[0]:+.2f}" if "teacher_ensemble" in each.first.result else ""
        table.rows.append([each.label, *cells, gap])
    return table


def class_table(groups: Sequence[Group]) -> Table:
    """Each class's accuracy under each method that has recorded it, of the dataset of the first of them."""
    told = [each for each in groups if all("test_class_accuracy" in run.result["last"] for run in each.runs)]
    told = [each for each in told if tested_on(each.first) == tested_on(told[0].first)]
    words = (
        "Test accuracy of each class in % after the last epoch, mean over seeds: the hardest classes first, "
        f"{MOST_CLASSES} at most."
    )
    table = Table("Classes", words, ["class", "images", *(each.label for each in told)])
    if not told:
        return table
    accuracies = [[run.result["last"]["test_class_accuracy"] for run in each.runs] for each in told]
    counts = told[0].first.result["last"]["test_class_images"]
    names = told[0].first.result.get("classes") or [str(number) for number in range(len(counts))]
    rows = []
    for label, (name, count) in enumerate(zip(names, counts, strict=True)):
        if count:
            means = [sum(run[label] for run in runs) / len(runs) for runs in accuracies]
            rows.append((sum(means), label, [name, str(count), *(f"{mean:.2f}" for mean in means)]))
    table.rows = [cells for _, _, cells in sorted(rows)[:MOST_CLASSES]]
    return table


def tested_on(run: Run) -> tuple[Any, ...]:
    """Dataset and classes, whose names alone may be the digits of several, with each one's number of test images."""
    return run.result["dataset"], run.result.get("classes"), run.result["last"]["test_class_images"]


def ensemble_gap(run: Run) -> float:
    """Accuracy of the student minus that of its teachers' ensemble."""
    return run.accuracy("last") - run.result["teacher_ensemble"]["accuracy"]


WEIGHING = {
    "combined gradient": "combined_gradient",
    "with exact weights": "exact_combined_gradient",
    "cosine": "gradient_cosine",
    "at the start": "at_start",
}
"""Column titles and what methods that solve for their weights call what they report, after the level's prefix."""


def weights_table(groups: Sequence[Group]) -> Table:
    """What the teachers' losses are weighted with in the first, the middle and the last epoch, where that differs."""
    words = (
        "Mean over the steps of an epoch and over the seeds. Combined gradient: its length, as the method weights the "
        "teachers' gradients, and with the exact min-norm weights; cosine: between two teachers' gradients; at the "
        "start: share of the steps whose weights are those that the released solver starts from."
    )
    table = Table("Weights of the teachers", words, ["method", "of the losses on", "epoch", "weights", *WEIGHING])
    for each in groups:
        for prefix, level in each.levels.items():
            weights = [by_epoch(each, name) for name in each.names(f"{prefix}weight_")]
            if len({value for of_one in weights for value in of_one.values()}) > 1:
                others = [by_epoch(each, prefix + name) for name in WEIGHING.values()]
                for epoch in first_middle_last(weights[0]):
                    mean = " ".join(f"{of_one[epoch]:.3f}" for of_one in weights)
                    cells = [f"{other[epoch]:.3g}" if epoch in other else "" for other in others]
                    table.rows.append([each.label, level, str(epoch), mean, *cells])
    return table


def by_epoch(each: Group, name: str) -> dict[int, float]:
    """A metric's mean over the seeds, for each epoch that has it."""
    epochs, means, _ = each.curve(name)
    return dict(zip(epochs, means, strict=True))


def first_middle_last(epochs: Collection[int]) -> list[int]:
    """Three of them, or fewer if there are."""
    among = sorted(epochs)
    return sorted({among[0], among[(len(among) - 1) // 2], among[-1]})


def peer_table(groups: Sequence[Group]) -> Table:
    """Each peer of the online rows: accuracy and cost."""
    words = "Test accuracy in % after the last epoch; parameters and multiply-accumulates (MACs) of that peer alone."
    table = Table("Peers", words, ["method", "peer", "last epoch", "parameters", "million MACs", "compression"])
    for each in groups:
        for j, cost in enumerate(each.first.result.get("peers", [])):
            score = each.last(f"test_peer_{j}_accuracy")
            if score:
                cells = [f"{cost['parameters']:,}", f"{cost['macs'] / 1e6:.1f}", f"{cost['compression']:.2f}"]
                table.rows.append([each.label, str(cost.get("number", j)), spread(*score), *cells])
        if score := each.last("test_ensemble_accuracy") if each.first.kind == "online" else None:
            parameters = each.first.result.get("parameters")
            table.rows.append([each.label, "ensemble", spread(*score), f"{parameters:,}" if parameters else "", "", ""])
    return table


def published_table(groups: Sequence[Group]) -> Table:
    """The rows that the literature has a value for."""
    words = (
        "Beside published values of the same dataset, teachers, student and method, and the same of the runs here: "
        "the best epoch, which most released scripts report, the last, or the epoch in which the peers' mean is best. "
        "Whatever else differs is listed."
    )
    header = ["method", "of", "here", "published", "difference", "differs in", "source"]
    table = Table("Beside published values", words, header)
    for each in groups:
        found = published(each)
        if found:
            mean, std = found.here(each)
            cells = [OF[found.of][0], spread(mean, std), spread(found.value, found.std), f"{mean - found.value:+.2f}"]
            table.rows.append([each.label, *cells, ", ".join(found.differing), found.source])
    return table


def notes(groups: Sequence[Group]) -> list[str]:
    """Each set of teachers and each combination of machine and software once, and runs that are left out."""
    return [*teacher_lines(runs_of(groups)), *machine_lines(runs_of(groups)), *repeat_lines(groups)]


def teacher_lines(runs: Sequence[Run]) -> list[str]:
    """Each set of teachers once: their accuracies and their ensemble's."""
    lines = []
    for run in runs:
        if "teachers" in run.result:
            each = ", ".join(f"{teacher['arch']} {teacher['accuracy']:.2f}" for teacher in run.result["teachers"])
            lines.append(f"Teachers: {each}; their ensemble {run.result['teacher_ensemble']['accuracy']:.2f}.")
    return list(dict.fromkeys(lines))


def machine_lines(runs: Sequence[Run]) -> list[str]:
    """What the runs were made with, each combination once; the revisions together."""
    made: dict[str, dict[str, None]] = {}
    for run in runs:
        processes = run.result.get("processes", 1)
        several = f", {processes} processes" if processes > 1 else ""
        device = run.result["device"].replace(" 1 threads", " 1 thread")  # as older runs have it
        words = f"{device}{several}; {run.precision}; PyTorch {run.result['versions']['torch']}"
        made.setdefault(words, {})[run.result["git_revision"] or "unknown"] = None
    return [f"{words}; revision{'s' * (len(each) > 1)} {', '.join(each)}." for words, each in made.items()]


def repeat_lines(groups: Sequence[Group]) -> list[str]:
    """Each run that another one with its seed stands for."""
    return [
        f"{repeat.path} is left out, since {run.path} is of the same setting and seed."
        for each in groups
        for repeat in each.repeats
        for run in each.runs
        if run.seed == repeat.seed
    ]


def markdown(groups: Sequence[Group], against: str | None = None) -> str:
    """All tables, with the commands below; ``against``: see :func:`differences_table`."""
    first, *others = all_tables(groups, against)
    runs = runs_of(groups)
    teachers = "\n\n".join(teacher_lines(runs))
    parts = [first.words, "", first.markdown(), "", *([teachers, ""] if teachers else [])]
    parts += ["\n".join([*machine_lines(runs), *repeat_lines(groups)]), ""]
    for table in others:
        parts += [f"## {table.title}", "", table.words, "", table.markdown(), ""]
    return "\n".join([*parts, "## Commands", "", "```", *(each.first.command for each in groups), "```", ""])


def runs_of(groups: Sequence[Group]) -> list[Run]:
    """All runs that the rows are made of."""
    return [run for each in groups for run in each.runs]
