"""The paper's Figure 3 and learning curves.

Each picture is written as PNG, SVG and PDF into a folder, with the table behind it (CSV). The frames come from
:func:`eef.tracking.runs.load_runs`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.arms import (
    Arm,
    FigureError,
    arm_names,
    arm_of,
    arm_table,
    by_arm,
    comparable,
    is_ablation,
    line_name,
    method_name,
    most_common_experts,
    records,
    reference_arm,
    run_table,
)
from eef.analysis.drawing import (
    CLIPPED,
    LEAST_SEEDS,
    LINES,
    LOOKS,
    Look,
    draw_dots,
    looks,
    mark_clipped,
    marker_style,
    picture,
)
from eef.analysis.labels import Label, place_labels
from eef.analysis.statistics import over_seeds
from eef.analysis.tables import write_table
from eef.files import read_rows

_APART = 0.05  # inches, of a marker and its dots from the middle of their row
_ROW = 0.235  # inches, of an arm in the panel of differences
_LINE = 0.165  # inches, of the legend
_MOST_LINES = 12  # of the panel of win rates; with more, it leaves out ablations


def win_rate_vs_budget(runs: pd.DataFrame, out: str | Path) -> Path:
    """The paper's Figure 3: test win rate against simulated episodes, RFT over N and EEF over M for each expert set.

    Each arm is a marker at its mean number of simulated episodes, with its 95 % t-interval over seeds, and each run is
    a small open marker at its own number. Arms without simulations are horizontal lines that begin at 0 episodes. With
    two seeds there are no intervals, but the runs. If two runs or more share a seed with the reference, a second panel
    shows the differences from it on equal seeds (:func:`paired_differences`). Points are never moved. With more than 12
    lines and a second panel, the first one has the lines of the paper's Figure 3 alone: behaviour cloning, RFT, EEF
    and the ceiling, on the most common experts.

    Writes PNG, SVG, PDF and the table behind them (CSV, a row per run) into the folder ``out``; returns the PNG's path.
    """
    arms = arm_table(comparable(runs))
    arms.loc[arms["seeds"] < LEAST_SEEDS, ["win_low", "win_high"]] = math.nan
    groups = by_arm(runs)
    path = write_table(run_table(runs), out, "win_rate_vs_budget")
    usual = most_common_experts(groups)
    reference = reference_arm(groups, usual)
    differences = paired_differences(runs, reference) if reference else {}
    two = any(len(values) > 1 for values in differences.values())
    names = arm_names(groups, usual)
    wrapped = {arm: textwrap.wrap(name, 25) for arm, name in names.items()}
    subtitle = _subtitle(runs, arms)
    if two and len(_lines(arms)) > _MOST_LINES:
        plain = arms["method"].isin(["sft_pos", "rft", "eef"]) & (arms["experts"] == usual)
        arms = arms[(plain & arms.get("k", pd.Series(index=arms.index)).isna()) | (arms["method"] == "ceiling")]
        subtitle += " · left panel: BC, RFT, EEF, ceiling"
    subtitle += f" · experts: {usual} where not named" if "experts:" in " ".join(names.values()) else ""
    legend = _LINE * math.ceil(len(_lines(arms)) / 3)
    rows = sum(0.6 + 0.4 * len(wrapped[arm]) for arm in differences) if two else 0
    top = 0.65 if "\n" in subtitle else 0.52
    high = max(3.1, _ROW * rows) + top + 0.6 + legend
    margins = (0.55, 0.2, top, 0.6 + legend)
    panels, gap = ((2.85, 1.5), 1.6) if two else ((1,), 0)
    title = "Win rate against simulation budget"
    with picture(out, path.stem, high, title, subtitle, margins, panels, gap) as drawn:
        _draw_rates(drawn[0] if two else drawn, arms, groups, names, high)
        if two and reference:
            _draw_differences(drawn[1], differences, reference, {arm: "\n".join(own) for arm, own in wrapped.items()})
    return path.with_suffix(".png")


def paired_differences(runs: pd.DataFrame, reference: Arm) -> dict[Arm, pd.Series]:
    """For each other arm that shares a seed with ``reference``: its win rate minus the reference's, by seed.

    Win rates are those of whole runs (``win_rate``, a fraction). Where episodes ended in an infrastructure error,
    :func:`eef.analysis.tables.paired_table` also leaves out the other arm's episode on the same subtask.
    """
    groups = by_arm(runs)
    rates = {arm: pd.to_numeric(group.set_index("seed")["win_rate"]) for arm, group in groups.items()}
    gains = {arm: (own - rates[reference]).dropna().sort_index() for arm, own in rates.items() if arm != reference}
    return {arm: gain for arm, gain in gains.items() if len(gain)}


def subtitle_of(runs: pd.DataFrame) -> str:
    """The environment, the number of seeds and of test tasks."""
    seeds, tasks = runs["seed"].nunique(), pd.to_numeric(runs["n_test"])
    counts = " to ".join(dict.fromkeys(f"{count:.0f}" for count in (tasks.min(), tasks.max())))
    return f"{runs['env'].iloc[0]} · {seeds} seed{'s' * (seeds > 1)} · {counts} test tasks"


def _subtitle(runs: pd.DataFrame, arms: pd.DataFrame) -> str:
    half = 50 * (arms["win_high"] - arms["win_low"])
    if half.isna().all():
        few = "one seed per method" if arms["seeds"].max() < 2 else f"fewer than {LEAST_SEEDS} seeds per method"
        return f"{subtitle_of(runs)} · no intervals: {few}" + "\nsmall open markers: single seeds" * ("few" in few)
    widths = " to ".join(dict.fromkeys(f"±{width:.1f}" for width in (half.min(), half.max())))
    about = f"{subtitle_of(runs)} · small open markers: single seeds\n95 % t-intervals over seeds: {widths} points"
    return about + f" · {CLIPPED}" * bool((arms["win_high"] > 1.04).any() or (arms["win_low"] < 0).any())


def _lines(arms: pd.DataFrame) -> list[list[dict[str, Any]]]:
    """The arms, in lists of those that a line joins: of one method, one expert set and one K, by budget."""
    joined: dict[Any, list[dict[str, Any]]] = {}
    order = {arm: place for place, arm in enumerate(by_arm(arms))}
    for row in sorted(records(arms), key=lambda row: order[arm_of(row)]):
        arm = arm_of(row)
        key = arm if _without_simulations(row) else (arm.method, arm.experts, arm.k)
        joined.setdefault(key, []).append(row)
    return [sorted(rows, key=lambda row: row["episodes"]) for rows in joined.values()]


def _without_simulations(row: dict[str, Any]) -> bool:
    return row["method"] == "ceiling" or not row["episodes"] > 0  # also where it is unknown


def _draw_rates(
    axes: Any, arms: pd.DataFrame, groups: dict[Arm, pd.DataFrame], names: dict[Arm, str], high: float
) -> None:
    from matplotlib.lines import Line2D

    shown, lines = looks(groups), _lines(arms)
    handles, labels = [], []
    right = max([1.0, *pd.to_numeric(arms.loc[arms["method"] != "ceiling", "episodes"]).dropna()])
    rates = [pd.to_numeric(groups[arm_of(row)]["win_rate"]).max() for row in records(arms)]
    top = min(104.0, 108 * max([*arms["win_high"].dropna(), *rates]) + 1)
    above = [row for rows in lines for row in rows]  # what is drawn later than the line
    for rows in lines:
        above = above[len(rows) :]
        arm = arm_of(rows[0])
        look, level = shown[arm], _without_simulations(rows[0])
        style = marker_style(look, 5 if is_ablation(arm.method) else 6.5)  # at equal points both stay visible
        x = [_place_of(row) for row in rows]
        y = [100 * row["win_rate"] for row in rows]
        if level:
            axes.axhline(y[0], color=look.colour, linestyle=look.line, linewidth=0.8, zorder=2)
        for row in rows:
            runs = groups[arm_of(row)]
            if len(runs) > 1:
                spent = pd.to_numeric(runs["episodes"]).fillna(0) * (not level)
                rate = 100 * pd.to_numeric(runs["win_rate"])
                draw_dots(axes, spent, rate, look)
            if not math.isnan(row["win_low"]):
                _draw_interval(axes, row, [other for other in above if _near(row, other, right)], look.colour, top)
        axes.plot(x, y, linestyle=look.line, linewidth=1.4, zorder=3 + (not level), **style)
        name = _line_label(rows, names)
        handles.append(Line2D([], [], linestyle=look.line, linewidth=0.8 if level else 1.4, label=name, **style))
        letters = [letter for letter in ("n", "m") if len({row[letter] for row in rows if pd.notna(row[letter])}) > 1]
        for place, row in enumerate(rows):
            text = ", ".join(f"{each.upper()}={row[each]:.0f}" for each in letters if pd.notna(row[each]))
            if text or level:
                labels.append(Label(text or _short(arm, look), x[place], y[place], look.colour))
    axes.set_xlim(-0.03 * right, 1.07 * right)
    axes.set_ylim(0, top)
    axes.set_xlabel("simulated episodes")
    axes.set_ylabel("test win rate (%)")
    place_labels(axes, labels)
    figure = axes.figure
    axes.legend(
        handles=handles, ncols=3, frameon=False, fontsize=7, loc="lower left", borderaxespad=0, columnspacing=1.2,
        bbox_to_anchor=(0.08 / figure.get_figwidth(), 0.05 / high), bbox_transform=figure.transFigure,
    )  # fmt: skip


def _place_of(row: dict[str, Any]) -> float:
    return 0.0 if _without_simulations(row) else row["episodes"]


def _near(row: dict[str, Any], other: dict[str, Any], right: float) -> bool:
    """Whether the intervals of two arms lie over each other."""
    same_place = abs(_place_of(row) - _place_of(other)) < 0.01 * right
    return same_place and row["win_low"] < other["win_high"] and other["win_low"] < row["win_high"]


def _draw_interval(axes: Any, row: dict[str, Any], above: Sequence[Any], colour: str, top: float) -> None:
    """The interval of an arm. It is wider where others are drawn over it, so that all can be seen."""
    low, mean, high = (100 * row[name] for name in ("win_low", "win_rate", "win_high"))
    axes.errorbar(
        [_place_of(row)], [mean], yerr=[[mean - low], [high - mean]], fmt="none", ecolor=colour, capthick=1,
        elinewidth=1 + 1.4 * min(len(above), 3), capsize=2 + 1.5 * min(len(above), 3), zorder=2.8,
    )  # fmt: skip
    mark_clipped(axes, _place_of(row), low, high, (0, top), colour, False)


def _line_label(rows: Sequence[dict[str, Any]], names: dict[Arm, str]) -> str:
    """The legend's name of a line: of its arm if it has one, else without the number that varies."""
    each = [arm_of(row) for row in rows]
    if len(each) == 1:
        return line_name(each) if each[0].method == "ceiling" else names[each[0]]
    experts = f", experts: {each[0].experts}" if "experts:" in names[each[0]] else ""
    return line_name(each) + experts


