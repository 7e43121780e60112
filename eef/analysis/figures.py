"""The paper's Figure 3, learning curves, and the frame that all pictures share.

Each picture is written as PNG and SVG into a folder, with the table behind it (CSV). The frames come from
:func:`eef.tracking.runs.load_runs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.arms import (
    FigureError,
    arm_names,
    arm_of,
    arm_table,
    by_arm,
    comparable,
    is_ablation,
    line_name,
    records,
    run_table,
)
from eef.analysis.tables import write_table
from eef.files import disk_errors, read_rows

# Okabe and Ito's colours, distinct for colour-blind readers; markers differ too.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]
_MARKERS = ["o", "s", "^", "D", "v", "P"]
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.hashsalt": "eef",
    "text.parse_math": False,  # prices have dollar signs
}


@contextmanager
def picture(
    out: str | Path, stem: str, size: tuple[float, float], title: str, subtitle: str, margins: Sequence[float] = ()
) -> Iterator[Any]:
    """Axes to draw on, in a figure of ``size`` inches; the figure is written as PNG (200 dpi) and SVG after the block.

    ``margins``: left, right, top and bottom, in inches.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (wide, high), (left, right, top, bottom) = size, margins or (0.68, 0.12, 0.7, 1.3)
    with rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=200)  # no pyplot, so no display and no state
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        yield axes
        figure.suptitle(title, x=0.096 / wide, y=1 - 0.075 / high, ha="left", fontsize=14, weight="bold")
        place: dict[str, Any] = {"ha": "left", "va": "top", "fontsize": 9, "color": "#444444"}
        figure.text(0.096 / wide, 1 - 0.375 / high, subtitle, **place)
        figure.subplots_adjust(left / wide, bottom / high, 1 - right / wide, 1 - top / high)
        with disk_errors(Path(out)):
            Path(out).mkdir(parents=True, exist_ok=True)
            figure.savefig(Path(out) / f"{stem}.svg", metadata={"Date": None})
            figure.savefig(Path(out) / f"{stem}.png", metadata={"Software": None})


def win_rate_vs_budget(runs: pd.DataFrame, out: str | Path) -> Path:
    """The paper's Figure 3: test win rate against simulated episodes, RFT over N and EEF over M for each expert set.

    Writes PNG, SVG and the table behind them (CSV, a row per run) into the folder ``out``; returns the PNG's path.
    Points of two lines at the same budget are slightly offset. If there are more lines than colours, ablations of EEF
    are not drawn (their rows stay in the CSV).
    """
    arms = arm_table(comparable(runs))
    if len(arms[arms["episodes"] > 0].groupby(["method", "experts"], dropna=False)) > len(_COLOURS):
        arms = arms[~arms["method"].map(is_ablation)]
    path = write_table(run_table(runs), out, "win_rate_vs_budget")
    rows = math.ceil(len(arms.groupby(["method", "experts"], dropna=False)) / 2)  # of the legend
    size, margins = (8, 4.2 + 0.21 * rows), (0.68, 0.12, 0.7, 0.62 + 0.21 * rows)
    title = "Win rate against simulation budget"
    with picture(out, "win_rate_vs_budget", size, title, _subtitle(runs, arms), margins) as axes:
        _draw(axes, arms)
    return path.with_suffix(".png")


def subtitle_of(runs: pd.DataFrame) -> str:
    """The environment, the number of seeds and of test tasks."""
    seeds, tasks = runs["seed"].nunique(), pd.to_numeric(runs["n_test"])
    counts = " to ".join(dict.fromkeys(f"{count:.0f}" for count in (tasks.min(), tasks.max())))
    return f"{runs['env'].iloc[0]} · {seeds} seed{'s' * (seeds > 1)} · {counts} test tasks"


def _subtitle(runs: pd.DataFrame, arms: pd.DataFrame) -> str:
    half = 50 * (arms["win_high"] - arms["win_low"])
    if half.isna().all():
        return f"{subtitle_of(runs)} · no intervals: one seed per method"
    widths = " to ".join(dict.fromkeys(f"±{width:.1f}" for width in (half.min(), half.max())))
    return f"{subtitle_of(runs)} · 95 % t-intervals over seeds: {widths} points"


