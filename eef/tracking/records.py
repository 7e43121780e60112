"""Where run folders are, and their contents as a table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from eef.files import PACKAGE, read_json


def repo_root() -> Path:
    """The checkout that contains the package, or the current folder if the package is installed as a wheel."""
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()


def default_root() -> Path:
    """``EEF_ROOT`` (set by sweeps), or ``experiments/runs`` of the checkout."""
    return Path(os.environ.get("EEF_ROOT") or repo_root() / "experiments" / "runs").resolve()


def load_runs(root: str | Path, run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per finished run: run_id, env, seed, the fields of its result, label, config, hashes, folder.

    ``run_ids`` limits the table to these runs. ``frame.attrs["unfinished"]`` lists the runs without a result.
    """
    wanted = None if run_ids is None else set(run_ids)
    rows, unfinished = [], []
    for folder in sorted(path.parent for path in Path(root).glob("*__*/config.json")):
        if wanted is not None and folder.name not in wanted:
            continue
        if not (folder / "result.json").exists():
            unfinished.append(folder.name)
            continue
        origin, result = read_json(folder / "config.json"), read_json(folder / "result.json")
        identity = {"run_id": folder.name, **{key: origin.get(key) for key in ("env", "method", "seed")}}
        hashes = read_json(folder / "stamp.json").get("hashes", {})
        more = {"label": origin.get("method"), "config": origin.get("config"), "hashes": hashes, "folder": str(folder)}
        rows.append({**identity, **result, **more})
    frame = pd.DataFrame(rows)
    missing = (wanted or set()) - {row["run_id"] for row in rows} - set(unfinished)
    frame.attrs["unfinished"] = unfinished + sorted(missing)
    return frame


def list_runs(
    root: str | Path,
    sweep: str | None = None,
    method: str | None = None,
    env: str | None = None,
    state: str | None = None,
) -> pd.DataFrame:
    """One row per run, finished or not, oldest first: run, date, sweep, env, method, train, test, win_rate, state.

    ``train`` and ``test`` are numbers of subtasks. The date is the end of a finished run, else its start. ``method`` is
    a method (``eef``) or one with its numbers (``eef-m5``). A run that several sweeps share lists all of them.
    ValueError for a sweep, method or environment that no run has.
    """
    indexes = {path.stem: read_json(path).get("run_ids", []) for path in sorted(Path(root).glob("sweeps/*.json"))}
    rows = []
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
            "train": config.get("train"),
            "test": result.get("n_test", config.get("test")),
            "win_rate": result.get("win_rate"),
            "state": "finished" if done else "unfinished",
        }
        wanted = (sweep is None or sweep in sweeps) and (env is None or env == row["env"])
        label = str(row["method"])
        chosen = method in (None, label, config.get("method")) or label.startswith(f"{method}-")  # eef-m1-weak
        known["sweep"] |= set(filter(None, sweeps))
        known["method"] |= {label, str(config.get("method", label))}
        known["env"].add(str(row["env"]))
        if wanted and chosen and state in (None, row["state"]):
            rows.append(row)
    for name, value in (("sweep", sweep), ("method", method), ("env", env)):
        if value and not rows and value not in known[name]:
            raise ValueError(f"no run has {name} {value!r}; known: {', '.join(sorted(known[name])) or 'none'}")
    columns = ["run", "date", "sweep", "env", "method", "train", "test", "win_rate", "state"]
    frame = pd.DataFrame(rows, columns=columns).sort_values(["date", "run"], ignore_index=True)
    sizes = {"train": "Int64", "test": "Int64"}
    return frame.assign(win_rate=pd.to_numeric(frame["win_rate"])).astype(sizes)
