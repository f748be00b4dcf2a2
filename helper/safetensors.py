"""Reads ``.safetensors`` files: eight bytes with the header's length, a header in JSON, the tensors' bytes.

The format is fixed and this short, so that no package is needed for it. A header is not believed: types, shapes and
places have to agree with the file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from helper.checkpoint import Damaged

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def recognised(path: Path) -> bool:
    """Whether the file is named or begins like one of this format."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return path.suffix == ".safetensors" or (start[8:] == b"{" and 8 + length <= path.stat().st_size)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata.

    Raises:
        Damaged: header and bytes do not agree.
    """
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or 8 + length > len(content):
        raise Damaged("it is damaged: a .safetensors file that ends within its header")
    try:
        header = json.loads(content[8 : 8 + length])
        metadata = dict(header.pop("__metadata__", None) or {})
        places = sorted(_place(name, **entry) for name, entry in header.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Damaged("it is damaged: the header of this .safetensors file cannot be read") from None
    return _tensors(memoryview(content)[8 + length :], places), {str(key): str(metadata[key]) for key in metadata}


def _place(name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> tuple[int, int, str, str, list[int]]:
    begin, end = data_offsets
    return begin, end, name, str(dtype), [*shape]


def _tensors(content: memoryview, places: list[tuple[int, int, str, str, list[int]]]) -> dict[str, torch.Tensor]:
    """The tensors at ``(begin, end, name, type, shape)``, which have to fill ``content`` without gaps."""
    tensors, position = {}, 0
    for begin, end, name, kind, shape in places:
        if kind not in DTYPES:
            raise Damaged(f"{name!r} is of the type {kind}, which is not known here")
        if not all(type(size) is int and size >= 0 for size in (begin, end, *shape)) or begin != position:
            raise Damaged(f"it is damaged: {name!r} of this .safetensors file has an impossible shape or place")
        if end - begin != math.prod(shape) * DTYPES[kind].itemsize or end > len(content):
            raise Damaged(f"it is damaged: {name!r} of this .safetensors file has more or fewer bytes than its shape")
        raw = bytearray(content[begin:end])
        values = torch.frombuffer(raw, dtype=DTYPES[kind]) if raw else torch.empty(0, dtype=DTYPES[kind])
        tensors[name] = values.reshape(shape)
        position = end
    if position != len(content):
        raise Damaged("it is damaged: a .safetensors file with more bytes than its tensors have")
    return tensors
