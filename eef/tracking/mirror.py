"""Copies of run folders on Weights & Biases: opening runs, figures of sweeps, syncing offline runs, and reports.

To compare runs there: ``group`` is the sweep (of a single run: what makes runs comparable), ``job_type`` is the arm
(``eef-m5``), and tags and configuration contain method, environment and seed. All arms share the charts ``train/...``
and ``rollout/...``; ``budget/...`` and ``test/...`` are the axes of Figure 3. Without a network or an account
everything else still works, and one message says what is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eef.files import PACKAGE, RunError, digest, read_json, write_json
from eef.tracking.live import wandb_environment, wandb_mode

LOCK = ".lock"  # in the folder wandb of a run; held by the companion process
VIEWS = "trajectories.html"  # in a run's folder: trajectories for reading (eef/analysis/browser.py)
TABLES = "trajectories.json"  # in a run's folder: rows of TRAJECTORY for reading (eef/analysis/browser.py)
BUDGET = ("episodes", "env_steps", "tokens")
TEST = ("win_rate", "win_low", "win_high", "mean_reward")
TRAJECTORY: list[str | int] = ["task", "won", "reward", "turns", "outcome", "learn_from", "text"]


def project() -> str:
    """The W&B project: ``WANDB_PROJECT``, or ``eef``."""
    return os.environ.get("WANDB_PROJECT", "eef")


def run_separately(root: Path, code: str, *arguments: str, seconds: float = 180.0) -> str | None:
    """Run Python code that uses W&B in a subprocess without a terminal. Returns an error in one line, or None.

    The process is killed after ``seconds``. W&B's own folders are those of
    :func:`eef.tracking.live.wandb_environment`.
    """
    path = "import sys; sys.path.append(sys.argv.pop(1))"  # -P: never a module of the current folder
    command = [sys.executable, "-P", "-c", f"{path}; {code}", str(PACKAGE.parent), *arguments]
    try:
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
            env=wandb_environment(root),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {str(error)[-200:]}"
    lines = (process.stderr or process.stdout).strip().splitlines() or ["no message"]
    return None if process.returncode == 0 else f"exit {process.returncode}: {lines[-1][:200]}"


def open_run(folder: Path, run_id: str, mode: str, pid: int | None = None, **about: Any) -> Any:
    """Open a W&B run within a time limit.

    An online run has system metrics of process ``pid``. ``WANDB_X_DISABLE_STATS`` (``true`` or ``false``) takes
    precedence.
    """
    import wandb  # takes seconds

    stats = os.environ.get("WANDB_X_DISABLE_STATS", str(mode != "online")).lower() in ("false", "0")
    quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=not stats)
    quiet.init_timeout, quiet.finish_timeout = 30, 60
    if pid is not None:
        quiet.x_stats_pid = pid
    with _setting_errors():
        return wandb.init(
            project=project(),
            id=run_id,
            name=run_id,
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            settings=quiet,
            **about,
        )


@contextmanager
def _setting_errors() -> Iterator[None]:
    """Turn pydantic's error for invalid W&B settings, which spans several lines, into one line."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        invalid = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise RunError(f"invalid W&B settings: {invalid}") from None


def trajectory_tables(folder: Path) -> dict[str, list[Any]]:
    """The tables of trajectories for reading that :func:`eef.analysis.browser.write_views` wrote; by name, as rows.

    The columns are ``TRAJECTORY``: task, won, reward, turns, outcome, the first turn that carries loss, and text. Empty
    for a run without such a file.
    """
    return read_json(folder / TABLES) if (folder / TABLES).is_file() else {}


def mirror_figure(folder: str | Path, name: str, files: Iterable[str | Path], mode: str) -> None:
    """Write the figures (PNG) of a sweep and their tables (CSV) to W&B, as a separate run of ``job_type`` figure."""
    import pandas as pd
    import wandb

    run = open_run(Path(folder), f"{name}__figure", mode, group=name, job_type="figure", tags=["figure", name[:64]])
    for path in map(Path, files):
        if path.suffix == ".png":
            run.log({f"figure/{path.stem}": wandb.Image(str(path))})
        elif path.suffix == ".csv":
            run.log({f"table/{path.stem}": wandb.Table(dataframe=pd.read_csv(path))})
    run.finish()


