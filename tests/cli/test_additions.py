"""What others will add, one file and one line each: losses and weightings of every kind pass what ours pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lived_in
import pytest
import torch
from checkout import ROOT, own_files

pytestmark = pytest.mark.skipif(not own_files(), reason="not a git checkout: what to copy is not known")

ADDITIONS = sorted((ROOT / "tests" / "additions").glob("*/*.py"))
LOSSES = ("attention_everywhere", "remembered", "logit_error")
WEIGHTINGS = ("LEARNED_WEIGHTS", "RANDOM_WEIGHTS")
SCHEDULE = "--lr_schedule cosine --warmup_epochs 0.5 --optimizer adamw --lr 0.01 --clip_grad 1"
RUNS = [
    *(f"--distill {loss} --ensemble_method AEKD -b {0 if loss == 'logit_error' else 2}" for loss in LOSSES),
    *(f"--distill inter --ensemble_method {name} -b 2 --feat_start_epoch 1" for name in WEIGHTINGS),
    f"--distill remembered --ensemble_method LEARNED_WEIGHTS -b 1 {SCHEDULE}",
]
# Trains [[words, step to be cut off at or 0, exit code], …] with few images, as scripts do.
SCRIPT = """
import json, signal, sys
sys.path.insert(0, "tests/cli")
import torch
import train_student
from helper.stopping import signals
from helper.update import Update
from tiny_runs import call, few_digits
torch.set_num_threads(1)
update = Update.__call__
def counted(self, batch, when):
    global left
    left -= 1
    if left == 0:
        signal.raise_signal(signal.SIGTERM)
    return update(self, batch, when)
Update.__call__ = counted
with few_digits():
    for words, left, code in json.loads(sys.argv[1]):
        done = call(train_student.main, "train_student.py", words)
        assert done.code == code, (words, done)
        signals.received = None
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("additions") / "collection"
    lived_in.copy(root)
    for path in ADDITIONS:
        lived_in.add(root, f"{path.parent.name}/{path.name}", path.read_text(encoding="utf-8"))
    return root


def python(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In ``root``, as if this were no test."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment = {**outside, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)


def test_they_pass_the_contract_tests(clone: Path) -> None:
    chosen = ("-k", " or ".join((*LOSSES, *WEIGHTINGS)), "tests/contract")
    done = python(clone, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert " passed" in done.stdout or "100%" in done.stdout


def test_two_processes_learn_what_one_does(clone: Path, tmp_path: Path) -> None:
    names = (*LOSSES, *WEIGHTINGS)
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = ['tests', 'tests/contract']; "
        f"import test_distributed as t; t.check_same(Path({str(tmp_path)!r}), {{1: {names!r}, 2: {names!r}}})"
    )
    done = python(clone, "-c", code)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(clone: Path, tmp_path_factory: pytest.TempPathFactory, teacher_files: list[Path]) -> Path:
    """Of every run one that nothing disturbs and one that another process goes on with."""
    save_dir = tmp_path_factory.mktemp("trained")
    teachers = f"--teachers {teacher_files[0]} {teacher_files[1]}"
    common = f"--model_s resnet8 --dataset digits --device cpu --precision fp32 --epochs 2 --batch_size 32 {teachers}"

    def run(number: int, words: str, where: str) -> str:
        return f"{common} {words} --resume --save_dir {save_dir / str(number) / where}"

    straight = [(run(number, words, "straight"), 0, 0) for number, words in enumerate(RUNS)]
    cut = [(run(number, words, "resumed"), 6, 75) for number, words in enumerate(RUNS)]
    for process in (straight + cut, [(words, 0, 0) for words, _, _ in cut]):
        done = python(clone, "-c", SCRIPT, json.dumps(process))
        assert done.returncode == 0, done.stderr
    return save_dir


@pytest.mark.parametrize("number", range(len(RUNS)), ids=RUNS)
def test_resuming_is_bitwise(trained: Path, number: int) -> None:
    def weights(where: str) -> dict[str, torch.Tensor]:
        (folder,) = (trained / str(number) / where / "students").iterdir()
        (first, second) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
        assert second["train_loss"] != first["train_loss"]
        return torch.load(folder / "last.pth", weights_only=True)["trained"]

    straight, resumed = weights("straight"), weights("resumed")
    assert straight.keys() == resumed.keys()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
    kept = [name for name in straight if name.endswith((".bank", ".hardest"))]
    assert all(straight[name].any() for name in kept)
    assert bool(kept) == ("remembered" in RUNS[number] or "LEARNED" in RUNS[number])
