"""A sweep as one self-contained HTML page, from the run folders: the comparison that W&B shows, without W&B."""

from __future__ import annotations

import base64
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eef.agents.actions import problem_counts
from eef.analysis.arms import ARM_COLUMNS, Arm, FigureError, arm_names, arm_of, as_text, by_arm, records, varying
from eef.analysis.browser import folded, some
from eef.analysis.figures import win_rate_vs_budget
from eef.analysis.tables import markdown, number, paired_table, results_table, spread
from eef.analysis.views import style
from eef.files import PACKAGE, digest, read_json, read_rows, write_text
from eef.tracking.runs import load_runs

EPISODES = 6  # shown per arm
_PARTS = {"picture": "the figure", "arms": "the table of methods", "paired": "paired differences"}


def page(
    root: str | Path, name: str | None, out: str | Path, pictures: Sequence[Path] = (), index: Mapping[str, Any] = {}
) -> Path:
    """Write the page of the sweep ``name`` (None: of every finished run in ``root``) to the file ``out``.

    ``index`` is the sweep's entry (``run_ids``, ``missing``, ``command``); ``pictures`` are PNG files to show, by
    default Figure 3. The page says what could not be drawn or compared. :class:`FigureError` if there is no finished
    run at all.
    """
    from jinja2 import Environment

    runs = load_runs(root, index.get("run_ids"))
    if runs.empty:
        raise FigureError("no finished runs to report on; `eef runs` lists all runs")
    out, warnings = Path(out), _warnings(runs, index)
    shown = [_picture(path) for path in pictures]
    parts: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for key, make in {"picture": _figure, "arms": results_table, "paired": paired_table}.items():
        if key == "picture" and pictures:
            continue
        try:
            parts[key] = make(runs)  # type: ignore[operator]
        except ValueError as error:
            errors.setdefault(key, str(error))
        except KeyError as error:  # a user's notebook may write other results
            errors.setdefault(key, f"the results have no {error}")
    errors = {key: text for key, text in errors.items() if not text.startswith("nothing to compare")}
    if errors:
        warnings.append(f"left out: {', '.join(_PARTS[key] for key in errors)}; {next(iter(errors.values()))}")
    if "picture" in parts:
        shown.append(parts["picture"])
    template = Environment(autoescape=True, trim_blocks=False).from_string(
        (PACKAGE / "analysis" / "report.html").read_text(encoding="utf-8")
    )
    text = template.render(
        style=style(),
        name=name or "all runs",
        summary=_summary(runs, index),
        command=index.get("command"),
        warnings=warnings,
        pictures=shown,
        arms=_grid(parts["arms"]) if "arms" in parts else None,
        seeds=_grid(_seeds(runs)),
        paired=_grid(_paired(parts["paired"], arm_names(by_arm(runs)))) if "paired" in parts else None,
        runs=_runs(runs, out.parent),
        varying=_varying_note(runs),
        shared=json.dumps(_shared(runs), indent=2, sort_keys=True, ensure_ascii=False),
        episodes=_episodes(runs),
    )
    return write_text(out, text + "\n", errors="replace")


def markdown_summary(root: str | Path, name: str, index: Mapping[str, Any]) -> str:
    """The summary and the table of methods as Markdown, for the head of a W&B report."""
    runs = load_runs(root, index.get("run_ids"))
    try:
        table = markdown(results_table(runs))
    except (FigureError, ValueError) as error:
        table = str(error)
    return f"{_summary(runs, index)}\n\n`{index.get('command', '')}`\n\n{table}"


