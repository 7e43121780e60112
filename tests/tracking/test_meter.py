"""What is seen of a stage while it runs: bars, lines, rows of metrics.jsonl, and what they cost."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eef.files import read_last_row, read_rows
from eef.tracking import progress
from eef.tracking.progress import Meter, describe, stage_name
from eef.tracking.runs import Run, log_metrics


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("bc", "behaviour cloning"),
        ("s0-0-0", "simulations from s0, iteration 1"),
        ("s0-1-2", "simulations from s0, iteration 2, sample 3"),
        ("states-0", "simulations from expert states, iteration 1"),
        ("sft-1", "SFT, iteration 2"),
        ("batch-1", "planned simulations, batch 2"),
        ("my-stage-3", "my-stage-3"),
    ],
)
def test_stages_have_names_for_people(stage: str, name: str) -> None:
    assert stage_name(stage) == name


def test_a_row_in_words() -> None:
    row = {"step": 120, "steps": 300, "loss": 0.4123, "tokens_per_second": 5200.4, "seconds_left": 75.2}
    assert describe(row) == "120 of 300 steps, loss 0.412, 5,200 tokens/s, 1:15 left"
    row = {"step": 9, "steps": 60, "episodes": 9, "wins": 4, "tokens_per_second": 310.0, "seconds_left": 4000}
    assert describe(row) == "9 of 60 episodes, 4 won, 310 tokens/s, 1:06:40 left"
    row = {"step": 2, "steps": 30, "tokens_per_second": 41.2, "tokens_per_cpu_second": 68.7}
    assert describe(row) == "2 of 30 steps, 41 tokens/s (69 per CPU s)"


def test_a_meter_reports_each_step_and_carries_the_last_loss() -> None:
    rows: list[tuple[dict[str, Any], bool]] = []
    with Meter("bc", report=lambda row, logged: rows.append((dict(row), logged))) as meter:
        meter.on_step(1, 3, {"tokens_per_second": 10.0, "seconds_left": 2.0})
        meter.on_step(2, 3, {"step": 2, "loss": 0.5, "learning_rate": 0.1})
        meter.on_step(3, 3, {"tokens_per_second": 10.0, "seconds_left": 0.0})
    assert [(row["step"], row["steps"], row.get("loss"), logged) for row, logged in rows] == [
        (1, 3, None, False), (2, 3, 0.5, True), (3, 3, 0.5, False),
    ]  # fmt: skip
    assert "learning_rate" not in rows[2][0]


def test_a_rollout_is_reported_once_per_second_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    rows: list[dict[str, Any]] = []
    with Meter("test", 8, lambda row, logged: rows.append(dict(row))) as meter:
        for number in range(1, 9):
            now += 0.4
            meter.on_episodes(1, number % 2, 100)
    assert [row["step"] for row in rows] == [1, 4, 7, 8] and {row["steps"] for row in rows} == {8}
    assert {round(row["tokens_per_second"]) for row in rows} == {250}
    assert rows[1]["wins"] == 2 and rows[1]["win_rate"] == 0.5 and rows[1]["seconds_left"] == pytest.approx(1.6)


def test_episodes_of_a_journal_do_not_count_in_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Meter("test", 1000, turns_per_episode=10) as meter:
        for _ in range(900):  # of a killed process
            meter.on_episodes(1, 1, 50)
        now += 2.0
        meter.on_turn(10, 50)
        meter.on_episodes(1, 1, 50)
    assert meter.row["episodes"] == 901 and meter.row["tokens_per_second"] == 25.0
    assert meter.row["seconds_left"] == pytest.approx(198.0)


def test_the_speed_per_cpu_second_of_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    now, cpu = 100.0, 7.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress.time, "process_time", lambda: cpu)
    with Meter("test", 2, on_cpu=True) as meter, Meter("test", 2) as elsewhere:
        now, cpu = now + 10.0, cpu + 4.0
        for each in (meter, elsewhere):
            each.on_episodes(1, 0, 100)
    assert (meter.row["tokens_per_second"], meter.row["tokens_per_cpu_second"]) == (10.0, 25.0)
    assert "tokens_per_cpu_second" not in elsewhere.row


def test_a_rollout_is_seen_before_its_first_episode_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Meter("test", 10, turns_per_episode=15) as meter:
        now += 6.0
        meter.on_turn(10, 60)
        meter.on_turn(10, 60)
        assert describe(meter.row) == "0 of 10 episodes (20 turns), 0 won, 20 tokens/s, 39 s left"


def drawn(monkeypatch: pytest.MonkeyPatch, stage: str, total: int | None, steps: int) -> list[str]:
    """The bars that a terminal gets."""
    output = io.StringIO()
    monkeypatch.setattr(output, "isatty", lambda: True)
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, file=output, ncols=200))
    with Meter(stage, total) as meter:
        for step in range(1, steps + 1):
            meter.on_step(step, steps, {"loss": 0.5})
    return [line for line in output.getvalue().replace("\n", "\r").split("\r") if line.strip()]


def test_bars_are_equally_wide_and_a_bar_that_is_done_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [drawn(monkeypatch, *arguments)[-1] for arguments in (("bc", None, 5), ("experts", 60, 0))]
    assert lines[0].startswith("behaviour cloning ") and "100 % |" in lines[0]
    assert "5 of 5 steps, loss 0.500" in lines[0]
    assert lines[1].startswith("expert trajectories ") and "100 % |" in lines[1], "nothing reports files of experts"
    assert len({(line.index("|"), line.rindex("|")) for line in lines}) == 1


NOTEBOOK = """
    import ipykernel.zmqshell  # as in the kernel of a notebook
    from eef.tracking.progress import Meter
    for stage, total in (("bc", None), ("test", 4)):
        with Meter(stage, total) as meter:
            if total:
                meter.on_episodes(4, 2, 100)
            else:
                for step in range(1, 6):
                    meter.on_step(step, 5, {"loss": 0.5})
        name, bar, text = meter.bar.container.children
        sizes = [part.layout.flex.replace(" ", "_") for part in (name, bar, text)]
        print("BAR", *sizes, bar.value, bar.max, name.value, text.value)