def _short(arm: Arm, look: Look) -> str:
    """A method's name without brackets and explanations, with its experts where it is not the first of its method."""
    name = method_name(arm.method).split(":")[0].split(" (")[0]
    return name if look.fill == "full" else f"{name}, {arm.experts}"


def _draw_differences(axes: Any, gains: dict[Arm, pd.Series], reference: Arm, names: dict[Arm, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    shown = looks([reference, *gains])
    heights = [0.6 + 0.4 * (1 + names[arm].count("\n")) for arm in gains]
    places, at = [], 0.0
    for height in heights:
        places.append(at + height / 2)
        at += height
    inch = at / (axes.get_position().height * axes.figure.get_figheight())  # in rows
    ends = {}
    for y, (arm, gain) in zip(places, gains.items(), strict=True):
        look = shown[arm]
        mean, low, high = (100 * end for end in over_seeds(gain))
        low, high = (low, high) if len(gain) >= LEAST_SEEDS else (math.nan, math.nan)
        ends[arm] = y - _APART * inch, low, high
        draw_dots(axes, 100 * gain, [y + _APART * inch] * len(gain), look)
        bars = None if math.isnan(low) else [[mean - low], [high - mean]]
        style = marker_style(look, 5)
        axes.errorbar([mean], [y - _APART * inch], xerr=bars, elinewidth=1, capsize=2, zorder=4, linestyle="", **style)
    axes.axvline(0, color="#222222", linewidth=0.9, zorder=2)
    axes.set_yticks(places, [names[arm] for arm in gains], fontsize=7)
    axes.set_ylim(at, 0)
    low, high = axes.get_xlim()
    limits = max(low, -100), min(high, 100)  # no difference lies beyond, only an interval of few seeds
    axes.set_xlim(limits)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10]))
    for arm, (y, low, high) in ends.items():
        mark_clipped(axes, y, low, high, limits, shown[arm].colour, True)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("\n".join(textwrap.wrap(f"minus {names[reference]}, points".replace("\n", " "), 26)))


