"""Runs looked at by hand: one run, two runs side by side, and what may be removed."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from eef.analysis.evaluate import Paired, paired
from eef.files import RunError, disk_errors, read_json

_FRESH = 3600.0  # seconds: an unlinked stage younger than this may belong to a run that is about to link it


def find(root: Path, word: str) -> Path:
    """The run folder whose id is, or alone contains, ``word``; else a :class:`RunError` that names the candidates."""
    if (root / word / "config.json").is_file():
        return root / word
    known = sorted(path.parent for path in root.glob("*__*/config.json"))
    found = [path for path in known if word in path.name]
    if len(found) == 1:
        return found[0]
    some = ", ".join(path.name for path in (found or known)[:8]) or "none"
    raise RunError(f"{len(found) or 'no'} runs in {root} contain {word!r}: {some}; `eef runs` lists all")


def show(folder: Path) -> Iterator[str]:
    """What a run folder holds, line by line: state, result, configuration, stamp, stages and files with their sizes."""
    yield folder.name
    for name in ("result", "config", "stamp", "timing"):
        path = folder / f"{name}.json"
        if not path.is_file():
            yield f"\n{name}: none yet"
            continue
        yield f"\n{name}:"
        for key, value in flat(read_json(path)).items():
            yield f"  {key:32} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
    yield "\nfiles:"
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not path.exists():
            yield f"  {path.name:32} {'gone':>10}   -> {path.readlink()}"
        elif path.is_dir():
            inside = sorted(each.name for each in path.iterdir())
            yield f"  {path.name + '/':32} {_size(path):>10}   {', '.join(inside[:6])}{' …' * (len(inside) > 6)}"
        else:
            yield f"  {path.name:32} {_size(path):>10}"


def flat(value: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists and empty mappings stay as they are."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            found |= flat(item, f"{start}{key}.")
        else:
            found[f"{start}{key}"] = item
    return found


def differences(a: Path, b: Path) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What differs between two runs in ``config``, ``stamp`` and ``result``: dotted key to both values (or None)."""
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for name in ("config", "stamp", "result"):
        paths = [folder / f"{name}.json" for folder in (a, b)]
        one, two = (flat(read_json(path)) if path.is_file() else {} for path in paths)
        keys = [key for key in dict.fromkeys([*one, *two]) if key != "run_id"]
        found[name] = {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}
    return found


def win_difference(a: Path, b: Path) -> Paired:
    """Win rate of run ``a`` less that of ``b`` on the same test subtasks, with its 95 % interval over subtasks.

    :class:`RunError` where a run was not tested, and where they were tested on different subtasks.
    """
    tables = []
    for folder in (a, b):
        path = folder / "eval" / "episodes.csv"
        if not path.is_file():
            raise RunError(f"{folder.name} has no {path.relative_to(folder)}: it was not tested; start the run again")
        tables.append(pd.read_csv(path, dtype={"task": str}).assign(seed=0))  # paired by subtask, whatever the seeds
    try:
        return paired(tables[0], tables[1])
    except ValueError as error:
        raise RunError(f"{a.name} and {b.name} cannot be paired: {error}") from None


def compare(a: Path, b: Path) -> Iterator[str]:
    """Two runs side by side, line by line: differences of configuration, stamp and result, and of the win rate."""
    yield f"a: {a.name}\nb: {b.name}"
    found = differences(a, b)
    for name, rows in found.items():
        yield f"\n{name}: {'differs in' if rows else 'the same'}"
        for key, values in rows.items():
            one, two = (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values)
            yield f"  {key:32} {one}  |  {two}"
    if any(key.startswith("hashes.") for key in found["stamp"]):
        yield "\nthe hashes differ: these runs did not meet the same task, so their results should not be compared"
    made = win_difference(a, b)
    ends = f"95 % interval {100 * made.low:+.1f} to {100 * made.high:+.1f} over subtasks"
    yield (
        f"\nwin rate, a less b: {100 * made.difference:+.1f} points ({ends}, p = {made.p:.4f}, "
        f"{made.pairs} subtasks{f', {made.errors} left out for errors' if made.errors else ''})"
    )


def prunable(root: Path, runs: Sequence[Path] = (), unfinished: bool = False) -> list[Path]:
    """What may be removed from ``root``: ``runs``, with ``unfinished`` also runs without a result, then the stages that
    no other run links to, what killed processes left half made, and executed notebooks that belong to no run and sweep.

    A stage that was made within the last hour is kept.
    """
    folders = sorted(path.parent for path in root.glob("*__*/config.json"))
    gone = {path for path in folders if path in runs or (unfinished and not (path / "result.json").is_file())}
    kept = [path for path in folders if path not in gone]
    used = {each.resolve() for path in kept for each in path.iterdir() if each.is_symlink()}
    marked = {path.stem[:8] for path in root.glob("sweeps/*/*.json")}
    ours = {each.resolve() for path in gone for each in path.iterdir() if each.is_symlink()}
    old = time.time() - _FRESH
    stages = [path for path in root.glob("stages/*-*") if path.is_dir() and not path.name.startswith(".")]
    loose = [p for p in stages if p.resolve() not in used and (p.resolve() in ours or p.stat().st_mtime < old)]
    halves = [path for ends in ("[0-9]*", "work") for path in root.glob(f"stages/.*-*.{ends}") if _dead(path)]
    books = []
    for path in root.glob("notebooks/*__*.ipynb"):
        hashed = path.stem.rsplit("__", 1)[-1]
        belongs = path.resolve() in used or hashed in marked or not re.fullmatch("[0-9a-f]{8}", hashed)
        if not belongs and path.stat().st_mtime < old:
            books += [path, *(at for s in (".log", ".yaml", ".runs") if (at := path.with_suffix(s)).is_file())]
    return [*sorted(gone), *sorted(loose), *sorted(halves), *sorted(books)]


def _dead(half: Path) -> bool:
    try:
        with FileLock(half.parent / f"{half.stem}.lock", timeout=0):
            return True
    except Timeout:
        return False


def prune(root: Path, runs: Sequence[Path] = (), unfinished: bool = False) -> list[tuple[Path, int]]:
    """Remove what :func:`prunable` names, and return it with its sizes in bytes.

    :class:`RunError` while a sweep is at work in ``root``: what it has just made may not be linked yet.
    """
    try:
        with disk_errors(root), FileLock(root / ".sweep.lock", timeout=0):
            found = [(path, size(path)) for path in prunable(root, runs, unfinished)]
            for path, _ in found:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
    except Timeout:
        raise RunError(f"a sweep is at work in {root}: wait for it, then prune") from None
    return found


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed but at the top."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(each.lstat().st_size for each in path.resolve().rglob("*") if each.is_file() and not each.is_symlink())


def _size(path: Path) -> str:
    return in_units(size(path))


def in_units(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
