"""What the epoch loop promises: micro-batches, faults said in one line, positions within an epoch, drops."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train_teacher
from helper import checkpoint, distributed, loop
from helper.batch import Batch, When
from helper.errors import InputError, UsageError
from helper.loop import Fit
from helper.meters import FirstBad, Means, accuracy
from helper.resuming import Progress, rescaled_drops
from helper.run_folder import RunFolder
from helper.script import run_script
from helper.stopping import RESUME_ME, SIGNALS, Looks, ReadersLost, Signals, Stopped, signals
from helper.task import Task

CLASSES, BATCH, STEPS = 4, 8, 5


class Linear(Task):
    """A task without BatchNorm, in float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.trained = nn.ModuleDict({"network": nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES), nn.Dropout(0.2))})
        self.trained.double()
        self.seen: list[int] = []

    def step(self, batch: Batch, when: When) -> dict[str, torch.Tensor]:
        self.seen.append(len(batch.target))
        logits = self.trained["network"](batch.images)
        loss = F.cross_entropy(logits, batch.target)
        return {"loss": loss, "loss_ce": loss, "accuracy": accuracy(logits, batch.target)}

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"network": self.trained["network"](images)}


class Data:
    num_images = BATCH * STEPS

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(self.num_images, 3, 2, 2, generator=generator, dtype=torch.float64)
        self.target = torch.randint(0, CLASSES, (self.num_images,), generator=generator)
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.start = start

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Batch]:
        for first in range(self.start * BATCH, self.num_images, BATCH):
            yield Batch(self.images[first : first + BATCH], self.target[first : first + BATCH])


def fit_of(folder: Path, task: Any, *words: str, state: dict[str, Any] | None = None) -> Fit:
    opt = train_teacher.options().parse(["--epochs", "2", "--batch_size", str(BATCH), *words])
    run = RunFolder(folder)
    opened = run.open({}, overwrite=False)
    run.close()

    return Fit(
        task=task,
        train=Data(),
        validation=None,
        test=Data(),
        opt=opt,
        run=run,
        device=torch.device("cpu"),
        precision="fp32",
        state=opened,
        learning_rate=0.1,
        about={"arch": "linear"},
    )


def weights(task: Linear) -> torch.Tensor:
    return nn.utils.parameters_to_vector(task.trained.parameters()).detach().clone()


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_are_the_whole_batch(parts: int, tmp_path: Path) -> None:
    whole, split = Linear(), Linear()
    for task in (whole, split):
        task.trained["network"][2] = nn.Identity()  # no dropout: its masks follow the order of the calls
    rows = []
    for task, accumulate in ((whole, 1), (split, parts)):
        fit = fit_of(tmp_path / str(accumulate), task, "--accumulate", str(accumulate))
        fit()
        rows.append(fit.run.read_metrics()[-1])
    assert set(split.seen) == {BATCH // parts}
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-12, rtol=0)
    for name in ("train_loss", "train_accuracy", "test_accuracy"):
        assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-9)