"""


def test_bars_of_a_notebook_are_equally_wide_and_full() -> None:
    command = [sys.executable, "-c", textwrap.dedent(NOTEBOOK)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [line.replace("\u2007", " ").split(maxsplit=6) for line in process.stdout.splitlines() if "BAR" in line]
    sizes = ["0_0_27em", "0_0_8em", "1_1_auto"]  # name and bar neither grow nor shrink beside a long text
    assert [line[1:6] for line in lines] == [[*sizes, "5.0", "5.0"], [*sizes, "4.0", "4.0"]], process
    assert lines[0][6].startswith("behaviour cloning 100 %") and "5 of 5 steps, loss 0.500, took " in lines[0][6]


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Meter("sft-0") as meter:
        for step in range(1, 11):
            now += 7.0
            meter.on_step(step, 10, {"loss": 0.5})
    assert capsys.readouterr().out.splitlines() == [
        "  SFT, iteration 1: 5 of 10 steps, loss 0.500", "  SFT, iteration 1: 10 of 10 steps, loss 0.500"
    ]  # fmt: skip


def test_metrics_grow_while_a_run_is_in_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[dict[str, Any]] = []
    run = Run.open(tmp_path, "webshop", "rft-n1", 0, {}, {"hashes": {}})
    metrics = run.folder / "metrics.jsonl"

    def bc(at: Path) -> None:
        with Meter("bc", report=partial(run.progress, "bc")) as meter:
            for step in (1, 2):
                meter.on_step(step, 2, {"loss": 1.0 / step, "tokens_per_second": 5.0, "seconds_left": 2.0 - step})
                seen.append(read_last_row(metrics))
        log_metrics(at, [{"step": step, "loss": 1.0 / step} for step in (1, 2)])

    def simulations(at: Path) -> None:
        with Meter("s0-0-0", 3, partial(run.progress, "s0-0-0")) as meter:
            meter.on_episodes(1, 1, 10)
        log_metrics(at, {"episodes": 3, "wins": 1})

    run.stage("bc", {}, bc)
    run.stage("s0-0-0", {}, simulations)
    first = {"stage": "bc", "kind": "train", "step": 1, "steps": 2, "loss": 1.0}
    first |= {"tokens_per_second": 5.0, "seconds_left": 1.0}
    assert {name: seen[0][name] for name in seen[0] if name != "time"} == first
    assert seen[1]["step"] == 2 and abs(seen[0]["time"] - time.time()) < 60
    assert read_rows(metrics)[-1]["kind"] == "rollout" and read_rows(metrics)[-1]["win_rate"] == 1.0
    run.finish({"win_rate": 0.5}, wandb="disabled")
    assert len(read_rows(run.folder / "progress.jsonl")) == 4 and read_rows(metrics) == run.metrics
    assert [row["kind"] for row in read_rows(metrics)] == ["train", "train", "rollout"]
    assert capsys.readouterr().out.splitlines()[0] == "Starting behaviour cloning."

    # another run reuses the first stage: its file begins with that stage's rows
    other = Run.open(tmp_path, "webshop", "eef-m5", 0, {}, {"hashes": {}})
    other.stage("bc", {}, bc)
    other.progress("sft-0", {"step": 1, "steps": 9})
    rows = read_rows(other.folder / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [("bc", 1), ("bc", 2), ("sft-0", 1)]


def test_progress_never_ends_a_run(tmp_path: Path) -> None:
    run = Run.open(tmp_path, "webshop", "rft-n1", 0, {}, {"hashes": {}})
    run.progress("bc", {"step": object()})
    (run.folder / "metrics.jsonl").unlink()
    run.progress("bc", {"step": 1})
    assert json.loads(run.finish({"win_rate": 0.5}, wandb="disabled").read_text()) == {"win_rate": 0.5}


def test_a_report_of_a_step_costs_less_than_a_millisecond(tmp_path: Path) -> None:
    """A training step takes 50 ms and more."""
    run = Run.open(tmp_path, "webshop", "rft-n1", 0, {}, {"hashes": {}})
    row: Mapping[str, float] = {"loss": 0.5, "tokens_per_second": 5.0, "seconds_left": 1.0}
    with Meter("bc", report=partial(run.progress, "bc")) as meter:
        start = time.process_time()
        for step in range(1, 2001):
            meter.on_step(step, 2000, row)
        assert (time.process_time() - start) / 2000 < 1e-3
