"""What an executed notebook depends on: the code that it imports, and the files that its parameters name.

A parameter names files only where the comment beside it in the parameters cell says so; a string that happens to be a
path is text. Three forms are understood, at the beginning of the comment; what follows a semicolon is for people::

    data = ""  # file or folder: the official files; empty: the embedded catalogue
    experts = "strong"  # names or files, joined by +: strong, weak; others are trajectory files
    model = "embedded"  # name or folder: embedded; or a name of the hub
    env_options = {}  # may name files: split (or simulator, official); keywords of the environment

Where names are possible, those listed are never taken for paths. Any other value that exists as a path is one, and one
with a file suffix or a directory separator must exist. Only ``org/model`` need not, where the comment says ``hub``.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eef.files import PACKAGE, digest, joined_names
from eef.keys import code_key, file_key, imports_of, path_key

_FILES = re.compile(r"(names? or )?(?:file or folder|files?|folders?)(, joined by \+)?:([^;]*)")
_KEYS = re.compile(r"may name files:([^;]*)")
_KEY = re.compile(r"(\w+)\s*(?:\(or ([^)]*)\))?")
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_NOT_CODE = (".html", ".md", ".py", ".pyc", ".orig", ".rej")  # pages are drawn from results; .py is hashed by imports


@dataclass(frozen=True)
class Files:
    """A declaration: ``names`` that are not files (None where only files are possible), whether they are ``joined`` by
    ``+``, and whether names of the hub are possible."""

    names: tuple[str, ...] | None = None
    joined: bool = False
    hub: bool = False


def declaration(comment: str) -> Files | dict[str, Files] | None:
    """What a parameter's comment declares: files, files under some keys of a dictionary, or None."""
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
    """``value`` with ``use(path)`` in place of each path; all else stays. Relative paths are looked up in ``folders``.

    FileNotFoundError for a path that exists in none of them; it names ``key``.
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
    """What stands for a path in a mark. A file's stem counts: it names the source of its trajectories."""
    return f"{path.stem}:{path_key(path)}" if path.is_file() else path_key(path)


def code_of(notebook: Path) -> dict[str, Any]:
    """Hashes of the code that a notebook runs: its cells, what they import of this package, and modules beside it.

    Every environment counts, since ``make_env`` imports them by name, and so do the data that the package holds (base
    models, prompts). Comments and docstrings of modules do not. ValueError where a cell is not valid Python.
    """
    from IPython.core.inputtransformer2 import TransformerManager  # %magics to Python

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    try:
        waiting = ["\n".join(TransformerManager().transform_cell(cell) for cell in code)]
        modules, beside = set(_environments()), dict[str, str]()
        while waiting:
            source = waiting.pop()
            modules |= set(imports_of(source))
            for name in _imported(source):
                path = notebook.parent / f"{name}.py"
                if name not in beside and path.is_file():
                    beside[name] = file_key(path)
                    waiting.append(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{notebook}: {error}") from None
    # The releases of libraries do not count: an update must not start a finished sweep anew. A warning names them.
    sources = code_key(*sorted(modules))["sources"]
    return {"cells": code, "sources": sources, "beside": beside, "data": _package_data()}


def _environments() -> list[str]:
    return [f"{PACKAGE.name}.envs.{path.parent.name}" for path in (PACKAGE / "envs").glob("*/__init__.py")]


def _imported(source: str) -> list[str]:
    """Top-level modules that a piece of code imports."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return [name.partition(".")[0] for name in names]


def _package_data() -> str:
    files = [path for path in PACKAGE.rglob("*") if path.is_file()]
    relative = {path.relative_to(PACKAGE).as_posix(): path for path in files}
    return digest(
        {
            name: file_key(path)
            for name, path in relative.items()
            if path.suffix not in _NOT_CODE and name[-1] != "~" and not re.search(r"(^|/)[._]", name)
        }
    )
