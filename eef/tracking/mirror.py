"""Weights & Biases as a mirror of the run folders: how a run is opened, a sweep's figure, later syncs, and a report.

What a comparison there needs: ``group`` is the sweep, ``job_type`` the arm (``eef-m5``), tags and configuration hold
method, environment and seed; ``budget/...`` and ``test/...`` are Figure 3's axes. W&B is never needed: what has no
network or no account is one message.
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

from eef.files import RunError, digest, read_json, write_json
from eef.tracking.live import wandb_environment, wandb_mode
from eef.tracking.runs import apart
from eef.trajectory import Trajectory, load

LOCK = ".lock"  # in a run's folder wandb, held by the companion process
SHOWN = 40  # trajectories in a table of a run, half of them lost
BUDGET = ("episodes", "env_steps", "tokens")
TEST = ("win_rate", "win_low", "win_high", "mean_reward", "win_rate_easy", "win_rate_medium", "win_rate_hard")
TRAJECTORY: list[str | int] = ["task", "won", "reward", "turns", "outcome", "learn_from", "text"]


def project() -> str:
    """``WANDB_PROJECT``, else ``eef``."""
    return os.environ.get("WANDB_PROJECT", "eef")


def open_run(folder: Path, run_id: str, mode: str, pid: int | None = None, **about: Any) -> Any:
    """Open a W&B run within a time limit. ``WANDB_X_DISABLE_STATS=false`` adds system metrics of process ``pid``."""
    import wandb  # takes seconds, so only here

    stats = os.environ.get("WANDB_X_DISABLE_STATS", "true").lower() in ("false", "0")
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
    """Turn pydantic's error for invalid W&B settings, which takes several lines, into one line."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        invalid = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise RunError(f"invalid W&B settings: {invalid}") from None


