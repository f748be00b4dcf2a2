"""A run that version 0.1 (commit 3e86a85) began goes on, and its checkpoints are evaluated.

``tests/data/run-of-0.1.zip`` is the folder of the command below, interrupted after its first epoch.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from tiny_runs import distil, metrics, teach

from helper import checkpoint
from models import model_dict

ARCHIVE = Path(__file__).parents[1] / "data" / "run-of-0.1.zip"
WORDS = (
    "--teachers teachers/0.pth teachers/1.pth --distill hint --ensemble_method AEKD -b 2 --feat_start_epoch 1 "
    "--epochs 2 --batch_size 32 --precision fp32 --kd_T 3 --nesterov --save_dir save --resume"
)
SECOND_EPOCH = {  # as 0.1 went on
    "train_loss": 3.10028,
    "train_loss_ce": 2.28380,
    "train_loss_kd": 0.0187803,
    "train_loss_feature": 0.398851,
    "train_feature_weight_0": 0.499421,
    "test_loss": 2.32142,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder, with its teachers in the place that its name tells of."""
    monkeypatch.chdir(tmp_path)
    Path("teachers").mkdir()
    for k in range(2):
        torch.manual_seed(k)
        network = model_dict["resnet8"](num_classes=10)
        checkpoint.save({"model": network.state_dict(), "arch": "resnet8"}, Path(f"teachers/{k}.pth"))
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall("save/students")
    (folder,) = Path("save/students").iterdir()
    return folder


@pytest.mark.usefixtures("little_data_of_usual_size")
def test_it_goes_on(folder: Path) -> None:
    outcome = distil(folder, WORDS)
    assert f"{folder}: resuming after epoch 1" in outcome.out
    assert outcome.folder == folder
    before, after = metrics(folder)
    assert before["train_loss"] == 3.3120630383491516
    assert {name: after[name] for name in SECOND_EPOCH} == pytest.approx(SECOND_EPOCH, rel=1e-2)


@pytest.mark.usefixtures("little_data_of_usual_size")
def test_it_is_evaluated(folder: Path) -> None:
    (row,) = metrics(folder)
    for name in ("best.pth", "last.pth"):
        said = teach(folder, f"--evaluate {folder / name}").out.splitlines()[-1]
        assert f"accuracy {row['test_accuracy']:.2f} %" in said
