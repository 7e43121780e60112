"""Hashes of what a result depends on: source code by its imports, library versions, files, folders and models.

Stages are looked up by their keys (:mod:`eef.tracking.stages`), and the finished points of a sweep by their marks
(:mod:`eef.sweeps.points`). Both consist of the hashes computed here, so no dependency has to be listed by hand.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eef.files import PACKAGE, RunError, cache_folder, digest, write_json

# Libraries whose releases change results. Their versions are part of the key of each stage whose code imports them, so
# that all stages of a run come from the same releases. The local part ("+cpu", "+cu130") and the device are not part of
# the key: machines of one cluster share stages, and stage.json records where each was computed.
LIBRARIES = (
    "accelerate", "bitsandbytes", "gguf", "numpy", "peft", "rapidfuzz", "regex", "tokenizers", "torch", "transformers",
)  # fmt: skip
_IMPLIED = {"transformers": ("tokenizers", "bitsandbytes", "gguf")}  # transformers imports these itself

_INSTALLED = ("site-packages", "dist-packages")

# Files in a model folder that transformers never reads, or that cannot change an answer.
_IGNORED_SUFFIXES = {".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".lock", ".metadata", ".log", ".out"}
_IGNORED_PREFIXES = (
    ".", "LICENSE", "README", "optimizer", "scheduler", "rng_state", "trainer_state", "training_args", "scaler",
    "all_results", "train_results", "eval_results", "stage.json",
)  # fmt: skip
_BACKUPS = ("~", ".bak", ".orig", ".rej", ".swp")  # left by editors
_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
_TEMPLATES = "additional_chat_templates"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


_PYTHON = ".".join(platform.python_version_tuple()[:2])  # affects random numbers and code hashes
# Source files as this process imported them. This package is read at import, other modules when first hashed.
_first_seen = {path: _text(path) for path in PACKAGE.rglob("*.py") if path.parent.name != ".ipynb_checkpoints"}


def source_files(modules: Iterable[str]) -> dict[str, Path]:
    """Map the name of each module that ``modules`` depend on, through import statements, to its source file.

    Imports inside functions count. Imports under ``if TYPE_CHECKING:`` do not, since they never run. The modules of
    this package are followed, and so are modules in the same folder as the module that imports them. All other imports
    are libraries. Raises ValueError for a module without a source file.
    """
    return {name: path for name, path, _ in _walk(modules)}


def code_key(*modules: str, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Hash the code that ``modules`` depend on, and list the releases of the libraries that it uses.

    Comments, docstrings and layout are ignored, and so are the modules in ``skip`` with what only they import. Raises
    RunError if a file was edited since this process first read it: the process still runs the old code.
    """
    sources: dict[str, str] = {}
    libraries: set[str] = set()
    for name, path, imported in _walk(modules, skip):
        sources[name] = source_hash(path)
        if path not in _first_seen:
            _first_seen[path] = _text(path)
        if _hash_of_code(_first_seen[path]) != sources[name]:
            raise RunError(
                f"{path} was edited after this process started, which still runs the old code: start again (restart "
                "the kernel); finished stages are reused"
            )
        for module in imported:
            top = module.partition(".")[0]
            libraries |= {top, *_IMPLIED.get(top, ())} & set(LIBRARIES)
    releases = {name: library_version(name) for name in sorted(libraries)}
    return {"sources": digest(sources), "libraries": {"python": _PYTHON, **releases}}


def source_modules(kind: type) -> list[str]:
    """The modules that define a class and its base classes, without those of the standard library."""
    names = [base.__module__ for base in kind.__mro__]
    return [name for name in dict.fromkeys(names) if name.partition(".")[0] not in sys.stdlib_module_names]


@cache
def library_version(name: str) -> str:
    """The installed release of a library without its local part, such as ``2.13.0``; ``none`` if not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "none"


def _walk(modules: Iterable[str], skip: frozenset[str] = frozenset()) -> Iterator[tuple[str, Path, list[str]]]:
    """Yield name, source file and imports of each of ``modules`` and of the modules that they depend on."""
    waiting = [(name, *_start(name)) for name in modules]
    seen = set(skip)
    find = cache(_file)  # most modules are imported by many others
    while waiting:
        name, path, base = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        imported = file_imports(path, name)
        yield name, path, imported
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]  # run before it
        own = name.partition(".")[0]
        for other in [*imported, *parents]:
            top = other.partition(".")[0]
            where = PACKAGE.parent if top == PACKAGE.name else base
            library = top not in (PACKAGE.name, own) and (own == PACKAGE.name or base.name in _INSTALLED)
            if other not in seen and not library and (file := find(where, other)) is not None:
                waiting.append((other, file, where))


def _start(name: str) -> tuple[Path, Path]:
    """The source file of a module, and the folder that its dotted name is relative to."""
    parts = name.split(".")
    if parts[0] == PACKAGE.name and (file := _file(PACKAGE.parent, name)) is not None:
        return file, PACKAGE.parent
    at = getattr(sys.modules.get(name), "__file__", None)
    if not at or not at.endswith(".py"):
        raise ValueError(
            f"the module {name!r} has no source file, so its code cannot be part of a key: put the class into a .py "
            "file and import it from there"
        )
    path = Path(at).resolve()
    return path, path.parents[len(parts) - (path.name != "__init__.py")]


def _file(base: Path, module: str) -> Path | None:
    at = os.path.join(base, *module.split("."))  # a hundred lookups per key: pathlib takes four times as long
    return next((Path(path) for path in (f"{at}.py", os.path.join(at, "__init__.py")) if os.path.isfile(path)), None)


def source_hash(path: Path) -> str:
    """Hash of a source file's code without docstrings, comments and layout."""
    return _source_hash(path, _stat(path))


