"""Pictures and tables from finished runs. Nothing here computes a result: the run folders hold them.

The frames come from :func:`eef.runs.load_runs`.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

from eef.runs import disk_errors

COLUMNS = ["method", "m", "n", "experts", "seed", "episodes", "env_steps", "tokens"]
COLUMNS += ["win_rate", "win_low", "win_high", "win_rate_easy", "win_rate_medium", "win_rate_hard"]
COLUMNS += ["mean_reward", "n_test", "errors", "run_id"]
ARM = ["method", "experts", "n", "m"]
NAMES = {
    "sft_pos": "BC (SFT-pos)",
    "sft_all": "SFT-all",
    "nat": "NAT",
    "eto": "ETO",
    "rft": "RFT × N",
    "eef": "EEF, M states",
    "ceiling": "ceiling: SFT on perfect demonstrations",
}
# Okabe and Ito's colours, told apart by colour-blind readers; markers differ too.
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
}


class FigureError(ValueError):
    """Runs that cannot be drawn together; the message names them."""


def comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, if they share environment and hashes (catalogue, goals, split, chat); else a :class:`FigureError`."""
    if runs.empty:
        raise FigureError("no finished runs to draw; `eef runs` lists what there is")
    facts = pd.DataFrame([{"env": row["env"], **row["hashes"]} for row in _rows(runs)], index=list(runs["run_id"]))
    for name in facts.columns:
        values = facts[name].fillna("none").astype(str)
        if values.nunique() > 1:
            found = values.groupby(values).groups.items()
            groups = [f"{str(value)[:16]} in {_some(list(ids))}" for value, ids in found]
            raise FigureError(f"these runs cannot be compared, their {name!r} differs: {'; '.join(groups)}")
    return runs


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def run_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per run, sorted, floats rounded to six digits: equal runs give equal bytes."""
    frame = runs.reindex(columns=COLUMNS)
    for name in COLUMNS:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if name not in ("method", "experts", "run_id"):
            whole = (numbers.dropna() % 1 == 0).all() and not name.startswith(("win_", "mean_"))
            frame[name] = numbers.astype("Int64") if whole else numbers.round(6)
    return frame.sort_values([*ARM, "seed", "run_id"], na_position="first", ignore_index=True)


def arms(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per method, experts, n and m: means over seeds, and the 95 % interval of the win rate.

    One seed: the run's own interval, over test tasks. Several: bootstrap over seeds and tasks, from the runs'
    ``eval/episodes.csv``.
    """
    frame = runs.reindex(columns=[*dict.fromkeys([*runs.columns, *COLUMNS])])
    rows = []
    for key, group in frame.groupby(ARM, dropna=False, sort=True):
        low, high = _interval(group)
        means = group[[c for c in COLUMNS[5:-1] if not c.startswith("win_l") and c != "win_high"]]
        means = means.apply(pd.to_numeric, errors="coerce").mean()
        rows.append(
            {
                **dict(zip(ARM, key, strict=True)),
                "seeds": group["seed"].nunique(),
                **means,
                "win_low": low,
                "win_high": high,
            }
        )
    return pd.DataFrame(rows)


def _interval(group: pd.DataFrame) -> tuple[float, float]:
    if len(group) != group["seed"].nunique():
        raise FigureError(
            f"several runs of one method and seed ({_some(list(group['run_id']))}): they differ in a parameter that "
            "the figure does not show; draw one sweep with --sweep, or choose another --root"
        )
    if len(group) == 1:
        return float(group["win_low"].iloc[0]), float(group["win_high"].iloc[0])
    from eef.evaluate import interval

    tables = []
    for row in _rows(group):
        path = Path(row["folder"]) / "eval" / "episodes.csv"
        if not path.is_file():
            raise FigureError(f"{path} is missing: the interval over several seeds needs the result of each task")
        tables.append(pd.read_csv(path, dtype={"task": str}).assign(seed=row["seed"]))
    low, high = tuple(interval(pd.concat(tables)))[-2:]
    return float(low), float(high)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """The comparison for people: a row per method and budget, win rates in % with their intervals, and the cost."""
    found = arms(comparable(runs)).sort_values(["episodes", "method"], ignore_index=True)
    shown = pd.DataFrame({"method": found["method"], "N": found["n"], "M": found["m"], "experts": found["experts"]})
    shown["seeds"] = found["seeds"]
    for name in ("episodes", "env_steps", "tokens"):
        shown[name] = found[name]
    shown["win %"] = [f"{100 * rate:.1f}" for rate in found["win_rate"]]
    shown["95 % interval"] = [
        f"{100 * a:.1f} to {100 * b:.1f}" for a, b in zip(found["win_low"], found["win_high"], strict=True)
    ]
    for name in ("easy", "medium", "hard"):
        shown[name] = [f"{100 * rate:.1f}" if pd.notna(rate) else "" for rate in found[f"win_rate_{name}"]]
    shown["reward"] = [f"{reward:.3f}" if pd.notna(reward) else "" for reward in found["mean_reward"]]
    shown["tasks"], shown["errors"] = found["n_test"], found["errors"]
    for name in ("N", "M", "episodes", "env_steps", "tokens", "tasks", "errors"):
        shown[name] = ["" if pd.isna(value) else f"{float(value):.0f}" for value in shown[name]]
    return shown.fillna("")


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table whose columns line up."""
    rows = [[str(name) for name in frame], *[[str(value) for value in row] for row in frame.to_numpy()]]
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(f"{cell:{w}}" for cell, w in zip(row, wide, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in wide) + "|", *lines[1:]])


def win_rate_vs_budget(runs: pd.DataFrame, out: str | Path) -> Path:
    """The paper's Figure 3: test win rate against simulated episodes, RFT over N and EEF over M for each expert set.

    Writes PNG, SVG and the table behind them (CSV, a row per run) into the folder ``out``; returns the PNG's path.
    Where points of two lines have the same budget they are set apart by a little.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = arms(comparable(runs))
    folder = Path(out)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        run_table(runs).to_csv(folder / "win_rate_vs_budget.csv", index=False, lineterminator="\n")
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 5), dpi=200)  # 1600 x 1000; no pyplot, so no display and no state
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw(axes, found)
        figure.suptitle("Win rate against simulation budget", x=0.012, y=0.985, ha="left", fontsize=14, weight="bold")
        figure.text(0.012, 0.925, _subtitle(runs, found), ha="left", va="top", fontsize=9, color="#444444")
        figure.subplots_adjust(left=0.085, right=0.985, top=0.86, bottom=0.26)
        with disk_errors(folder):
            figure.savefig(folder / "win_rate_vs_budget.svg", metadata={"Date": None})
            figure.savefig(folder / "win_rate_vs_budget.png", metadata={"Software": None})
    return folder / "win_rate_vs_budget.png"


