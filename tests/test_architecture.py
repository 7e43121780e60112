"""The structure of the package: imports go one way, and environments keep to themselves what is theirs."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from eef.envs import ENVIRONMENTS
from eef.files import PACKAGE

# From the bottom to the top; a module imports its own package and those above it in this list.
ORDER = [
    ("eef.files", "eef.processes"),
    ("eef.conversations",),
    ("eef.trajectory",),
    ("eef.selection",),
    ("eef.planning",),
    ("eef.tracking",),
    ("eef.model_names",),
    ("eef.settings",),
    ("eef.envs",),
    ("eef.serving",),
    ("eef.agents",),
    ("eef.rollout",),
    ("eef.experts",),
    ("eef.training",),
    ("eef.analysis",),
    ("eef.models",),
    ("eef.lab",),
    ("eef.beyond",),
    ("eef.methods",),
    ("eef.experiment",),
    ("eef.exchange",),
    ("eef.sweeps",),
    ("eef.evaluation",),
    ("eef.commands",),
    ("eef.cli", "eef.__main__"),
]
MODULES = sorted(PACKAGE.rglob("*.py"))
LONG = 350  # lines; a longer module needs a reason here
LONG_WITH_REASON: dict[str, str] = {}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def level(module: str) -> int:
    """Place of a module in ``ORDER``."""
    for place, names in enumerate(ORDER):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return place
    raise AssertionError(f"{module} has no place in ORDER of {__file__}: add it")


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, at any depth and under ``if TYPE_CHECKING``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in NAMES else node.module for name in inner}
    return {name for name in names if name == "eef" or name.startswith("eef.")}


NAMES = {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) != "eef"], ids=name_of)
def test_imports_go_down(path: Path) -> None:
    own = level(name_of(path))
    upward = [name for name in imports(path) if name != "eef" and level(name) > own]
    assert not upward, f"{name_of(path)} imports {upward}, which stand above it"
    assert "eef" not in imports(path), "the package's own exports are for users"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name_of(path): imports(path) - {"eef"} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle of imports: {' -> '.join([*way[way.index(module) :], module])}"
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*way, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def texts(path: Path) -> list[tuple[int, str]]:
    """Names, strings and comments of a file with their lines, without docstrings."""
    source = path.read_text(encoding="utf-8")
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstrings.add(node.body[0].lineno)
    kinds = (tokenize.NAME, tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [(t.start[0], t.string) for t in tokens if t.type in kinds and t.start[0] not in docstrings]


@pytest.mark.parametrize("path", [p for p in MODULES if not name_of(p).startswith("eef.envs")], ids=name_of)
def test_nothing_outside_envs_names_an_environment(path: Path) -> None:
    pattern = re.compile("|".join(ENVIRONMENTS), re.IGNORECASE)
    named = [f"line {line}: {text}" for line, text in texts(path) if pattern.search(text)]
    assert not named, f"{name_of(path)} names an environment: {named}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONG or name_of(path) in LONG_WITH_REASON, f"{name_of(path)} has {lines} lines: split it by purpose"
