"""Inspecting run folders: list runs, show one, compare two, and remove what no run needs."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from eef.analysis.arms import NAMES, NUMBERS, arm_name, arm_names, arm_of
from eef.analysis.statistics import Paired, paired, read_by_task
from eef.files import RunError, disk_errors, read_json, short_names

_FRESH = 3600.0  # seconds: an unlinked stage younger than this may belong to a run that is about to link it
_RESUMABLE = 7 * 24 * _FRESH  # how long the checkpoints of a killed stage are left in place


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
    if not runs:
        raise RunError(f"no run {word!r}: {root} contains no runs; --root names another folder")
    names = ", ".join(path.name for path in (matches or runs)[:8])
    count, other = len(matches) or "no", "" if matches else "the runs are "
    raise RunError(f"{count} runs in {root} contain {word!r}: {other}{names}; `eef runs --root {root}` lists all")


def list_runs(
    root: str | Path,
    sweep: str | None = None,
    method: str | None = None,
    env: str | None = None,
    state: str | None = None,
) -> pd.DataFrame:
    """One row per run, finished or not, oldest first: run, date, sweep, env, method, arm, train, test, win_rate, state.

    ``train`` and ``test`` are numbers of subtasks. The date is the end of a finished run, else its start. ``arm`` is
    the name that tables and figures show. The argument ``method`` is a method (``eef``), one with its numbers
    (``eef-m5``), or an arm (``EEF, M = 5``). A run that several sweeps share lists all of them.
    ValueError for a sweep, method or environment that no run has.
    """
    indexes = {path.stem: read_json(path).get("run_ids", []) for path in sorted(Path(root).glob("sweeps/*.json"))}
    rows, arms = [], []
    known: dict[str, set[str]] = {"sweep": set(indexes), "method": set(), "env": set()}
    for folder in sorted(path.parent for path in Path(root).glob("*__*/config.json")):
        origin = read_json(folder / "config.json")
        config, done = origin.get("config") or {}, (folder / "result.json").is_file()
        result = read_json(folder / "result.json") if done else {}
        clock = read_json(folder / "timing.json") if (folder / "timing.json").is_file() else {}
        start = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / "config.json").stat().st_mtime))
        sweeps = {
            name: None for name in [origin.get("group"), *(n for n, runs in indexes.items() if folder.name in runs)]
        }
        row = {
            "run": folder.name,
            "date": str(clock["finished"])[:16].replace("T", " ") if done and "finished" in clock else start,
            "sweep": ", ".join(filter(None, sweeps)),
            "env": origin.get("env"),
            "method": origin.get("method"),
            "arm": "",
            "train": config.get("train"),
            "test": result.get("n_test", config.get("test")),
            "win_rate": result.get("win_rate"),
            "state": "finished" if done else "unfinished",
        }
        known["sweep"] |= set(filter(None, sweeps))
        known["method"] |= {str(row["method"]), str(config.get("method", row["method"]))}
        known["env"].add(str(row["env"]))
        if (sweep is None or sweep in sweeps) and env in (None, row["env"]) and state in (None, row["state"]):
            rows.append({**row, "base": config.get("method")})
            arms.append(arm_of(result if "method" in result else _planned(origin)))
    names = arm_names(arms)
    for row, arm in zip(rows, arms, strict=True):
        row["arm"] = names[arm]
    labels = [{row["method"], row["base"], row["arm"], arm_name(arm)} for row, arm in zip(rows, arms, strict=True)]
    rows = [
        row
        for row, own in zip(rows, labels, strict=True)
        if method is None or method in own or str(row["method"]).startswith(f"{method}-")  # eef-m1-weak
    ]
    for name, value in (("sweep", sweep), ("method", method), ("env", env)):
        if value and not rows and value not in known[name]:
            raise ValueError(f"no run has {name} {value!r}; known: {', '.join(sorted(known[name])) or 'none'}")
    columns = ["run", "date", "sweep", "env", "method", "arm", "train", "test", "win_rate", "state"]
    frame = pd.DataFrame(rows, columns=columns).sort_values(["date", "run"], ignore_index=True)
    sizes = {"train": "Int64", "test": "Int64"}
    return frame.assign(win_rate=pd.to_numeric(frame["win_rate"])).astype(sizes)


def _planned(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the result that name the arm of an unfinished run, from its ``config.json``."""
    label, config = str(origin.get("method")), origin.get("config") or {}
    numbers = {name: config[name] for name in NUMBERS if f"-{name}{config.get(name)}" in label}
    label = label.removesuffix(f"-{short_names(str(config.get('experts')))}")
    label = label.removesuffix("".join(f"-{name}{value}" for name, value in numbers.items()))
    base = str(config.get("method") or label)
    options = label.removeprefix(f"{base}_")
    method = label if options == label or base in NAMES else f"{base}, {options}"
    return {"method": method, "experts": config.get("experts"), **numbers}


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
        tables.append(read_by_task(path).assign(seed=0))  # paired by subtask, also across seeds
    try:
        return paired(tables[0], tables[1], over="task")
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
    ends = "no interval, since all differences are equal"
    if not math.isnan(wins.low):
        ends = f"95 % interval {100 * wins.low:+.1f} to {100 * wins.high:+.1f} over subtasks"
    yield (
        f"\nwin rate, a minus b: {100 * wins.difference:+.1f} points ({ends}, "
        f"{wins.pairs} subtasks{f', {wins.errors} excluded for errors' if wins.errors else ''})"
    )


