"""Networks from outside in the real scripts: trained, evaluated, exported, and teaching."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import call, distil, result, teach, teach_each_other, weights

import train_student
from helper.errors import UsageError
from scripts import export

pytestmark = pytest.mark.usefixtures("little_data_of_usual_size")

NET = """
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.first(x))).mean((2, 3)))
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path}/net.py:Net"


def test_a_persons_network_from_training_to_export(tmp_path: Path, own: str, teachers: str) -> None:
    run = teach(tmp_path, f"--model {own}").folder
    assert run.name.startswith("net.Net@")
    assert list(weights(run))[:2] == ["first.weight", "first.bias"], "the network's own names"
    scores = teach(tmp_path, f"--model {own} --evaluate {run}").out
    assert f"accuracy {result(run)['last']['test_accuracy']:.2f} %" in scores
    theirs = {"state_dict": {f"module.{name}": value for name, value in weights(run).items()}, "best_prec1": 9.0}
    torch.save(theirs, tmp_path / "theirs.th")
    as_theirs = teach(tmp_path, f"--model {own} --evaluate {tmp_path}/theirs.th").out
    assert as_theirs.partition(": ")[2] == scores.partition(": ")[2]
    with pytest.raises(UsageError, match=r"says that its network is .*net.py:Net; --arch .*net.py:Net uses that"):
        export.main([str(run)])
    with pytest.raises(UsageError, match=r"its weights are of .*net.py:Net and do not fit resnet8 as it is"):
        export.main([str(run), "--arch", "resnet8"])
    export.main([str(run), "--arch", own])
    exported = f"{run}/last_network.pt2"
    student = distil(tmp_path, f"--teachers {run}/last.pth:{own} {exported} --distill kd").folder
    accuracies = [each["accuracy"] for each in result(student)["teachers"]]
    assert accuracies[0] == accuracies[1] == result(run)["last"]["test_accuracy"]
    again = distil(tmp_path, f"--config {student}/parameters.json")
    assert "is finished" in again.out
    learner = distil(
        tmp_path, f"--model_s {own} {teachers} --distill hint -b 1 --hint_layer norm:layer1,features,0"
    ).folder
    (tmp_path / "net.py").write_text(NET + "\n# edited\n")
    assert teach(tmp_path, f"--model {own}").folder != run
    assert learner.name.startswith(run.name.split("-")[0])


def test_peers_of_a_persons_network_are_exported_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from models import model_dict\n\nNet = model_dict['resnet8']\n")
    own = f"{tmp_path}/net.py:Net"
    run = teach_each_other(tmp_path, f"--model {own} --method KDCL").folder
    with pytest.raises(UsageError, match=r"says that its network is .*net.py:Net; --arch .*net.py:Net uses that"):
        export.main([str(run), "--student", "1"])
    export.main([str(run), "--student", "1", "--arch", own])
    assert (run / "last_peer_1.pt2").exists()


def test_libraries_networks_teach_on_maps(tmp_path: Path, own: str) -> None:
    """From their own weights and from a checkpoint, together with a person's."""
    pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "hf")
    run = teach(tmp_path, "--model timm/test_efficientnet").folder
    assert run.name.startswith("timm.test_efficientnet-digits-")
    chosen = f"--teachers {run}/last.pth hf/{tmp_path}/hf {own}"
    for words in ("inter -b 1 --ensemble_method CAMKD", "hint -b 1 --hint_layer layer2:1,norm --ensemble_method AEKD"):
        student = distil(tmp_path, f"{chosen} --distill {words}").folder
        told = [(each["arch"], each.get("path"), "run_name" in each) for each in result(student)["teachers"]]
        assert told == [
            ("timm/test_efficientnet", f"{run}/last.pth", False),
            (f"hf/{tmp_path}/hf", None, True),
            (own, None, True),
        ]


def test_a_student_answers_through_their_classifiers(tmp_path: Path, own: str) -> None:
    """Evaluated and exported with them, once one has said that their files may be run."""
    pytest.importorskip("timm")
    run = teach(tmp_path, "--model timm/test_efficientnet").folder
    words = f"--teachers {run}/last.pth {own} --distill simkd -b 1 --model_s {own}"
    student = distil(tmp_path, words).folder
    outcome = call(train_student.main, "train_student.py", f"--config {student}/parameters.json --evaluate {student}")
    assert f"accuracy {result(student)['last']['test_accuracy']:.2f} %" in outcome.out, outcome.err
    with pytest.raises(UsageError, match=r"says that its network is .*net.py:Net; --arch .*net.py:Net uses that"):
        export.main([str(student)])
    assert not (student / "last_network.pt2").exists()
    export.main([str(student), "--arch", own])
    exported = torch.export.load(student / "last_network.pt2").module()
    assert exported(torch.zeros(3, 3, 32, 32)).shape == (3, 10)
    parameters = json.loads((student / "parameters.json").read_text())
    for edited in ({"distill": "hint"}, {"teachers": [own, own]}):
        (student / "parameters.json").write_text(json.dumps({**parameters, **edited}))
        with pytest.raises(UsageError, match="the checkpoint is not of such a run"):
            export.main([str(student), "--arch", own])


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, own: str) -> None:
    pytest.importorskip("timm")
    save_dir = tmp_path / "save"
    for outcome, words in (
        (
            teach(save_dir, "--model timm/resnet5o"),
            "--model: there is no 'timm/resnet5o'; did you mean 'timm/resnet50'?",
        ),
        (teach(save_dir, f"--model {own}tt"), "has no 'Nettt'; did you mean 'Net'?"),
        (teach(save_dir, f"--model {own} --pretrained"), "--pretrained: there are no published weights for"),
        (teach(save_dir, "--model timm/vit_tiny_patch16_224"), "cannot take digits's images of 32×32"),
        (distil(save_dir, f"--teachers {tmp_path}/net.py"), "does not say what makes the network"),
        (
            distil(save_dir, f"--teachers {own} --distill hint -b 1 --hint_layer norm"),
            "'norm' is no child of the student",
        ),
        (
            distil(save_dir, f"--teachers {own} --distill ab -b 1"),
            "net.py:Net does not offer; choose another network or",
        ),
        (distil(save_dir, "--teachers resnet8"), "there is no checkpoint 'resnet8'"),
        (teach_each_other(save_dir, f"--model {own}"), "has no stages that peers could share"),
    ):
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 1
        assert words in outcome.err
    (tmp_path / "net.py").write_text(NET.replace("num_classes=10", "").replace("num_classes", "3"))
    wrong = teach(save_dir, f"--model {own}")
    assert "has 3 classes, digits has 10" in wrong.err
    assert not save_dir.exists()
