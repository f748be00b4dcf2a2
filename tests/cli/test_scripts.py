"""What is around the training scripts: processes and exit codes, the shell scripts, quick start."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from checkout import ROOT, own_files
from sums import all_asked
from tiny_runs import MAINS, metrics, result, teach

import train_online
import train_student
import train_teacher
from helper.errors import UsageError
from helper.recipe import PUBLISHED, lr_drops
from helper.run_folder import RunFolder
from helper.script import run_script
from helper.session import Session
from helper.stopping import RESUME_ME, Stopped
from scripts import quickstart
from scripts.plan import Job
from scripts.runner import End, Runs

PRESETS = [path for path in own_files() if path.parent == ROOT / "scripts" / "presets"]
PROGRAMS = [
    path
    for path in own_files()
    if path.parent in (ROOT, ROOT / "scripts") and path.suffix == ".py" and "__main__" in path.read_text()
]
SHELL = [path for path in own_files() if path.suffix == ".sh"]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


# ---- processes


def test_process_that_trains(tmp_path: Path) -> None:
    words = f"train_teacher.py --model resnet8 --dataset digits --epochs 1 --batch_size 648 --save_dir {tmp_path}"
    done = python(*words.split())
    assert (done.returncode, done.stderr) == (0, ""), "quiet where there is no terminal"
    sizes, epoch, last = done.stdout.splitlines()
    assert sizes == "digits: 10 classes, 1297 images to train on, 500 to test on"
    assert epoch.startswith("epoch   1/1  loss ")
    assert "images/s" in epoch
    folder = tmp_path / "teachers" / "resnet8-digits-batch_size=648-epochs=1-trial=0"
    assert last.startswith(f"{folder}: last epoch 1: ")
    assert result(folder)["command"].startswith("python train_teacher.py --model resnet8 --dataset digits")


def unheard(*words: str) -> tuple[int, str]:
    """Exit code and stderr of a process whose reader has gone, as behind ``| head``."""
    reads, writes = os.pipe()
    os.close(reads)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    return done.returncode, done.stderr


def test_training_goes_on_where_nobody_reads_what_it_says(tmp_path: Path) -> None:
    words = f"train_teacher.py --model resnet8 --dataset digits --epochs 2 --batch_size 648 --save_dir {tmp_path}"
    said = "train_teacher.py: stdout cannot be written (Broken pipe); going on\n"
    assert unheard(*words.split()) == (0, said)
    (folder,) = (tmp_path / "teachers").iterdir()
    assert len(metrics(folder)) == 2
    assert (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [("-c 'from helper.script import run_script; run_script(lambda _: print(1))'", 141), ("-m scripts.report -h", 0)],
)
def test_tools_end_quietly_where_nobody_reads_what_they_say(words: str, code: int) -> None:
    assert unheard(*shlex.split(words)) == (code, "")


def test_nothing_is_said_where_stdout_is_closed(tmp_path: Path) -> None:
    words = f"train_teacher.py --model resnet8 --dataset digits --epochs 1 --batch_size 648 --save_dir {tmp_path}"
    command = ["sh", "-c", f"exec {shlex.quote(sys.executable)} {words} >&-"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


def test_process_with_bad_input(tmp_path: Path) -> None:
    done = python("train_student.py", "--ensemble_methd", "AEKD", "--save_dir", str(tmp_path / "save"))
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "train_student.py: error: unknown option '--ensemble_methd'; did you mean --ensemble_method?\n"
    )
    assert not (tmp_path / "save").exists()


def test_a_run_that_can_go_on_leaves_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun keeps exit codes to itself."""

    def stop(_: Sequence[str]) -> None:
        raise Stopped("SIGUSR1")

    for there in (False, True):
        if there:
            monkeypatch.setenv("RESUME_ME_FILE", str(tmp_path / "resume"))
        with pytest.raises(SystemExit) as end:
            run_script(stop)
        assert end.value.code == RESUME_ME
        assert capsys.readouterr().err.endswith(": SIGUSR1\n")
        assert (tmp_path / "resume").exists() == there


