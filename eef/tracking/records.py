"""Where run folders are, and their contents as a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eef.files import PACKAGE, read_json

if TYPE_CHECKING:
    import pandas as pd


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
    import pandas as pd  # slow, and sweeps do not need it before they draw

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


def remove_stale_links(run: Path, stages: Mapping[str, Path]) -> None:
    """Remove a run folder's links to stages that are not among ``stages``, left by an earlier version of its method."""
    for path in run.iterdir():
        if path.is_symlink() and path.readlink().parts[:2] == ("..", "stages") and path.name not in stages:
            path.unlink()