def send_figure(root: Path, name: str, files: list[Path], mode: str = "offline") -> str | None:
    """Write a sweep's figure to ``root/sweeps/NAME.wandb``, unless the same files were written before.

    Returns an error in one line, or None.
    """
    mode, _ = wandb_mode(mode)
    paths = [str(path) for path in files if path.suffix in (".png", ".csv") and path.is_file()]
    if mode == "disabled" or not paths:
        return None
    folder, content = root / "sweeps" / f"{name}.wandb", digest([mode, [Path(p).read_bytes().hex() for p in paths]])
    state = folder / "state.json"
    if state.is_file() and read_json(state).get("content") == content:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    code = "from eef.tracking.mirror import mirror_figure; a = sys.argv; mirror_figure(a[1], a[2], a[4:], a[3])"
    problem = run_separately(root, code, str(folder), name, mode, *paths)
    if problem and mode == "online":
        run_separately(root, code, str(folder), name, "offline", *paths)
    if not problem:
        write_json(state, {"content": content, "mode": mode})
    return problem


def account_problem() -> str | None:
    """Why W&B cannot be used online, or None if it can: an account is set up and the server answers.

    Takes seconds and never asks the user.
    """
    import requests
    import wandb

    mode, error = wandb_mode("online")
    if mode != "online":
        return error or f"WANDB_MODE is {os.environ['WANDB_MODE']}"
    if os.environ.get("WANDB_MODE"):
        os.environ["WANDB_MODE"] = mode  # wandb reads this variable and refuses capitals
    try:
        with _setting_errors():
            settings = wandb.setup(wandb.Settings(silent=True)).settings
        if not wandb.login(prompt=False, verify=False):
            return "not logged in to W&B (run `wandb login`)"
    except Exception as error:  # such as a malformed key or an invalid netrc file
        return f"the W&B account cannot be used: {str(error).strip().splitlines()[-1][:200]}"
    try:
        requests.head(settings.base_url, timeout=10)  # `wandb sync` would retry for many minutes
    except requests.RequestException:
        return f"{settings.base_url} does not answer"
    return None


def unsynced(root: Path) -> list[Path]:
    """The offline folders below ``root`` that were not sent to W&B, oldest first. Runs in progress are left out."""
    folders = [*root.glob("*__*/wandb/offline-run-*"), *root.glob("sweeps/*.wandb/wandb/offline-run-*")]
    folders = [path for path in folders if path.is_dir() and list(path.glob("*.wandb"))]
    unsent = [path for path in folders if not list(path.glob("*.synced"))]
    return sorted((path for path in unsent if not _in_progress(path.parent)), key=lambda path: path.name)