def trajectory_tables(folder: Path) -> dict[str, list[Any]]:
    """``test`` episodes (lost and won) and ``selected`` examples of the last SFT; columns: task, won, reward, turns,
    outcome, the turn from which loss is carried, text. At most ``SHOWN`` rows each; what a run lacks is left out.
    """
    found: dict[str, list[Any]] = {}
    if (played := folder / "test" / "trajectories.jsonl").is_file():
        trajectories = load(played)
        lost, won = ([t for t in trajectories if bool(t.won) == side] for side in (False, True))
        half = max(SHOWN // 2, SHOWN - len(won)), max(SHOWN // 2, SHOWN - len(lost))
        found["test"] = [_row(t, None) for t in (lost[: half[0]] + won[: half[1]])[:SHOWN]]
    chosen = sorted(folder.glob("sft-*/examples.jsonl")) or sorted(folder.glob("*/examples.jsonl"))
    if chosen:
        starts = read_json(chosen[-1].with_name("learn_from.json"))["learn_from"]
        pairs = sorted(zip(load(chosen[-1]), starts, strict=True), key=lambda pair: not pair[1])  # recoveries first
        found["selected"] = [_row(t, start) for t, start in pairs[:SHOWN]]
    return found


def _row(t: Trajectory, start: int | None) -> list[Any]:
    turns = [f"> {turn.said}\n{turn.observation}".rstrip() for turn in t.turns]
    return [t.task, bool(t.won), float(t.reward), len(t), t.outcome, start, "\n".join([t.prompt, *turns])[:20_000]]


def mirror_figure(folder: str | Path, name: str, files: Iterable[str | Path], mode: str) -> None:
    """Write a sweep's pictures (PNG) and their tables (CSV) to W&B as a run of its own, ``job_type`` figure."""
    import pandas as pd
    import wandb

    run = open_run(Path(folder), f"{name}__figure", mode, group=name, job_type="figure", tags=["figure", name[:64]])
    for path in map(Path, files):
        if path.suffix == ".png":
            run.log({f"figure/{path.stem}": wandb.Image(str(path))})
        elif path.suffix == ".csv":
            run.log({f"table/{path.stem}": wandb.Table(dataframe=pd.read_csv(path))})
    run.finish()


def figure(root: Path, name: str, files: list[Path], mode: str = "offline") -> str | None:
    """Mirror a sweep's figure to ``root/sweeps/NAME.wandb``, once for the same files; trouble in one line, or None."""
    mode, _ = wandb_mode(mode)
    kept = [str(path) for path in files if path.suffix in (".png", ".csv") and path.is_file()]
    if mode == "disabled" or not kept:
        return None
    folder, content = root / "sweeps" / f"{name}.wandb", digest([mode, [Path(p).read_bytes().hex() for p in kept]])
    state = folder / "state.json"
    if state.is_file() and read_json(state).get("content") == content:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    code = "from eef.tracking.mirror import mirror_figure; a = sys.argv; mirror_figure(a[1], a[2], a[4:], a[3])"
    trouble = apart(root, code, str(folder), name, mode, *kept)
    if trouble and mode == "online":
        apart(root, code, str(folder), name, "offline", *kept)
    if not trouble:
        write_json(state, {"content": content, "mode": mode})
    return trouble


def account() -> str | None:
    """None where W&B can be used: there is an account and it answers; else why not, within seconds and unasked."""
    import requests
    import wandb

    mode, error = wandb_mode("online")
    if mode != "online":
        return error or f"WANDB_MODE is {os.environ['WANDB_MODE']}"
    if os.environ.get("WANDB_MODE"):
        os.environ["WANDB_MODE"] = mode  # wandb reads it here and refuses capitals
    try:
        with _setting_errors():
            settings = wandb.setup(wandb.Settings(silent=True)).settings
        if not wandb.login(prompt=False, verify=False):
            return "nobody is logged in (`wandb login`)"
    except Exception as error:  # a malformed key, a broken netrc: whatever it is, there is no account to use
        return f"the W&B account cannot be used: {str(error).strip().splitlines()[-1][:200]}"
    try:
        requests.head(settings.base_url, timeout=10)  # `wandb sync` alone would try for many minutes
    except requests.RequestException:
        return f"{settings.base_url} does not answer"
    return None


def unsynced(root: Path) -> list[Path]:
    """The offline folders below ``root`` that were not sent to W&B, oldest first, without those of runs in progress."""
    found = [*root.glob("*__*/wandb/offline-run-*"), *root.glob("sweeps/*.wandb/wandb/offline-run-*")]
    left = [path for path in found if path.is_dir() and list(path.glob("*.wandb")) and not list(path.glob("*.synced"))]
    return sorted((path for path in left if not _in_progress(path.parent)), key=lambda path: path.name)


def _in_progress(folder: Path) -> bool:
    """Whether a run's companion process is writing to its folder ``wandb``."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def sync(root: Path, seconds: float = 600.0) -> tuple[int, list[Path]]:
    """Send what was kept offline to W&B: how many folders went, and those that did not.

    ``seconds`` limits each batch of ten. :class:`RunError` without an account, and where W&B cannot be reached.
    """
    folders = unsynced(root.resolve())
    if not folders:
        return 0, []
    if reason := account():
        raise RunError(f"{reason}: {len(folders)} offline runs in {root} are kept, start again when W&B can be reached")
    for start in range(0, len(folders), 10):
        batch = folders[start : start + 10]
        words = [sys.executable, "-P", "-m", "wandb", "sync", *map(str, batch)]
        try:
            done = subprocess.run(
                words,
                cwd=root,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                env=wandb_environment(root),
            )  # in root, where wandb leaves its logs
            said = (done.stderr + done.stdout).strip().splitlines() or ["no message"]
        except subprocess.TimeoutExpired:
            said = [f"no answer within {seconds:.0f} s"]
        left = [path for path in folders if path in set(unsynced(root.resolve()))]
        if set(batch) <= set(left):  # not one went: the next batch would not either
            raise RunError(f"W&B took none of {len(left)} offline runs: {said[-1][-300:]}; they are kept, start again")
        print(f"synced {len(folders) - len(left)} of {len(folders)}", flush=True)
    return len(folders) - len(left), left


def save_report(root: Path, name: str, pictures: Iterable[Path], about: str) -> str:
    """Build and save :func:`report` in a process of its own, within a time limit; its address, or why there is none."""
    kept = root / "reports" / f"{name}.url"
    kept.parent.mkdir(parents=True, exist_ok=True)
    code = (
        "from eef.tracking.mirror import *; a = sys.argv; Path(a[1]).write_text(report(a[2], map(Path, a[4:]), a[3]))"
    )
    trouble = apart(root, code, str(kept), name, about, *map(str, pictures))
    return f"none: {trouble}" if trouble else kept.read_text()


def report(name: str, pictures: Iterable[Path], about: str, save: bool = True) -> Any:
    """A W&B report of a sweep: Figure 3's axes, method by environment by seed, the figure, tables of trajectories.

    Returns its URL; the unsaved report with ``save=False``. :class:`RunError` where wandb-workspaces is missing.
    """
    try:
        wr: Any = import_module("wandb_workspaces.reports.v2")
    except ImportError:
        raise RunError("a W&B report needs wandb-workspaces: pip install 'eef[report]'") from None
    import wandb

    entity = os.environ.get("WANDB_ENTITY") or (wandb.Api(timeout=30).default_entity if save else "entity") or ""
    runs = wr.Runset(entity, project(), "runs", filters=f"Group = '{name}' and JobType != 'figure'")
    seeds = wr.Runset(
        entity, project(), "method × environment × seed", filters=f"Group = '{name}' and JobType != 'figure'",
        groupby=["config.arm", "config.env", "config.seed"],
    )  # fmt: skip
    drawn = wr.Runset(entity, project(), "figure", filters=f"Group = '{name}' and JobType = 'figure'")
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
        *([wr.H2("The figure"), wr.PanelGrid(runsets=[drawn], panels=[_media(wr, stems)])] if stems else []),
        wr.H2("Method × environment × seed"),
        wr.PanelGrid(runsets=[seeds], panels=[wr.BarPlot(title="win rate", metrics=tests), losses]),
        wr.H2("Trajectories"),
        wr.PanelGrid(runsets=[runs], panels=tables),
    ]
    made = wr.Report(entity=entity, project=project(), title=f"eef: {name}", blocks=blocks)
    if not save:
        return made
    made.save()
    return made.url


def _media(wr: Any, stems: list[str]) -> Any:
    return wr.MediaBrowser(media_keys=[f"figure/{stem}" for stem in stems], num_columns=1)