def test_a_run_that_cannot_go_on_leaves_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Sequence[str]) -> None:
        raise UsageError("the disk is full")

    for folder in (tmp_path, tmp_path / "gone"):  # where it cannot be left
        monkeypatch.setenv("RESUME_ME_FILE", str(folder / "resume"))
        with pytest.raises(SystemExit) as end:
            run_script(refuse)
        assert end.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["resume.refused"]


# ---- quick start


def test_quick_start_trains_a_fixed_choice() -> None:
    """Whatever setting.py lists, and however many methods there are."""
    *teachers, alone, first, second, third, fourth, hint, inter = quickstart.jobs_in(quickstart.OFFLINE)
    assert [(job.words[0], job.reported) for job in teachers] == [("train_teacher.py", False)] * 3
    assert (alone.words[0], alone.reported) == ("train_teacher.py", True)
    distilled = (first, second, third, fourth, hint, inter)
    assert all(job.teachers == tuple(teachers) for job in distilled)
    opts = [train_student.options().parse(job.words[1:]) for job in distilled]
    chosen = [(opt.distill, opt.ensemble_method, opt.beta) for opt in opts]
    assert chosen[4:] == [("hint", "AVERAGE_LOSS", 100), ("inter", "CAMKD", 50)]
    assert {loss for loss, _, _ in chosen[:4]} == {"kd"}
    assert len({method for _, method, _ in chosen[:4]}) == 4
    lone, *peers = quickstart.jobs_in(quickstart.ONLINE)
    assert lone.words[0] == "train_teacher.py"
    assert len({train_online.options().parse(job.words[1:]).method for job in peers}) == len(peers) == 6


def test_quick_start_asks_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = quickstart.jobs_in(quickstart.OFFLINE)
    for name, value in {"EPOCHS": "1", "STUDENT": "vgg8", "SEEDS": "1 2", "EXTRA": "--trial 7"}.items():
        monkeypatch.setenv(name, value)
    assert quickstart.jobs_in(quickstart.OFFLINE) == before


