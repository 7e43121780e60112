"""Inspecting run folders: show one run, compare two, and remove what no run needs."""

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

from eef.analysis.statistics import Paired, paired
from eef.files import RunError, disk_errors, read_json

_FRESH = 3600.0  # seconds: an unlinked stage younger than this may belong to a run that is about to link it


def find(root: Path, word: str) -> Path:
    """The folder of the run with the id ``word``, or of the only run whose id contains it.

    :class:`RunError` naming the candidates if there is none or more than one.
    """
    if (root / word / "config.json").is_file():
        return root / word
    runs = sorted(path.parent for path in root.glob("*__*/config.json"))
    matches = [path for path in runs if word in path.name]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(path.name for path in (matches or runs)[:8]) or "none"
    raise RunError(f"{len(matches) or 'no'} runs in {root} contain {word!r}: {names}; `eef runs` lists all")


def show(folder: Path) -> Iterator[str]:
    """The contents of a run folder, line by line: result, configuration, stamp, and files with their sizes."""
    yield folder.name
    for name in ("result", "config", "stamp", "timing"):
        path = folder / f"{name}.json"
        if not path.is_file():
            yield f"\n{name}: none yet"
            continue
        yield f"\n{name}:"
        for key, value in flat(read_json(path)).items():
            yield f"  {key:32} {_text(value)}"
    yield "\nfiles:"
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not path.exists():
            yield f"  {path.name:32} {'missing':>10}   -> {path.readlink()}"
        elif path.is_dir():
            names = sorted(each.name for each in path.iterdir())
            yield f"  {path.name + '/':32} {_size(path):>10}   {', '.join(names[:6])}{' …' * (len(names) > 6)}"
        else:
            yield f"  {path.name:32} {_size(path):>10}"


def _text(value: Any) -> str:
    """A value of a JSON file for a person: numbers have four digits (the file has all)."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def flat(value: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists and empty mappings are not changed."""
    items: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            items |= flat(item, f"{start}{key}.")
        else:
            items[f"{start}{key}"] = item
    return items


def differences(a: Path, b: Path) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What differs between two runs in ``config``, ``stamp`` and ``result``: dotted key -> both values (or None)."""
    changes: dict[str, dict[str, tuple[Any, Any]]] = {}
    for name in ("config", "stamp", "result"):
        paths = [folder / f"{name}.json" for folder in (a, b)]
        values_a, values_b = (flat(read_json(path)) if path.is_file() else {} for path in paths)
        pairs = {key: (values_a.get(key), values_b.get(key)) for key in [*values_a, *values_b] if key != "run_id"}
        changes[name] = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    return changes


def win_difference(a: Path, b: Path) -> Paired:
    """Win rate of run ``a`` minus that of ``b`` on the same test subtasks, with its 95 % interval over subtasks.

    :class:`RunError` if a run was not tested, or the two were tested on different subtasks.
    """
    tables = []
    for folder in (a, b):
        path = folder / "eval" / "episodes.csv"
        if not path.is_file():
            raise RunError(f"{folder.name} has no {path.relative_to(folder)}: it was not tested; start the run again")
        tables.append(pd.read_csv(path, dtype={"task": str}).assign(seed=0))  # paired by subtask, also across seeds
    try:
        return paired(tables[0], tables[1])
    except ValueError as error:
        raise RunError(f"{a.name} and {b.name} cannot be paired: {error}") from None


def compare(a: Path, b: Path) -> Iterator[str]:
    """Two runs side by side, line by line: differences of configuration, stamp and result, and of the win rate."""
    yield f"a: {a.name}\nb: {b.name}"
    changes = differences(a, b)
    for name, rows in changes.items():
        yield f"\n{name}: {'differs in' if rows else 'the same'}"
        for key, values in rows.items():
            value_a, value_b = (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values)
            yield f"  {key:32} {value_a}  |  {value_b}"
    if any(key.startswith("hashes.") for key in changes["stamp"]):
        yield "\nthe hashes differ: these runs had different data or settings, so their results are not comparable"
    wins = win_difference(a, b)
    ends = f"95 % interval {100 * wins.low:+.1f} to {100 * wins.high:+.1f} over subtasks"
    yield (
        f"\nwin rate, a minus b: {100 * wins.difference:+.1f} points ({ends}, p = {wins.p:.4f}, "
        f"{wins.pairs} subtasks{f', {wins.errors} excluded for errors' if wins.errors else ''})"
    )


def prunable(root: Path, runs: Sequence[Path] = (), unfinished: bool = False) -> list[Path]:
    """What may be removed from ``root``: ``runs``, with ``unfinished`` also runs without a result, then the stages that
    no other run links to, partial stages of killed processes, and executed notebooks that belong to no run or sweep.

    Stages and notebooks written within the last hour are kept.
    """
    folders = sorted(path.parent for path in root.glob("*__*/config.json"))
    removed = {path for path in folders if path in runs or (unfinished and not (path / "result.json").is_file())}
    used = {link for path in folders if path not in removed for link in _linked(path)}
    released = {link for path in removed for link in _linked(path)}
    marks = {path.stem[:8] for path in root.glob("sweeps/*/*.json")}
    old = time.time() - _FRESH
    stages = [path for path in root.glob("stages/*-*") if path.is_dir() and not path.name.startswith(".")]
    unused = [p for p in stages if p.resolve() not in used and (p.resolve() in released or p.stat().st_mtime < old)]
    partial = [path for ends in ("[0-9]*", "work") for path in root.glob(f"stages/.*-*.{ends}") if _abandoned(path)]
    notebooks = []
    for path in root.glob("notebooks/*__*.ipynb"):
        mark = path.stem.rsplit("__", 1)[-1]
        belongs = path.resolve() in used or mark in marks or not re.fullmatch("[0-9a-f]{8}", mark)
        if not belongs and path.stat().st_mtime < old:
            notebooks += [path, *(at for s in (".log", ".yaml", ".runs") if (at := path.with_suffix(s)).is_file())]
    return [*sorted(removed), *sorted(unused), *sorted(partial), *sorted(notebooks)]


def _linked(folder: Path) -> list[Path]:
    return [path.resolve() for path in folder.iterdir() if path.is_symlink()]


def _abandoned(partial: Path) -> bool:
    """Whether no process holds the lock of a partial stage."""
    try:
        with FileLock(partial.parent / f"{partial.stem}.lock", timeout=0):
            return True
    except Timeout:
        return False


def prune(root: Path, runs: Sequence[Path] = (), unfinished: bool = False) -> list[tuple[Path, int]]:
    """Remove what :func:`prunable` returns; the result lists it with sizes in bytes.

    :class:`RunError` while a sweep runs in ``root``: its newest stages may not be linked yet.
    """
    try:
        with disk_errors(root), FileLock(root / ".sweep.lock", timeout=0):
            removed = [(path, size(path)) for path in prunable(root, runs, unfinished)]
            for path, _ in removed:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
    except Timeout:
        raise RunError(f"a sweep is running in {root}: wait until it has finished, then prune") from None
    return removed


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links below ``path`` are not followed."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(each.lstat().st_size for each in path.resolve().rglob("*") if each.is_file() and not each.is_symlink())


def _size(path: Path) -> str:
    return in_units(size(path))


def in_units(count: float) -> str:
    """Bytes with a unit: ``1.2 GB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
