"""Win rates over the values of one parameter of a sweep, such as an error rate of the expert.

The frames come from :func:`eef.tracking.runs.load_runs`.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.arms import FigureError, arm_names, by_arm, comparable, most_common_experts, records, reference_arm
from eef.analysis.difference_map import in_words, setting_at
from eef.analysis.drawing import Look, looks, marker_style, picture
from eef.analysis.figures import paired_differences, subtitle_of
from eef.analysis.statistics import over_seeds
from eef.analysis.tables import write_table


def win_rate_over_parameter(runs: pd.DataFrame, x: str, out: str | Path, x_label: str = "") -> Path:
    """Test win rate of each arm over a numeric parameter, and its difference from a reference on equal seeds.

    ``x`` is a dotted path into the runs' configuration, such as ``expert_noise.late``; ``x_label`` says in words what
    it is. The reference is RFT with the largest n, else behaviour cloning. Each marker is a mean over seeds with its
    95 % t-interval, each dot a run. Markers of different arms at one value are not moved.

    Writes PNG, SVG, PDF and the table behind them into ``out``; returns the PNG's path.
    ``win_rate_over_parameter.csv`` has a row per run: x, method, experts, n, m, seed, win_rate (a fraction),
    ``difference`` (from the reference's run of this seed and value; empty for the reference), x_name, run_id.
    :class:`FigureError` for values that are not numbers, and where the runs cannot be compared.
    """
    values = [setting_at(row, x) for row in records(comparable(runs))]
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        raise FigureError(f"{x!r} has values that are not numbers ({values[0]!r}): choose a parameter with numbers")
    rows = []
    for value, part in runs.assign(x=values).groupby("x"):
        groups = by_arm(part)
        reference = reference_arm(groups, most_common_experts(groups))
        gains = paired_differences(part, reference) if reference else {}
        for arm, group in groups.items():
            gain = gains.get(arm, pd.Series(dtype=float))
            for row in records(group):
                numbers = {"seed": row["seed"], "win_rate": row["win_rate"], "difference": gain.get(row["seed"])}
                rows.append({"x": value, **arm._asdict(), **numbers, "x_name": x, "run_id": row["run_id"]})
    table = pd.DataFrame(rows).dropna(axis=1, how="all").sort_values(["x", "run_id"], ignore_index=True)
    path = write_table(table, out, "win_rate_over_parameter")
    subtitle = f"{subtitle_of(runs)} · small dots: single seeds · 95 % t-intervals over seeds"
    margins, label = (0.55, 0.15, 0.6, 0.95), x_label or in_words(x)
    with picture(out, path.stem, 4.0, "Win rate over a parameter", subtitle, margins, (1, 1), 0.75) as panels:
        _draw_panel(panels[0], table, "win_rate", "test win rate (%)")
        panels[0].set_ylim(0, 105 * table["win_rate"].max())
        panels[0].legend(frameon=False, fontsize=7, ncols=3, loc="upper left", bbox_to_anchor=(-0.05, -0.22))
        if "difference" in table:
            groups = by_arm(table)
            reference = reference_arm(groups, most_common_experts(groups))
            against = arm_names([reference])[reference] if reference else ""
            _draw_panel(panels[1], table.dropna(subset=["difference"]), "difference", f"minus {against}, points")
            panels[1].axhline(0, color="#222222", linewidth=0.9, zorder=2)
        for axes in panels:
            axes.set_xlabel(textwrap.fill(label, 44))
            axes.set_xticks(sorted(table["x"].unique()))
    return path.with_suffix(".png")


def _draw_panel(axes: Any, table: pd.DataFrame, column: str, label: str) -> None:
    """A line per arm over x: means of ``column`` (a fraction) in %, with intervals, and a dot per run."""
    groups = by_arm(table)
    names, shown = arm_names(groups), looks(groups)
    for number, (arm, group) in enumerate(groups.items()):
        _draw_line(axes, group, column, shown[arm], names[arm], 2 + 1.5 * (number % 4))
    axes.set_ylabel(label)


def _draw_line(axes: Any, group: pd.DataFrame, column: str, look: Look, name: str, cap: float) -> None:
    means = {value: [100 * end for end in over_seeds(part[column])] for value, part in group.groupby("x")}
    y = [mean for mean, _, _ in means.values()]
    ends = [[mean - low for mean, low, _ in means.values()], [high - mean for mean, _, high in means.values()]]
    axes.scatter(group["x"], 100 * group[column], s=7, color=look.colour, alpha=0.4, linewidths=0, zorder=2.5)
    axes.errorbar(
        [*means], y, yerr=None if any(map(math.isnan, ends[0])) else ends, linestyle=look.line, linewidth=1.4,
        elinewidth=1, capsize=cap, capthick=1, label=name, zorder=3, **marker_style(look),
    )  # fmt: skip
