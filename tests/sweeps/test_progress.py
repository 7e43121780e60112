"""The progress of a sweep: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from eef.sweeps.executors import warnings_of
from eef.sweeps.progress import Screen, status


@dataclass
class Point:
    label: str
    state: str
    base: str = ""
    start: float = 0.0
    seconds: float = 0.0


def points(folder: Path) -> list[Point]:
    (folder / "runs.log").write_text("[sft] starts\r[sft] 3 of 9\n")
    at_work = Point("eef-m5-s0", "runs", str(folder / "runs"), time.monotonic() - 75)
    states = [Point("bc-s0", "done", seconds=61.0), Point("rft-s0", "failed", seconds=4000.0), at_work]
    return [*states, *(Point(f"rft-n{n}", "waits") for n in range(40))]


def test_the_table_has_every_state_and_fits_the_terminal(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=20)
    with Screen(points(tmp_path), tmp_path, console) as screen:
        console.print(screen.render())
    output = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("bc-s0", "1:01", "rft-s0", "1:06:40", "eef-m5-s0", "1:15", "[sft] 3 of 9", "rft-n0"):
        assert part in output, part
    assert "1 failed · 1 runs · 1 done · 40 waits" in output and "2 of 43" in output
    assert output.count("\n") <= 20 and "more" in output


def test_a_live_table_is_drawn_below_log_lines_and_then_removed(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=20)
    with Screen(points(tmp_path), tmp_path, console) as screen:
        screen.update()
        screen.log("FAILED  rft-s0: [no markup]")
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "eef-m5-s0" in output and "FAILED  rft-s0: [no markup]" in output and "\x1b[1A" in output


def test_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = points(tmp_path)
    some += [Point(f"more{n}", "runs", str(tmp_path / "none"), time.monotonic()) for n in range(5)]
    with Screen(some, tmp_path, Console(file=io.StringIO(), force_terminal=False), every=0.0) as screen:
        screen.update()
        screen.log("done    bc-s0")
    output = capsys.readouterr().out
    assert "eef-m5-s0: [sft] 3 of 9" in output and "and 2 more" in output and output.endswith("done    bc-s0\n")
    assert "\x1b" not in output


def test_a_running_point_shows_the_progress_of_its_run(tmp_path: Path) -> None:
    some = points(tmp_path)
    base, metrics = some[2].base, tmp_path / "run" / "metrics.jsonl"
    metrics.parent.mkdir()
    (tmp_path / "runs.runs").write_text("run\n")
    row = {"time": 1.0, "stage": "sft-0", "kind": "train", "step": 120, "steps": 300, "loss": 0.4123}
    row |= {"tokens_per_second": 5200.4, "seconds_left": 75.0}
    metrics.write_text(json.dumps({**row, "step": 119}) + "\n" + json.dumps(row) + '\n{"time": 2')
    os.utime(metrics, ns=(0, Path(f"{base}.log").stat().st_mtime_ns + 1))
    text = "SFT, iteration 1: 120 of 300 steps, loss 0.412, 5,200 tokens/s, 1:15 left"
    assert status(base, tmp_path) == text
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=20)
    with Screen(some, tmp_path, console) as screen:
        console.print(screen.render())
    assert text in console.file.getvalue()  # type: ignore[attr-defined]
    os.utime(f"{base}.log")  # a newer line in the log
    assert status(base, tmp_path) == "[sft] 3 of 9"


def test_the_time_left_shrinks_while_points_run(tmp_path: Path) -> None:
    """Points take as long as those that ended: 100 s. One runs for 40 s, another for longer than that."""
    now = time.monotonic()
    done, early, late = (Point("a", "done", seconds=100.0), *(Point("b", "runs", "", now - s) for s in (40, 130)))
    lefts = [
        Screen(each, tmp_path).left() for each in ([done, early], [done, late], [done, early, Point("c", "waits")])
    ]
    assert lefts == ["1 of 2, about 1:00 left", "1 of 2, about 0 s left", "1 of 3, about 2:40 left"]


def test_warnings_of_a_point_are_read_from_its_log(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("Starting.\nwarning: no win\r 3 of 9\n  warning: no win\nwarning: lr\n")
    assert warnings_of(str(tmp_path / "a")) == ["warning: no win", "warning: lr"]
    assert warnings_of(str(tmp_path / "b")) == []