def test_quick_starts_runs_keep_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an earlier version are not trained again."""
    names = []

    def reached(session: Session, kind: str, name: Sequence[str]) -> None:
        names.append(f"{kind}/{'-'.join(name)}")

    monkeypatch.setattr(Session, "run_folder", reached)
    monkeypatch.setattr(Session, "build", lambda *_, **__: None)
    monkeypatch.setattr("train_student.fingerprint", lambda files: "3xresnet14")
    monkeypatch.setattr("train_student.chosen_teachers", lambda *_: [None] * 3)
    monkeypatch.setattr("online.base.OnlineMethod.make_peers", lambda *_: None)
    monkeypatch.setattr("online.boc.BOC.make_peers", lambda *_: None)
    for job in (*quickstart.jobs_in(quickstart.OFFLINE), *quickstart.jobs_in(quickstart.ONLINE)):
        MAINS[job.words[0]](job.words[1:])
    pairs = ("kd-AVERAGE_LOSS", "kd-EBKD", "kd-CAMKD", "kd-AEKD", "hint-AVERAGE_LOSS", "inter-CAMKD")
    strengths = (0, 0, 0, 0, 100, 50)
    digits, size = "digits@76f69b", "image_size=16"
    assert names == [
        *(f"teachers/resnet14-{digits}-{size}-epochs=8-trial={trial}" for trial in range(3)),
        f"teachers/resnet8-{digits}-{size}-epochs=4-nesterov-trial=0",
        *(
            f"students/resnet8-{digits}-{pair}-3xresnet14-r=1-a=1-b={b}-{size}-epochs=4-nesterov-trial=0"
            for pair, b in zip(pairs, strengths, strict=True)
        ),
        f"teachers/resnet8-{digits}-{size}-epochs=4-learning_rate=0.1-lr_decay_epochs=2,3-nesterov-trial=0",
        *(
            f"online/{method}-resnet8-{digits}-batch_size=64-{size}-epochs=4-trial=0"
            for method in ("IND", "CLILR", "DML", "ONE", "OKDDip", "BOC")
        ),
    ]


def test_quick_starts_baselines_follow_the_recipes_of_their_rows() -> None:
    _, _, _, alone, distilled, *_ = quickstart.jobs_in(quickstart.OFFLINE)
    lone, *others = quickstart.jobs_in(quickstart.ONLINE)
    (okddip,) = [job for job in others if "OKDDip" in job.words]  # whose recipe most methods share
    online = train_online.parse(train_online.options(), okddip.words[1:])
    pairs = (
        (alone, (train_student.options().parse(distilled.words[1:]), PUBLISHED)),
        (lone, online),
    )
    for job, (theirs, recipe) in pairs:
        mine = train_teacher.options().parse(job.words[1:])
        for name in ("dataset", "epochs", "batch_size", "learning_rate", "weight_decay", "nesterov", "optimizer"):
            assert getattr(mine, name) == getattr(theirs, name), name
        assert lr_drops(mine.epochs, mine.lr_decay_epochs, PUBLISHED) == lr_drops(theirs.epochs, None, recipe)


def test_quick_start_reports_what_it_trained(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {f"train_{script}.py": kind for script, kind in (("teacher", "teachers"), ("student", "students"))}
    folders = {script: sorted(runs.glob(f"{kind}/*-trial=0"))[0] for script, kind in kinds.items()}
    folders["train_online.py"] = next(runs.glob("online/*"))
    asked = []

    def process(self: Runs, command: list[str], slot: dict[str, str]) -> End:
        asked.append(command)
        return End(0, ["nothing that names a folder"], folders[command[0]])

    monkeypatch.chdir(tmp_path)  # restores the directory that main changes
    monkeypatch.setattr(Runs, "process", process)
    monkeypatch.setattr(quickstart, "OUT", tmp_path / "out")
    quickstart.main()
    jobs = [*quickstart.jobs_in(quickstart.OFFLINE), *quickstart.jobs_in(quickstart.ONLINE)]
    teachers = [f"{folders['train_teacher.py']}/last.pth:resnet14"] * 3
    assert sorted(asked) == sorted([*job.command(teachers if job.teachers else []), "--resume"] for job in jobs)
    tables = {part: (tmp_path / "out" / part / "table.md").read_text() for part in ("", "online")}
    assert (tmp_path / "out" / "accuracy.png").exists()
    assert all("resnet8 alone" in text for text in tables.values()), "each has its baseline"
    assert ["online |" in tables[part] for part in tables] == [False, True]
    out = capsys.readouterr().out
    assert all(text in out for text in tables.values())


def test_quick_start_stops_at_a_failure() -> None:
    with pytest.raises(SystemExit, match=r"python nothing\.py: failed\n.*can't open file"):
        quickstart.train([Job(("nothing.py",))])


SIGNALS = [signal.SIGTERM, signal.SIGINT] if all_asked() else [signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_quick_start_ends_its_runs(number: signal.Signals, tmp_path: Path) -> None:
    """They can go on, nobody is left behind, and there is no traceback."""
    program = f"""
from helper.script import run_script
from helper.session import Session
from scripts import quickstart
from scripts.plan import Job
from scripts.runner import End, Runs
from scripts.plan import Job

