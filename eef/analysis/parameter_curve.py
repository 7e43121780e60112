"""Win rates over the values of one parameter of a sweep, such as an error rate of the expert.

The frames come from :func:`eef.tracking.runs.load_runs`.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.arms import (
    Arm,
    FigureError,
    arm_name,
    arm_names,
    by_arm,
    check_one_run_per_seed,
    comparable,
    most_common_experts,
    records,
    reference_arm,
)
from eef.analysis.difference_map import in_words, setting_at
from eef.analysis.drawing import LEAST_SEEDS, Look, draw_dots, looks, marker_style, picture
from eef.analysis.figures import paired_differences, subtitle_of
from eef.analysis.statistics import over_seeds
from eef.analysis.tables import write_table

STEM = "win_rate_over_parameter"


def win_rate_over_parameter(runs: pd.DataFrame, x: str, out: str | Path, x_label: str = "") -> Path:
    """Test win rate of each arm over a numeric parameter, and its difference from a reference on equal seeds.

    ``x`` is a dotted path into the runs' configuration, such as ``expert_noise.late``; ``x_label`` says in words what
    it is. The reference is RFT with the largest n, else behaviour cloning, and the same at all values. Each marker is a
    mean over seeds with its 95 % t-interval (none with two seeds), each small open marker a run. Markers of different
    arms at one value are not moved: the first arm has the largest ones and the widest lines. An arm that ran at one
    ``temperature`` alone is also a horizontal line, and the right panel compares it with the reference at all of them.

    Writes PNG, SVG, PDF and the table behind them into ``out``; returns the PNG's path.
    ``win_rate_over_parameter.csv`` has a row per run: x, method, experts, n, m, seed, win_rate (a fraction),
    ``difference`` (from the reference's run of this seed and value; empty for the reference), x_name, run_id.
    :class:`FigureError` for values that are not numbers, where the runs cannot be compared, for two runs of one arm,
    seed and value, and where a value has no run of the reference.
    """
    values = [setting_at(row, x) for row in records(comparable(runs))]
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        raise FigureError(f"{x!r} has values that are not numbers ({values[0]!r}): choose a parameter with numbers")
    rows = []
    groups = by_arm(runs)
    reference = reference_arm(groups, most_common_experts(groups))
    for value, part in runs.assign(x=values).groupby("x"):
        groups = by_arm(part)
        for group in groups.values():
            check_one_run_per_seed(group)
        if reference and reference not in groups:
            raise FigureError(
                f"{x} = {value} has no run of {arm_name(reference, True)}, which the differences at the other values "
                "are from: run it there too, or leave it out everywhere"
            )
        gains = paired_differences(part, reference) if reference else {}
        for arm, group in groups.items():
            gain = gains.get(arm, pd.Series(dtype=float))
            for row in records(group):
                numbers = {"seed": row["seed"], "win_rate": row["win_rate"], "difference": gain.get(row["seed"])}
                rows.append({"x": value, **arm._asdict(), **numbers, "x_name": x, "run_id": row["run_id"]})
    table = pd.DataFrame(rows).dropna(axis=1, how="all").sort_values(["x", "run_id"], ignore_index=True)
    write_table(table, out, STEM)
    return draw_curve(table, subtitle_of(runs), out, x_label)


def draw_curve(table: pd.DataFrame, about: str, out: str | Path, x_label: str = "") -> Path:
    """Draw the table of :func:`win_rate_over_parameter`; ``about`` is the first part of the subtitle."""
    name = in_words(table["x_name"].iloc[0])
    subtitle = f"{about} · small open markers: single seeds · 95 % t-intervals over seeds"
    margins, label = (0.55, 0.15, 0.6, 0.95), x_label or name
    shown = looks(by_arm(table))
    with picture(out, STEM, 4.0, f"Test win rate over {name}", subtitle, margins, (1, 1), 0.75) as panels:
        _draw_panel(panels[0], table, "win_rate", "test win rate (%)")
        for arm, group in _at_one_value(table).items():
            panels[0].axhline(100 * group["win_rate"].mean(), color=shown[arm].colour, linewidth=0.9, zorder=1)
        panels[0].set_ylim(max(0, panels[0].get_ylim()[0]))  # from the smallest value: a line needs no zero
        panels[0].legend(frameon=False, fontsize=7, ncols=3, loc="upper left", bbox_to_anchor=(-0.05, -0.22))
        if "difference" in table:
            groups = by_arm(table)
            reference = reference_arm(groups, most_common_experts(groups))
            assert reference  # there are differences from it
            against = arm_names([reference])[reference]
            differences = _at_all_values(table, groups[reference]).dropna(subset=["difference"])
            _draw_panel(panels[1], differences, "difference", f"minus {against}, points")
            panels[1].axhline(0, color="#222222", linewidth=0.9, zorder=2)
        for axes in panels:
            axes.set_xlabel(textwrap.fill(label, 44))
            axes.set_xticks(sorted(table["x"].unique()))
    return Path(out) / f"{STEM}.png"


def _at_one_value(table: pd.DataFrame) -> dict[Arm, pd.DataFrame]:
    """The rows of each arm that ran at one of several temperatures; other parameters may change the task."""
    varied = table["x"].nunique() > 1 and table["x_name"].iloc[0] == "temperature"
    groups = by_arm(table) if varied else {}
    return {arm: group for arm, group in groups.items() if group["x"].nunique() == 1}


def _at_all_values(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """``table`` with the rows of :func:`_at_one_value` at all other values too, compared with ``reference`` there."""
    rates, parts = reference.set_index(["x", "seed"])["win_rate"], [table]
    for group in _at_one_value(table).values():
        for value in set(table["x"]) - set(group["x"]):
            parts.append(group.assign(x=value, difference=group["win_rate"] - group["seed"].map(rates.loc[value])))
    return pd.concat(parts)


def _draw_panel(axes: Any, table: pd.DataFrame, column: str, label: str) -> None:
    """A line per arm over x: means of ``column`` (a fraction) in %, with intervals, and a dot per run."""
    groups = by_arm(table)
    names, shown = arm_names(groups), looks(groups)
    for number, (arm, group) in enumerate(groups.items()):
        _draw_line(axes, group, column, shown[arm], names[arm], min(1, 3 / len(groups)) * (len(groups) - 1 - number))
    axes.set_ylabel(label)


def _draw_line(axes: Any, group: pd.DataFrame, column: str, look: Look, name: str, above: float) -> None:
    """``above``: how many lines are drawn over this one, which is wider for it."""
    means = {value: [100 * end for end in over_seeds(part[column])] for value, part in group.groupby("x")}
    few = group.groupby("x").size() < LEAST_SEEDS
    y = [mean for mean, _, _ in means.values()]
    ends = [[math.nan if few[x] else mean - low for x, (mean, low, _) in means.items()],
            [math.nan if few[x] else high - mean for x, (mean, _, high) in means.items()]]  # fmt: skip
    draw_dots(axes, group["x"], 100 * group[column], look)
    axes.errorbar(
        [*means], y, yerr=None if all(map(math.isnan, ends[0])) else ends, linestyle=look.line,
        linewidth=1.2 + 0.5 * above, elinewidth=1 + 0.9 * above, capsize=2 + 1.5 * above, capthick=1, label=name,
        zorder=3, **marker_style(look, 4 + 2.6 * above),
    )  # fmt: skip
