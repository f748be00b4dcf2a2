"""The scripts for Slurm clusters, with stand-ins for Slurm's commands and for torchrun."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "scripts" / name for name in ("slurm.sbatch", "slurm_array.sbatch")]

SRUN = 'exec "$@"\n'
SCONTROL = """case $1 in
show) printf '%s\\n' node7 node8 ;;
*) echo "$*" >>"$STUBS/requeued" ;;
esac
"""
SCANCEL = """echo "$*" >>"$STUBS/cancelled"
kill -USR1 $(cat "$STUBS/torchrun.pid") $(cat "$STUBS/worker.pid")
"""
TORCHRUN = """printf '%s\\n' "$@" >"$STUBS/arguments"
echo "$OMP_NUM_THREADS" >"$STUBS/threads"
echo $$ >"$STUBS/torchrun.pid"
python "$STUBS/worker.py" &
case $WHAT in *told) trap 'kill $!' TERM ;; esac # it passes the signal on
wait $! || wait $! || exit 1 # as torchrun does, whatever the code was
"""
WORKER = """import os, signal, sys, time
from pathlib import Path

stubs, what = Path(os.environ["STUBS"]), os.environ["WHAT"]

def stop(*_):
    if what == "deaf":
        return
    Path(os.environ["RESUME_ME_FILE"]).touch()
    if what.startswith("one refused"):
        Path(os.environ["RESUME_ME_FILE"] + ".refused").touch()
    sys.exit(75)

signal.signal(signal.SIGUSR1, stop)
if what in ("told", "one refused when told"):
    signal.signal(signal.SIGTERM, stop)
(stubs / "worker.partial").write_text(str(os.getpid()))
os.replace(stubs / "worker.partial", stubs / "worker.pid")
if what in ("train", "deaf", "told", "one refused when told"):
    time.sleep(60)
if what in ("lost", "one refused"):
    stop()
