"""Whatever happens to a run, nothing is lost: resumed, it ends bitwise equal to one that was left in peace.

``sh scripts/test.sh --faults`` tries each fault as often as the issue asks for; the ordinary tests, a few times.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from laboratory import (
    Laboratory,
    Process,
    Tally,
    Torchrun,
    descendants,
    differences,
    equal,
    flip,
    folder_in,
    free_port,
    left_in,
    listens,
)

from helper import checkpoint
from helper.run_folder import RunFolder
from helper.stopping import RESUME_ME, SIGNALS

ROOT = Path(__file__).parents[2]
TEACHER = "train_teacher.py --model resnet8"
AEKD = "train_student.py --model_s resnet8 --teachers TEACHERS --distill kd --ensemble_method AEKD"
CAMKD = "train_student.py --model_s resnet8 --teachers TEACHERS --distill inter --ensemble_method CAMKD -b 50"
OKDDIP = "train_online.py --method OKDDip --model resnet8"
CACHED = f"{AEKD} --teacher_cache CACHE"
RUNS = {"teacher": TEACHER, "AEKD": AEKD, "CAMKD with adapters": CAMKD, "OKDDip": OKDDIP, "filling a cache": CACHED}
READING = "--dataset pictures --data_dir PICTURES --num_workers 2 --validation 0.2"
TEACHER_READING, AEKD_READING = f"{TEACHER} {READING}", f"{AEKD} {READING}"
SHORT = {"AEKD": 0, "teacher": 1, "OKDDip": 1, "CAMKD with adapters": 2, "filling a cache": 1}
"""Kills of each in the short form."""


def dice(what: str) -> random.Random:
    """Random numbers of their own for each test; ``FAULTS_SEED`` chooses others."""
    seed = f"{os.environ.get('FAULTS_SEED', '0')} {what}"
    print(f"seed: {seed!r}")
    return random.Random(seed)


def where(said: str) -> tuple[int, int]:
    """Epoch and step that a run went on from, as it said."""
    step, epoch = (re.findall(r"after (?:step (\d+) of )?epoch (\d+)", said) or [("", "0")])[-1]
    return (int(epoch) - 1, int(step)) if step else (int(epoch), 0)


def one_line(process: Process, code: int, *words: str) -> list[str]:
    """Whether a run ended as it should: with this code, and in its last line these words; no traceback."""
    ended, said = process.wait(), process.said
    last = said.splitlines()[-1] if said else ""
    found = [] if ended == code else [f"exit code {ended}, not {code}: {said[-500:]}"]
    found += [f"{word!r} is not said: {last}" for word in words if word not in last]
    return found + (["a traceback"] if "Traceback" in said else [])


# ---- killed


@pytest.mark.parametrize("run", RUNS)
def test_killed(run: str, laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """SIGKILL at random moments from its start to its end, several times on the way."""
    kills, rng = 20 if full else SHORT[run], dice(f"kill {run}")
    if not kills:
        pytest.skip("in the full form")
    expected = laboratory.undisturbed(RUNS[run])
    while tally.tried < kills:
        save_dir, here, reached = laboratory.fresh(), 0, (0, 0)
        problems: list[str] = []
        while True:
            process = laboratory.start(RUNS[run], save_dir)
            if tally.tried + here < kills and not process.ends_within(rng.uniform(0, expected.seconds)):
                process.kill()
                here += 1
                process.wait()
                problems += went_back(reached, process.said)
                reached = max(reached, where(process.said))
            else:
                problems += finished(process, expected.folder, save_dir)
                break
        tally.add(problems, here)


def went_back(reached: tuple[int, int], said: str) -> list[str]:
    """Whether a run went on from before where one that was killed had gone on from."""
    lost = "resuming" in said and where(said) < reached
    return [f"went on from {where(said)}, after {reached} had been reached"] if lost else []


def finished(process: Process, expected: Path, save_dir: Path) -> list[str]:
    """What is wrong with a run that should have ended well."""
    code = process.wait()
    return differences(expected, save_dir) if code == 0 else [f"exit code {code}: {process.said[-500:]}"]


def test_killed_between_writes(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """SIGKILL right before a file or folder is opened, made, renamed or removed; the first of these one by one."""
    number, rng = 1, dice("writes")
    while True:
        save_dir = laboratory.fresh()
        process = laboratory.start(TEACHER, save_dir, die_at=number)
        if process.wait() == 0:
            break
        tally.add(laboratory.finish(TEACHER, save_dir))
        number += 1 if full and number < 30 else rng.randint(1, 12 if full else 120)


# ---- damaged files


def emptied(data: bytes, rng: random.Random) -> bytes:
    return b""


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def bit_flipped(data: bytes, rng: random.Random) -> bytes:
    return flip(data, rng.randrange(len(data) * 8))


DAMAGES = {"emptied": emptied, "truncated": truncated, "bit-flipped": bit_flipped}


def damage(path: Path, how: str, rng: random.Random) -> None:
    """Until it can be seen: some bits of a zip archive mean nothing."""
    whole = path.read_bytes()
    while True:
        path.write_bytes(DAMAGES[how](whole, rng))
        try:
            checkpoint.load(path)
        except checkpoint.Damaged:
            return


def killed(laboratory: Laboratory, words: str, rng: random.Random) -> Path:
    save_dir, process = laboratory.begun(words, rng)
    process.kill()
    process.wait()
    return save_dir


@pytest.mark.parametrize("how", DAMAGES)
def test_last_checkpoint(how: str, laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """The one before it is used, which is said in one line."""
    rng, words = dice(how), CAMKD if full else TEACHER
    for _ in range(5 if full else 1):
        save_dir = killed(laboratory, words, rng)
        damage(folder_in(save_dir) / "last.pth", how, rng)
        process = laboratory.start(words, save_dir)
        problems = finished(process, laboratory.undisturbed(words).folder, save_dir)
        said = [line for line in process.said.splitlines() if "the one before it is used" in line]
        tally.add(problems + ([] if len(said) == 1 and "last.pth" in said[0] else [f"said: {said}"]))


def test_both_checkpoints_damaged(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """There is nothing to go on from: a refusal that names both, and nothing is touched."""
    rng = dice("both")
    for how in DAMAGES if full else ["bit-flipped"]:
        folder = folder_in(save_dir := killed(laboratory, TEACHER, rng))
        for name in ("last.pth", "last.pth.previous"):
            damage(folder / name, how, rng)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        process = laboratory.start(TEACHER, save_dir)
        problems = one_line(process, 2, "last.pth:", "last.pth.previous:", "--overwrite")
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        tally.add(problems + ([] if before == after else ["files were touched"]))


def test_any_bit_of_a_checkpoint(laboratory: Laboratory, full: bool, tally: Tally, tmp_path: Path) -> None:
    """A flipped bit is found, or makes no difference: never another state."""
    whole = (laboratory.undisturbed(TEACHER).folder / "last.pth").read_bytes()
    path, rng = tmp_path / "flipped.pth", dice("bits")
    path.write_bytes(whole)
    state = checkpoint.load(path)
    edges = [*range(800), *range(len(whole) - 800, len(whole))]  # where the archive says what it holds
    for _ in range(3000 if full else 100):
        bit = rng.choice([rng.randrange(len(whole)), rng.choice(edges)]) * 8 + rng.randrange(8)
        path.write_bytes(flip(whole, bit))
        try:
            tally.add([] if equal(state, checkpoint.load(path)) else [f"bit {bit} makes another state"])
        except checkpoint.Damaged:
            tally.add([])


# ---- a full disk


def test_full_disk(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """From a random moment on no file can grow: one line, nothing lost, and it goes on when there is space again."""
    rng = dice("disk")
    for i in range(20 if full else 2):
        words = CACHED if i % 2 else f"{TEACHER} --checkpoint_minutes {60 if i % 4 else 1e-9}"
        expected = laboratory.undisturbed(words)
        save_dir = laboratory.fresh()
        process = laboratory.start(words, save_dir)
        if not process.ends_within(rng.uniform(0, expected.seconds * 0.9)):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            full_at = len(process.said)
            if process.wait() == 0:  # all was written before
                tally.add(differences(expected.folder, save_dir), 0)
                continue
            tally.add(one_line(process, 2, "error:", "File too large"), 0)
            lines = [line for line in process.said[full_at:].splitlines() if "File too large" in line]
            tally.add([] if len(lines) <= 1 + i % 2 else lines)  # the cache says that it is full, and the run goes on
            tally.add(laboratory.finish(words, save_dir), 0)
        else:
            process.wait()


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_signal(number: signal.Signals, laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """The state is saved at the next step; exit code 75 and the message say how to go on."""
    rng, words = dice(number.name), CAMKD if full else TEACHER
    for _ in range(10 if full else 1):
        save_dir, process = laboratory.begun(words, rng)
        os.kill(process.pid, number)
        if process.wait() == 0:  # it was in its last step
            continue
        problems = one_line(process, RESUME_ME, number.name, str(folder_in(save_dir)), "--resume")
        reached = where(process.said)
        process = laboratory.start(words, save_dir)
        problems += finished(process, laboratory.undisturbed(words).folder, save_dir)
        tally.add(problems + ([] if where(process.said) == reached else [f"{where(process.said)}, saved {reached}"]))


@pytest.mark.parametrize("target", ["group", "main", "reader"])
@pytest.mark.parametrize("words", [AEKD_READING, CACHED], ids=["reading", "cache"])
def test_signal_at_any_moment(words: str, target: str, laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """From the first line of the script to its end, several on the way; twice, where that is not a second Ctrl-C."""
    if words == CACHED and (target == "reader" or not full):
        pytest.skip("it has no readers" if target == "reader" else "in the full form")
    rng, tries = dice(f"{target} {words}"), 4 * len(SIGNALS) if full else 1
    expected = laboratory.undisturbed(words)
    while tally.tried < tries:
        save_dir, here = laboratory.fresh(), 0
        problems: list[str] = []
        while True:
            process, number = laboratory.start(words, save_dir), rng.choice(SIGNALS)
            await_handlers(process, target == "reader")
            if tally.tried + here < tries and not process.ends_within(rng.uniform(0, expected.seconds)):
                tell(process, target, number, number != signal.SIGINT and rng.random() < 0.5)
                here += 1
            if process.wait() != RESUME_ME:
                problems += finished(process, expected.folder, save_dir)
                break
            problems += one_line(process, RESUME_ME, number.name) + left_in(save_dir)
            problems += ["a reader's signal ended it"] if target == "reader" else []
        tally.add(problems, here)


def await_handlers(process: Process, readers: bool) -> None:
    """Until the script has begun, or has processes that read for it."""
    while not (listens(process.pid) and (descendants(process.pid) or not readers)) and not process.ends_within(0.005):
        pass


def tell(process: Process, target: str, number: signal.Signals, twice: bool) -> None:
    """Send a signal."""
    for _ in range(1 + twice):
        readers = descendants(process.pid)
        with contextlib.suppress(ProcessLookupError):
            if target == "group":
                os.killpg(process.pid, number)
            elif target == "main" or not readers:
                os.kill(process.pid, number if target == "main" else 0)
            else:
                os.kill(readers[-1], number)
        time.sleep(0.02)


def test_killed_reader(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """As the kernel does where there is no memory left: it is said, saved, and goes on."""
    rng, words = dice("reader"), TEACHER_READING
    for _ in range(10 if full else 1):
        save_dir, process = laboratory.begun(words, rng)
        readers = descendants(process.pid)
        if not readers:  # it was about to end
            process.wait()
            continue
        os.kill(rng.choice(readers), signal.SIGKILL)
        if process.wait() == 0:  # nobody asked it for more
            continue
        problems = one_line(process, RESUME_ME, "was killed", "--num_workers", str(folder_in(save_dir)), "--resume")
        problems += left_in(save_dir)
        reached = where(process.said)
        again = laboratory.start(words, save_dir)
        problems += finished(again, laboratory.undisturbed(words).folder, save_dir)
        tally.add(problems + ([] if where(again.said) == reached else [f"{where(again.said)}, saved {reached}"]))


def test_unreadable_image(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """A picture is damaged while the run reads: it is named, all is saved, and with the picture mended it goes on."""
    rng, words, tries = dice("image"), TEACHER_READING, 10 if full else 1
    expected = laboratory.undisturbed(words)
    while tally.tried < tries:
        save_dir = laboratory.fresh()
        picture = rng.choice(sorted(laboratory.pictures().glob("*/*.png")))
        whole, process = picture.read_bytes(), laboratory.start(words, save_dir)
        process.ends_within(rng.uniform(0, expected.seconds))
        picture.write_bytes(whole[:20])
        process.wait()
        picture.write_bytes(whole)
        if process.code == 0:  # it had been read for the last time
            tally.add(differences(expected.folder, save_dir), 0)
            continue
        problems = one_line(process, 2, f"{picture} cannot be read") + left_in(save_dir)
        tally.add(problems + laboratory.finish(words, save_dir))


def test_stopped_and_continued(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """SIGSTOP, and SIGCONT later: nothing comes of it."""
    rng = dice("stop")
    for _ in range(5 if full else 1):
        save_dir, process = laboratory.begun(TEACHER, rng)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 1))
        os.kill(process.pid, signal.SIGCONT)
        tally.add(finished(process, laboratory.undisturbed(TEACHER).folder, save_dir))


# ---- several processes


def pair(laboratory: Laboratory, save_dir: Path, words: str = AEKD) -> list[Process]:
    """A run of two processes, as ``torchrun`` would start it."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    return [laboratory.start(words, save_dir, environment=group | rank) for rank in ranks]


