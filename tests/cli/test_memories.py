"""The real script under losses that remember, learn first or answer for the student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import SMALL, call, distil, few_digits, metrics, result, without_times

import train_student
from helper import checkpoint
from helper.loop import Fit
from helper.meters import Means
from models import model_dict
from scripts import export

pytestmark = pytest.mark.usefixtures("little_data")
THROUGH = "-r 0 -a 0 --distill simkd -b 1 --ensemble_method CAMKD --epochs 2"


@pytest.mark.parametrize(
    ("of", "losses"),
    [
        ((0, 1), "ft,crd,simkd -b 20,0.8,1 --nce_k 20"),
        ((0, 1), "crd -b 0.8 --nce_k 20 --accumulate 2"),
        ((2,), "ofd -b 0.001"),
    ],
    ids=["memories", "micro-batches", "ofd"],
)
def test_resuming_gives_the_bits_of_an_undisturbed_run(
    tmp_path: Path, teacher_files: list[Path], of: tuple[int, ...], losses: str
) -> None:
    """Memories, margins that are counted, paraphrasers and shares, from the middle of an epoch."""
    teachers = " ".join(str(teacher_files[k]) for k in of)
    words = f"--teachers {teachers} --distill {losses} --ensemble_method AEKD --epochs 2 --feat_start_epoch 1"
    undisturbed = distil(tmp_path / "a", words).folder

    def stop(self: Fit, epoch: int, step: int, means: Means, bad: object) -> None:
        self._save_position(step, means)
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "_look", stop)
        assert distil(tmp_path / "b", words).code == 130
    outcome = distil(tmp_path / "b", f"{words} --resume")
    assert "resuming after step 1 of epoch 2" in outcome.out
    states = [checkpoint.load(folder / "last.pth")["trained"] for folder in (undisturbed, outcome.folder)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert without_times(metrics(undisturbed)) == without_times(metrics(outcome.folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, teacher_files: list[Path]) -> Path:
    """The run of a student that answers through its teachers."""
    teachers = f"--teachers {' '.join(map(str, teacher_files))}"
    with few_digits():
        return distil(tmp_path_factory.mktemp("through"), f"{teachers} {THROUGH}").folder


def test_a_student_that_answers_through_its_teachers(folder: Path) -> None:
    """Its checkpoints are enough to evaluate and to export it, without any teacher's file."""
    state, scores = checkpoint.load(folder / "last.pth"), result(folder)["last"]
    assert model_dict[state["arch"]](num_classes=10).load_state_dict(state["model"])
    assert checkpoint.load(folder / "best.pth")["trained"].keys() == state["trained"].keys()
    shares = state["trained"]["heads.shares"]
    assert (shares > 0).all()
    assert not torch.equal(shares, torch.full_like(shares, 1 / 3))

    evaluated = call(
        train_student.main, "train_student.py", f"--config {folder / 'parameters.json'} --evaluate {folder}"
    )
    assert f"accuracy {scores['test_accuracy']:.2f} %" in evaluated.out
    assert f"cross-entropy {scores['test_loss']:.4f}" in evaluated.out

    outcome = call(export.main, "export.py", f"{folder}")
    assert outcome.code == 0, outcome.err
    program = torch.export.load(folder / "last_network.pt2").module()
    images = torch.randn(5, 3, SMALL, SMALL)
    parser = train_student.options()
    opt = parser.parse(["--config", str(folder / "parameters.json")])
    build = lambda arch: model_dict[arch](num_classes=10)  # noqa: E731
    network = train_student.answering(parser, opt, state, build, images, "")
    torch.testing.assert_close(program(images), network(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(images), network.student(images))


def test_its_average_is_what_is_evaluated_and_exported(tmp_path: Path, teachers: str) -> None:
    folder = distil(tmp_path, f"{teachers} {THROUGH} --ema 0.5").folder
    scores = result(folder)["last"]
    run = f"--config {folder / 'parameters.json'}"
    evaluated = call(train_student.main, "train_student.py", f"{run} --evaluate {folder}")
    assert f"accuracy {scores['test_accuracy']:.2f} %" in evaluated.out
    assert f"cross-entropy {scores['test_loss']:.4f}" in evaluated.out
    state = checkpoint.load(folder / "last.pth")
    opt = export.options().parse_args([str(folder)])
    network = export.through_heads(opt, state, torch.zeros(2, 3, SMALL, SMALL))
    held = {f"adapters.{name}": each for name, each in network.losses.state_dict().items()}
    common = held.keys() & state["average"].keys()
    assert common
    assert all(torch.equal(held[name], state["average"][name]) for name in common)
    assert not all(torch.equal(held[name], state["trained"][name]) for name in common)


def test_such_a_student_is_not_taken_for_one_that_answers_by_itself(
    tmp_path: Path, teachers: str, folder: Path
) -> None:
    plain = distil(tmp_path, f"{teachers}").folder
    run = f"--config {folder / 'parameters.json'}"
    for words, option, reason in (
        (f"--model_s resnet8 --dataset digits --evaluate {folder}", "--evaluate", "through its teachers' classifiers"),
        (f"--dataset digits --teachers {folder / 'last.pth'}", "setting.py or --teachers", "through its teachers'"),
        (f"{run} --evaluate {plain}", "--evaluate", "not of such a run"),
        (f"{run} --evaluate {tmp_path / 'nothing.pth'}", "--evaluate", "nothing.pth"),
    ):
        outcome = call(train_student.main, "train_student.py", f"{words} --device cpu --save_dir {tmp_path / 'new'}")
        assert outcome.code == 2
        assert outcome.err.startswith(f"train_student.py: error: {option}")
        assert reason in outcome.err
        assert len(outcome.err.splitlines()) == 1
        assert not (tmp_path / "new").exists()