sys.exit({"finish": 0, "bad option": 2}[what])
"""


@dataclass
class Cluster:
    """A folder of stand-ins that is first on the path."""

    stubs: Path

    def start(self, script: str, words: str, **environment: str) -> subprocess.Popen[bytes]:
        """What sbatch would do."""
        slurm = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}
        slurm |= {"SLURM_CPUS_PER_TASK": "32", "SLURM_JOB_NODELIST": "node[7-8]", "STUBS": str(self.stubs)}
        kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        path = f"{self.stubs}:{os.environ['PATH']}"
        with (self.stubs / "said").open("w") as said:  # no pipe: what is left behind would hold it open
            return subprocess.Popen(
                ["sh", script, *words.split()],
                cwd=self.stubs,
                env={**kept, **slurm, "PATH": path, **environment},
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def run(self, what: str, words: str = "train_teacher.py", script: str = "slurm", **more: str) -> tuple[int, str]:
        """Exit code and output of a job whose processes do ``what``."""
        job = self.start(f"scripts/{script}.sbatch", words, WHAT=what, **more)
        return job.wait(60), self.said

    def training(self, what: str, **more: str) -> subprocess.Popen[bytes]:
        """A job whose processes have begun to train."""
        job = self.start("scripts/slurm.sbatch", "train_teacher.py", WHAT=what, **more)
        until = time.monotonic() + 60
        while not self.lines("worker.pid") and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
        return job

    @property
    def said(self) -> str:
        return (self.stubs / "said").read_text()

    def lines(self, name: str) -> list[str]:
        path = self.stubs / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def remains(self) -> list[Path]:
        return list(self.stubs.glob(".resume*"))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    commands = {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL, "torchrun": TORCHRUN}
    commands["python"] = f'exec "{sys.executable}" "$@"\n'
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "scripts").mkdir()
    for script in SCRIPTS:
        shutil.copy(script, tmp_path / "scripts")
    return Cluster(tmp_path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shells_can_read_it(path: Path, shell: str) -> None:
    assert path.read_text().startswith("#!/bin/sh\n"), "sbatch asks for it"
    assert subprocess.run([shell, "-n", path], capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_slurm_tells_in_time(path: Path) -> None:
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    asked = [line for line in lines[:first] if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=B:USR1@120" in asked
    assert "#SBATCH --requeue" in asked


def test_what_torchrun_gets(cluster: Cluster) -> None:
    assert cluster.run("finish", "train_student.py --trial 3")[0] == 0
    got = cluster.lines("arguments")
    assert got[got.index("--nnodes") + 1] == "2"
    assert got[got.index("--nproc_per_node") + 1] == "4"
    assert got[got.index("--rdzv_endpoint") + 1].startswith("node7:")
    assert got[-4:] == ["train_student.py", "--trial", "3", "--resume"]
    assert cluster.lines("threads") == ["8"]
    assert not cluster.lines("requeued")
    assert not cluster.remains


@pytest.mark.parametrize(("what", "code"), [("finish", 0), ("bad option", 1), ("one refused", 1)])
def test_what_cannot_go_on_ends(cluster: Cluster, what: str, code: int) -> None:
    assert cluster.run(what)[0] == code
    assert not cluster.lines("requeued")
    assert not cluster.remains


def test_a_lost_process_requeues(cluster: Cluster) -> None:
    code, said = cluster.run("lost")
    assert code == 0
    assert "requeued" in said
    assert cluster.lines("requeued") == ["requeue 12345"]
    assert not cluster.remains


def test_not_for_ever(cluster: Cluster) -> None:
    code, said = cluster.run("lost", SLURM_RESTART_COUNT="100")
    assert code == 75
    assert "100 times" in said
    assert not cluster.lines("requeued")


@pytest.mark.parametrize(("what", "grace"), [("train", "60"), ("deaf", "0.5")])
def test_the_notice_reaches_those_who_train(cluster: Cluster, what: str, grace: str) -> None:
    """They save and leave, and the job is requeued; also where they do not hear."""
    job = cluster.training(what, GRACE=grace)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0, cluster.said
    assert cluster.lines("cancelled") == ["--signal=USR1 12345.0"]
    assert cluster.lines("requeued") == ["requeue 12345"]
    if what == "deaf":  # torchrun's stand-in leaves it behind
        os.kill(int(cluster.lines("worker.pid")[0]), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_job_that_is_told_to_end_can_go_on(cluster: Cluster, number: signal.Signals) -> None:
    job = cluster.training("told")
    job.send_signal(number)
    assert job.wait(60) == 75, cluster.said
    assert "sbatch it again to go on" in cluster.said
    assert not cluster.lines("requeued"), "it was not the time limit"
    assert not cluster.remains


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda number: number.name)
def test_what_cannot_go_on_when_told_ends(cluster: Cluster, number: signal.Signals) -> None:
    """Such as a run that finds the disk full when it is to save."""
    job = cluster.training("one refused when told")
    job.send_signal(number)
    assert job.wait(60) == 1, cluster.said
    assert not cluster.lines("requeued")
    assert not cluster.remains


def test_every_seed_and_method_is_a_job(cluster: Cluster) -> None:
    jobs = set()
    for number in range(6):
        more = {"SEEDS": "4 9", "SLURM_ARRAY_TASK_ID": str(number)}
        assert cluster.run("finish", "--dataset digits", "slurm_array", **more)[0] == 0
        got = cluster.lines("arguments")
        assert got[-3:] == ["--dataset", "digits", "--resume"]
        chosen = got[got.index("train_student.py") :]
        values = [chosen[chosen.index(option) + 1] for option in ("--distill", "--ensemble_method", "-b", "--trial")]
        jobs.add(tuple(values))
    assert len(jobs) == 6
    assert {job[-1] for job in jobs} == {"4", "9"}
    assert ("inter", "CAMKD", "50", "4") in jobs


def test_no_such_job(cluster: Cluster) -> None:
    code, said = cluster.run("finish", "", "slurm_array", SEEDS="0 1", SLURM_ARRAY_TASK_ID="10")
    assert code == 2
    assert "--array 0-9" in said