def _in_progress(folder: Path) -> bool:
    """Whether a companion process is writing to ``folder``."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def sync(root: Path, seconds: float = 600.0) -> tuple[int, list[Path]]:
    """Send offline runs to W&B. Returns the number of folders that were sent, and those that were not.

    ``seconds`` is the time limit of each batch of ten. Raises :class:`RunError` without an account, or if W&B cannot be
    reached.
    """
    folders = unsynced(root.resolve())
    if not folders:
        return 0, []
    if problem := account_problem():
        raise RunError(
            f"{problem}: {len(folders)} offline runs in {root} were not sent; try again once W&B can be reached"
        )
    for start in range(0, len(folders), 10):
        batch = folders[start : start + 10]
        command = [sys.executable, "-P", "-m", "wandb", "sync", *map(str, batch)]
        try:
            process = subprocess.run(
                command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
                env=wandb_environment(root),
            )  # fmt: skip
            output = (process.stderr + process.stdout).strip().splitlines() or ["no message"]
        except subprocess.TimeoutExpired:
            output = [f"no answer within {seconds:.0f} s"]
        left = [path for path in folders if path in set(unsynced(root.resolve()))]
        if set(batch) <= set(left):  # none was accepted, so the next batch would fail too
            raise RunError(
                f"W&B accepted none of {len(left)} offline runs: {output[-1][-300:]}; they are still there, try again"
            )
        print(f"synced {len(folders) - len(left)} of {len(folders)}", flush=True)
    return len(folders) - len(left), left


def save_report(root: Path, name: str, pictures: Iterable[Path], about: str) -> str:
    """Build and save :func:`report` in a subprocess, within a time limit. Returns its address, or why it has none."""
    file = root / "reports" / f"{name}.url"
    file.parent.mkdir(parents=True, exist_ok=True)
    code = (
        "from eef.tracking.mirror import *; a = sys.argv; Path(a[1]).write_text(report(a[2], map(Path, a[4:]), a[3]))"
    )
    problem = run_separately(root, code, str(file), name, about, *map(str, pictures))
    return f"none: {problem}" if problem else file.read_text()


def report(name: str, pictures: Iterable[Path], about: str, save: bool = True) -> Any:
    """Build a W&B report of a sweep: the axes of Figure 3, method × environment × seed, the figure, trajectories.

    Returns its URL, or the unsaved report if ``save`` is False. Raises :class:`RunError` if wandb-workspaces is
    missing.
    """
    try:
        wr: Any = import_module("wandb_workspaces.reports.v2")
    except ImportError:
        raise RunError("a W&B report needs wandb-workspaces: pip install -e '.[report]'") from None
    import wandb

    entity = os.environ.get("WANDB_ENTITY") or (wandb.Api(timeout=30).default_entity if save else "entity") or ""
    runs = wr.Runset(entity, project(), "runs", filters=f"Group = '{name}' and JobType != 'figure'")
    seeds = wr.Runset(
        entity, project(), "method × environment × seed", filters=f"Group = '{name}' and JobType != 'figure'",
        groupby=["config.arm", "config.env", "config.seed"],
    )  # fmt: skip
    figures = wr.Runset(entity, project(), "figure", filters=f"Group = '{name}' and JobType = 'figure'")
    rate, tests = wr.SummaryMetric("test/win_rate"), [wr.SummaryMetric(f"test/{key}") for key in TEST[:1]]
    panels = [
        wr.ScatterPlot(title="win rate against simulation budget", x=wr.SummaryMetric("budget/episodes"), y=rate),
        wr.BarPlot(title="win rate by method", metrics=tests, groupby=wr.Config("arm"), groupby_rangefunc="stderr"),
    ]
    losses = wr.LinePlot(title="training loss", x="Step", metric_regex=".*/loss", groupby=wr.Config("arm"))
    tables = [wr.WeavePanelSummaryTable(table_name=f"trajectories/{table}") for table in ("test", "selected")]
    stems = [path.stem for path in pictures]
    blocks = [
        wr.MarkdownBlock(about),
        wr.H2("Win rate and budget"),
        wr.PanelGrid(runsets=[runs], panels=panels),
        *([wr.H2("The figure"), wr.PanelGrid(runsets=[figures], panels=[_media(wr, stems)])] if stems else []),
        wr.H2("Method × environment × seed"),
        wr.PanelGrid(runsets=[seeds], panels=[wr.BarPlot(title="win rate", metrics=tests), losses]),
        wr.H2("Trajectories"),
        wr.PanelGrid(
            runsets=[runs], panels=[*tables, wr.MediaBrowser(media_keys=["trajectories/views"], num_columns=1)]
        ),
    ]
    result = wr.Report(entity=entity, project=project(), title=f"eef: {name}", blocks=blocks)
    if not save:
        return result
    result.save()
    return result.url


def _media(wr: Any, stems: list[str]) -> Any:
    return wr.MediaBrowser(media_keys=[f"figure/{stem}" for stem in stems], num_columns=1)
