"""Files and hashes that everything else writes and reads: whole or not at all, with one clear message on failure."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PACKAGE = Path(__file__).resolve().parent
FULL = (errno.ENOSPC, errno.EDQUOT)
_BARRED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class RunError(RuntimeError):
    """A run folder that cannot be written or read; the message says where and what to do."""


def plain(value: Any) -> Any:
    """The same value in JSON's own types: numpy scalars and paths unwrapped, NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ == "numpy":
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be kept as JSON: give numbers, strings, lists or dicts")


def digest(value: Any, length: int = 16) -> str:
    """First hex digits of the SHA-256 of canonical JSON: the same for equal content in any order of keys."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@contextmanager
def disk_errors(where: Path, codes: tuple[int, ...] = FULL + _BARRED) -> Iterator[None]:
    """Turn the disk's own troubles into one clear message; other errors pass as they are."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        code = _code(error)
        if code not in codes:
            raise
        at = getattr(error, "filename", None) or where
        if code in FULL:
            raise RunError(
                f"the disk is full at {at}: free some space and start again (finished stages are kept)"
            ) from error
        hint = "choose another folder with --root or the variable EEF_ROOT"
        raise RunError(f"cannot write at {at} ({os.strerror(code)}): {hint}") from error


def _code(error: Exception) -> int:
    """The system's number of an error, also where those who write weights give it in words; 0 for any other error."""
    if isinstance(error, OSError):
        return error.errno or 0
    if "PytorchStreamWriter failed writing" in str(error):
        return errno.ENOSPC
    found = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return int(found[1]) if found else 0


def is_writable(folder: Path) -> bool:
    """Whether a folder can be written, or made where it does not exist yet. Nothing is left behind."""
    at = folder.resolve()
    while not at.exists():
        at = at.parent
    try:
        with tempfile.TemporaryFile(dir=at):
            return True
    except OSError:
        return False


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, path)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write sorted, indented JSON whole or not at all."""
    return write_text(path, json.dumps(plain(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def link(path: Path, target: Path) -> None:
    """Make ``path`` a symbolic link to ``target``, in place of what it was."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        beside.unlink(missing_ok=True)
        beside.symlink_to(target)
        os.replace(beside, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. A missing, truncated or invalid file is a :class:`RunError` that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing: start the run again to have it written anew") from None
    except ValueError as error:
        raise RunError(
            f"{path}: the file is torn or no JSON ({error}); delete it and start the run again, "
            "its finished stages are reused"
        ) from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: a JSON object was expected, not {type(value).__name__}")
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON Lines, none where there is no file; a torn line is a :class:`RunError` that names it."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise RunError(f"{path}, line {number}: the line is torn or no JSON; delete the line") from None
    return rows


def joined_names(value: str, exists: Callable[[str], object] = os.path.exists) -> list[str]:
    """Names joined by ``+``, such as ``strong+my.jsonl``; a path of its own that holds a ``+`` stays whole.

    ``exists`` says what counts as a path.
    """
    names, parts = [], value.split("+")
    while parts:
        sizes = range(len(parts), 0, -1)
        size = next(size for size in sizes if size == 1 or exists("+".join(parts[:size])))
        names.append("+".join(parts[:size]))
        parts = parts[size:]
    return names


def names_file(name: str) -> bool:
    """Whether one of :func:`joined_names` is an existing file: a name without a dot or a slash never is."""
    return ("." in name or os.sep in name) and os.path.isfile(name)
