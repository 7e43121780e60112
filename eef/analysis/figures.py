"""Tables from finished runs, Figure 3, and what all pictures share.

Nothing here trains or simulates: the run folders hold the results. The frames come from
:func:`eef.tracking.runs.load_runs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from eef.files import disk_errors
from eef.trajectory import Trajectory, load

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
_ORDER = ["sft_pos", "sft_all", "nat", "eto", "rft", "eef", "", "ceiling"]  # in lists; "" is any other
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
    "text.parse_math": False,  # prices have dollar signs
}


class FigureError(ValueError):
    """Runs that cannot be drawn together; the message names them."""


class Arm(NamedTuple):
    """What is compared: a method (an ablation is one of its own, ``eef_recovery=False``), its experts and budget."""

    method: str
    experts: str
    n: int | None = None
    m: int | None = None


def comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, if they share environment and hashes (catalogue, goals, split, chat); else a :class:`FigureError`."""
    if runs.empty:
        raise FigureError("no finished runs to draw; `eef runs` lists what there is")
    facts = pd.DataFrame([{"env": row["env"], **row["hashes"]} for row in records(runs)], index=list(runs["run_id"]))
    for name in facts.columns:
        values = facts[name].fillna("none").astype(str)
        if values.nunique() > 1:
            found = values.groupby(values).groups.items()
            groups = [f"{str(value)[:16]} in {_some(list(ids))}" for value, ids in found]
            raise FigureError(f"these runs cannot be compared, their {name!r} differs: {'; '.join(groups)}")
    return runs


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts."""
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
    if len(group) == 1:
        return float(group["win_low"].iloc[0]), float(group["win_high"].iloc[0])
    from eef.analysis.evaluate import interval

    low, high = tuple(interval(read_episodes(group)))[-2:]
    return float(low), float(high)


def read_episodes(group: pd.DataFrame) -> pd.DataFrame:
    """The test episodes of one arm's runs: the rows of each ``eval/episodes.csv``, with ``seed``, and ``error`` always.

    :class:`FigureError` for several runs of one seed, and where a file is missing.
    """
    if len(group) != group["seed"].nunique():
        raise FigureError(
            f"several runs of one method and seed ({_some(list(group['run_id']))}): they differ in a parameter that "
            "the figure does not show; draw one sweep with --sweep, or choose another --root"
        )
    tables = []
    for row in records(group):
        path = Path(row["folder"]) / "eval" / "episodes.csv"
        if not path.is_file():
            raise FigureError(f"{path} is missing: the figure needs the result of each test task; start the run again")
        tables.append(pd.read_csv(path, dtype={"task": str}).assign(seed=row["seed"]))
    found = pd.concat(tables, ignore_index=True)
    return found.assign(error=found.get("error", pd.Series(False, index=found.index)).astype(bool))


def read_stage(row: dict[str, Any], name: str) -> list[Trajectory]:
    """The trajectories that a stage of a run holds; ``row`` is the run's. :class:`FigureError` where it has none."""
    path = Path(row["folder"]) / name / "trajectories.jsonl"
    if not path.is_file():
        raise FigureError(f"{path} is missing: the figure needs this stage of the run; start the run again")
    return load(path)


def by_arm(runs: pd.DataFrame) -> dict[Arm, pd.DataFrame]:
    """The runs of each arm, in the order of lists: behaviour cloning, RFT by n, EEF by m, ablations, the ceiling."""
    frame = runs.reindex(columns=[*dict.fromkeys([*runs.columns, *COLUMNS])])
    groups: list[tuple[Any, pd.DataFrame]] = list(frame.groupby(ARM, dropna=False))
    found = {}
    for key, group in groups:
        method, experts, n, m = (None if value != value else value for value in key)  # NaN differs from itself
        found[Arm(str(method), str(experts or ""), *(number and int(number) for number in (n, m)))] = group
    return {arm: found[arm] for arm in sorted(found, key=_place)}


def _place(arm: Arm) -> tuple[Any, ...]:
    return _ORDER.index(arm.method if arm.method in _ORDER else ""), arm.method, arm.experts, arm.n or 0, arm.m or 0


def method_name(method: str) -> str:
    """A method in words; the options of an ablation behind those of its method."""
    known = max((name for name in NAMES if f"{method}_".startswith(f"{name}_")), key=len, default=method)
    return ", ".join(filter(None, (NAMES.get(known, known), method[len(known) + 1 :])))


def arm_name(arm: Arm, experts: bool = False) -> str:
    """An arm in words, ``RFT × 6`` or ``EEF, M = 5``; with its experts where asked."""
    name = method_name(arm.method).split(":")[0]
    name = name.replace("× N", f"× {arm.n}").replace("M states", f"M = {arm.m}")
    return name + (f", experts: {arm.experts}" if experts and arm.method != "ceiling" else "")


