"""The paper's Figure 2: the navigation skills that won episodes use, per arm and for the experts.

The skills are those of the environment (:class:`eef.envs.extras.Skill`). The frames come from
:func:`eef.tracking.runs.load_runs`; episodes and experts' trajectories are read from the run folders.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.arms import (
    Arm,
    FigureError,
    arm_names,
    by_arm,
    comparable,
    read_episodes,
    read_stage,
    records,
    whole_numbers,
)
from eef.analysis.evaluate import results, skill_columns
from eef.analysis.figures import picture, subtitle_of
from eef.analysis.statistics import interval
from eef.analysis.tables import write_table
from eef.envs import ENVIRONMENTS
from eef.envs.extras import Skill, extras_of
from eef.trajectory import Trajectory

_HUES = {"rft": "#0072B2", "eef": "#D55E00", "expert": "#CC79A7"}


def navigation(runs: pd.DataFrame, out: str | Path) -> Path:
    """The paper's Figure 2: the share of won test episodes that use navigation skills; per arm, and for the experts.

    The main bar is of the environment's first skill, the thin bar of all its other skills together. Shares are over the
    wins of all seeds together (each win counts once; a seed without a win has no share of its own), with 95 % intervals
    over seeds. Each expert has one bar for its wins and one for its failures on the training subtasks. For an
    environment that :func:`eef.envs.make_env` cannot create, the skills are the columns of its ``episodes.csv``, and
    there are no bars for experts; a message says so.

    Writes PNG, SVG and the table behind them into ``out``; returns the PNG's path. ``navigation.csv`` has a row per
    bar: bar, method, experts, n, m, seeds, episodes (wins; failures in an expert's bar of failures), the first skill's
    name, ``other`` (the other skills), each with ``_low`` and ``_high``, and run_ids. Shares of no episodes are empty.

    :class:`FigureError` for an environment without skills, and for runs that are not comparable.
    """
    groups = by_arm(comparable(runs))
    episodes = {arm: read_episodes(group) for arm, group in groups.items()}
    env = str(runs["env"].iloc[0])
    labels = _labels(env, next(iter(episodes.values())))
    names = arm_names(groups)
    if env in ENVIRONMENTS:
        rows = _expert_rows(records(runs), extras_of(env).skills)
    else:
        print(f"navigation: no bars for experts, since the skills of {env!r} cannot be looked up by its name")
        rows = []
    for arm, group in groups.items():
        ids = " ".join(sorted(group["run_id"]))
        row = {"bar": names[arm], **arm._asdict(), "seeds": group["seed"].nunique()}
        rows.append({**row, **_shares(episodes[arm], list(labels), True), "run_ids": ids})
    table = whole_numbers(pd.DataFrame(rows))
    path = write_table(table, out, "navigation")
    subtitle = f"{subtitle_of(runs)} · 95 % t-intervals over seeds"
    wide = max(len(line) for bar in table["bar"] for line in _wrapped(bar).split("\n"))
    size, margins = (8, 1.6 + 0.4 * len(table)), (0.25 + 0.078 * wide, 1.6, 0.7, 0.9)
    with picture(out, "navigation", size, "Navigation skills in won episodes", subtitle, margins) as axes:
        _draw_bars(axes, table, labels)
    return path.with_suffix(".png")


def _labels(env: str, episodes: pd.DataFrame) -> dict[str, str]:
    """The label of each skill, by its name."""
    if env in ENVIRONMENTS:
        labels = {name: skill.label for name, skill in extras_of(env).skills.items()}
    else:
        labels = {name: name for name in skill_columns(episodes)}
    if not labels:
        raise FigureError(
            f"{env} has no navigation skills, so there is no Figure 2: add them as `skills` to its Extras"
        )
    return labels


def _shares(table: pd.DataFrame, skills: list[str], won: bool) -> dict[str, Any]:
    """The shares of won (or lost) episodes that use the first skill, and any other skill, with intervals."""
    main, *others = skills
    rated = table[~table["error"]]
    counted = rated["won"].astype(bool) == won
    shares: dict[str, Any] = {"episodes": int(counted.sum())}
    for name, used in ((main, rated[main]), ("other", rated[others].any(axis=1))):
        share = (math.nan,) * 3
        if counted.any():
            share = interval(rated.assign(share=used)[counted], value="share")
        shares |= dict(zip((name, f"{name}_low", f"{name}_high"), share, strict=True))
    return shares


def _expert_rows(rows: list[dict[str, Any]], skills: Mapping[str, Skill]) -> list[dict[str, Any]]:
    """The bars of each expert's wins and failures, from the runs' ``experts`` stages."""
    played: dict[str, dict[int, tuple[str, list[Trajectory]]]] = {}  # source -> seed -> run, trajectories
    read: set[Path] = set()
    for row in sorted(rows, key=lambda row: row["run_id"]):
        stage = (Path(row["folder"]) / "experts").resolve()
        if row["method"] == "ceiling" or stage in read:  # the ceiling has perfect demonstrations instead
            continue
        read.add(stage)
        trajectories = read_stage(row, "experts")
        for source in dict.fromkeys(t.source for t in trajectories):  # strong, and strong again in strong+weak
            own = (row["run_id"], [t for t in trajectories if t.source == source])
            played.setdefault(source, {}).setdefault(row["seed"], own)
    bars = []
    for source, seeds in sorted(played.items()):
        tables = [results(own, skills).assign(seed=seed) for seed, (_, own) in seeds.items()]
        table = pd.concat(tables, ignore_index=True)
        repeats = table.groupby(["seed", "task"]).cumcount().astype(str)
        table["task"] += "#" + repeats  # a file may hold several trajectories on one subtask
        name = f"expert {source}" if len(played) > 1 else "expert"
        for bar, won in ((f"{name}: wins", True), (f"{name}: failures", False)):
            row = {"bar": bar, **Arm("expert", source)._asdict(), "seeds": len(seeds)}
            run_ids = " ".join(sorted(run for run, _ in seeds.values()))
            bars.append({**row, **_shares(table, list(skills), won), "run_ids": run_ids})
    return bars


def _wrapped(label: str) -> str:
    return textwrap.fill(label, 34)


def _draw_bars(axes: Any, table: pd.DataFrame, labels: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    main, *others = labels
    thin = bool((table["other"] > 0).any())
    for y, row in enumerate(records(table)):
        hue = next((colour for name, colour in _HUES.items() if str(row["method"]).startswith(name)), "#777777")
        failures = row["bar"].endswith("failures")
        counted = f"{row['episodes']} {'failures' if failures else 'wins'}"
        if not row["episodes"]:
            axes.text(102, y, f"no {counted.split()[1]}", va="center", fontsize=8.5)
            continue
        bars = [(main, y - 0.09 * thin, 0.5, hue, 1.0), ("other", y + 0.28, 0.16, hue, 0.4)][: 1 + thin]
        for name, at, high, colour, alpha in bars:
            share, low, up = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
            hatch = "////" if failures and name == main else ""
            axes.barh(at, share, high, color=colour, alpha=alpha, hatch=hatch, edgecolor="white", linewidth=0, zorder=2)
            ends = [[max(0, share - low)], [max(0, up - share)]]
            grey, wide = ("#222222", 1.2) if name == main else ("#777777", 0.8)
            if pd.notna(low):
                axes.errorbar(share, at, xerr=ends, color=grey, elinewidth=wide, capsize=3 * wide - 1, zorder=3)
        text = f"{100 * row[main]:.0f} % of {counted}"
        axes.text(102, y, text, va="center", fontsize=8.5)
    axes.set_yticks(range(len(table)), [_wrapped(bar) for bar in table["bar"]])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    failed = " (for failures: of failed ones)" if (table["method"] == "expert").any() else ""
    axes.set_xlabel(f"share of won episodes{failed}, %")
    handles: list[Any] = [
        Patch(color="#555555", label=f"{labels[main]} used"),
        *([Patch(color="#555555", alpha=0.4, label=f"{' or '.join(labels[name] for name in others)} used")] * thin),
        Line2D([], [], color="#222222", linewidth=1.2, label="95 % t-interval over seeds"),
    ]
    place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.48 / (0.4 * len(table))), "borderaxespad": 0}
    axes.legend(handles=handles, ncols=3, frameon=False, fontsize=8.5, **place)
