"""Checkpoints that others wrote, in any of their formats, read without running anything that is in them."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import shlex
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from helper import checkpoint, safetensors
from helper.checkpoint import Damaged, Untrusted

HEAD = 4096
"""Bytes that tell what a file is."""

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""What torch.save began its files with before they were archives."""

ONNX = "it is an ONNX graph; only weights for PyTorch can be read"
OTHERS = {
    rb"\Z": "it is empty: damaged, or a download that failed",
    rb"version https://git-lfs": "it is a pointer of Git LFS, not the file itself; `git lfs pull` fetches it",
    rb"[\xef\xbb\xbf \t\r\n]*<(?:!doctype|html|\?xml|head)": "it is a web page (HTML), not a checkpoint: the download "
    "went wrong",
    rb"\x89HDF\r\n\x1a\n": "it is an HDF5 file, as of Keras; only weights for PyTorch can be read",
    rb"\x1f\x8b": "it is packed with gzip; unpack it first",
    rb"\x93NUMPY": "it is an array of NumPy (.npy), not a checkpoint",
    rb"\x08[\x01-\x1f]\x12.(?:pytorch|tf2onnx|keras2onnx|onnx)": ONNX,
    rb".{257}ustar": "it is a tar archive, of files or of PyTorch before 0.2; unpack it, or save its weights anew",
}
"""How files begin that hold no weights for PyTorch, and what they are."""


class Record:
    """Stands in for an object whose class is not imported: its attributes, and none of its code."""

    def __new__(cls, *_: Any) -> Record:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        """Takes what the class would have been called with."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class NumpyType(Record):
    """Stands in for a NumPy dtype: NumPy's own would believe whatever flags a file sets."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = str(code)
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "<"


def numpy_scalar(kind: Any, raw: Any = b"") -> Any:
    """The Python number or text that a NumPy scalar of plain type stood for; a record of any other."""
    if not isinstance(kind, NumpyType) or not isinstance(raw, bytes) or not re.fullmatch(r"[biufcSU]\d+", kind.code):
        return Record()
    return np.frombuffer(raw, np.dtype(kind.order + kind.code), count=1)[0].item()


def as_dictionary(*_: Any) -> OrderedDict[Any, Any]:
    """Stands in for a class of dictionaries, before its items are set."""
    return OrderedDict()


def as_list(*_: Any) -> list[Any]:
    """Stands in for a class of lists, before its items are appended."""
    return []


