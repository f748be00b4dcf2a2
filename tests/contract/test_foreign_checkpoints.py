"""Checkpoints of others: whatever their names, wrappers and formats, the weights that fit load, and no code is run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import json
import os
import pathlib
import re
import shlex
import struct
import subprocess
import sys
import tarfile
import types
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from helper import foreign
from helper.checkpoint import Damaged
from helper.errors import UsageError
from helper.teachers.files import TeacherFile, chosen_teachers, fingerprint
from helper.teachers.loading import Around, load_teachers
from helper.teachers.record import Eyes
from helper.weights import Labels, Loaded, load_network, located
from models import model_dict

ROOT = Path(__file__).parents[2]
CLASSES = 4
LABELS = Labels("digits", CLASSES, ("a", "b", "c", "d"))
AROUND = Around(LABELS, Eyes(0.5, 0.5, 32, "RGB").checked("digits"), torch.zeros(2, 3, 32, 32))
State = dict[str, torch.Tensor]


def network(name: str = "resnet8", num_classes: int = CLASSES, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return model_dict[name](num_classes=num_classes)


def weights(seed: int = 1, **settings: Any) -> State:
    return network(seed=seed, **settings).state_dict()


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def ahead(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def ours(state: State, **changes: Any) -> dict[str, Any]:
    """What a training script writes."""
    about = {"arch": "resnet8", "num_classes": CLASSES, "classes": list("abcd"), "dataset": "digits"}
    return {**about, "precision": "fp32", "model": state, **changes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.pth"


def loaded(path: Path, key: str | None = None, labels: Labels = LABELS) -> tuple[State, Loaded]:
    """A resnet8 after loading, and what else there was."""
    mine = network(seed=2)
    return mine.state_dict(), load_network(mine, path, "resnet8", labels, "--evaluate", key)


def refusal(path: Path, key: str | None = None, labels: Labels = LABELS) -> str:
    """The one line, which names option and file; the network is as it was."""
    mine = network(seed=2)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_network(mine, path, "resnet8", labels, "--evaluate", key)
    message = str(caught.value)
    assert message.startswith("--evaluate: ")
    assert str(path) in message
    assert "\n" not in message
    assert same(mine.state_dict(), before)
    return message


# ---- names


PREFIXES = (
    *("module.", "_orig_mod.", "model.", "student.", "network.", "net.", "backbone.", "encoder.", "a.b.c."),
    *("module._orig_mod.", "_orig_mod.module.", "module.student.", "model._orig_mod.module."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapped", [True, False])
def test_any_common_prefix_is_taken_off(path: Path, prefix: str, wrapped: bool) -> None:
    theirs = weights()
    torch.save({"state_dict": ahead(prefix, theirs)} if wrapped else ahead(prefix, theirs), path)
    state, rest = loaded(path)
    assert same(state, theirs)
    assert not rest.notes


def test_wrappers_of_parts_are_taken_off(path: Path) -> None:
    """As torch.compile and FSDP leave them where they wrapped a stage."""
    theirs = weights()
    inner = {name.replace("layer1.", "layer1._orig_mod.").replace("fc.", "fc._fsdp_wrapped_module."): value
             for name, value in theirs.items()}  # fmt: skip
    torch.save({"model": inner}, path)
    assert same(loaded(path)[0], theirs)


def test_one_network_among_other_things(path: Path) -> None:
    """As mdistiller and Lightning save a student beside its teacher and its loss."""
    theirs = weights()
    others = {**ahead("teacher.", weights(name="resnet14")), "loss.proj.weight": torch.ones(2, 2)}
    torch.save({"state_dict": {**ahead("student.", theirs), **others}, "pytorch-lightning_version": "2"}, path)
    state, rest = loaded(path)
    assert same(state, theirs)
    assert not rest.notes


# ---- wrappers


WRAPPERS = (
    *("model", "state_dict", "net", "model_state_dict", "state_dict_ema", "model_ema", "ema", "student", "network"),
    *("params", "weights", "module", "state.model", "a.b.c"),
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_any_wrapper_is_opened(path: Path, wrapper: str) -> None:
    theirs = weights()
    state: Any = theirs
    for name in reversed(wrapper.split(".")):
        state = {name: state, "epoch": 3, "best": torch.tensor(3.0), "optimizer": {"state": {0: torch.ones(3)}}}
    torch.save(state, path)
    assert same(loaded(path)[0], theirs)


def test_trained_weights_come_before_their_average_unless_asked_for(path: Path) -> None:
    raw, averaged = weights(1), weights(3)
    torch.save({"state_dict_ema": averaged, "state_dict": ahead("module.", raw), "arch": "any"}, path)
    state, rest = loaded(path)
    assert same(state, raw)
    (note,) = rest.notes
    assert all(word in note for word in ("'state_dict.module'", "'state_dict_ema'", "@KEY"))
    assert "\n" not in note
    for key, expected in (("state_dict_ema", averaged), ("state_dict", raw), ("module", raw)):
        state, rest = loaded(path, key)
        assert same(state, expected)
        assert not rest.notes
    message = refusal(path, "ema")
    assert message.endswith("has no weights under 'ema'; the keys found are 'state_dict_ema', 'state_dict.module'")


def test_the_same_weights_twice_are_no_choice(path: Path) -> None:
    torch.save({"model": weights(), "state_dict": weights()}, path)
    assert not loaded(path)[1].notes


@pytest.mark.parametrize("flat", [True, False])
def test_equals_are_not_guessed_between(path: Path, flat: bool) -> None:
    both = {**ahead("student.", weights(1)), **ahead("teacher.", weights(3))}
    torch.save({"model": both} if flat else {"student": weights(1), "teacher": weights(3)}, path)
    assert re.search(r"'(model\.)?student', '(model\.)?teacher'.*@KEY", refusal(path))
    assert same(loaded(path, "teacher")[0], weights(3))


def test_of_our_own_the_network_is_taken(path: Path) -> None:
    """Whatever lies beside it, such as peers of the same architecture; a key reaches them."""
    peers = {f"peers.networks.{j}.{name}": value for j in range(2) for name, value in weights(5 + j).items()}
    torch.save(ours(weights(1), trained={**ahead("network.", weights(3)), **peers}), path)
    state, rest = loaded(path)
    assert same(state, weights(1))
    assert not rest.notes
    assert same(loaded(path, "trained.peers.networks.1")[0], weights(6))


COUNTERS = ("total_ops", "total_params", "layer1.total_ops", "layer1.0.total_params", "extra.num_batches_tracked")


def test_counters_are_no_weights(path: Path) -> None:
    counters = {name: torch.zeros(1) for name in (*COUNTERS, "n_averaged")}
    torch.save({"model": {**weights(), **counters}}, path)
    assert same(loaded(path)[0], weights())
    torch.save({**ahead("module.", weights()), "n_averaged": torch.tensor(3)}, path)  # torch.optim.swa_utils
    assert same(loaded(path)[0], weights())
    torch.save({"model": {**weights(), **counters, "total.weight": torch.zeros(1)}}, path)
    assert "has an extra 'total.weight' (0 missing, 1 extra)" in refusal(path)


# ---- safetensors


NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
         torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip


def write_safetensors(path: Path, tensors: State, metadata: dict[str, str] | None = None, **changes: Any) -> None:
    """By the format's description; ``changes`` replace fields of the first tensor's entry."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    content = b""
    for name, value in tensors.items():
        raw = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        header[name] = {
            "dtype": NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [len(content), len(content) + len(raw)],
        }
        content += raw
    header[next(iter(tensors))].update(changes)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_safetensors_load(tmp_path: Path, name: str) -> None:
    theirs = {name: value[None][0] if value.ndim else value.view(1)[0] for name, value in weights().items()}
    write_safetensors(tmp_path / name, ahead("module.", theirs), {"format": "pt", "arch": "resnet8"})
    assert same(loaded(tmp_path / name)[0], weights())
    (teacher,) = chosen_teachers([], [str(tmp_path / name)], None, "digits", model_dict)
    assert teacher.arch == "resnet8"