@pytest.mark.parametrize("parts", [1, 4])
def test_micro_batches_are_told_apart(parts: int, tmp_path: Path) -> None:
    told = []

    class Told(Linear):
        def step(self, batch: Batch, when: When) -> dict[str, torch.Tensor]:
            told.append((when.epoch, when.step, when.part))
            return super().step(batch, when)

    fit_of(tmp_path, Told(), "--accumulate", str(parts))()
    assert told == list(itertools.product((1, 2), range(1, STEPS + 1), range(parts)))


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_position_within_an_epoch_is_resumed_bitwise(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals.hear("")
    straight = Linear()
    fit_of(tmp_path / "a", straight)()
    cut = Linear()
    fit = fit_of(tmp_path / "b", cut)
    backward, calls = fit.step.backward, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == STEPS + step:  # in the second epoch
            signal.raise_signal(signal.SIGTERM)
        return backward(*arguments)

    monkeypatch.setattr(fit.step, "backward", interrupted)
    with pytest.raises(Stopped, match=f"SIGTERM: .*b is saved after step {step} of epoch 2; --resume goes on"):
        fit()
    assert checkpoint.load(tmp_path / "b" / "last.pth")["position"]["step"] == step
    signals.hear("")
    resumed = Linear()
    second = fit_of(tmp_path / "b", resumed)
    second()
    assert len(resumed.seen) == STEPS - step
    assert torch.equal(weights(resumed), weights(straight))
    rows = [RunFolder(tmp_path / name).read_metrics() for name in "ab"]
    for mine, theirs in zip(*rows, strict=True):
        for name in ("epoch", "train_loss", "train_accuracy", "test_accuracy", "learning_rate"):
            assert mine[name] == theirs[name]


def test_time_passes_and_the_middle_of_an_epoch_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOOK", 2)
    saved = []
    save = Fit._save_position

    def counted(self: Fit, step: int, means: Means) -> None:
        saved.append(step)
        save(self, step, means)

    monkeypatch.setattr(Fit, "_save_position", counted)
    fit_of(tmp_path / "a", Linear(), "--checkpoint_minutes", "1e-9")()
    assert saved == [1, 3, 5, 2, 4], "the first step shows how long one takes"
    fit_of(tmp_path / "b", Linear())()
    assert len(saved) == 5


def test_processes_that_write_nothing_count_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would ask for a checkpoint at every look, once the first interval has passed."""
    record = fit_of(tmp_path, Linear(), "--checkpoint_minutes", "10").record
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    with record.opened(1):
        record.saved_at -= 3600
        assert record.due()
        record.save(seconds=1.0)
        assert not record.due()
    assert not (tmp_path / "last.pth").exists()
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_a_script_and_is_remembered_by_a_run(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)  # which nohup may have changed
    heard = Signals()
    heard.hear("nothing had been trained")
    with pytest.raises(Stopped, match=f"{number.name}: nothing had been trained"):
        signal.raise_signal(number)
    assert heard.broke_off
    heard.hear("")
    heard.hold()
    signal.raise_signal(number)
    signal.raise_signal(signal.SIGTERM)
    assert heard.received == number.name
    assert not heard.broke_off
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_a_library_has_swallowed_is_not_forgotten() -> None:
    heard = Signals()
    heard.hear("")
    with contextlib.suppress(Stopped):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"):
        heard.hold()


def test_nohup_is_heard() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heard = Signals()
    heard.hear("")
    signal.raise_signal(signal.SIGHUP)
    assert heard.received is None


def test_what_a_library_makes_of_a_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def main(_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped:
            raise ImportError("a module that was half imported") from None

    monkeypatch.setenv("RESUME_ME_FILE", str(tmp_path / "resume"))
    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == RESUME_ME
    said = capsys.readouterr().err
    assert said.endswith(": SIGTERM: nothing had been trained yet; the same command starts it again\n")
    assert said.count("\n") == 1
    assert (tmp_path / "resume").exists()


def test_slow_steps_are_looked_at_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    looks, looked = Looks(50), []
    for step in range(1, 300):
        now += 0.01 if step < 150 else 1.0
        if looks.due(step):
            looked.append((step, now))
            looks.done(step)
    assert [step for step, _ in looked[:4]] == [1, 51, 101, 151]
    late = [step for step, _ in looked if step > 260]
    assert all(after - before == 5 for before, after in itertools.pairwise(late))


class Hung(Linear):
    """Is told to end in a call of ``predict`` or ``compare``."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__()
        self.calls, self.at, self.what = 0, at, what

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.called("predict", images)

    def compare(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"close": self.called("compare", images)["network"].amax(1)}

    def called(self, what: str, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if what == self.what:
            self.calls += 1
            if self.calls == self.at:
                signal.raise_signal(signal.SIGTERM)
        return {"network": self.trained["network"](images)}


@pytest.mark.parametrize(
    ("at", "what", "where"),
    [
        (2, "predict", f"step {STEPS} of epoch 1"),
        (STEPS, "predict", "epoch 1"),
        (STEPS + 1, "predict", f"step {STEPS} of epoch 2"),
        (2, "compare", "epoch 2"),
    ],
)
def test_an_evaluation_is_broken_off_and_repeated(at: int, what: str, where: str, tmp_path: Path) -> None:
    straight = fit_of(tmp_path / "a", Hung(0, ""))()
    signals.hear("")
    cut = Hung(at, what)
    with pytest.raises(Stopped, match=f"SIGTERM: .*b is saved after {where}; --resume goes on"):
        fit_of(tmp_path / "b", cut)()
    assert cut.calls == at, "at once"
    signals.hear("")
    resumed = Hung(0, "")
    again = fit_of(tmp_path / "b", resumed)()
    assert len(resumed.seen) == (STEPS if where.endswith("epoch 1") else 0), "no step is repeated"
    assert again["last"] == straight["last"]
    assert again["best"] == straight["best"]
    assert again["images_per_second"] > 0
    rows = [RunFolder(tmp_path / name).read_metrics() for name in "ab"]
    for mine, theirs in zip(*rows, strict=True):
        for name in ("epoch", "train_loss", "train_accuracy", "test_accuracy", "learning_rate"):
            assert mine[name] == theirs[name]


class Broken(Data):
    """Its images cannot be read from a batch on; ``error`` is what it raises."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(super().__iter__(), self.start + 1):
            if number == self.at:
                raise self.error
            yield batch


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("error", [InputError("a.png cannot be read"), ReadersLost("memory")], ids=["image", "reader"])
def test_what_cannot_be_read_costs_no_step(part: str, error: InputError | ReadersLost, tmp_path: Path) -> None:
    straight = Linear()
    fit_of(tmp_path / "a", straight)()
    fit = fit_of(tmp_path / "b", Linear())
    setattr(fit, part, Broken(3, error))
    step = 2 if part == "train" else STEPS
    expected = UsageError if isinstance(error, UsageError) else Stopped
    with pytest.raises(expected, match=f"{error}: .*b is saved after step {step} of epoch 1; --resume goes on"):
        fit()
    resumed = Linear()
    fit_of(tmp_path / "b", resumed)()
    assert len(resumed.seen) == 2 * STEPS - step
    assert torch.equal(weights(resumed), weights(straight))


def test_nothing_is_saved_where_nothing_is_trained(tmp_path: Path) -> None:
    fit = fit_of(tmp_path, Linear())
    fit.train = Broken(1, InputError("a.png cannot be read"))
    with pytest.raises(UsageError, match=r"a\.png cannot be read; there is no checkpoint yet"):
        fit()
    assert not (tmp_path / "last.pth").exists()
    RunFolder(tmp_path).require_permission(resume=False, overwrite=False)  # the same command starts it


class Explodes(Linear):
    def step(self, batch: Batch, when: When) -> dict[str, torch.Tensor]:
        scalars = super().step(batch, when)
        if when.epoch == 2 and len(self.seen) >= STEPS + 3:
            scalars["loss_ce"] = scalars["loss_ce"] * float("inf")
        return {**scalars, "loss": scalars["loss"] + scalars["loss_ce"]}


def test_a_loss_that_is_not_finite_names_step_and_part(tmp_path: Path) -> None:
    expected = r"loss, loss_ce became infinite or not a number in step 3 of epoch 2; the checkpoint of epoch 1 is kept"
    with pytest.raises(UsageError, match=expected):
        fit_of(tmp_path, Explodes())()
    assert checkpoint.load(tmp_path / "last.pth")["epoch"] == 1


class Ruined(Linear):
    """By the last update of an epoch; no loss of a step shows it."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.last = epoch * STEPS

    def after_step(self) -> None:
        if len(self.seen) == self.last:
            self.trained["network"][1].weight.data.fill_(float("inf"))


@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.parametrize(("epoch", "kept"), [(1, "there is no checkpoint yet"), (2, "the checkpoint of epoch 1 is")])
def test_weights_that_the_last_update_ruins_are_not_saved(
    epoch: int, kept: str, validates: bool, tmp_path: Path
) -> None:
    fit = fit_of(tmp_path, Ruined(epoch))
    fit.validation = Data() if validates else None
    expected = rf"the loss on the \w+ set became infinite or not a number after epoch {epoch}; {kept}"
    with pytest.raises(UsageError, match=expected):
        fit()
    assert len(fit.run.read_metrics()) == epoch - 1
    assert [(tmp_path / name).exists() for name in ("last.pth", "best.pth")] == [epoch == 2] * 2
    assert not fit.run.finished


def test_the_first_bad_step_is_remembered() -> None:
    bad = FirstBad()
    assert bad.read() is None
    values = {"loss": torch.tensor(1.0), "loss_kd": torch.tensor(1.0)}
    for step in range(1, 5):
        worse = {**values, "loss_kd": torch.tensor(float("nan"))} if step >= 3 else values
        bad.look({**worse, "loss": torch.tensor(float("inf"))} if step == 4 else worse, step)
    assert bad.read() == (3, ["loss_kd"])


class Large(Linear):
    """Memory for 3 images."""

    def step(self, batch: Batch, when: When) -> dict[str, torch.Tensor]:
        if len(batch.target) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return super().step(batch, when)


def test_too_little_memory_says_what_would_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--batch_size: 8 does not fit in the memory; 2 images at once fit"):
        fit_of(tmp_path / "a", Large())()
    fit_of(tmp_path / "b", Large(), "--accumulate", "4")()


@pytest.mark.parametrize("refusal", [UsageError("built for 8"), ValueError("1 value"), RuntimeError("shapes")])
def test_too_little_memory_is_said_where_no_other_size_would_do(refusal: Exception, tmp_path: Path) -> None:
    class OfOneSize(Linear):
        def step(self, batch: Batch, when: When) -> dict[str, torch.Tensor]:
            raise torch.OutOfMemoryError("out of memory") if len(batch.target) == BATCH else refusal

    with pytest.raises(UsageError, match=r"^--batch_size: 8 does not fit in the memory; try a smaller one, or --accum"):
        fit_of(tmp_path, OfOneSize())()


class Crowded(Linear):
    """Its evaluation has memory for so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return super().predict(images)


def test_too_little_memory_for_an_evaluation_costs_no_step(tmp_path: Path) -> None:
    straight = Linear()
    fit_of(tmp_path / "a", straight)()
    expected = rf"^evaluating one image .*: .*b is saved after step {STEPS} of epoch 1; --resume goes on from there$"
    with pytest.raises(UsageError, match=expected):
        fit_of(tmp_path / "b", Crowded(0))()
    resumed = Crowded(3)
    fit_of(tmp_path / "b", resumed)()
    assert len(resumed.seen) == STEPS
    assert torch.equal(weights(resumed), weights(straight))
    mine, theirs = (RunFolder(tmp_path / name).read_metrics() for name in "ab")
    assert [row["test_accuracy"] for row in mine] == [row["test_accuracy"] for row in theirs]


@pytest.mark.parametrize("call", ["torch.optim.SGD.step", "torch.nn.utils.clip_grad_norm_"])
def test_too_little_memory_for_an_update_is_said(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    fit = fit_of(tmp_path, Linear(), "--clip_grad", "1")
    monkeypatch.setattr(call, refuse)
    with pytest.raises(
        UsageError, match=r"^--batch_size: 8 does not fit in the memory; try .*; there is no checkpoint"
    ):
        fit()


@pytest.mark.parametrize(
    ("old", "new", "epoch", "expected"),
    [
        ([150, 180, 210], [300, 360, 420], 160, [150, 360, 420]),
        ([150, 180, 210], [300, 360, 420], 240, [150, 180, 210]),
        ([150, 180, 210], [188, 225, 262], 200, [150, 180, 262]),
        ([5, 7], [6, 9], 5, [6, 9]),
        ([5], [4], 3, [4]),
        ([5, 8], [2, 3], 4, [4, 4]),
    ],
)
def test_drops_when_the_epochs_change(old: list[int], new: list[int], epoch: int, expected: list[int]) -> None:
    assert rescaled_drops(old, new, epoch) == expected


@pytest.mark.parametrize("within", [False, True], ids=["after an epoch", "within one"])
@pytest.mark.parametrize("epochs", [200, 240, 480])
def test_more_epochs_leave_the_rate_of_an_epoch_that_has_begun(within: bool, epochs: int) -> None:
    """Of 240 epochs 150 are done: a drop after these has taken effect in the next one and in no other."""
    position = {"step": 3, "means": [], "generators": [], "speed": 1.0} if within else None
    state = {"epoch": 150, "epochs": 240, "seconds": 1.0, "accuracy": 1.0, "best": None, "position": position}
    drops = [epochs * part // 8 for part in (5, 6, 7)]
    found = Progress.of({**state, "drops": [150, 180, 210]}, epochs, drops).drops
    assert found[0] == (150 if within else max(150, drops[0]))
    assert found[1:] == [max(150 + within, drop) for drop in drops[1:]]


@pytest.mark.parametrize(("said", "expected"), [({}, 240), ({"begun_for": 120}, 120)])
def test_how_many_epochs_a_run_was_begun_for(said: dict[str, int], expected: int) -> None:
    """Earlier versions have not said it: then it was not extended yet."""
    state = {"epoch": 150, "epochs": 240, "seconds": 1.0, "accuracy": 1.0, "best": None}
    assert Progress.of(None, 480, []).begun_for == 480
    extended = Progress.of({**state, **said}, 480, [])
    assert extended.begun_for == extended.state()["begun_for"] == expected


def test_means_go_on_from_a_state() -> None:
    whole, first = Means(), Means()
    for step in range(4):
        whole.add({"a": torch.tensor(float(step))}, step + 1)
    for step in range(2):
        first.add({"a": torch.tensor(float(step))}, step + 1)
    second = Means()
    second.restore([first.state()], torch.device("cpu"))
    for step in range(2, 4):
        second.add({"a": torch.tensor(float(step))}, step + 1)
    assert second.read() == whole.read()


def test_means_go_on_in_fewer_or_more_processes() -> None:
    """The first process takes over what all had counted; one that has counted nothing takes no names away."""
    counted = []
    for value in (1.0, 3.0):
        means = Means()
        means.add({"a": torch.tensor(value)}, 5)
        counted.append(means.state())
    first, other = Means(), Means()
    first.restore(counted, torch.device("cpu"))
    other.restore([], torch.device("cpu"))
    assert first.read() == {"a": 2.0}
    first.add({"a": torch.tensor(5.0)}, 10)
    assert first.read() == {"a": 3.5}
    assert other.state() == ([], [], 0)


def test_a_process_that_leaves_is_told_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_: object) -> None:
        raise Stopped("another process of this run has ended")

    monkeypatch.setattr("helper.script.leave_word", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        run_script(main)
    assert left.value.code == RESUME_ME
