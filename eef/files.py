"""Hashes, and files that are written completely or not at all. Failures raise an error with one clear message."""

from __future__ import annotations

import codecs
import difflib
import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PACKAGE = Path(__file__).resolve().parent
FULL = (errno.ENOSPC, errno.EDQUOT)
_BARRED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class RunError(RuntimeError):
    """A run folder cannot be written or read. The message says where, and what to do."""


def plain(value: Any) -> Any:
    """The same value in types that JSON has: numpy values and paths are converted, NaN becomes None."""
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
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be JSON: use numbers, strings, lists or dicts")


def digest(value: Any, length: int = 16) -> str:
    """The first hex digits of the SHA-256 of ``value`` as canonical JSON. The order of keys does not matter.

    Texts may contain half of a surrogate pair, as truncated texts of others do.
    """
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


_SURROGATE = re.compile("[\ud800-\udfff]")


def replace_surrogates(value: Any) -> Any:
    """``value`` with U+FFFD in place of each half of a surrogate pair, which UTF-8 cannot encode.

    ``value`` is a text, or lists, tuples and dictionaries of texts; other values stay.
    """
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(replace_surrogates, value))
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return value


@contextmanager
def disk_errors(where: Path, codes: tuple[int, ...] = FULL + _BARRED) -> Iterator[None]:
    """Turn disk errors with these ``codes`` into a :class:`RunError` with a clear message; other errors pass."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        code = _code(error)
        if code not in codes:
            raise
        at = getattr(error, "filename", None) or where
        if code in FULL:
            raise RunError(
                f"the disk is full at {at}: free some space and start again; finished stages are kept"
            ) from error
        hint = "choose another folder with --root or the variable EEF_ROOT"
        raise RunError(f"cannot write at {at} ({os.strerror(code)}): {hint}") from error


def _code(error: Exception) -> int:
    """The system's error number, which libraries that write weights give only as text; 0 for other errors."""
    if isinstance(error, OSError):
        return error.errno or 0
    if "PytorchStreamWriter failed writing" in str(error):
        return errno.ENOSPC
    match = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return int(match[1]) if match else 0


def is_writable(folder: Path) -> bool:
    """Whether a folder can be written, or created if it does not exist. Nothing is left on the disk."""
    at = folder.resolve()
    while not at.exists():
        at = at.parent
    try:
        with tempfile.TemporaryFile(dir=at):
            return True
    except OSError:
        return False


def write_text(path: Path, text: str, errors: str = "strict") -> Path:
    """Write a file completely or not at all. ``errors`` is that of :func:`open`: ``replace`` for pages for people."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors=errors) as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write sorted, indented JSON completely or not at all."""
    text = json.dumps(plain(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return write_text(path, text, errors="backslashreplace")  # half of a surrogate pair becomes JSON's own escape


def link(path: Path, target: Path) -> None:
    """Make ``path`` a symbolic link to ``target``, replacing an existing file or link."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises :class:`RunError` with the path if the file is missing, truncated or invalid."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing: start the run again to write it") from None
    except ValueError as error:
        raise RunError(
            f"{path}: truncated or invalid JSON ({error}); delete the file and start the run again, "
            "its finished stages are reused"
        ) from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: expected a JSON object, not {type(value).__name__}")
    return value


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON list or of JSON Lines in UTF-8, each with its place: ``item 2`` or ``line 3``, from 1.

    ValueError for invalid JSON, and for a file that is compressed or in UTF-16.
    """
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if data.startswith(b"\x1f\x8b"):
        raise ValueError(f"{path} is compressed with gzip: unpack it with gunzip, and name the unpacked file")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is a text in UTF-16: save it in UTF-8")
    if data.lstrip().startswith(b"["):
        try:
            rows = json.loads(data.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: truncated or invalid JSON ({error})") from None
        yield from ((f"item {number}", row) for number, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line.decode("utf-8"))  # a file cut inside a character raises UnicodeDecodeError
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: truncated or invalid JSON ({getattr(error, 'msg', error)}); "
                    "restore the file, or delete this line"
                ) from None
            yield f"line {number}", row


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON Lines; no rows if there is no file. Raises :class:`RunError` for a truncated or invalid line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise RunError(f"{path}, line {number}: truncated or invalid JSON; delete the line") from None
    return rows


def read_last_row(path: Path) -> dict[str, Any]:
    """The last complete row of JSON Lines that may be growing; an empty dictionary if there is none."""
    with open(path, "rb") as rows:
        rows.seek(max(0, path.stat().st_size - 4000))
        lines = rows.read().split(b"\n")[:-1]
    try:
        row = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def cache_folder() -> Path:
    """The folder of hashes and packaged models: ``EEF_CACHE``, by default ``~/.cache/eef``."""
    return Path(os.environ.get("EEF_CACHE") or Path.home() / ".cache" / "eef")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: `` (did you mean 'rft'?)``; empty if no known one is similar."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def joined_names(value: str, exists: Callable[[str], object] = os.path.exists) -> list[str]:
    """Split names joined by ``+``, such as ``strong+my.jsonl``. An existing path that contains a ``+`` is not split.

    ``exists`` says whether a path exists.
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


def short_names(value: str) -> str:
    """:func:`joined_names` joined by ``+`` again, files by their names without folder and suffix."""
    return "+".join(Path(name).stem if names_file(name) else name for name in joined_names(value))