@pytest.mark.parametrize("dtype", list(NAMES))
def test_safetensors_of_every_type_are_read_exactly(path: Path, dtype: torch.dtype) -> None:
    values = {"x": torch.tensor([[0, 1, 3], [2, 0, 1]]).to(dtype), "none": torch.zeros(0, 3, dtype=dtype)}
    values["one"] = torch.tensor(1).to(dtype)
    write_safetensors(path, values)
    assert same(foreign.read(path)["state_dict"], values)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "F7"}, "F7"),
        ({"shape": [2, 3]}, "more or fewer bytes"),
        ({"shape": [-5]}, "impossible"),
        ({"shape": [2.5]}, "impossible"),
        ({"data_offsets": [4, 24]}, "impossible"),
        ({"data_offsets": [0, 2**40], "shape": [2**38]}, "more or fewer bytes"),
        ({"data_offsets": [0]}, "header"),
        ({"shape": None}, "header|impossible"),
    ],
)
def test_a_header_that_lies_is_noticed(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"x": torch.ones(5), "y": torch.ones(3)}, **changes)
    with pytest.raises(Damaged, match=reason):
        foreign.read(path)


def test_every_truncation_of_safetensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"x": torch.ones(5), "y": torch.ones(3)})
    whole = path.read_bytes()
    for content in (*(whole[:n] for n in range(len(whole))), whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(Damaged, match="damaged"):
            foreign.read(path)


# ---- what lies beside the weights


def made(module: str, name: str, base: type = object) -> Any:
    """An object as a class of a package that the reader does not have makes it."""
    kind = type(name, (base,), {"__module__": module})
    one = kind()
    vars(one)["lr"] = 0.1
    if isinstance(one, dict):
        one["lr"] = 0.1
    return one


EXTRAS: dict[str, Any] = {
    "NumPy numbers": [np.float64(3.5), np.int64(-3), np.bool_(True), np.str_("ä"), np.float32(0.5), np.complex128(1j)],
    "NumPy arrays": [np.arange(3), np.ones((2, 2), order="F"), np.random.RandomState(0).get_state()],
    "paths": [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("a/b"), Path("a")],
    "options": argparse.Namespace(path=Path("a"), lr=np.float64(0.1), more=argparse.Namespace(a=1)),
    "collections": [collections.OrderedDict(a=1), collections.Counter("aab"), collections.deque([1, 2])],
    "dictionaries with defaults": collections.defaultdict(list, {"a": [1]}),
    "times": [datetime.datetime(2020, 1, 1), datetime.date(2020, 1, 1), datetime.timedelta(1), datetime.timezone.utc],
    "of torch": [torch.Size([1]), torch.float32, torch.device("cpu")],
    "plain": [types.SimpleNamespace(a=1), frozenset([1]), range(3), slice(1, 2), 10**30, b"bytes", {1, 2}],
}
CLASSES_OF_OTHERS = {
    "yacs.config.CfgNode": dict,
    "easydict.EasyDict": dict,
    "pytorch_lightning.utilities.parsing.AttributeDict": dict,
    "omegaconf.dictconfig.DictConfig": object,
}


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("what", list(EXTRAS))
def test_what_lies_beside_the_weights_does_no_harm(path: Path, what: str, archive: bool) -> None:
    torch.save({"model": weights(), "extra": EXTRAS[what]}, path, _use_new_zipfile_serialization=archive)
    assert same(loaded(path)[0], weights())


@pytest.mark.parametrize("name", list(CLASSES_OF_OTHERS))
def test_records_of_packages_that_are_not_there(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, kind = name.rpartition(".")
    one = made(module, kind, CLASSES_OF_OTHERS[name])
    for length in range(1, name.count(".") + 1):
        monkeypatch.setitem(sys.modules, ".".join(name.split(".")[:length]), types.ModuleType("made"))
    monkeypatch.setattr(sys.modules[module], kind, type(one), raising=False)
    torch.save({"model": weights(), "cfg": one}, path)
    monkeypatch.undo()
    assert same(loaded(path)[0], weights())
    assert vars(foreign.read(path)["cfg"])["lr"] == 0.1


@pytest.mark.parametrize("value", [np.float64(3.25), np.int64(-3), np.bool_(True), np.str_("ä"), np.float32(0.5)])
@pytest.mark.parametrize("core", [b"numpy.core.", b"numpy._core."])
def test_numpy_numbers_are_read_as_what_they_are(path: Path, value: Any, core: bytes) -> None:
    """Written by NumPy 1 or 2."""
    torch.save({"x": value}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(re.sub(rb"numpy\._?core\.", core, path.read_bytes()))
    assert foreign.read(path)["x"] == value.item()


class Intruder:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("archive", [True, False])
def test_no_code_is_run(path: Path, archive: bool) -> None:
    mark = path.with_name("mark")
    torch.save({"model": weights(), "x": Intruder(f"touch {mark}")}, path, _use_new_zipfile_serialization=archive)
    assert re.search(r"not trusted: posix\.system", refusal(path))
    assert not mark.exists()
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": weights(), "x": EXTRAS["options"]}, path, _use_new_zipfile_serialization=archive)
    loaded(path)
    assert set(torch.serialization.get_safe_globals()) == before


def trace(model: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; its files are not gone
        torch.jit.save(torch.jit.trace(model.eval(), torch.zeros(1, 3, 32, 32)), path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda model, path: torch.save(model, path), r"CifarResNet, of a module that was saved whole"),
        (
            lambda model, path: torch.save({"model": model, "epoch": 3}, path),
            r"CifarResNet, of a module that was saved whole",
        ),
        (lambda model, path: torch.save({"model": model.state_dict()}, path, pickle_protocol=4), "pickle_protocol=4"),
        (trace, "TorchScript"),
    ],
)
def test_the_command_makes_it_loadable(tmp_path: Path, write: Callable[[nn.Module, Path], None], reason: str) -> None:
    """The user runs it, in the project that has the classes; its result holds the weights alone."""
    path = tmp_path / "it's a model.pth.tar"
    theirs = network(seed=1)
    write(theirs, path)
    with pytest.raises(Damaged, match=reason) as caught:
        foreign.read(path)
    words = shlex.split("python -c " + str(caught.value).partition("python -c ")[2])
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(loaded(Path(words[-1]))[0], theirs.state_dict())


def pack(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x.pth"))


SOMETHING_ELSE: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "nothing": (b"", "empty"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS"),
    "html": (b"\n<!DOCTYPE html><html><head>", "web page"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "keras": (lambda path: pack(path, config__json=b"{}", **{"model.weights.h5": b""}), "Keras"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(50), "ONNX"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "gzip"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(50), "NumPy"),
    "npz": (lambda path: pack(path, a__npy=b"x"), "NumPy"),
    "tar": (tar, "tar archive"),
    "zip": (lambda path: pack(path, x__pth=b"x"), "zip archive"),
    "pickle": (b"\x80\x04\x95" + bytes(50), "plain pickle"),
    "json": (b'{"model": {}}', "no checkpoint"),
    "zeros": (bytes(2000), "no checkpoint"),
}


@pytest.mark.parametrize("what", list(SOMETHING_ELSE))
def test_something_else_is_named_as_what_it_is(path: Path, what: str) -> None:
    content, reason = SOMETHING_ELSE[what]
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    assert re.search(f"cannot be loaded: .*{reason}", refusal(path))


@pytest.mark.parametrize("archive", [True, False])
def test_a_download_that_was_cut_off(path: Path, archive: bool) -> None:
    torch.save({"model": weights()}, path, _use_new_zipfile_serialization=archive)
    whole = path.read_bytes()
    for length in (20, 1000, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        assert "ends too early" in refusal(path)


def test_a_flipped_bit_is_noticed_or_does_no_harm(tmp_path: Path) -> None:
    """Anywhere in a small file of each format; nothing but Damaged is raised."""
    state = {"model": {"x": torch.ones(4)}, "extra": [np.float64(3), argparse.Namespace(a=1)]}
    archive, legacy, plain = (tmp_path / name for name in ("a.pth", "b.pth", "c.safetensors"))
    torch.save(state, archive)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    write_safetensors(plain, state["model"], {"format": "pt"})
    for path in (archive, legacy, plain):
        whole = path.read_bytes()
        for place in range(0, len(whole), 1 if len(whole) < 500 else 3):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            with contextlib.suppress(Damaged):
                foreign.read(path)


# ---- architectures


def torchvision_checkpoint(path: Path, arch: str = "resnet18", classes: int = CLASSES) -> State:
    """As the ImageNet example of PyTorch writes it."""
    torch.manual_seed(3)
    state = torchvision.models.resnet18(num_classes=classes).state_dict()
    torch.save({"epoch": 3, "arch": arch, "state_dict": ahead("module.", state), "best_acc1": torch.tensor(71.0)}, path)
    return state


def test_the_shapes_decide_not_what_a_file_calls_itself(path: Path) -> None:
    state = torchvision_checkpoint(path)
    mine = network("torchvision/resnet18")
    load_network(mine, path, "torchvision/resnet18", LABELS, "--teachers")
    assert same(mine.state_dict(), state)
    for arch in ("resnet14", 3, None, np.int64(3), torch.ones(2), ["resnet14"]):
        torch.save({"model": weights(), "arch": arch, "num_classes": torch.tensor([1000, 7])}, path)
        assert same(loaded(path)[0], weights())
    for classes in (CLASSES, ["a", "b"], "abcx", None):  # others' own use of our words
        torch.save(ours(weights(), classes=classes, dataset=3), path)
        assert same(loaded(path)[0], weights())
    torch.save(ours(weights(), arch="resnet14"), path)
    assert same(loaded(path)[0], weights())
    torch.save(ours(weights(name="resnet14"), arch="resnet14"), path)
    assert refusal(path).endswith("holds a resnet14, not a resnet8")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_auxiliary_heads_of_published_networks_are_left_out(path: Path, name: str, prefix: str) -> None:
    """Whoever trains networks of torchvision with its defaults has them in the checkpoint."""
    settings: dict[str, Any] = {"num_classes": CLASSES, "aux_logits": True, "init_weights": False}
    state = torchvision.models.get_model(name, **settings).state_dict()
    torch.save({"arch": name, "state_dict": ahead(prefix, state)}, path)
    assert choose(str(path)) == [TeacherFile(f"torchvision/{name}", path)]
    mine = network(f"torchvision/{name}")
    load_network(mine, path, f"torchvision/{name}", LABELS, "--teachers")
    used = {key: value for key, value in state.items() if not key.lower().startswith("aux")}
    assert len(used) < len(state)
    assert same(mine.state_dict(), used)
    torch.save({"state_dict": ahead(prefix, state | {"other.weight": torch.ones(2)})}, path)
    with pytest.raises(UsageError, match=r"has an extra 'other.weight' \(0 missing, 1 extra\)"):
        load_network(mine, path, f"torchvision/{name}", LABELS, "--teachers")


def choose(*given: str) -> list[TeacherFile]:
    return chosen_teachers([], given, None, "digits", model_dict)


@pytest.mark.parametrize("arch", ["resnet18", "ResNet18", "torchvision/resnet18"])
def test_a_name_of_others_is_believed_if_the_weights_fit(path: Path, arch: str) -> None:
    torchvision_checkpoint(path, arch, classes=1000)
    torch.manual_seed(5)
    expected = torch.randn(1)
    torch.manual_seed(5)
    assert choose(str(path)) == [TeacherFile("torchvision/resnet18", path)]
    assert torch.equal(torch.randn(1), expected), "the student's initial weights do not depend on the teachers"


@pytest.mark.parametrize("arch", ["resnet8_variant", 3, None, torch.ones(2)])
def test_a_name_that_means_nothing_here_is_asked_for(path: Path, arch: Any) -> None:
    torch.save({"arch": arch, "model": weights()}, path)
    with pytest.raises(UsageError) as caught:
        choose(str(path))
    assert str(caught.value).endswith(f"write {path}:ARCH")
    assert "\n" not in str(caught.value)
    assert choose(f"{path}:resnet8") == [TeacherFile("resnet8", path)]


def test_another_number_of_classes(path: Path) -> None:
    torch.save({"model": weights(num_classes=7)}, path)
    assert re.search(r"7 classes, not for 4 classes: 'fc\.weight' is \[7, 64\], expected \[4, 64\]", refusal(path))
    torch.save({"model": {**weights(), "fc.bias": torch.ones(7)}}, path)
    assert "7 classes" in refusal(path)
    torch.save({"model": {**weights(), "conv1.weight": torch.ones(3, 3, 3, 3)}}, path)
    assert "does not fit a resnet8 with 4 classes" in refusal(path)


# ---- numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_weights_of_any_precision_load(path: Path, dtype: torch.dtype) -> None:
    theirs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights().items()}
    torch.save({"model": theirs}, path)
    state, _ = loaded(path)
    assert same(state, {name: value.to(state[name].dtype) for name, value in theirs.items()})
    assert state["fc.weight"].dtype == torch.float32


def quantised(value: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


ODD: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "nan": (lambda value: value / 0 * 0, "not finite"),
    "infinite": (lambda value: value / 0, "not finite"),
    "too large": (lambda value: value.double() * 1e300, "not finite"),
    "whole numbers": (lambda value: value.to(torch.int8), "whole numbers .int8."),
    "truth values": (lambda value: value > 0, "whole numbers .bool."),
    "complex": (lambda value: value.to(torch.complex64), "complex"),
    "quantised": (quantised, "quantised"),
    "meta": (lambda value: value.to("meta"), "meta device"),
    "sparse": (lambda value: value.to_sparse(), "sparse"),
}


@pytest.mark.filterwarnings("ignore")  # torch warns of some of these itself
@pytest.mark.parametrize("what", list(ODD))
def test_what_is_no_weight_is_refused(path: Path, what: str) -> None:
    change, reason = ODD[what]
    torch.save({"model": {**weights(), "fc.weight": change(weights()["fc.weight"])}}, path)
    assert re.search(f"'fc.weight' .*{reason}", refusal(path))


def test_statistics_have_to_be_finite_too(path: Path) -> None:
    torch.save({"model": {**weights(), "bn1.running_var": torch.full((16,), torch.nan)}}, path)
    assert "'bn1.running_var'" in refusal(path)


# ---- classes


def test_a_checkpoint_for_other_classes_is_refused(path: Path) -> None:
    torch.save(ours(weights(), dataset="letters", classes=list("abcx")), path)
    message = refusal(path)
    assert all(word in message for word in ("letters", "'x'", "digits", "'d'"))
    torch.save(ours(weights(), classes=list("badc")), path)
    assert "in another order" in refusal(path)
    torch.save(ours(weights(num_classes=7), num_classes=7, classes=list("abcdefg"), dataset="letters"), path)
    assert refusal(path).endswith("on 'letters' for 7 classes, the dataset has 4 classes; was --dataset letters meant?")


def test_the_same_classes_under_another_name_are_fine(path: Path) -> None:
    torch.save(ours(weights(), dataset="letters"), path)
    assert not loaded(path)[1].notes


@pytest.mark.parametrize("known", [True, False])
def test_where_classes_are_unknown_another_dataset_is_said(path: Path, known: bool) -> None:
    """Our older checkpoints, datasets without names, and others' files."""
    labels = LABELS if not known else Labels("digits", CLASSES)
    old = ours(weights(), dataset="letters", classes=list("abcd") if known else None)
    for state in (old, {name: value for name, value in old.items() if known or name != "classes"},
                  {"state_dict": weights(), "dataset": "letters"}):  # fmt: skip
        torch.save(state, path)
        (note,) = loaded(path, labels=labels)[1].notes
        assert all(word in note for word in (str(path), "letters", "digits"))
    for dataset in ("digits", "DIGITS", np.str_("digits"), 3):
        torch.save({"state_dict": weights(), "dataset": dataset}, path)
        assert not loaded(path, labels=labels)[1].notes


# ---- keys on the command line


def test_keys_are_told_from_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folders of image folders have an @ in their names."""
    monkeypatch.chdir(tmp_path)
    run = Path("resnet8-folder@1a2b3c-trial=0")
    run.mkdir()
    for file in (run / "last.pth", Path("x.pth"), Path("y@ema.pth"), Path("x.pth@raw")):
        torch.save(ours(weights()), file)
    assert located(run) == (run / "last.pth", None)
    assert located(f"{run}@ema") == (run / "last.pth", "ema")
    assert located("missing@1a2b3c/last.pth") == (Path("missing@1a2b3c/last.pth"), None)
    for text, path, key in (
        ("x.pth", "x.pth", None),
        ("x.pth@ema", "x.pth", "ema"),
        ("x.pth@raw", "x.pth@raw", None),
        ("y@ema.pth", "y@ema.pth", None),
        ("y@ema.pth@state.model", "y@ema.pth", "state.model"),
        (f"{run}/last.pth", f"{run}/last.pth", None),
        (f"{run}/last.pth@ema", f"{run}/last.pth", "ema"),
        (f"{run}@ema", f"{run}/last.pth", "ema"),
    ):
        assert located(text) == (Path(path), key)
        expected = TeacherFile("resnet8", Path(path), key)
        assert choose(text) == [expected]
        assert choose(str(expected)) == [expected], "as the run records it"
        assert chosen_teachers([("resnet8", text)], None, None, "digits", model_dict) == [expected]
    assert choose("x.pth:resnet8@ema") == choose("x.pth@ema:resnet8") == [TeacherFile("resnet8", Path("x.pth"), "ema")]
    assert choose("gone.pth:resnet8@ema") == [TeacherFile("resnet8", Path("gone.pth"), "ema")]
    with pytest.raises(UsageError, match=r"there is no checkpoint 'gone@1a2b3c/last\.pth'"):
        choose("gone@1a2b3c/last.pth")
    with pytest.raises(UsageError, match="unknown architecture 'resnet9'"):
        choose("x.pth:resnet9@ema")


def test_a_key_enters_the_runs_name_only_when_given() -> None:
    plain, keyed = TeacherFile("resnet8", Path("x.pth")), TeacherFile("resnet8", Path("x.pth"), "ema")
    assert fingerprint([plain]) == "1xresnet8@eae467", "as before there were keys"
    assert fingerprint([keyed]) != fingerprint([plain])


def test_teachers_by_key(path: Path) -> None:
    torch.save({"state_dict": weights(1), "state_dict_ema": weights(3)}, path)
    files = [TeacherFile("resnet8", path), TeacherFile("resnet8", path, "state_dict_ema")]
    teachers, notes = load_teachers(files, network, AROUND, "fp32")
    assert len(notes) == 1
    assert teachers.identities[0][1] != teachers.identities[1][1]


@pytest.mark.parametrize("order", [("big", "small"), ("small", "big")])
@pytest.mark.parametrize("nested", [True, False])
def test_classes_by_key(path: Path, order: tuple[str, str], nested: bool) -> None:
    """Each teacher in a file of several is for its own number of classes."""
    counts = {"big": 5, "small": 2}
    state = {key: weights(num_classes=counts[key]) for key in order}
    torch.save({"nets": state} if nested else state, path)
    small = TeacherFile("resnet8", path, "small", classes=["a", "b"])
    big = TeacherFile("resnet8", path, "big", classes={"a": 4, "d": 0})
    teachers, _ = load_teachers([small, big], network, AROUND, "fp32")
    assert [each.fc.out_features for each in teachers.networks] == [2, 5]
    assert teachers.known is not None
    assert [each.tolist() for each in teachers.known.numbers] == [[0, 1], [0, 3]]
    with pytest.raises(UsageError, match=r"classes: names 2 logits, but it has 5"):
        load_teachers([replace(small, key="big")], network, AROUND, "fp32")
    with pytest.raises(UsageError, match=r"has no weights under 'other'; the keys found are '"):
        load_teachers([replace(small, key="other")], network, AROUND, "fp32")