def prunable(root: Path, runs: Sequence[Path] = (), unfinished: bool = False) -> list[Path]:
    """What may be removed from ``root``: ``runs``, with ``unfinished`` also runs without a result, then the stages that
    no other run links to, partial stages of killed processes, and executed notebooks that belong to no run or sweep.

    Stages and notebooks written within the last hour are kept. A run without a result may be in progress: it is kept if
    anything in its folder changed within the last hour. Killed stages resume from their checkpoints, which are kept for
    a week, with ``unfinished`` for an hour.
    """
    folders = sorted(path.parent for path in root.glob("*__*/config.json"))
    old = time.time() - _FRESH
    removed = {path for path in folders if path in runs or (unfinished and _is_abandoned_run(path, old))}
    used = {link for path in folders if path not in removed for link in _linked(path)}
    released = {link for path in removed for link in _linked(path)}
    marks = {path.stem[:8] for path in root.glob("sweeps/*/*.json")}
    stages = [path for path in root.glob("stages/*-*") if path.is_dir() and not path.name.startswith(".")]
    unused = [p for p in stages if p.resolve() not in used and (p.resolve() in released or p.stat().st_mtime < old)]
    limit = old if unfinished else time.time() - _RESUMABLE
    partial = [path for path in root.glob("stages/.*-*.[0-9]*") if _abandoned(path)]
    partial += [path for path in checkpoints(root) if _abandoned(path) and _last_change(path) < limit]
    notebooks = []
    for path in root.glob("notebooks/*__*.ipynb"):
        mark = path.stem.rsplit("__", 1)[-1]
        belongs = path.resolve() in used or mark in marks or not re.fullmatch("[0-9a-f]{8}", mark)
        if not belongs and path.stat().st_mtime < old:
            notebooks += [path, *(at for s in (".log", ".yaml", ".runs") if (at := path.with_suffix(s)).is_file())]
    return [*sorted(removed), *sorted(unused), *sorted(partial), *sorted(notebooks)]


def checkpoints(root: Path) -> list[Path]:
    """The folders from which stages that were killed resume. A stage in progress may have one too."""
    return sorted(root.glob("stages/.*-*.work"))


def _is_abandoned_run(run: Path, old: float) -> bool:
    """Whether a run has no result, and nothing in its folder changed after ``old``."""
    return not (run / "result.json").is_file() and _last_change(run) < old


def _last_change(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))


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