def test_lost_process(laboratory: Laboratory, undisturbed_pair: tuple[Path, float], full: bool, tally: Tally) -> None:
    """One of two is killed: the other says so in one line and leaves; together they go on."""
    rng, whole = dice("rank"), undisturbed_pair[0]
    for _ in range(6 if full else 1):
        save_dir, victim = laboratory.fresh(), rng.randrange(2)
        processes = pair(laboratory, save_dir)
        while not list(save_dir.glob("*/*/last.pth")) and not processes[0].ends_within(0.005):
            pass
        if processes[victim].ends_within(rng.uniform(0, 1)):
            [process.wait() for process in processes]
            continue
        processes[victim].kill()
        problems = one_line(processes[1 - victim], RESUME_ME, "another process", "--resume")
        processes[victim].wait()
        resumed = pair(laboratory, save_dir)
        codes = [process.wait() for process in resumed]
        problems += [] if codes == [0, 0] else [f"exit codes {codes}: {resumed[0].said[-500:]}"]
        tally.add(problems or differences(whole, save_dir))


@pytest.fixture(scope="session")
def undisturbed_pair(laboratory: Laboratory) -> tuple[Path, float]:
    """The run folder of two processes that nothing happened to, and how long they took."""
    save_dir, started = laboratory.fresh(), time.monotonic()
    processes = pair(laboratory, save_dir)
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], [process.said for process in processes]
    assert processes[1].said == "", "one process speaks"
    return folder_in(save_dir), time.monotonic() - started