words = "train_teacher.py --model resnet8 --dataset digits --epochs 400 --save_dir {tmp_path} --trial".split()
quickstart.cores = lambda: 1
run_script(lambda _: quickstart.train([Job((*words, trial)) for trial in "01"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("teachers/*/last.pth")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    expected = f"-c: {number.name}: 0 of 2 runs are done; start it again to go on\n"
    assert (process.returncode, said) == (75, expected)
    (folder,) = tmp_path.glob("teachers/*")
    RunFolder(folder).open({}, overwrite=False)  # nobody trains in it


# ---- the runner


def runs_of(script: str, tmp_path: Path, launcher: Sequence[str] = ()) -> tuple[Runs, Job]:
    """One run of a script that is these lines."""
    path = tmp_path / "script.py"
    path.write_text(script)
    job = Job((str(path),))
    return Runs([{}], [job], launcher), job


@pytest.mark.parametrize("finished", [False, True])
def test_runner_learns_the_folder_whatever_is_printed(finished: bool, tmp_path: Path) -> None:
    """Names that are no text, other lines at the end, and a run that has nothing to do."""
    folder = tmp_path / os.fsdecode(b"a: is finished \xff")
    runs, _ = runs_of(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from helper.run_folder import RunFolder\n"
        f"RunFolder(Path({str(folder)!a})).leave_word(finished={finished})\nprint('good bye')",
        tmp_path,
    )
    end = runs.process(runs.jobs[0].command([]), {})
    assert (end.code, end.folder, end.trained, end.lines[-1:]) == (0, folder, not finished, ["good bye"])


def test_a_word_that_cannot_be_left_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_FOLDER_FILE", str(tmp_path / "gone" / "word"))
    refused = teach(tmp_path / "save")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "RUN_FOLDER_FILE: " in refused.err
    assert not (tmp_path / "save").exists()


def test_runner_takes_a_run_without_a_folder_for_a_failure(tmp_path: Path) -> None:
    """Such as one that only evaluates: it is nothing to report, and nobody can learn from it."""
    runs, job = runs_of("print('x')", tmp_path)
    runs.train()
    assert (runs.folders, runs.failed) == ({}, {job: 1})


def test_runner_hears_that_a_run_can_go_on_through_torchrun(tmp_path: Path) -> None:
    script = "import os, sys\nopen(os.environ['RESUME_ME_FILE'], 'w').close()\nsys.exit(1)"
    runs, job = runs_of(script, tmp_path)
    runs.train()
    assert runs.failed == {job: RESUME_ME}
    runs, job = runs_of(f"import os\nopen(os.environ['RESUME_ME_FILE'] + '.refused', 'w').close()\n{script}", tmp_path)
    runs.train()
    assert runs.failed == {job: 1}, "another process of it cannot"


def test_runner_comes_again_where_another_process_trains_the_run(tmp_path: Path) -> None:
    """Such as another run.sh; its students are not for nothing."""
    run = RunFolder(tmp_path / "run")
    word = f"{{'folder': {str(run.path)!r}, 'finished': False}}"
    script = f"import json, os, sys\njson.dump({word}, open(os.environ['RUN_FOLDER_FILE'], 'w'))\nsys.exit(2)"
    runs, job = runs_of(script, tmp_path)
    runs.train()
    assert runs.failed == {job: 2}
    run.open({}, overwrite=False)
    runs, job = runs_of(script, tmp_path)
    runs.train()
    run.close()
    assert runs.failed == {job: RESUME_ME}


def test_runner_leaves_nobody_behind_when_something_is_raised(tmp_path: Path) -> None:
    """What waits is not started, what runs is ended."""
    (tmp_path / "quick").mkdir()
    _, job = runs_of(f"import time\nopen({str(tmp_path / 'sleeps')!r}, 'w').close()\ntime.sleep(600)", tmp_path)
    _, quick = runs_of("", tmp_path / "quick")

    class Broken(Runs):
        def ended(self, job: Job, end: End, seconds: float) -> None:
            while not (tmp_path / "sleeps").exists():
                time.sleep(0.05)
            raise ValueError("a fault of its own")

    broken = Broken([{}, {}], [job, quick])
    with pytest.raises(ValueError, match="of its own"):
        broken.train()
    assert broken.processes == set()


# ---- shell scripts, in a copy, with a Python that only notes what it is asked for

TOOLS = (
    "sh",
    "basename",
    "cat",
    "chmod",
    "cksum",
    "cp",
    "cut",
    "date",
    "dirname",
    "mkdir",
    "mktemp",
    "rm",
    "sed",
    "tr",
)
STUB = r"""#!/bin/sh
echo "$*" >>"$STUB_LOG"
case "$*" in
"${STUB_FAILS:-nothing}"*) echo "broken" >&2; exit "${STUB_CODE:-3}" ;;
*--dry-run*) exit "${STUB_MISSING:-0}" ;;
*whl/cpu*) exit 1 ;;
tests/checkout.py) printf '%s' "${STUB_FILES-train_teacher.py tests/conftest.py}" | tr ' ' '\n' ;;
"-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
esac
"""


class Checkout:
    """A copy of the shell scripts, a PATH with nothing but what they need, and a virtual environment.

    Args:
        folder: where to make them.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self.path, self.environment, self.log = (folder / name for name in ("root", "path", "venv", "log"))
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copy(ROOT / "requirements.txt", self.root)
        self.path.mkdir()
        for tool in (*TOOLS, "tail", "tee", "wc"):
            (self.path / tool).symlink_to(str(shutil.which(tool)))
        self.add("uname", "echo Linux")
        executable(self.environment / "bin" / "python", STUB)

    def add(self, name: str, line: str) -> None:
        """A program in PATH."""
        executable(self.path / name, f"#!/bin/sh\n{line}\n")

    def run(self, script: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts from another directory; ``variables`` are added to the environment."""
        common = {"PATH": str(self.path), "VIRTUAL_ENV": str(self.environment), "STUB_LOG": str(self.log)}
        return subprocess.run(
            [str(self.path / "sh"), str(self.root / "scripts" / script), *words],
            cwd=self.path,
            env={**common, **variables},
            capture_output=True,
            text=True,
        )

    @property
    def calls(self) -> list[str]:
        """What Python was asked for."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def calls_of(self, prefix: str) -> list[str]:
        return [call for call in self.calls if call.startswith(prefix)]


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_valid(path: Path) -> None:
    assert subprocess.run(["sh", "-n", path]).returncode == 0


def test_run_hands_its_rows_over(checkout: Checkout) -> None:
    done = checkout.run("run.sh", "TEACHER=vgg13", "TEACHER=resnet56")
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.calls[-1] == "-m scripts.run_all TEACHER=vgg13 TEACHER=resnet56"
    assert checkout.run("run.sh", STUB_FAILS="-m scripts.run_all").returncode == 3


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_rows_of_run(checkout: Checkout, path: Path) -> None:
    done = checkout.run(f"presets/{path.name}")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(re.match(r"-m scripts\.run_all \w+=", call) for call in checkout.calls_of("-m scripts.run_all"))
    assert checkout.calls_of("-m scripts.run_all")


def test_four_reports_make_one_figure(checkout: Checkout) -> None:
    assert checkout.run("presets/when.sh", OUT="out", SETS="alike wrong").returncode == 0
    assert len(checkout.calls_of("-m scripts.run_all")) == 2
    assert checkout.calls[-1] == "-m scripts.differences out/alike out/wrong --out out/differences.png"
    assert not checkout.calls_of("-m scripts.report")


@pytest.mark.parametrize(("code", "sets"), [(3, 2), (75, 1)])
def test_a_set_that_fails_leaves_the_others_alone(code: int, sets: int, checkout: Checkout) -> None:
    words = {"SETS": "alike wrong", "STUB_FAILS": "-m scripts.run_all", "STUB_CODE": str(code)}
    assert checkout.run("presets/when.sh", **words).returncode == code
    assert len(checkout.calls_of("-m scripts.run_all")) == sets
    assert not checkout.calls_of("-m scripts.differences")


def test_a_blank_in_the_folders_name(checkout: Checkout) -> None:
    words = {"OUT": "my results", "SETS": "alike wrong", "STRENGTHS": "1 2"}
    assert checkout.run("presets/when.sh", **words).returncode == 0
    said = [call for tool in ("report", "differences") for call in checkout.calls_of(f"-m scripts.{tool}")]
    folders = [f"my results/{name}" for name in ("alike", "wrong")]
    assert said == [
        *(f"-m scripts.report --folders {each} --choose alpha --out {each}" for each in folders),
        f"-m scripts.differences {' '.join(folders)} --out my results/differences.png",
    ]


def test_strengths_are_chosen_on_images_held_out(checkout: Checkout) -> None:
    words = {"OUT": "out", "SETS": "wrong", "WEIGHTINGS": "EBKD", "STRENGTHS": "0.5 2"}
    assert checkout.run("presets/when.sh", **words).returncode == 0
    (call,) = checkout.calls_of("-m scripts.run_all")
    assert call.endswith("METHODS=' kd:EBKD,kd_scale=unit,alpha=0.5 kd:EBKD,kd_scale=unit,alpha=2'")
    assert "METHODS=' kd:AVERAGE_LOSS,kd_scale=unit,alpha=0.5 kd:AVERAGE_LOSS,kd_scale=unit,alpha=2'" in call
    assert checkout.calls_of("-m scripts.report") == [
        "-m scripts.report --folders out/wrong --choose alpha --out out/wrong"
    ]


def test_arguments_reach_pytest(checkout: Checkout) -> None:
    assert checkout.run("test.sh", "-k", "options").returncode == 0
    (pytest_call,) = checkout.calls_of("-m pytest")
    assert pytest_call.endswith(" -k options")
    assert checkout.calls_of("-m ruff check train_teacher.py tests/conftest.py")
    assert checkout.calls_of("-m ruff format --check train_teacher.py tests/conftest.py")
    assert checkout.calls_of("-m mypy")[0].endswith(" train_teacher.py")


def test_where_our_files_are_not_known_none_is_checked(checkout: Checkout) -> None:
    done = checkout.run("test.sh", STUB_FILES="")
    assert done.returncode == 0
    assert "without ruff and mypy" in done.stdout
    assert [call.split()[1] for call in checkout.calls if call.startswith("-m")][-1] == "pytest"
    assert not checkout.calls_of("-m ruff")


@pytest.mark.parametrize("tool", ["ruff check", "ruff format", "mypy", "pytest"])
def test_a_failing_check_fails(checkout: Checkout, tool: str) -> None:
    assert checkout.run("test.sh", STUB_FAILS=f"-m {tool}").returncode == 3


# ---- set-up


def installs(calls: Sequence[str]) -> list[str]:
    """The calls that install something."""
    return [call for call in calls if " install " in call and "--dry-run" not in call]


def test_nothing_is_installed_twice(checkout: Checkout) -> None:
    first = checkout.run("quickstart.sh", STUB_MISSING="1")
    assert first.returncode == 0
    assert "installing requirements.txt" in first.stdout
    cpu, everything = installs(checkout.calls)
    assert cpu.startswith("-m pip --isolated install -q --retries 0 ")
    assert re.search(r"--index-url https://download.pytorch.org/whl/cpu torch>=[\d.]+ torchvision>=[\d.]+$", cpu)
    assert everything.endswith("-r requirements.txt")
    assert checkout.calls[-1] == "-m scripts.quickstart"

    before = len(checkout.calls)
    second = checkout.run("quickstart.sh", STUB_MISSING="1")
    assert "installing" not in second.stdout
    assert not installs(checkout.calls[before:])
    third = checkout.run("test.sh", STUB_MISSING="1")
    assert "installing scripts/requirements-test.txt" in third.stdout, "it asks for more"


def test_changed_requirements_are_installed(checkout: Checkout) -> None:
    checkout.run("quickstart.sh", STUB_MISSING="1")
    before = len(checkout.calls)
    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("another>=1\n")
    checkout.run("quickstart.sh", STUB_MISSING="1")
    assert installs(checkout.calls[before:])


def test_cuda_is_installed_where_there_is_a_gpu(checkout: Checkout) -> None:
    checkout.add("nvidia-smi", "")
    checkout.run("quickstart.sh", STUB_MISSING="1")
    assert [call.split()[-1] for call in installs(checkout.calls)] == ["requirements.txt"]


def test_nothing_is_installed_where_all_is_there(checkout: Checkout) -> None:
    assert "installing" not in checkout.run("quickstart.sh", STUB_MISSING="0").stdout
    assert not installs(checkout.calls)


@pytest.mark.parametrize("system", ["MINGW64_NT-10.0-19045", "CYGWIN_NT-10.0", "FreeBSD"])
def test_other_systems_are_refused(checkout: Checkout, system: str) -> None:
    checkout.add("uname", f"echo {system}")
    done = checkout.run("quickstart.sh")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"{system} is not supported, Linux and macOS are; on Windows, start it inside WSL" in done.stderr
    assert not checkout.calls


@pytest.mark.skipif(not PROGRAMS, reason="not a git checkout: which programs are ours is not known")
def test_native_windows_is_refused_by_every_program() -> None:
    """By its first import of ``helper``, which is before that of any module which Windows lacks."""
    modules = [".".join(program.relative_to(ROOT).with_suffix("").parts) for program in PROGRAMS]
    simulated = f"""
import runpy, sys
import matplotlib.pyplot, numpy, sklearn.datasets, torch, torch.utils.tensorboard, torchvision, tqdm
sys.platform = "win32"
for missing in ("fcntl", "resource"):
    sys.modules[missing] = None
for module in {modules}:
    sys.argv = [module]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        print(end.code)
"""
    done = python("-W", "ignore", "-c", simulated)
    message = "{}: error: native Windows is not supported; start it inside WSL"
    assert done.stderr.splitlines() == [message.format(module) for module in modules]
    assert done.stdout.split() == ["2"] * len(modules)
    assert len(modules) >= 9


def test_failed_installation_is_repeated(checkout: Checkout) -> None:
    for _ in range(2):
        failing = checkout.run("quickstart.sh", STUB_MISSING="1", STUB_FAILS="-m pip install")
        assert failing.returncode == 3
    assert len([call for call in installs(checkout.calls) if "--isolated" not in call]) == 2


def test_active_environment_without_python(tmp_path: Path, checkout: Checkout) -> None:
    done = checkout.run("quickstart.sh", VIRTUAL_ENV=str(tmp_path / "gone"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert str(tmp_path / "gone") in done.stderr


def test_environment_is_made_with_the_first_python_that_can(checkout: Checkout) -> None:
    checkout.add("python3.13", "exit 127")  # as pyenv does for a version that is not chosen
    checkout.add("python3.12", "exit 1")  # too old, or without ensurepip
    executable(checkout.path / "python3.11", STUB)
    done = checkout.run("quickstart.sh", VIRTUAL_ENV="")
    assert (done.returncode, done.stderr) == (0, "")
    assert (checkout.root / ".venv" / "bin" / "python").exists()
    assert checkout.calls[-1] == "-m scripts.quickstart"
    again = checkout.run("quickstart.sh", VIRTUAL_ENV="")
    assert len(checkout.calls_of("-m venv")) == 1, again.stdout


def test_no_python_that_can(checkout: Checkout) -> None:
    done = checkout.run("quickstart.sh", VIRTUAL_ENV="")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "Python 3.10" in done.stderr
    assert not (checkout.root / ".venv").exists()