def file_imports(path: Path, module: str) -> list[str]:
    """Every module that the source file of ``module`` may import; ``from a import b`` gives ``a`` and ``a.b``."""
    return _file_imports(path, module, _stat(path))


def _stat(path: Path) -> tuple[int, ...]:
    """Size, times of modification and of change, and inode: at least one changes when the file's content does."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@lru_cache(maxsize=1024)
def _file_imports(path: Path, module: str, stat: tuple[int, ...]) -> list[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                source = ".".join(filter(None, [*package.split(".")[: package.count(".") + 2 - node.level], source]))
            names.extend([source, *(f"{source}.{alias.name}" for alias in node.names)])
        for child in _inner_statements(node):
            visit(child)

    visit(ast.parse(_text(path), str(path)))
    return list(dict.fromkeys(names))


def _is_type_checking(test: ast.expr) -> bool:
    names = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(test, (ast.Name, ast.Attribute)) and ast.unparse(test) in names


def _inner_statements(node: ast.AST) -> list[ast.AST]:
    """The statements directly in ``node``; expressions, which are most of a tree, contain none."""
    return [each for each in ast.iter_child_nodes(node) if isinstance(each, _STATEMENTS)]


@lru_cache(maxsize=1024)
def _source_hash(path: Path, stat: tuple[int, ...]) -> str:
    return _hash_of_code(_text(path))


@lru_cache(maxsize=1024)
def _hash_of_code(text: str) -> str:
    tree = ast.parse(text)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        waiting += _inner_statements(node)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def imports_of(source: str) -> list[str]:
    """The modules of this package that source code, such as the cells of a notebook, imports.

    Lines that only IPython understands (``%matplotlib``, ``!ls``) are skipped. Raises ValueError for invalid Python.
    """
    lines = ["pass" if line.lstrip().startswith(("%", "!", "?")) else line for line in source.splitlines()]
    names: list[str] = []
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError as error:
        raise ValueError(f"invalid Python: {error.msg} ({(error.text or '').strip()!r})") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    ours = [name for name in names if name.partition(".")[0] == PACKAGE.name]
    return [name for name in dict.fromkeys(ours) if _file(PACKAGE.parent, name)]


def file_key(path: str | Path) -> str:
    """SHA-256 of a file's content, which is read as a stream.

    The hashes of large files are cached by size and times under ``EEF_CACHE`` (default ``~/.cache/eef``). A file that
    was written less than two seconds ago is not cached: a second write could leave its size and times unchanged.
    """
    at = Path(path).resolve()
    stat = _stat(at)
    if stat[0] < 1_000_000:
        return _hash(at)
    name = cache_folder() / "hashes" / f"{digest(str(at))}.json"
    try:
        cached = json.loads(name.read_text(encoding="utf-8"))
        if cached["stat"] == list(stat):
            return str(cached["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # without a cache the file is read again
    sha = _hash(at)
    if _stat(at) == stat and time.time_ns() - max(stat[1], stat[2]) > 2_000_000_000:
        with suppress(OSError, RuntimeError):  # the home folder may be read-only
            write_json(name, {"path": str(at), "stat": list(stat), "sha256": sha})
    return sha


def _hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def path_key(path: str | Path) -> str:
    """Hash of a file's content, or of the names and contents of all files below a folder.

    Links are followed. Hidden files, ``__pycache__``, backups of editors and file times are ignored. Raises
    FileNotFoundError if nothing exists at ``path``.
    """
    at = Path(path)
    if not at.is_dir():
        return file_key(at)
    counted: dict[str, str] = {}
    seen: set[str] = set()
    for folder, folders, files in os.walk(at, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__" and real not in seen]
        if real not in seen:  # a link to a parent folder would never end
            names = [name for name in files if name[0] != "." and not name.endswith(_BACKUPS)]
            paths = [Path(folder, name) for name in names]
            counted |= {file.relative_to(at).as_posix(): file_key(file) for file in paths if file.is_file()}
        seen.add(real)
    return digest(counted)


def model_key(name: str) -> str:
    """The key of a model: a hash of every file in its folder that can change its behaviour.

    These are weights of any format, configurations, tokenizer, chat templates and ``chat.json``, but not documentation
    or the state of a Trainer. If ``name`` is a single file (GGUF), its key covers the file and the ``chat.json`` beside
    it. The key of a model of the hub is its name and commit. Names of embedded models must be resolved to folders
    first. Raises ValueError for the folder of an adapter, whose base model is elsewhere.
    """
    at = Path(name)
    if (at / "adapter_config.json").is_file():
        raise ValueError(f"model={name!r} is the folder of an adapter: use its base model, or a merged model")
    if at.is_file():
        beside = at.parent / "chat.json"
        return digest([file_key(at), file_key(beside)]) if beside.is_file() else file_key(at)
    if not at.is_dir():
        return f"{name}@{_hub_commit(name)}"
    files = [file for file in [*at.iterdir(), *(at / _TEMPLATES).glob("*")] if file.is_file()]
    counted = [
        file
        for file in files
        if file.suffix.lower() not in _IGNORED_SUFFIXES
        and not file.name.startswith(_IGNORED_PREFIXES)
        and not file.name.endswith(_BACKUPS)
    ]
    return digest({file.relative_to(at).as_posix(): file_key(file) for file in counted})


def _hub_commit(name: str) -> str:
    from transformers.utils.hub import cached_file, extract_commit_hash

    at = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
    commit = extract_commit_hash(at, None)
    if commit is None:
        raise OSError(
            f"no model {name!r}: there is no such file or folder, and no such model on the hub or it cannot be reached"
        )
    return str(commit)
