"""The paper's Figure 2: the navigation skills that won episodes use, per arm and for the experts.

The skills are those of the environment (:class:`eef.envs.extras.Skill`). The frames come from
:func:`eef.tracking.runs.load_runs`; episodes and experts' trajectories are read from the run folders.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.arms import (
    Arm,
    FigureError,
    arm_names,
    by_arm,
    comparable,
    most_common_experts,
    read_episodes,
    read_stage,
    records,
    whole_numbers,
)
from eef.analysis.drawing import CLIPPED, LEAST_SEEDS, LOOKS, looks, mark_clipped, percent, picture
from eef.analysis.evaluate import results, skill_columns
from eef.analysis.figures import subtitle_of
from eef.analysis.statistics import interval
from eef.analysis.tables import write_table
from eef.envs import ENVIRONMENTS
from eef.envs.extras import Skill, extras_of
from eef.trajectory import Trajectory

_CONTROLS = ("eef_restart_only=True", "eef_random_segments=True")


def navigation(runs: pd.DataFrame, out: str | Path, most: int = 6) -> Path:
    """The paper's Figure 2: the share of won test episodes that use navigation skills; per arm, and for the experts.

    The left panel is of the environment's first skill (WebShop: Next), the right one of all its other skills together
    (Prev or Back to Search). Shares are over the wins of all seeds together (each win counts once; a seed without a win
    has no share of its own), with 95 % t-intervals over seeds; dots are single seeds. Each expert has one bar for its
    wins and one for its failures on the training subtasks; an expert file, which is the same for all seeds, has no
    interval. Of the arms, ``most`` are drawn (:func:`drawn_arms`). For an
    environment that :func:`eef.envs.make_env` cannot create, the skills are the columns of its ``episodes.csv``, and
    there are no bars for experts; a message says so.

    Writes PNG, SVG, PDF and the table behind them into ``out``; returns the PNG's path. ``navigation.csv`` has a row
    for each arm, also for those that are not drawn: bar, method, experts, n, m, seeds, episodes (wins; failures in an
    expert's bar of failures), the first skill's name, ``other`` (the other skills), each with ``_low`` and ``_high``,
    and run_ids. Shares of no episodes are empty.

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
    table = whole_numbers(pd.DataFrame([{k: v for k, v in row.items() if k != "by_seed"} for row in rows]))
    path = write_table(table, out, "navigation")
    chosen = [names[arm] for arm in drawn_arms(groups, most_common_experts(groups), most)]
    shown = [row for row in rows if row["method"] == "expert" or row["bar"] in chosen]
    omitted = len(rows) - len(shown)
    subtitle = f"{subtitle_of(runs)} · bars: all wins together · 95 % t-intervals over seeds · small dots: single seeds"
    ends = [row[f"{name}_{end}"] for row in shown for name in _panels(labels) for end in ("low", "high")]
    subtitle += f"\n{CLIPPED}" if any(end < 0 or end > 1 for end in ends) else ""
    subtitle += f"\nnavigation.csv has {omitted} more arm{'s' * (omitted > 1)}" if omitted else ""
    more = 0.13 * subtitle.count("\n")
    high, top = 1.1 + 0.34 * len(shown) + more, 0.7 + more
    panels = [(name, label) for name, label in _panels(labels).items()]
    margins = (1.75, 0.15, top, 0.45)
    title = "Navigation skills in won episodes"
    with picture(out, path.stem, high, title, subtitle, margins, [1] * len(panels), 0.25) as axes:
        colours = {names[arm]: look.colour for arm, look in looks(groups).items()}
        for place, (name, label) in enumerate(panels):
            _draw_bars(axes[place] if len(panels) > 1 else axes, shown, name, label, colours, not place)
    return path.with_suffix(".png")


def drawn_arms(arms: Iterable[Arm], experts: str, most: int = 6) -> list[Arm]:
    """The arms that Figure 2 draws, at most ``most``, in the order of ``arms``.

    First behaviour cloning, RFT with the largest n, EEF with the largest m, its two controls (no loss on expert
    actions, random segments) with the same m, and the ceiling, each on ``experts`` if there are several. Then the
    others in their order, those on ``experts`` first.
    """
    arms = list(arms)
    first: list[Arm] = []
    for method in ("sft_pos", "rft", "eef", *_CONTROLS, "ceiling"):
        if own := [arm for arm in arms if arm.method == method]:
            best = {arm: (arm.k is None, arm.m or arm.n or 0, arm.experts == experts) for arm in own}
            first.append(max(own, key=lambda arm: best[arm]))
    others = [arm for arm in arms if arm not in first]
    chosen = [*first, *sorted(others, key=lambda arm: arm.experts != experts)][:most]
    return [arm for arm in arms if arm in chosen]


def _panels(labels: Mapping[str, str]) -> dict[str, str]:
    """The columns that are drawn, with their labels: the first skill, and the others together if there are any."""
    main, *others = labels
    return {main: labels[main]} | ({"other": " or ".join(labels[name] for name in others)} if others else {})


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
    shares: dict[str, Any] = {"episodes": int(counted.sum()), "by_seed": {}}
    for name, used in ((main, rated[main]), ("other", rated[others].any(axis=1))):
        share = (math.nan,) * 3
        if counted.any():
            share = interval(rated.assign(share=used)[counted], value="share")
            shares["by_seed"][name] = used[counted].groupby(rated["seed"][counted]).mean().tolist()
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
            own = [t for t in trajectories if t.source == source]
            earlier = played.setdefault(source, {})
            if all(own != known for _, known in earlier.values()):  # a file is the same for all seeds: counted once
                earlier.setdefault(row["seed"], (row["run_id"], own))
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


def _draw_bars(
    axes: Any, rows: list[dict[str, Any]], name: str, label: str, colours: Mapping[str, str], with_names: bool
) -> None:
    """One panel: a bar for each row, with its interval, its seeds and its number."""
    names = []
    for y, row in enumerate(rows):
        colour = colours.get(row["bar"], LOOKS["expert"].colour)
        failures = row["bar"].endswith("failures")
        counted = "failures" if failures else "wins"
        name_of_bar = re.sub(": (wins|failures|SFT on .*)$", "", row["bar"])
        names.append(textwrap.fill(f"{name_of_bar} ({row['episodes']:,}\N{NO-BREAK SPACE}{counted})", 30))
        if not row["episodes"]:
            axes.text(1, y, f"no {counted}", va="center", fontsize=7)
            continue
        share, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
        axes.barh(
            y, share, 0.62, color=colour, hatch="////" if failures else "", edgecolor="white", linewidth=0, zorder=2
        )
        seeds = [100 * each for each in row["by_seed"][name]]
        right = share
        if pd.notna(low) and row["seeds"] >= LEAST_SEEDS:
            mark_clipped(axes, y, low, high, (0, 100), "#222222", True)
            low, high = max(0.0, low), min(100.0, high)
            for colour, wide in (("white", 2.4), ("#222222", 1)):  # a white edge, to be seen on dark bars
                ends = [[share - low], [high - share]]
                axes.errorbar(share, y, xerr=ends, color=colour, elinewidth=wide, capthick=wide, capsize=2.5, zorder=4)
            right = max(right, high)
        if len(seeds) > 1:
            style = {"color": "white", "edgecolors": "#222222", "linewidths": 0.5, "clip_on": False}
            axes.scatter(seeds, [y + 0.2] * len(seeds), s=9, zorder=3, **style)
            right = max([right, *seeds])
        axes.text(right + 3, y, percent(share / 100), va="center", fontsize=7, gid="share")
    axes.set_yticks(range(len(rows)), names if with_names else [""] * len(rows), fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 118)  # room for the number of a bar of 100 %
    axes.set_xticks(range(0, 101, 25))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("\n".join(textwrap.wrap(label, 40)), fontsize=8.5, loc="left", weight="bold", pad=4)
    axes.set_xlabel("share that uses it (%)")
