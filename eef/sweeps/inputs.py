"""The inputs of a notebook: the code that it imports, and the files that its parameters name.

A parameter names files only if its comment in the parameters cell says so. Any other string is text, even if a path of
that name exists. The comment must begin with one of these forms; text after a semicolon is for readers::

    data = ""  # file or folder: the official files; empty: the embedded catalogue
    experts = "strong"  # names or files, joined by +: strong, weak; others are trajectory files
    model = "embedded"  # name or folder: embedded; or a name of the hub
    env_options = {}  # may name files: split (or simulator, official); keywords of the environment

The names that a comment lists are never paths. Any other value is a path if such a path exists. A value with a file
suffix or a directory separator must exist, except ``org/model`` if the comment mentions the ``hub``.
"""

from __future__ import annotations

import ast
import os
import re
import site
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from eef.files import PACKAGE, digest, joined_names
from eef.tracking.keys import (
    code_key,
    file_imports,
    file_key,
    imports_of,
    model_key,
    path_key,
    source_files,
    source_hash,
)

_FILES = re.compile(r"(names? or )?(?:file or folder|files?|folders?)(, joined by \+)?:([^;]*)")
_KEYS = re.compile(r"may name files:([^;]*)")
_KEY = re.compile(r"(\w+)\s*(?:\(or ([^)]*)\))?")
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Files:
    """A declaration of files.

    ``names`` are values that are not files (None: every value is a file), ``joined`` says whether several values may be
    joined by ``+``, and ``hub`` whether a value may name a model of the hub.
    """

    names: tuple[str, ...] | None = None
    joined: bool = False
    hub: bool = False


def declaration(comment: str) -> Files | dict[str, Files] | None:
    """What the comment of a parameter declares: files, files under some keys of a dictionary, or nothing (None)."""
    text = comment.strip("# ")
    if match := _FILES.match(text):
        return Files(_words(match[3]) if match[1] else None, bool(match[2]), bool(match[1]) and "hub" in text)
    if match := _KEYS.match(text):
        return {key: Files(_words(names)) for key, names in _KEY.findall(match[1])}
    return None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[\s,]+", text) if word not in ("", "or"))


def on_files(
    files: Files | Mapping[str, Files] | None, value: Any, key: str, folders: Sequence[Path], use: Callable[[Path], str]
) -> Any:
    """Replace each path in ``value`` by ``use(path)``. Relative paths are looked up in ``folders``.

    Raises FileNotFoundError, with ``key`` in its message, for a path that exists in none of them.
    """
    if files is None or not value:
        return value
    if isinstance(files, Mapping):
        nested = value if isinstance(value, dict) else {}
        changed = {
            name: on_files(files[name], nested[name], f"{key}.{name}", folders, use) for name in files if name in nested
        }
        return {**nested, **changed} if changed else value
    if isinstance(value, dict):
        return {name: on_files(files, item, f"{key}.{name}", folders, use) for name, item in value.items()}
    if isinstance(value, list):
        return [on_files(files, item, key, folders, use) for item in value]
    if not isinstance(value, str):
        return value
    names = joined_names(value, lambda name: _find(name, folders)) if files.joined else [value]
    return "+".join(_use(files, name, key, folders, use) for name in names)


def _use(files: Files, name: str, key: str, folders: Sequence[Path], use: Callable[[Path], str]) -> str:
    if files.names is not None and name in files.names:
        return name
    if (path := _find(name, folders)) is not None:
        return use(path)
    suffix = re.search(r"\.[A-Za-z]\w*$", name)
    hub = files.hub and _HUB.fullmatch(name)
    if files.names is not None and (hub or not (suffix or os.sep in name)):
        return name
    tried = dict.fromkeys(str(folder / Path(name).expanduser()) for folder in folders)
    what = "file" if suffix else "file or folder"
    raise FileNotFoundError(f"{key}: no {what} {name} (tried {', '.join(tried)})")


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    paths = (folder / os.path.expanduser(name) for folder in folders)
    return next((Path(os.path.abspath(path)) for path in paths if name and os.path.exists(path)), None)


def content(path: Path) -> str:
    """What a mark contains for a path. The stem of a file counts, since it names the source of its trajectories."""
    return f"{path.stem}:{path_key(path)}" if path.is_file() else path_key(path)


def read_notebook(path: Path) -> Any:
    """Read a notebook with nbformat, in format 4. Raises ValueError for a file that is not a notebook."""
    nbformat = _nbformat()
    try:
        return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, nbformat.ValidationError) as error:
        reason = str(error).partition("\n")[0][:100]
        raise ValueError(f"{path} is not a Jupyter notebook ({reason}): use an .ipynb file") from None