def _subtitle(runs: pd.DataFrame, found: pd.DataFrame) -> str:
    seeds, tasks = runs["seed"].nunique(), pd.to_numeric(runs["n_test"])
    few, many = int(tasks.min()), int(tasks.max())
    counted = f"{many} test tasks" if few == many else f"{few} to {many} test tasks"
    half = 50 * (found["win_high"] - found["win_low"])
    wide = " to ".join(dict.fromkeys(f"±{width:.1f}" for width in (half.min(), half.max())))
    over = f"95 % intervals over {'tasks' if seeds == 1 else 'tasks and seeds'}: {wide} points"
    return f"{runs['env'].iloc[0]} · {seeds} seed{'s' * (seeds > 1)} · {counted} · {over}"


def _draw(axes: Any, found: pd.DataFrame) -> None:
    from matplotlib.patheffects import withStroke

    handles: list[Any] = []
    simulated = (pd.to_numeric(found["episodes"]).fillna(0) > 0) & (found["method"] != "ceiling")
    groups: list[Any] = list(found[simulated].groupby(["method", "experts"], dropna=False, sort=False))
    lines = sorted(groups, key=lambda item: (item[0][0] != "rft", str(item[0])))
    several = found[simulated].groupby("method")["experts"].nunique().gt(1)
    right = max(1.0, float(found.loc[simulated, "episodes"].max() if simulated.any() else 1))
    for number, ((method, experts), line) in enumerate(lines):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        line = line.sort_values("episodes")
        x = line["episodes"] + (number - (len(lines) - 1) / 2) * right * 0.008
        y, low, high = (100 * line[name] for name in ("win_rate", "win_low", "win_high"))
        name = NAMES.get(method, method) + (f", experts: {experts}" if several[method] and pd.notna(experts) else "")
        bars = axes.errorbar(
            x, y, yerr=[(y - low).clip(lower=0), (high - y).clip(lower=0)], color=colour, marker=marker, markersize=7,
            linewidth=2, elinewidth=1.2, capsize=3, markeredgecolor="white", markeredgewidth=0.8, label=name, zorder=3,
        )  # fmt: skip
        handles.append(bars)
        letter, below = ("m" if method == "eef" else "n"), number == 0 and len(lines) > 1
        for at, end, value in zip(x, low if below else high, line[letter], strict=True):
            if pd.notna(value):  # beyond the interval's end, and with a white edge, so that lines do not strike it out
                axes.annotate(
                    f"{letter.upper()}={value:.0f}", (at, end), xytext=(0, -4 if below else 4), fontsize=8.5,
                    textcoords="offset points", ha="center", va="top" if below else "bottom", color=colour,
                    weight="bold", zorder=4, path_effects=[withStroke(linewidth=2.5, foreground="white")],
                )  # fmt: skip
    greys = cycle([(":", "#222222"), ("-.", "#777777"), ((0, (1, 3)), "#999999")])
    for _, row in found[~simulated].sort_values("win_rate").iterrows():
        style, grey = ((0, (6, 3)), "#555555") if row["method"] == "ceiling" else next(greys)
        experts = found.loc[found["method"] == row["method"], "experts"].nunique() > 1
        name = NAMES.get(row["method"], row["method"]) + (f", experts: {row['experts']}" if experts else "")
        level = axes.axhline(100 * row["win_rate"], color=grey, linestyle=style, linewidth=1.6, label=name, zorder=2)
        handles.append(level)
        axes.axhspan(100 * row["win_low"], 100 * row["win_high"], color=grey, alpha=0.07, linewidth=0, zorder=1)
    axes.set_xlim(0, right * 1.1)
    top = 100 * float(found[["win_high", "win_rate"]].max().max())
    axes.set_ylim(0, min(102, 1.08 * top + 1))
    axes.set_xlabel("simulated episodes")
    axes.set_ylabel("test win rate (%)")
    place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.15), "borderaxespad": 0}
    axes.legend(handles=handles, ncols=2 if len(handles) < 7 else 3, frameon=False, fontsize=9, **place)
