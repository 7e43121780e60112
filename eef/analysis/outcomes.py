"""The outcome of every test subtask in every run of a sweep, and what each run cost, as two small tables.

``outcomes.csv`` has a row per run and ``subtasks.csv`` a row per test subtask. Every win rate, interval and paired
difference of a sweep can be computed from them (:func:`read_outcomes`), long after the run folders are gone. Equal runs
give equal tables, so the seconds are in a third one, ``seconds.csv``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.arms import ARM_COLUMNS, FigureError, as_text, read_episodes, records, varying, whole_numbers
from eef.analysis.statistics import read_by_task
from eef.analysis.tables import write_table
from eef.files import read_json, read_rows

BUDGET = ["episodes", "env_steps", "sampled_tokens", "prefilled_tokens", "examples", "loss_tokens", "optimiser_steps"]
_SIGNS = {"0": False, "1": True}


def outcome_table(runs: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """Write ``out/outcomes.csv`` and ``out/subtasks.csv``; returns the first.

    ``outcomes.csv``: method, experts, n, m, seed, parameters in which the runs differ, ``test_set``, ``outcomes``, the
    columns of ``BUDGET``, run_id. ``outcomes`` has one character per subtask, in the order of ``subtasks.csv``: 1 for a
    win, 0 for a loss, ``-`` for an infrastructure error. Read it as text, since it looks like a number.

    The budget covers the whole run: simulated episodes, environment steps, sampled and prefilled tokens of the
    simulations (a token of a page is prefilled once); training examples, tokens with loss (over all epochs) and
    optimiser steps of all its trainings. Empty where a run of an earlier version did not record it.

    ``seconds.csv``: run_id, and the seconds of all stages, shared ones included.

    ``subtasks.csv``: ``test_set``, task, and group where the environment has groups. Runs with the same subtasks share
    a ``test_set``. :class:`FigureError` if a run has no ``eval/episodes.csv``.
    """
    if runs.empty:
        raise FigureError("no finished runs; `eef runs` lists all runs")
    columns = [*ARM_COLUMNS, "seed"]
    frame = runs.reindex(columns=[*dict.fromkeys([*runs.columns, *columns])])
    parameters = varying(frame) if "config" in runs else []
    sets: dict[tuple[Any, ...], int] = {}
    rows = []
    for run in records(frame.sort_values([*columns, "run_id"], na_position="first")):
        episodes = read_episodes(pd.DataFrame([run]))
        subtasks = tuple(map(tuple, episodes[[name for name in ("task", "group") if name in episodes]].to_numpy()))
        signs = ["-" if error else str(int(won)) for won, error in zip(episodes["won"], episodes["error"], strict=True)]
        row = {name: run[name] for name in columns}
        row |= {name: as_text(run["config"].get(name)) for name in parameters}
        row |= {"test_set": sets.setdefault(subtasks, len(sets) + 1), "outcomes": "".join(signs)}
        rows.append({**row, **_budget(run), "run_id": run["run_id"]})
    table = whole_numbers(pd.DataFrame(rows))
    for name in BUDGET:
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    names = ["test_set", "task", "group"]
    lines = [
        dict(zip(names, (number, *subtask), strict=False)) for subtasks, number in sets.items() for subtask in subtasks
    ]
    write_table(pd.DataFrame(lines), out, "subtasks")
    write_table(table, out, "outcomes")
    times = [{"run_id": run["run_id"], "seconds": _seconds(run)} for run in records(frame)]
    write_table(pd.DataFrame(times).sort_values("run_id"), out, "seconds")
    return table


def read_outcomes(folder: str | Path) -> pd.DataFrame:
    """The tables of :func:`outcome_table` in ``folder`` as one row per run and subtask.

    The columns are those of both tables, with ``won`` and ``error`` in the place of ``outcomes``. ValueError where a
    row does not fit its subtasks.
    """
    table = pd.read_csv(Path(folder) / "outcomes.csv", dtype={"outcomes": str})
    subtasks = read_by_task(Path(folder) / "subtasks.csv")
    parts = []
    for row in records(table):
        own = subtasks[subtasks["test_set"] == row["test_set"]]
        signs = row.pop("outcomes")
        if len(signs) != len(own) or set(signs) - {*_SIGNS, "-"}:
            raise ValueError(
                f"{folder}/outcomes.csv, {row['run_id']}: outcomes must be {len(own)} characters 0, 1 or -, one for "
                f"each row of subtasks.csv with test_set {row['test_set']}: draw the sweep again"
            )
        parts.append(
            own.assign(won=[_SIGNS.get(sign, False) for sign in signs], error=[s == "-" for s in signs], **row)
        )
    return pd.concat(parts, ignore_index=True)


def _budget(run: dict[str, Any]) -> dict[str, Any]:
    """What a run cost, by the names of ``BUDGET``; NaN where it is not recorded."""
    folder = Path(run["folder"])
    cost: dict[str, Any] = {"episodes": run.get("episodes"), "env_steps": run.get("env_steps")}
    read = run.get("prefilled_tokens", math.nan)
    cost |= {"sampled_tokens": run.get("tokens"), "prefilled_tokens": read if cost["episodes"] else 0}
    cost |= dict.fromkeys(("examples", "loss_tokens", "optimiser_steps"), 0)
    for path in sorted([*folder.glob("*/sft.json"), *folder.glob("*/dpo.json")]):
        report, last = read_json(path), list(read_rows(path.parent / "metrics.jsonl"))[-1]
        cost["examples"] += report.get("examples", report.get("pairs", math.nan))
        cost["loss_tokens"] += round(report["learnt_tokens"] * last["epoch"]) if "learnt_tokens" in report else math.nan
        cost["optimiser_steps"] += last["step"]
    return cost


def _seconds(run: dict[str, Any]) -> float:
    clock = Path(run["folder"]) / "timing.json"
    return round(read_json(clock)["seconds"], 1) if clock.is_file() else math.nan