def paired_table(runs: pd.DataFrame, against: Any = None, out: str | Path | None = None) -> pd.DataFrame:
    """Differences of win rates on the same (seed, task) pairs, one row per pair of arms, by
    :func:`eef.analysis.evaluate.paired`.

    ``against`` is a list of pairs of arms (the second is taken from the first), or one reference arm for all others;
    an arm is (method, experts, n, m), trailing None left out. Default: EEF less RFT, all less behaviour cloning, each
    ablation of EEF less EEF with the same m and experts. Arms that had different seeds are compared on those that both
    have. Columns: both arms (the second as ``against_...``), ``seeds``, ``pairs``, ``errors`` (pairs left out),
    ``difference`` with ``low`` and ``high`` (fractions, 95 %), ``p`` (of one comparison, not adjusted for many),
    simulated ``episodes`` of both (means over the seeds), and ``hard_...``: the same on hard test subtasks, NaN where
    the environment grades none. Written to ``out/paired.csv`` where ``out`` is given.

    :class:`FigureError` for runs that are not comparable, an unknown arm, and arms without a common seed.
    """
    groups = by_arm(comparable(runs))
    pairs = _pairs(list(groups), against)
    unknown = [arm for pair in pairs for arm in pair if arm not in groups]
    if unknown:
        raise FigureError(f"no runs of {tuple(unknown[0])}; there are {'; '.join(str(tuple(arm)) for arm in groups)}")
    if not pairs:
        raise FigureError(f"nothing to compare with these arms alone: {', '.join(map(arm_name, groups))}")
    episodes = {arm: read_episodes(groups[arm]) for arm in groups if any(arm in pair for pair in pairs)}
    found = pd.DataFrame([_difference(a, b, groups, episodes) for a, b in pairs])
    for name in ("n", "m", "against_n", "against_m", "hard_pairs"):
        found[name] = pd.to_numeric(found[name]).astype("Int64")
    if out is not None:
        write_table(found, out, "paired")
    return found


def _pairs(known: list[Arm], against: Any) -> list[tuple[Arm, Arm]]:
    if not against:
        pairs = [(a, b) for a in known for b in known if a.method == "eef" and b.method == "rft"]
        pairs += [(a, b) for a in known for b in known if a.method != "sft_pos" and b.method == "sft_pos"]
        ablations = [arm for arm in known if arm.method.startswith("eef_")]
        return pairs + [(a, b) for a in ablations for b in known if b == a._replace(method="eef")]
    if isinstance(against[0], str):
        return [(arm, Arm(*against)) for arm in known if arm != Arm(*against)]
    return [(Arm(*a), Arm(*b)) for a, b in against]


def _difference(a: Arm, b: Arm, groups: dict[Arm, pd.DataFrame], episodes: dict[Arm, pd.DataFrame]) -> dict[str, Any]:
    from eef.analysis.evaluate import paired

    names = f"{arm_name(a, True)} and {arm_name(b, True)}"
    seeds = set(groups[a]["seed"]) & set(groups[b]["seed"])
    if not seeds:
        raise FigureError(f"{names} have no seed in common: run both with the same seeds")
    first, second = (episodes[arm][episodes[arm]["seed"].isin(seeds)] for arm in (a, b))
    row: dict[str, Any] = {**a._asdict(), **{f"against_{name}": value for name, value in b._asdict().items()}}
    row["seeds"] = len(seeds)
    for start, one, two in (("", first, second), ("hard_", _hard(first), _hard(second))):
        found: dict[str, Any] = dict.fromkeys(("difference", "low", "high", "p", "pairs"))
        if not one.empty or not start:
            try:
                found = paired(one, two)._asdict()
            except ValueError as error:
                raise FigureError(f"{names}: {error}") from None
        row |= {start + name: value for name, value in found.items() if not start or name != "errors"}
    for start, arm in (("", a), ("against_", b)):
        spent = groups[arm].loc[groups[arm]["seed"].isin(seeds), "episodes"]
        row[f"{start}episodes"] = float(pd.to_numeric(spent).mean())
    return row


def _hard(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["group"] == "hard"] if "group" in table else table.iloc[:0]


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


def write_table(frame: pd.DataFrame, out: str | Path, stem: str) -> Path:
    """``out/stem.csv``, floats rounded to six digits: equal runs give equal bytes."""
    path = Path(out) / f"{stem}.csv"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.round(6).to_csv(path, index=False, lineterminator="\n")
    return path