def _draw(axes: Any, arms: pd.DataFrame) -> None:
    from matplotlib.patheffects import withStroke

    handles: list[Any] = []
    simulated = (pd.to_numeric(arms["episodes"]).fillna(0) > 0) & (arms["method"] != "ceiling")
    k = arms["k"].fillna(1) if "k" in arms else pd.Series(1, arms.index)
    groups: list[Any] = list(arms[simulated].groupby(["method", "experts", k[simulated]], dropna=False, sort=False))
    lines = sorted(groups, key=lambda item: (item[0][0] != "rft", str(item[0][:2]), item[0][2]))
    several = arms[simulated].groupby("method")["experts"].nunique().gt(1)
    right = max(1.0, float(arms.loc[simulated, "episodes"].max() if simulated.any() else 1))
    top = min(102.0, 1.08 * 100 * float(arms[["win_high", "win_rate"]].max().max()) + 1)
    taken: list[tuple[float, float]] = []  # middles of labels, in points
    levels = [100 * rate / top * 235 for rate in arms.loc[~simulated, "win_rate"]]  # of horizontal lines
    for number, ((method, experts, _), line) in enumerate(lines):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        line = line.sort_values("episodes")
        x = line["episodes"] + (number - (len(lines) - 1) / 2) * right * 0.008
        y, low, high = (100 * line[name].fillna(line["win_rate"]) for name in ("win_rate", "win_low", "win_high"))
        name = line_name([arm_of(row) for row in records(line)])
        name += f", experts: {experts}" if several[method] and pd.notna(experts) else ""
        ends = [y - low, high - y]
        bars = axes.errorbar(
            x, y, yerr=ends if line["win_low"].notna().any() else None, color=colour, marker=marker, markersize=7,
            linewidth=2, elinewidth=1.2, capsize=3, markeredgecolor="white", markeredgewidth=0.8, label=name, zorder=3,
        )  # fmt: skip
        handles.append(bars)
        letters = [letter for letter in ("n", "m") if line[letter].nunique() > 1]
        below = len(lines) > 1 and (number == 0 or is_ablation(str(method)))
        for at, places, row in zip(x, zip(low, high, strict=True), records(line), strict=True):
            if text := ", ".join(f"{each.upper()}={row[each]:.0f}" for each in letters if pd.notna(row[each])):
                # beyond the interval's end, with a white edge to stay legible
                end, shift = _free(at / right * 470, [place / top * 235 for place in places], below, taken, levels)
                axes.annotate(
                    text, (at, places[end]), xytext=(0, shift), fontsize=8.5,
                    textcoords="offset points", ha="center", va="bottom" if end else "top", color=colour,
                    weight="bold", zorder=4, path_effects=[withStroke(linewidth=2.5, foreground="white")],
                )  # fmt: skip
    greys = cycle([(":", "#222222"), ("-.", "#777777"), ((0, (1, 3)), "#999999"), ((0, (5, 1)), "#999999")])
    for row in records(arms[~simulated].sort_values("win_rate")):
        style, grey = ((0, (6, 3)), "#555555") if row["method"] == "ceiling" else next(greys)
        experts = arms.loc[arms["method"] == row["method"], "experts"].nunique() > 1
        name = line_name([arm_of(row)]) + (f", experts: {row['experts']}" if experts else "")
        level = axes.axhline(100 * row["win_rate"], color=grey, linestyle=style, linewidth=1.6, label=name, zorder=2)
        handles.append(level)
        if pd.notna(row["win_low"]):
            axes.axhspan(100 * row["win_low"], 100 * row["win_high"], color=grey, alpha=0.07, linewidth=0, zorder=1)
    axes.set_xlim(0, right * 1.1)
    axes.set_ylim(0, top)
    axes.set_xlabel("simulated episodes")
    axes.set_ylabel("test win rate (%)")
    place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.15), "borderaxespad": 0}
    axes.legend(handles=handles, ncols=2, frameon=False, fontsize=9, **place)


def _free(
    x: float, ends: list[float], below: bool, taken: list[tuple[float, float]], levels: Sequence[float] = ()
) -> tuple[int, float]:
    """The end of an interval (0: low, 1: high) and the distance from it where a label overlaps no other label and none
    of the horizontal lines at ``levels``, if there is such a place; in points.
    """
    sides = (0, 1) if below else (1, 0)
    tried = [(end, (4 + step) * (1 if end else -1)) for step in (0, 11) for end in sides]
    middles = [ends[end] + shift + (5 if end else -5) for end, shift in tried]
    free = [not any(abs(x - a) < 30 and abs(middle - b) < 11 for a, b in taken) for middle in middles]
    clear = [
        ok and not any(abs(middle - level) < 7 for level in levels) for ok, middle in zip(free, middles, strict=True)
    ]
    place = next((choice.index(True) for choice in (clear, free) if any(choice)), 0)
    taken.append((x, middles[place]))
    return tried[place]


def learning_curves(runs: pd.DataFrame, out: str | Path) -> Path:
    """Training loss against steps, a line per training stage of each run, from the runs' ``metrics.jsonl``.

    Runs that share a stage (behaviour cloning) share its line; colours are arms. Writes PNG, SVG and the table behind
    them into ``out`` (``learning_curves.csv``: arm, stage, seed, step, epoch, loss, run_id) and returns the PNG's path.
    :class:`FigureError` if no run logged a loss.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    lines: list[dict[str, Any]] = []
    seen: set[Any] = set()
    groups = by_arm(runs)
    names = arm_names(groups)
    for arm, group in groups.items():
        for row in records(group):
            folder = Path(row["folder"])
            for metric in read_rows(folder / "metrics.jsonl"):
                key = (folder / metric["stage"]).resolve()
                if metric.get("loss") is None or (key in seen and (key, row["run_id"]) not in seen):
                    continue
                seen |= {key, (key, row["run_id"])}
                name = "BC, shared" if metric["stage"] == "bc" else names[arm]
                about = {"arm": name, "stage": metric["stage"], "seed": row["seed"]}
                lines.append({**about, **{k: metric[k] for k in ("step", "epoch", "loss")}, "run_id": row["run_id"]})
    if not lines:
        raise FigureError("none of these runs logged a training loss in its metrics.jsonl: train one, see `eef runs`")
    table = pd.DataFrame(lines)
    path = write_table(table, out, "learning_curves")
    seeds = table["seed"].nunique()
    subtitle = f"{runs['env'].iloc[0]} · {seeds} seed{'s' * (seeds > 1)} · mean loss per trained token"
    with picture(out, "learning_curves", (8, 5), "Learning curves", subtitle, (0.8, 0.12, 0.7, 0.6)) as axes:
        order = list(table["arm"].unique())
        for _, line in table.groupby(["arm", "stage", "seed", "run_id"], sort=False):
            name = line["arm"].iloc[0]
            axes.plot(line["step"], line["loss"], color=f"C{order.index(name) % 10}", linewidth=1.2, label=name)
        handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("optimisation step")
        axes.set_ylabel("loss")
        axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=8.5)
    return path.with_suffix(".png")