_DICTIONARIES = (
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "detectron2.config.config.CfgNode",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "munch.Munch",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
_OMEGACONF = (
    *("dictconfig.DictConfig", "listconfig.ListConfig", "base.Metadata", "base.ContainerMetadata", "nodes.AnyNode"),
    *("nodes.StringNode", "nodes.IntegerNode", "nodes.FloatNode", "nodes.BooleanNode", "nodes.PathNode"),
)
_PATHS = {
    **dict.fromkeys(("PosixPath", "PurePosixPath"), pathlib.PurePosixPath),
    **dict.fromkeys(("WindowsPath", "PureWindowsPath"), pathlib.PureWindowsPath),
}

ALLOWED: tuple[Any, ...] = (
    argparse.Namespace,  # RepDistiller's *_last.pth holds its options as one
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *((pure, f"pathlib.{inner}{name}") for name, pure in _PATHS.items() for inner in ("", "_local.")),
    *(
        (kind, f"builtins.{kind.__name__}")
        for kind in (list, dict, int, float, str, bool, tuple, frozenset, range, slice)
    ),
    (as_dictionary, "collections.defaultdict"),
    (as_list, "collections.deque"),
    *((OrderedDict, name) for name in _DICTIONARIES),
    *(
        (Record, name)
        for name in ("types.SimpleNamespace", "typing.Any", *(f"omegaconf.{each}" for each in _OMEGACONF))
    ),
    (NumpyType, "numpy.dtype"),
    *((Record, f"numpy.{name}") for name in ("ndarray", "float64", "float32", "float16", "int64", "int32", "uint8")),
    *((numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((Record, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
)
"""What others keep beside their weights: read as what it is, or as something inert in its place."""


def read(path: Path) -> dict[str, Any]:
    """What a file holds, its tensors on the CPU, whoever wrote it.

    Raises:
        Damaged: it is something else, is damaged, or would run code; the message then has the command that makes it
            loadable.
    """
    try:
        if other := _something_else(path):
            raise Damaged(other)
        if safetensors.recognised(path):
            tensors, metadata = safetensors.read(path)
            return {**metadata, "state_dict": tensors}
    except OSError as error:
        raise Damaged(f"it cannot be read ({error.strerror})") from None
    try:
        return checkpoint.load(path, ALLOWED)
    except Untrusted as error:
        whole = b"ctorch.nn.modules." in _pickle_of(path)
        what = f"{error}, of a module that was saved whole" if whole else error
        raise Untrusted(f"{what}. {conversion(path)}") from None
    except Damaged:
        protocol = _pickle_of(path)[1:2]
        if protocol > b"\x02":
            raise Damaged(
                f"it was saved with pickle_protocol={protocol[0]}, which cannot be read without trusting it. "
                f"{conversion(path)}"
            ) from None
        raise


def conversion(path: Path) -> str:
    """The sentence that tells how a file that would run code is made one of weights alone."""
    program = (
        "import sys, torch; "
        "keep = lambda v: v.state_dict() if isinstance(v, torch.nn.Module) else v if isinstance(v, torch.Tensor) else "
        "{k: w for k, w in ((k, keep(w)) for k, w in v.items()) if w is not None} if isinstance(v, dict) else None; "
        'torch.save(keep(torch.load(sys.argv[1], map_location="cpu", weights_only=False)), sys.argv[2])'
    )
    weights = path.with_name(f"{path.name.split('.')[0] or 'checkpoint'}_weights.pth")
    command = shlex.join(["python", "-c", program, str(path), str(weights)])
    return f"If you trust its author, run in its project's folder, which writes its weights alone: {command}"


def _something_else(path: Path) -> str:
    """What a file is that holds no readable weights; empty for one that may."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    found = [what for pattern, what in OTHERS.items() if re.match(pattern, head, re.I | re.S)]
    if found or path.suffix == ".onnx":
        return found[0] if found else ONNX
    if head.startswith(b"PK\x03\x04"):
        return _other_archive(path)
    if re.match(rb"\x80[\x02-\x05]", head) and not head.startswith(LEGACY[: len(head)]):
        return "it is damaged, or a plain pickle of Python; save its weights with torch.save instead"
    return ""


def _other_archive(path: Path) -> str:
    """What a zip archive is that torch.save did not write; empty for one that it did, and for a damaged one."""
    if not _is_archive(path):
        return "it is damaged: it ends too early, as after a download or copy that was cut off"
    names = {name.rpartition("/")[2] for name in _members(path)}
    if "constants.pkl" in names:
        return (
            f"it is a TorchScript archive, which holds code; torchscript/{path} alone, without :ARCH, is a teacher of "
            f"logits that runs it. {conversion(path)}"
        )
    if "data.pkl" in names or not names:
        return ""
    if {"config.json", "model.weights.h5"} <= names:
        return "it is a model of Keras; only weights for PyTorch can be read"
    if "archive_format" in names:
        return (
            "it is a program of torch.export; give the checkpoint that it was made from, or its name alone as FILE.pt2"
        )
    if all(name.endswith(".npy") for name in names):
        return "it holds arrays of NumPy (.npz), not a checkpoint"
    return "it is a zip archive, not a checkpoint; unpack it first"


def _is_archive(path: Path) -> bool:
    """Whether it is a zip archive that is complete, if perhaps damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _members(path: Path, suffix: str = "") -> dict[str, bytes]:
    """The names in a zip archive, and what those with a suffix hold; nothing where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name: archive.read(name) if suffix and name.endswith(suffix) else b"" for name in archive.namelist()
            }
    except Exception:  # zipfile raises many kinds for damaged bytes
        return {}


def _pickle_of(path: Path) -> bytes:
    """The bytes of the pickle in a file of torch.save; nothing where there is none."""
    if _is_archive(path):
        return next(filter(None, _members(path, "data.pkl").values()), b"")
    content = path.read_bytes()
    return content[len(LEGACY) :] if content.startswith(LEGACY) else b""
