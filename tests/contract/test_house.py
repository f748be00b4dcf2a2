"""The rules of the house: who imports whom, no name of a method outside its folder, nothing of one machine."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from checkout import ROOT, own_files, own_names

from helper.registry import Registry

if not own_files():
    pytest.skip("not a git checkout: whose files these are is not known", allow_module_level=True)

METHOD_FOLDERS = ("models", "distiller_zoo", "ensemble", "online", "dataset")
FOLDERS = ("helper", *METHOD_FOLDERS)
METHODS = [folder for folder in METHOD_FOLDERS if (ROOT / folder).is_dir()]
SCRIPTS = [path for path in own_files() if path.parent == ROOT and path.name.startswith("train_")]
TEXT = {".py", ".sh", ".toml", ".md", ".txt", ".yml", ".yaml", ".cff", ".json", ".csv"}


def files_of(folder: str) -> list[Path]:
    return [path for path in own_files() if path.suffix == ".py" and path.is_relative_to(ROOT / folder)]


@cache
def registered(folder: str) -> set[str]:
    """Our own names in a folder's registries."""
    registries = vars(importlib.import_module(folder)).values()
    return set().union(*(own_names(registry) for registry in registries if isinstance(registry, Registry)))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree(path)))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, wherever in it; relative imports made absolute."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def roots_of(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imported(path)}


def ours() -> set[str]:
    return {*FOLDERS, "setting", "scripts", "tests", *(script.stem for script in SCRIPTS)}


LIBRARY = [path for folder in FOLDERS for path in files_of(folder)]
PROGRAMS = [*SCRIPTS, *files_of("scripts")]
TESTS = files_of("tests")
each_file = pytest.mark.parametrize("path", [*LIBRARY, *PROGRAMS], ids=name)
each_of_all = pytest.mark.parametrize("path", [*LIBRARY, *PROGRAMS, *TESTS], ids=name)


def test_every_folder_is_known() -> None:
    """A new folder of code needs a rule here, and no registry is overlooked."""
    assert all(registered(folder) for folder in METHODS)
    code = {path.relative_to(ROOT) for path in own_files() if path.suffix == ".py"}
    assert {path.parts[0] for path in code if len(path.parts) > 1} == {*FOLDERS, "scripts", "tests"}
    assert {ROOT / path for path in code if len(path.parts) == 1} == set(SCRIPTS)


def test_tests_do_not_read_what_a_person_wrote_into_setting() -> None:
    """``conftest`` puts teachers of its own in place of theirs."""
    assert "setting" not in set().union(*map(roots_of, TESTS))
    assert not hasattr(sys.modules["setting"], "__file__")


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_folders_keep_to_themselves(path: Path) -> None:
    """helper knows nobody; a method's folder knows helper and itself, and leaves the command line to helper."""
    folder = path.relative_to(ROOT).parts[0]
    allowed = {folder, "helper"}
    assert roots_of(path) & ours() <= allowed
    if folder != "helper":
        assert "argparse" not in roots_of(path)


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_do_not_import_each_other(path: Path) -> None:
    assert not roots_of(path) & ({script.stem for script in SCRIPTS} | {"scripts", "tests"})


@pytest.mark.parametrize("folder", METHODS)
def test_a_folders_init_imports_every_file_that_registers(folder: str) -> None:
    """Else its names would exist only for those who happen to import it."""
    known = imported(ROOT / folder / "__init__.py")
    for path in files_of(folder):
        own = {
            target.id
            for node in tree(path).body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        registers = {
            node.value.id
            for node in nodes(path)
            if isinstance(node, ast.Attribute) and node.attr == "register" and isinstance(node.value, ast.Name)
        }
        if registers - own:
            assert f"{folder}.{path.stem}" in known


def compared_texts(node: ast.AST) -> Iterator[str]:
    """Strings that ``==``, ``in``, ``case`` and the like compare something with."""
    if isinstance(node, ast.Compare):
        for side in (node.left, *node.comparators):
            parts = side.elts if isinstance(side, (ast.Tuple, ast.List, ast.Set)) else [side]
            yield from (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))
    elif isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
        yield str(node.value.value)


@each_file
def test_no_method_is_known_by_name(path: Path) -> None:
    """No ``if opt.ensemble_method == "AEKD"``: what is special about a method stands in its own folder."""
    folder = path.relative_to(ROOT).parts[0]
    names = set().union(*(registered(other) for other in METHODS if other != folder))
    options = {"ensemble_method", "distill", "dataset", "model", "model_s", "method"}
    for node in nodes(path):
        assert not set(compared_texts(node)) & names
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            chosen = any(isinstance(side, ast.Attribute) and side.attr in options for side in sides)
            assert not (chosen and list(compared_texts(node))), f"line {node.lineno}"


@each_file
def test_devices_are_not_spelt_out(path: Path) -> None:
    """``.to(device)``, so that all runs on a CPU."""
    called = [node.func for node in nodes(path) if isinstance(node, ast.Call)]
    assert not [
        function.lineno for function in called if isinstance(function, ast.Attribute) and function.attr == "cuda"
    ]


@each_of_all
def test_no_checkpoint_is_trusted(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load_state_dict_from_url"):
            safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert safe.get("weights_only") == "True", f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("pickle.load", "pickle.Unpickler", "yaml.load"), f"line {node.lineno}"


def opens_text(call: ast.Call) -> bool:
    """Whether it opens a file as text: ``open``, ``path.open``, ``read_text``, ``write_text``."""
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr in ("read_text", "write_text"):
        return True
    modes = [each.value for each in call.args if isinstance(each, ast.Constant) and re.match("[rwax]", str(each.value))]
    if any("b" in str(mode) for mode in modes):
        return False
    of_a_path = isinstance(function, ast.Attribute) and function.attr == "open"
    newline = any(keyword.arg == "newline" for keyword in call.keywords)
    return (isinstance(function, ast.Name) and function.id == "open") or (of_a_path and (bool(modes) or newline))


@each_file
def test_text_is_utf_8(path: Path) -> None:
    """Whatever the terminal's language."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and opens_text(node):
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert said.get("encoding") == "'utf-8'", f"line {node.lineno}"


def text_files() -> list[Path]:
    """Everything that is ours to read, but for the results of runs."""
    return [
        path
        for path in own_files()
        if (path.suffix in TEXT or path.parts[-2:] == (".ci", "run"))
        and not path.is_relative_to(ROOT / "results")
        and path.name not in (Path(__file__).name, "lived_in.py")
    ]


def test_nothing_of_one_machine() -> None:
    """No absolute path of a home or a workplace, and nothing outside the collection."""
    machine = re.compile(r"(?<![\w.~])/(?:home|root|Users|work|mnt|scratch|workspace|tmp/[a-z])\b/?|\b[A-Z]:\\\\")
    outside = re.compile(r"\.\./shared|/work/shared|\bshared/(?:golden|METHODS|DESIGN)")
    found = [
        f"{name(path)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if len(line) < 2000 and (machine.search(line) or outside.search(line))
    ]
    assert not found


@each_file
def test_what_is_public_is_described(path: Path) -> None:
    """Modules, classes and functions; a method may lean on the class that it overrides."""
    if path.name == "__init__.py" and not path.read_text().strip():
        return
    assert ast.get_docstring(tree(path)), "the module"
    for node in tree(path).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name}, line {node.lineno}"