@contextmanager
def picture(
    out: str | Path, stem: str, size: tuple[float, float], title: str, subtitle: str, margins: Sequence[float] = ()
) -> Iterator[Any]:
    """Axes to draw on, in a figure of ``size`` inches; written as PNG (200 dots per inch) and SVG after the block.

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
    Where points of two lines have the same budget they are set apart by a little. Where there are more lines than
    colours, EEF without one of its parts is left to the ablation table (its rows stay in the CSV).
    """
    found = arms(comparable(runs))
    if len(found[found["episodes"] > 0].groupby(["method", "experts"], dropna=False)) > len(_COLOURS):
        found = found[~found["method"].str.startswith("eef_")]
    table = write_table(run_table(runs), out, "win_rate_vs_budget")
    rows = math.ceil(len(found.groupby(["method", "experts"], dropna=False)) / 2)  # of the legend
    size, margins = (8, 4.2 + 0.21 * rows), (0.68, 0.12, 0.7, 0.62 + 0.21 * rows)
    title = "Win rate against simulation budget"
    with picture(out, "win_rate_vs_budget", size, title, _subtitle(runs, found), margins) as axes:
        _draw(axes, found)
    return table.with_suffix(".png")


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
    top = min(102.0, 1.08 * 100 * float(found[["win_high", "win_rate"]].max().max()) + 1)
    taken: list[tuple[float, float]] = []  # middles of labels, in points
    for number, ((method, experts), line) in enumerate(lines):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        line = line.sort_values("episodes")
        x = line["episodes"] + (number - (len(lines) - 1) / 2) * right * 0.008
        y, low, high = (100 * line[name] for name in ("win_rate", "win_low", "win_high"))
        name = method_name(str(method)) + (f", experts: {experts}" if several[method] and pd.notna(experts) else "")
        bars = axes.errorbar(
            x, y, yerr=[(y - low).clip(lower=0), (high - y).clip(lower=0)], color=colour, marker=marker, markersize=7,
            linewidth=2, elinewidth=1.2, capsize=3, markeredgecolor="white", markeredgewidth=0.8, label=name, zorder=3,
        )  # fmt: skip
        handles.append(bars)
        letter = "m" if str(method).startswith("eef") else "n"
        below = len(lines) > 1 and (number == 0 or str(method).startswith("eef_"))
        for at, ends, value in zip(x, zip(low, high, strict=True), line[letter], strict=True):
            if pd.notna(value) and len(line) > 1:  # beyond the interval's end; a white edge, so that no line strikes it
                end, shift = _free(at / right * 470, [place / top * 235 for place in ends], below, taken)
                axes.annotate(
                    f"{letter.upper()}={value:.0f}", (at, ends[end]), xytext=(0, shift), fontsize=8.5,
                    textcoords="offset points", ha="center", va="bottom" if end else "top", color=colour,
                    weight="bold", zorder=4, path_effects=[withStroke(linewidth=2.5, foreground="white")],
                )  # fmt: skip
    greys = cycle([(":", "#222222"), ("-.", "#777777"), ((0, (1, 3)), "#999999"), ((0, (5, 1)), "#999999")])
    for _, row in found[~simulated].sort_values("win_rate").iterrows():
        style, grey = ((0, (6, 3)), "#555555") if row["method"] == "ceiling" else next(greys)
        experts = found.loc[found["method"] == row["method"], "experts"].nunique() > 1
        name = method_name(row["method"]) + (f", experts: {row['experts']}" if experts else "")
        level = axes.axhline(100 * row["win_rate"], color=grey, linestyle=style, linewidth=1.6, label=name, zorder=2)
        handles.append(level)
        axes.axhspan(100 * row["win_low"], 100 * row["win_high"], color=grey, alpha=0.07, linewidth=0, zorder=1)
    axes.set_xlim(0, right * 1.1)
    axes.set_ylim(0, top)
    axes.set_xlabel("simulated episodes")
    axes.set_ylabel("test win rate (%)")
    place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.15), "borderaxespad": 0}
    axes.legend(handles=handles, ncols=2, frameon=False, fontsize=9, **place)


def _free(x: float, ends: list[float], below: bool, taken: list[tuple[float, float]]) -> tuple[int, float]:
    """Which end of an interval (0: low, 1: high) and how far from it a label meets no other; all in points."""
    sides = (0, 1) if below else (1, 0)
    tried = [(end, (4 + step) * (1 if end else -1)) for step in (0, 11) for end in sides]
    middles = [ends[end] + shift + (5 if end else -5) for end, shift in tried]
    free = [not any(abs(x - a) < 30 and abs(middle - b) < 11 for a, b in taken) for middle in middles]
    place = free.index(True) if any(free) else 0
    taken.append((x, middles[place]))
    return tried[place]