@cache
def _nbformat() -> Any:
    """The module nbformat, imported without a grammar of web addresses: it takes 2 s and is not used by notebooks."""
    grammar = "rfc3987_syntax"
    is_loaded = grammar in sys.modules
    if not is_loaded:
        sys.modules[grammar] = None  # type: ignore[assignment]  # importing it fails, as if it were not installed
    try:
        return import_module("nbformat")
    finally:
        if not is_loaded:
            del sys.modules[grammar]


def last_on_path(notebook: Path) -> list[Path]:
    """The folders that follow the libraries on the kernel's ``sys.path``."""
    return list(dict.fromkeys([PACKAGE.parent, notebook.parent, Path.cwd()]))


def code_of(notebook: Path) -> dict[str, Any]:
    """Hashes of the code that a notebook runs: its cells, their imports from this package, and the user's own modules.

    The user's modules are those beside the notebook, in the current folder or in the checkout. All environments count,
    since they are imported by name, and so do the base models and prompts of this package. Comments and docstrings of
    modules are ignored. Raises ValueError if a cell or a module is not valid Python.
    """
    cells, modules, beside = _code(notebook)
    hashes = {name: source_hash(path) for name, path in beside.items()}
    # Releases of libraries are left out: an update must not repeat a finished sweep. The sweep prints a warning.
    return {"cells": cells, "sources": code_key(*modules)["sources"], "beside": hashes, "data": _package_data()}


def code_by_file(notebook: Path) -> dict[str, str]:
    """The parts of :func:`code_of`, by the names of their files, and a hash of each."""
    cells, modules, beside = _code(notebook)
    files = {path.name: source_hash(path) for path in beside.values()}
    for path in source_files(modules).values():
        files[path.relative_to(PACKAGE.parent).as_posix()] = source_hash(path)
    return {notebook.name: digest(cells), **files, f"the models and prompts of {PACKAGE.name}": _package_data()}


def _code(notebook: Path) -> tuple[list[str], list[str], dict[str, Path]]:
    """The cells of a notebook, the modules of this package that it uses, and the user's own by name."""
    from IPython.core.inputtransformer2 import TransformerManager  # %magics to Python

    code = [cell.source for cell in read_notebook(notebook).cells if cell.cell_type == "code"]
    try:
        source = "\n".join(TransformerManager().transform_cell(cell) for cell in code)
        beside = _own_modules(_imported(source), last_on_path(notebook))
        modules = {*_environments(), *imports_of(source)}
        for path in beside.values():
            modules |= set(imports_of(path.read_text(encoding="utf-8")))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{notebook}: {error}") from None
    return code, sorted(modules), beside


def _environments() -> list[str]:
    """The modules that are imported by an environment's name: its package and its extras."""
    folders = [path.parent for path in (PACKAGE / "envs").glob("*/__init__.py")]
    extras = [f"{PACKAGE.name}.envs.{folder.name}.extras" for folder in folders if (folder / "extras.py").is_file()]
    return [*(f"{PACKAGE.name}.envs.{folder.name}" for folder in folders), *extras]


def _imported(source: str) -> list[str]:
    """Every module that a piece of code may import; ``from a import b`` gives both ``a`` and ``a.b``."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _own_modules(names: Iterable[str], folders: Iterable[Path]) -> dict[str, Path]:
    """Source files in ``folders`` of the modules ``names`` and of the modules that they import, by module name."""
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    searched = [folder for folder in folders if str(folder) not in installed]
    waiting, files = list(names), dict[str, Path]()
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if name in files or top == PACKAGE.name:
            continue
        first = [folder for folder in searched if _source(folder, top)][:1]  # a package is in one folder
        path = next((path for folder in first or searched if (path := _source(folder, name))), None)
        if path is not None and not _is_library(top, installed):
            files[name] = path
            parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]  # run before it
            waiting += [*parents, *file_imports(path, name)]
    return files


def _source(folder: Path, module: str) -> Path | None:
    at = folder.joinpath(*module.split("."))
    return next((path for path in (at / "__init__.py", at.with_name(f"{at.name}.py")) if path.is_file()), None)


def _is_library(name: str, installed: Sequence[str]) -> bool:
    """Whether a top-level module is installed or part of Python, so that it hides a module beside the notebook."""
    spec = PathFinder.find_spec(name, installed)
    return name in sys.stdlib_module_names or (spec is not None and spec.origin is not None)


def _package_data() -> str:
    """Hash of the data in this package: base models and prompts."""
    models = {path.parent.name: model_key(str(path.parent)) for path in PACKAGE.glob("models/*/config.json")}
    prompts = {path.parent.name: file_key(path) for path in PACKAGE.glob("envs/*/instructions.txt")}
    return digest({"models": models, "prompts": prompts})