def test_killed_pair(laboratory: Laboratory, undisturbed_pair: tuple[Path, float], full: bool, tally: Tally) -> None:
    """SIGKILL of both processes, several times on the way to the end."""
    kills, rng = 20 if full else 1, dice("pair")
    expected, seconds = undisturbed_pair
    while tally.tried < kills:
        save_dir, here = laboratory.fresh(), 0
        while True:
            processes = pair(laboratory, save_dir)
            if tally.tried + here == kills or processes[0].ends_within(rng.uniform(0, seconds)):
                break
            for process in processes:
                process.kill()
                process.wait()
            here += 1
        codes = [process.wait() for process in processes]
        problems = [] if codes == [0, 0] else [f"exit codes {codes}: {processes[0].said[-500:]}"]
        tally.add(problems or differences(expected, save_dir), here)


def test_told_pair(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """Both of two are told, or one, at a random moment: all is saved, and they go on."""
    rng, words, tries = dice("told pair"), AEKD_READING, 2 * len(SIGNALS) if full else 1
    whole = laboratory.fresh()
    started = time.monotonic()
    assert [process.wait() for process in pair(laboratory, whole, words)] == [0, 0]
    seconds = time.monotonic() - started
    while tally.tried < tries:
        save_dir, here = laboratory.fresh(), 0
        problems: list[str] = []
        while True:
            processes, number = pair(laboratory, save_dir, words), rng.choice(SIGNALS)
            for process in processes:
                await_handlers(process, False)
            if tally.tried + here < tries and not processes[0].ends_within(rng.uniform(0, seconds)):
                for process in rng.choice([processes, processes[:1], processes[1:]]):
                    tell(process, "group", number, number != signal.SIGINT)
                here += 1
            codes = [process.wait() for process in processes]
            if RESUME_ME not in codes:
                problems += differences(folder_in(whole), save_dir) if codes == [0, 0] else [processes[0].said]
                break
            problems += one_line(processes[0], RESUME_ME, "train_") + one_line(processes[1], RESUME_ME)
            problems += left_in(save_dir)
        tally.add(problems, here)


def test_told_torchrun(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """The agent passes on what it is told; that its processes can go on, they say in a file."""
    if not full:
        pytest.skip("in the full form")
    rng, words = dice("told torchrun"), AEKD_READING
    expected = laboratory.undisturbed(words, torchrun=True)
    for number in SIGNALS:
        save_dir = laboratory.fresh()
        process = laboratory.start_torchrun(words, save_dir)
        while sum(map(listens, process.workers)) < 2 and not process.ends_within(0.02):
            pass
        process.ends_within(rng.uniform(0, 0.5) * expected.seconds)  # the other half goes into starting
        tell_all(process, number)
        process.wait()
        whole = process.resume_me.exists() or any(save_dir.glob("*/*/result.json"))
        problems = [] if whole else [process.said[-500:]]
        ours = [line for line in process.said.splitlines() if number.name + ":" in line and "--resume" in line]
        problems += left_in(save_dir) + (["loop.py"] if "loop.py" in process.said or len(ours) > 1 else [])
        resumed = laboratory.start_torchrun(words, save_dir)
        problems += [] if resumed.wait() == 0 else [resumed.said[-500:]]
        tally.add(problems or differences(expected.folder, save_dir))


def tell_all(process: Torchrun, number: signal.Signals) -> None:
    """Slurm tells every process of a step; a Ctrl-C reaches the agent, and SIGUSR1, which it ignores, the others."""
    agent, workers = [process.process.pid], process.workers
    for pid in {signal.SIGINT: agent, signal.SIGUSR1: workers}.get(number, [*agent, *workers]):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)


def test_killed_torchrun(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """The same with ``torchrun``, whose starts take their time."""
    if not full:
        pytest.skip("in the full form")
    rng, kills = dice("torchrun"), 4
    expected = laboratory.undisturbed(AEKD, torchrun=True)
    while tally.tried < kills:
        save_dir, here = laboratory.fresh(), 0
        while True:
            process = laboratory.start_torchrun(AEKD, save_dir)
            # half of its time goes into starting
            moment = rng.uniform(0.3, 1) * expected.seconds
            if tally.tried + here == kills or process.ends_within(moment):
                break
            process.kill()
            process.wait()
            here += 1
        code = process.wait()
        problems = [] if code == 0 else [process.said[-500:]]
        tally.add(problems or differences(expected.folder, save_dir), here)


def test_lost_worker_of_torchrun(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """``torchrun`` ends the other one; our script leaves no traceback, and the run goes on."""
    if not full:
        pytest.skip("in the full form")
    rng = dice("worker")
    expected = laboratory.undisturbed(AEKD, torchrun=True)
    for _ in range(3):
        save_dir = laboratory.fresh()
        process = laboratory.start_torchrun(AEKD, save_dir)
        while not list(save_dir.glob("*/*/last.pth")) and not process.ends_within(0.01):
            pass
        os.kill(rng.choice(process.workers), signal.SIGKILL)
        problems = [] if process.wait() != 0 else ["it ended well"]
        ours = [line for line in process.said.splitlines() if "--resume goes on" in line]
        problems += [] if len(ours) <= 1 and "loop.py" not in process.said else [process.said]
        resumed = laboratory.start_torchrun(AEKD, save_dir)
        problems += [] if resumed.wait() == 0 else [resumed.said[-500:]]
        tally.add(problems or differences(expected.folder, save_dir))


def test_two_processes_on_one_folder(laboratory: Laboratory, full: bool, tally: Tally) -> None:
    """The second is refused in one line; the first does not notice."""
    rng = dice("two")
    for _ in range(5 if full else 1):
        save_dir, process = laboratory.begun(TEACHER, rng)
        os.kill(process.pid, signal.SIGSTOP)  # so that it does not end too soon
        second = laboratory.start(TEACHER, save_dir)
        problems = one_line(second, 2, "another process", str(folder_in(save_dir)))
        os.kill(process.pid, signal.SIGCONT)
        tally.add(problems + finished(process, laboratory.undisturbed(TEACHER).folder, save_dir))


def test_what_a_killed_run_leaves_behind(laboratory: Laboratory) -> None:
    """Its folder is free at once, though processes that it has forked, to read images, go on for a while."""
    folder = laboratory.fresh()
    program = """
import os, sys, time
from pathlib import Path
from helper.run_folder import RunFolder

run = RunFolder(Path(sys.argv[1]))
run.open({}, overwrite=False)
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
os.kill(os.getpid(), 9)
"""
    killed = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, cwd=ROOT)
    assert killed.stdout is not None
    left = int(killed.stdout.readline())
    killed.stdout.close()
    killed.wait()
    try:
        again = RunFolder(folder)
        again.open({}, overwrite=False)
        again.close()
    finally:
        os.kill(left, signal.SIGKILL)


# ---- a loss that is no number


@pytest.mark.parametrize("run", ["teacher", "CAMKD with adapters"])
def test_loss_not_finite(run: str, laboratory: Laboratory, tally: Tally) -> None:
    """The first bad step and the part of the loss are named."""
    process = laboratory.start(f"{RUNS[run]} --lr 1e30", laboratory.fresh())
    tally.add(one_line(process, 2, "loss", "step", "epoch 1", "--learning_rate"))
