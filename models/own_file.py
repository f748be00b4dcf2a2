"""A person's own network, as ``FILE.py:CALLABLE``: what the function or class of that name in that file returns.

The file is run, as ``python FILE.py`` would run it: it is for code that one has written or read. It may hold any
``nn.Module`` that makes logits ``[B, C]`` of images, and needs nothing of this collection.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import ModuleType

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from helper.errors import UsageError, nearest
from helper.teachers.record import Eyes
from models.base import Builder, StagedModel, from_outside, source_dict
from models.huggingface import HuggingFaceNetwork
from models.timm_models import TimmNetwork
from models.wrapped import Plain, checksum

HERE = Path(__file__).resolve().parents[1]


def own_model(path: Path, name: str, num_classes: int, whole: bool = False) -> StagedModel:
    """Build ``path:name``; networks of timm and transformers are known for what they are.

    Args:
        path: a file of Python.
        name: of a function or class in it; it gets ``num_classes`` if it has an argument of that name.
        num_classes: number of logits.
        whole: makes no difference: the weights are those that the callable gives it.

    Raises:
        UsageError: the file cannot be run, has no such callable, or that returns no network, one without sizes or one
            with odd wishes.
    """
    label = f"{path}:{name}"
    with imports_beside(path), faults_of(path, label):
        module = loaded(path.resolve(), checksum(path))
        make = getattr(module, name, None)
        if make is None:
            makers = [
                each for each, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
            ]
            raise UsageError(f"{path} has no {name!r}{nearest(name, makers)}; it has {', '.join(makers) or 'nothing'}")
        if not callable(make) or isinstance(make, nn.Module):
            raise UsageError(f"{label} is a {type(make).__name__}, not a function or class that makes a network")
        takes = "num_classes" in inspect.signature(make).parameters
        net = make(num_classes=num_classes) if takes else make()
    if not isinstance(net, nn.Module):
        raise UsageError(f"{label} returned a {type(net).__name__}, not a network (nn.Module)")
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps: its names are those of checkpoints
    require_sizes(net, label)
    if isinstance(net, StagedModel):
        return net
    kind = next((kind for kind in (TimmNetwork, HuggingFaceNetwork) if kind.fits(net)), Plain)
    network = kind(num_classes, net, label)
    network.wants = wish(net, label)
    return network


def require_sizes(net: nn.Module, label: str) -> None:
    """UsageError where layers have no sizes yet; ``label`` begins its line."""
    lazy = [each for each in net.modules() if isinstance(each, LazyModuleMixin) and each.has_uninitialized_params()]
    if lazy:
        raise UsageError(
            f"{label} has layers without sizes ({type(lazy[0]).__name__}): let {label.rpartition(':')[2]} call it on "
            "images once, such as torch.zeros(2, 3, 32, 32), before it returns it"
        )


def wish(net: nn.Module, label: str) -> Eyes:
    """How a person's network wants its images, where it says so.

    Raises:
        UsageError: what it has as its ``wants`` is something else.
    """
    wants = getattr(net, "wants", None) or Eyes()
    if not isinstance(wants, Eyes):
        raise UsageError(f"{label}: its wants is a {type(wants).__name__}, not an Eyes of helper/teachers/record.py")
    return wants


@cache
def loaded(path: Path, content: str) -> ModuleType:
    """The module in a file of this content, which is run once."""
    name = f"{path.stem}_{content}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def imports_beside(path: Path) -> Iterator[None]:
    """What lies beside the file is imported first, also where it is called as a folder of this collection."""
    folder = path.resolve().parent
    beside = set() if folder == HERE else {each.stem for each in folder.iterdir()} - {"__main__"}
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] in beside and is_ours(module)}
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        roots = {name.split(".")[0] for name in hidden}
        for name in [name for name in sys.modules if name.split(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(hidden)


def is_ours(module: ModuleType) -> bool:
    """Whether a module is one of this collection."""
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(HERE) and "site-packages" not in file


@contextlib.contextmanager
def faults_of(path: Path, label: str) -> Iterator[None]:
    """Make one line of what goes wrong in the file."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        inside = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.resolve())
        ]
        line = error.lineno if isinstance(error, SyntaxError) else inside[-1] if inside else None
        where = f", line {line}" if line else ""
        raise UsageError(f"{label} cannot be made: {type(error).__name__}: {error} ({path}{where})") from error


@source_dict.register("FILE.py:CALLABLE")
def source(name: str) -> Builder | None:
    """Files of Python; nothing is run before the network is built."""
    match = re.fullmatch(r"(.+\.py)(?::(\w*))?", name)
    if match is None:
        return None
    path = Path(match[1])
    if not path.is_file():
        raise UsageError(f"{name!r}: there is no file {str(path)!r}")
    if not match[2]:
        raise UsageError(f"{name!r} does not say what makes the network; write {path}:CALLABLE")
    return from_outside(partial(own_model, path, match[2]), lambda: f"{path.stem}.{match[2]}@{checksum(path)}")