def learning_curves(runs: pd.DataFrame, out: str | Path) -> Path:
    """Training loss against steps, a line per training stage of each run, from the runs' ``metrics.jsonl``.

    Runs that share a stage (behaviour cloning) share its line; colours are methods, and line styles tell arms of one
    method apart. Writes PNG, SVG, PDF and the table behind them into ``out`` (``learning_curves.csv``: arm, stage,
    seed, step, epoch, loss, run_id) and returns the PNG's path. :class:`FigureError` if no run logged a loss.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    lines: list[dict[str, Any]] = []
    seen: set[Any] = set()
    groups = by_arm(runs)
    names, shown = arm_names(groups), looks(groups)
    styles: dict[str, tuple[str, Any]] = {}  # name -> colour and line style
    bc = (LOOKS["sft_pos"].colour, "-")
    dashes = {
        arm: LINES[[other for other in groups if other.method == arm.method].index(arm) % len(LINES)] for arm in groups
    }
    for arm, group in groups.items():
        for row in records(group):
            folder = Path(row["folder"])
            for metric in read_rows(folder / "metrics.jsonl"):
                key = (folder / metric["stage"]).resolve()
                if metric.get("loss") is None or (key in seen and (key, row["run_id"]) not in seen):
                    continue
                seen |= {key, (key, row["run_id"])}
                name = "BC, shared" if metric["stage"] == "bc" else names[arm]
                styles[name] = bc if metric["stage"] == "bc" else (shown[arm].colour, dashes[arm])
                about = {"arm": name, "stage": metric["stage"], "seed": row["seed"]}
                lines.append({**about, **{k: metric[k] for k in ("step", "epoch", "loss")}, "run_id": row["run_id"]})
    if not lines:
        raise FigureError("none of these runs logged a training loss in its metrics.jsonl: train one, see `eef runs`")
    table = pd.DataFrame(lines)
    path = write_table(table, out, "learning_curves")
    seeds = table["seed"].nunique()
    subtitle = f"{runs['env'].iloc[0]} · {seeds} seed{'s' * (seeds > 1)} · mean loss per trained token"
    with picture(out, "learning_curves", 4.2, "Learning curves", subtitle, (0.65, 0.1, 0.55, 0.5)) as axes:
        for _, line in table.groupby(["arm", "stage", "seed", "run_id"], sort=False):
            name = line["arm"].iloc[0]
            colour, dash = styles[name]
            axes.plot(line["step"], line["loss"], color=colour, linestyle=dash, linewidth=1, label=name)
        handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("optimisation step")
        axes.set_ylabel("loss")
        axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=7)
    return path.with_suffix(".png")