def _picture(path: Path) -> dict[str, str]:
    return {"name": path.stem, "data": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"}


def _figure(runs: pd.DataFrame) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        return _picture(win_rate_vs_budget(runs, folder))


def _stamps(runs: pd.DataFrame) -> list[dict[str, Any]]:
    return [read_json(Path(row["folder"]) / "stamp.json") for row in records(runs)]


def _lost(runs: pd.DataFrame, index: Mapping[str, Any]) -> list[str]:
    """The runs of a sweep that have no result: removed, or opened again by a run that was killed."""
    return list(runs.attrs.get("unfinished", [])) if "run_ids" in index else []


def without_result(runs: pd.DataFrame, index: Mapping[str, Any]) -> str | None:
    """A line about the runs of a sweep that have no result, or None. ``runs`` are the others."""
    if not (lost := _lost(runs, index)):
        return None
    which = "1 run of this sweep has" if len(lost) == 1 else f"{len(lost)} runs of this sweep have"
    return f"{which} no result: {', '.join(lost[:8])}{' …' * (len(lost) > 8)}; run the sweep again"


def _warnings(runs: pd.DataFrame, index: Mapping[str, Any]) -> list[str]:
    warnings = list(filter(None, [without_result(runs, index)]))
    if missing := list(index.get("missing", [])):
        warnings.append(f"{len(missing)} points are not finished: {', '.join(missing[:8])}{' …' * (len(missing) > 8)}")
    stamps = _stamps(runs)
    if dirty := sum(bool(stamp.get("dirty")) for stamp in stamps):
        warnings.append(f"{dirty} of {len(runs)} runs came from a checkout with uncommitted changes")
    if len(commits := {str(stamp.get("commit"))[:10] for stamp in stamps}) > 1:
        warnings.append(f"the runs come from {len(commits)} commits: {', '.join(sorted(commits))}")
    errors = pd.to_numeric(runs["errors"]).sum() if "errors" in runs else 0  # a run without the number counts as 0
    if errors > 0:
        warnings.append(f"{errors:.0f} test episodes ended in an infrastructure error; rates exclude them")
    return warnings


def _summary(runs: pd.DataFrame, index: Mapping[str, Any]) -> str:
    seeds, envs = runs["seed"].nunique(), ", ".join(sorted(set(runs["env"])))
    total = len(runs) + len(_lost(runs, index)) + len(index.get("missing", []))
    clock = [read_json(Path(row["folder"]) / "timing.json") for row in records(runs)]
    last = max(str(each.get("finished", "")) for each in clock)
    return f"{envs} · {len(runs)} of {total} runs finished · {seeds} seed{'s' * (seeds > 1)} · last run {last}"


def _number(value: Any, digits: int = 1, scale: float = 1.0) -> str:
    number = pd.to_numeric(value, errors="coerce")
    return "" if pd.isna(number) else f"{scale * float(number):,.{digits}f}"


def _grid(frame: pd.DataFrame) -> dict[str, Any] | None:
    """A frame for the template; numeric columns are aligned right."""
    if frame.empty:
        return None
    rows = [["" if pd.isna(value) else str(value) for value in row] for row in frame.to_numpy()]
    numeric = [all(cell.replace(",", "").lstrip("+−-.").replace(".", "", 1).isdigit() or not cell for cell in column)
               for column in zip(*rows, strict=True)]  # fmt: skip
    return {"heads": list(frame), "rows": rows, "numbers": {i for i, yes in enumerate(numeric) if yes}}


def _seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Win rates in %: a row per arm, environment and varying parameter, a column per seed, and their mean."""
    keys = varying(runs)
    rows: dict[tuple[str, ...], dict[Any, float]] = {}
    groups = by_arm(runs)
    names = arm_names(groups)
    for arm, group in groups.items():
        for row in records(group):
            key = (names[arm], row["env"], *(_short(row["config"].get(name)) for name in keys))
            rows.setdefault(key, {})[row["seed"]] = float(row.get("win_rate", math.nan))
    seeds = sorted(set(runs["seed"]))
    lines = []
    order = list(dict.fromkeys(key[0] for key in rows))
    for key, rates in sorted(rows.items(), key=lambda item: (order.index(item[0][0]), item[0])):
        cells = {f"seed {seed}": _number(rates.get(seed), 1, 100) for seed in seeds}
        mean = _number(pd.Series(rates).mean(), 1, 100)  # of the seeds with a win rate
        lines.append({**dict(zip(("method", "env", *keys), key, strict=True)), **cells, "mean": mean})
    return pd.DataFrame(lines)


def _paired(table: pd.DataFrame, names: Mapping[Arm, str]) -> pd.DataFrame:
    """Paired differences for reading; on the hard subtasks, or on each group of the environment's own."""
    parts = [str(name).removesuffix("_difference") for name in table if str(name).endswith("_difference")]
    lines = []
    for row in records(table):
        sides = [names[arm_of(row, start)] for start in ("", "against_")]
        ends = spread(row["low"], row["high"], "+.1f", 100)
        line = {"method": sides[0], "minus": sides[1], "difference": number(100 * row["difference"], "+.1f")}
        line |= {"95 % interval": ends, "p (Holm)": "" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.4f}"}
        line |= {"seeds": row["seeds"], "with a gain": row["gains"], "pairs": row["pairs"]}
        for part in parts:
            difference = row[f"{part}_difference"]
            line[f"on {part} subtasks"] = "" if pd.isna(difference) else number(100 * difference, "+.1f")
        lines.append({**line, "episodes": f"{row['episodes']:.0f} and {row['against_episodes']:.0f}"})
    return pd.DataFrame(lines)


def _varying_note(runs: pd.DataFrame) -> str:
    keys = varying(runs, all_names=True)
    return f"They differ in these parameters: {', '.join(keys)}." if keys else ""


def _short(value: Any) -> str:
    text = as_text(value)
    return text if len(text) < 60 else text[:57] + "…"


def _runs(runs: pd.DataFrame, folder_of_page: Path) -> dict[str, Any]:
    keys, rows = [key for key in varying(runs, all_names=True) if key not in ARM_COLUMNS], []
    groups = by_arm(runs)
    shown = arm_names(groups)
    names = {row["run_id"]: shown[arm] for arm, group in groups.items() for row in records(group)}
    for row in records(runs):
        folder = Path(row["folder"])
        stamp, clock = read_json(folder / "stamp.json"), read_json(folder / "timing.json")
        rows.append(
            {
                "id": row["run_id"],
                "link": Path(os.path.relpath(folder, folder_of_page.resolve())).as_posix(),
                "cells": [names[row["run_id"]], *(_short(row["config"].get(key)) for key in keys)],
                "win": _number(row.get("win_rate"), 1, 100),
                "reward": _number(row.get("mean_reward"), 3),
                "episodes": _number(row.get("episodes"), 0),
                "errors": _number(row.get("errors"), 0),
                "unreadable": _number(sum(row.get(name, math.nan) for name in problem_counts([])), 0),
                "seconds": _number(clock.get("seconds"), 0),
                "loss": _spark(read_rows(folder / "metrics.jsonl")),
                "commit": str(stamp.get("commit", "unknown"))[:10] + ("+" if stamp.get("dirty") else ""),
            }
        )
    return {"names": ["method", *keys], "rows": rows}


def _spark(metrics: list[dict[str, Any]]) -> Any:
    """A sparkline of the losses of the last stage that has any, and the last loss."""
    from markupsafe import Markup

    rows = [row for row in metrics if row.get("loss") is not None]
    losses = [float(row["loss"]) for row in rows if row.get("stage") == rows[-1].get("stage")]
    if len(losses) < 2:
        return ""
    drawn = losses[:: max(1, len(losses) // 60)]
    low, high = min(drawn), max(drawn)
    places = [(110 * i / (len(drawn) - 1), 2 + 16 * (high - y) / ((high - low) or 1)) for i, y in enumerate(drawn)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline fill="none" stroke="currentColor" stroke-width="1.2" points="{points}"/>'
    return Markup(f'<svg class="spark" width="110" height="20">{line}</svg> {losses[-1]:.3f}')


def _shared(runs: pd.DataFrame) -> dict[str, Any]:
    different = varying(runs, all_names=True)
    stamps = _stamps(runs)
    same = {key: value for key, value in stamps[0].items() if len({digest(each.get(key)) for each in stamps}) == 1}
    return {"config": {k: v for k, v in runs["config"].iloc[0].items() if k not in different}, "stamp": same}


def _episodes(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """From the first run of each arm: test episodes, half lost and half won, then some selected examples."""
    arms = []
    groups = by_arm(runs)
    names = arm_names(groups)
    for arm, group in groups.items():
        row = records(group.sort_values("seed"))[0]
        entries = [entry for stage in some(Path(row["folder"]), EPISODES, EPISODES // 2).values() for entry in stage]
        if entries:
            arms.append({"name": names[arm], "run": row["run_id"], "body": folded(entries)})
    return arms
