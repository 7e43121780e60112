"""The progress of a sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from eef.files import read_last_row
from eef.sweeps.executors import last_line
from eef.tracking.progress import clock, describe, stage_name

_COLOURS = {
    "failed": "bold red",
    "stopped": "yellow",
    "runs": "bold cyan",
    "done": "green",
    "waits": "dim",
    "queued": "yellow",
}


class ShownPoint(Protocol):
    """The attributes of a point that are shown."""

    label: str
    state: str  # finished, waits, queued, runs, done, failed, stopped
    base: str
    start: float
    seconds: float


class Screen:
    """Shows the state of ``points``: :meth:`log` prints a permanent line, :meth:`update` redraws the table.

    If ``console`` is not a terminal there is no table, and the running points are printed every ``every`` seconds.
    ``root`` is the folder of the runs, whose ``metrics.jsonl`` says how far a running point has come.
    """

    def __init__(
        self, points: Sequence[ShownPoint], root: Path, console: Console | None = None, every: float = 30.0
    ) -> None:
        self.points, self.root = points, root
        self.console = console or Console()
        self.every = every
        self.start = self.last_update = time.monotonic()
        # without a refresh thread, since this process forks
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> Screen:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.update("", refresh=True)  # the sweep prints a final table
            self.live.stop()

    def log(self, text: str) -> None:
        """Print lines above the table."""
        if self.live:
            self.console.print(Text(text), soft_wrap=True)
        else:
            print(text, flush=True)

    def update(self) -> None:
        """Redraw the table, or print the running points; at most once per interval."""
        now = time.monotonic()
        if self.live:
            if now - self.last_update > 0.5 or self.last_update == self.start:
                self.last_update = now
                self.live.update(self.render(), refresh=True)
        elif now - self.last_update > self.every:
            self.last_update = now
            running = [point for point in self.points if point.state in ("runs", "queued")]
            if running:
                lines = [f"{point.label}: {status(point.base, self.root)}" for point in running[:4]]
                more = [f"and {len(running) - 4} more"] * (len(running) > 4)
                print(f"        {'; '.join(lines + more)}", flush=True)

    def left(self) -> str:
        """How many points have ended and an estimate of the time left, such as ``3 of 8, about 40 s left``."""
        ended = sum(point.state in ("done", "failed") for point in self.points)
        count = f"{ended} of {len(self.points)}"
        if not 0 < ended < len(self.points):
            return count
        now = time.monotonic()
        one = sum(point.seconds for point in self.points if point.state in ("done", "failed")) / ended
        running = [now - point.start for point in self.points if point.state == "runs"]
        waiting = len(self.points) - ended - len(running)
        seconds = (waiting * one + sum(max(0.0, one - passed) for passed in running)) / max(1, len(running))
        return f"{count}, about {clock(seconds)} left"

    def render(self) -> Group:
        """The table of failed, running, last done and next waiting points, limited to the terminal's height."""
        by_state: dict[str, list[Any]] = {
            state: [p for p in self.points if p.state == state] for state in ("failed", "runs", "queued", "done")
        }
        by_state["waits"] = [point for point in self.points if point.state == "waits"]
        room = max(6, self.console.height - 5)
        visible = {"runs": by_state["runs"][: room // 2], "failed": by_state["failed"][-(room // 4) :]}
        rest = max(1, (room - sum(map(len, visible.values()))) // 3)
        visible["queued"], visible["done"] = by_state["queued"][:rest], by_state["done"][-rest:]
        visible["waits"] = by_state["waits"][:rest]
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        table.add_column("state", width=7)
        table.add_column("point", no_wrap=True)
        table.add_column("time", justify="right", width=8)
        table.add_column("progress", no_wrap=True, ratio=1, overflow="ellipsis")
        for state in ("done", "failed", "runs", "queued", "waits"):
            if hidden := len(by_state[state]) - len(visible[state]):
                table.add_row(Text(state, _COLOURS[state]), Text(f"… {hidden} more", "dim"), "", "")
            for point in visible[state]:
                seconds = time.monotonic() - point.start if state in ("runs", "queued") else point.seconds
                text = status(point.base, self.root) if state == "runs" else ""
                row = (Text(point.label), clock(seconds) if seconds else "", Text(text, "dim"))
                table.add_row(Text(state, _COLOURS[state]), *row)
        counts = " · ".join(f"{len(points)} {state}" for state, points in by_state.items() if points)
        return Group(table, Text(f"{counts}   [{self.left()}]", "bold"))


def status(base: str, root: Path) -> str:
    """How far a running point has come: the last progress of its run, or the last line of its log if that is newer."""
    log, runs = Path(f"{base}.log"), Path(f"{base}.runs")
    ids = runs.read_text(encoding="utf-8").split() if runs.is_file() else []
    metrics = root / ids[-1] / "metrics.jsonl" if ids else log
    if ids and metrics.is_file() and (not log.is_file() or metrics.stat().st_mtime_ns > log.stat().st_mtime_ns):
        row = read_last_row(metrics)
        if "time" in row:
            return f"{stage_name(row['stage'])}: {describe(row)}"
    return last_line(base)
