"""What a sweep shows while it works: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from eef.sweeps.executors import last_line

_COLOURS = {"failed": "bold red", "runs": "bold cyan", "done": "green", "waits": "dim", "queued": "yellow"}


class Row(Protocol):
    """What the table needs to know of a point."""

    label: str
    state: str  # finished, waits, queued, runs, done, failed
    base: str
    start: float
    seconds: float


class Screen:
    """The state of ``points``; :meth:`encode_action` prints a line for good, :meth:`show` brings the table up to date.

    Where ``console`` is no terminal there is no table, and what runs is told every ``every`` seconds.
    """

    def __init__(self, points: Sequence[Row], console: Console | None = None, every: float = 30.0) -> None:
        self.points = points
        self.console = console or Console()
        self.every = every
        self.begun = self.told = time.monotonic()
        # no thread of its own: children are forked from here
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> Screen:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.update("", refresh=True)  # the closing table says it all
            self.live.stop()

    def say(self, text: str) -> None:
        """Print lines above the table."""
        if self.live:
            self.console.print(Text(text), soft_wrap=True)
        else:
            print(text, flush=True)

    def show(self) -> None:
        """Draw the table anew, or print what runs when it is time."""
        now = time.monotonic()
        if self.live:
            if now - self.told > 0.5 or self.told == self.begun:
                self.told = now
                self.live.update(self.table(), refresh=True)
        elif now - self.told > self.every:
            self.told = now
            at_work = [point for point in self.points if point.state in ("runs", "queued")]
            if at_work:
                doing = [f"{p.label}: {last_line(p.base)}" for p in at_work[:4]]
                print(f"        {'; '.join(doing + [f'and {len(at_work) - 4} more'] * (len(at_work) > 4))}", flush=True)

    def left(self) -> str:
        """``3 of 8, about 40 s left``, by the mean so far."""
        over = sum(point.state in ("done", "failed") for point in self.points)
        counted = f"{over} of {len(self.points)}"
        if not 0 < over < len(self.points):
            return counted
        return f"{counted}, about {_clock((time.monotonic() - self.begun) / over * (len(self.points) - over))} left"

    def table(self) -> Group:
        """What failed, runs, is done last and waits next, as far as the terminal's height allows."""
        by: dict[str, list[Any]] = {
            state: [p for p in self.points if p.state == state] for state in ("failed", "runs", "queued", "done")
        }
        by["waits"] = [point for point in self.points if point.state == "waits"]
        room = max(6, self.console.height - 5)
        kept = {"runs": by["runs"][: room // 2], "failed": by["failed"][-(room // 4) :]}
        left = max(1, (room - sum(map(len, kept.values()))) // 3)
        kept |= {"queued": by["queued"][:left], "done": by["done"][-left:], "waits": by["waits"][:left]}
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        table.add_column("state", width=7)
        table.add_column("point", no_wrap=True)
        table.add_column("time", justify="right", width=8)
        table.add_column("doing", no_wrap=True, ratio=1, overflow="ellipsis")
        for state in ("done", "failed", "runs", "queued", "waits"):
            if hidden := len(by[state]) - len(kept[state]):
                table.add_row(Text(state, _COLOURS[state]), Text(f"… {hidden} more", "dim"), "", "")
            for point in kept[state]:
                seconds = time.monotonic() - point.start if state in ("runs", "queued") else point.seconds
                doing = last_line(point.base) if state == "runs" else ""
                row = (Text(point.label), _clock(seconds) if seconds else "", Text(doing, "dim"))
                table.add_row(Text(state, _COLOURS[state]), *row)
        counts = " · ".join(f"{len(points)} {state}" for state, points in by.items() if points)
        return Group(table, Text(f"{counts}   [{self.left()}]", "bold"))


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60}:{whole % 60:02d}"
        if whole < 3600
        else f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    )
