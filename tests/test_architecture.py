"""Who may import whom: the arrows of the house point one way."""

import ast

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "dpmix_tf"
ALLOWED = {
    "privacy": set(),
    "views": {"privacy", "synthetic"},
    "models": {"synthetic", "privacy"},
    "synthetic": {"privacy"},
    "data": {"privacy"},
    "training": {"views", "data", "models", "synthetic", "privacy"},
    "auditing": {"training", "views", "data", "models", "privacy"},
    "serving": {"training", "views", "data", "models", "synthetic", "privacy"},
    "experiments": {"serving", "training", "views", "data", "models", "privacy"},
}
LEAVES = {
    "pixels",
    "plotting",
    "errors",
    "files",
    "images",
    "tasks",
    "values",
    "weights",
}
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[1:]
)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.name))
def test_imports_point_one_way(path):
    home = path.relative_to(PACKAGE).parts[0]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "dpmix_tf" or len(parts) < 2 or home == "cli":
            continue
        assert parts[1] in ALLOWED[home] | LEAVES | {home}, f"{path} imports {name}"


def test_tensorflow_privacy_comes_in_by_one_door():
    users = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for name in imported(path)
        if name.split(".")[0] == "tensorflow_privacy"
    }
    assert users == {"_tensorflow_privacy.py"}


def test_nothing_is_ever_unpickled():
    """But public weights, by a reader that knows the four names they need."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "allow_pickle=True" not in text
        assert ("import pickle" in text) == (path.name == "torch_file.py"), path


def code_lines(function):
    """Lines of a function without its docstring."""
    first = function.body[0]
    told = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if told else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.name))
def test_modules_and_functions_are_short(path):
    """One idea each: or the docstring says why it is long, "long because ..."."""
    tree = ast.parse(path.read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lengths = [(node, code_lines(node), 60) for node in nodes]
    lengths.append((tree, len(path.read_text().splitlines()), 400))
    for node, length, most in lengths:
        reason = "long because" in (ast.get_docstring(node) or "").lower()
        name = getattr(node, "name", path.name)
        assert length <= most or reason, f"{path}: {name} has {length} lines"
