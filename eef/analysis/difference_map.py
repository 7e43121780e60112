"""A map of where EEF gains most: its win rate minus RFT's at equal budget, over two parameters of a sweep.

The frames come from :func:`eef.tracking.runs.load_runs`.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.arms import FigureError, arm_name, arm_names, by_arm, comparable, read_episodes, read_stage, records
from eef.analysis.drawing import LEAST_SEEDS, WIDTH, percent, picture
from eef.analysis.evaluate import results
from eef.analysis.statistics import interval, paired
from eef.analysis.tables import write_table
from eef.envs.extras import extras_of

STEM = "difference_map"
_PALE = 0.55  # share of white in the colour of a cell whose interval includes 0
_IN_HASHES = {"catalogue", "data", "env", "model"}  # parameters that may change a run's hashes


def difference_map(
    runs: pd.DataFrame,
    x: str,
    y: str,
    out: str | Path,
    x_label: str = "",
    y_label: str = "",
    headline: Sequence[Any] = (),
) -> Path:
    """Where EEF gains most: its win rate minus RFT's at EEF's budget, in each cell of two parameters of a sweep.

    ``x`` and ``y`` are dotted paths into the runs' configuration, such as ``expert_noise.late``. A cell needs one EEF
    arm, RFT arms of one or more n, and sft_pos, which is RFT at 0 episodes; other methods are ignored. RFT at EEF's
    budget is interpolated per seed and task: ``won`` of the two neighbouring arms is weighted linearly in simulated
    episodes. A cell uses the seeds that all its arms have; intervals are those of
    :func:`eef.analysis.statistics.paired`, over seeds. Runs of one cell must be comparable; all runs must be comparable
    if neither parameter is of the catalogue, data, environment or model.

    ``x_label`` and ``y_label`` say in words what the parameters are; without them the axes show the
    paths as words. ``headline`` has the values of x and y of the setting that the main results are about: its cell is
    framed, if there is one.

    Writes PNG, SVG, PDF and the table behind them into ``out``; returns the PNG's path. ``difference_map.csv`` has a
    row per cell: x and y (values), seeds, n_test, episodes_eef (mean over seeds), win_eef, win_rft (interpolated),
    win_bc, difference, low, high, expert_win_rate, expert_wins_SKILL (share of the expert's wins that use the
    environment's first skill, if it has any), x_name, y_name, run_ids. Rates are fractions.

    :class:`FigureError`, naming the cell, if arms or common seeds are missing, and if EEF's budget exceeds the largest
    of RFT: nothing is extrapolated. Also for a ``headline`` without two values.
    """
    if len(headline) not in (0, 2):
        raise FigureError(
            f"headline={list(headline)}: give the values of {x} and {y} of one setting, or leave it empty"
        )
    used = runs[runs["method"].isin(["sft_pos", "rft", "eef"])] if "method" in runs else runs
    keys = [(setting_at(row, x), setting_at(row, y)) for row in records(used)]
    if used.empty or not {x.split(".")[0], y.split(".")[0]} & _IN_HASHES:
        comparable(used)
    cells = []
    for key in sorted(set(keys), key=lambda key: [_sortable(value) for value in key]):
        cell = _cell(used[[other == key for other in keys]], f"the cell {x} = {key[0]}, {y} = {key[1]}")
        ids = cell.pop("run_ids")
        cells.append({"x": key[0], "y": key[1], **cell, "x_name": x, "y_name": y, "run_ids": ids})
    table = pd.DataFrame(cells)
    write_table(table, out, STEM)
    return draw_map(table, used, out, x_label, y_label, headline)


def draw_map(
    table: pd.DataFrame, runs: pd.DataFrame, out: str | Path, x_label: str = "", y_label: str = "",
    headline: Sequence[Any] = (),
) -> Path:  # fmt: skip
    """Draw the table of :func:`difference_map`. Of ``runs`` it shows the environment and the name of the EEF arm."""
    seeds, tests = (_range(table[name]) for name in ("seeds", "n_test"))
    names = " or ".join(dict.fromkeys(arm_name(arm) for arm in by_arm(runs) if arm.method == "eef"))
    framed = [*headline] in table[["x", "y"]].to_numpy().tolist()
    about = (
        f"{runs['env'].iloc[0]} · {names}, minus RFT interpolated at its simulated episodes · "
        f"{seeds} seed{'s' * (seeds != '1')} · {tests} test tasks\n"
        f"▲ EEF, ▼ RFT is ahead, in points, with the 95 % t-interval over seeds (none with fewer than {LEAST_SEEDS})\n"
        "pale and hatched: the interval includes 0, or there is none · rows and columns are not to scale"
    )
    about += " · black frame: main results" if framed else ""
    across, down = table["x"].nunique(), table["y"].nunique()
    left = 0.5 + 0.065 * max(len(str(value)) for value in table["y"])
    words = [
        label or in_words(path)
        for label, path in ((x_label, table["x_name"].iloc[0]), (y_label, table["y_name"].iloc[0]))
    ]
    labels = [
        textwrap.fill(words[0], int((WIDTH - left - 1.0) / 0.062)),
        textwrap.fill(words[1], max(16, int(0.85 * down / 0.062))),
    ]
    left += 0.13 * labels[1].count("\n")
    top, bottom = 0.81, 0.45 + 0.13 * labels[0].count("\n")
    size = min(1.0, 0.72 * (WIDTH - left - 1.0) / across)  # of texts in cells: 1 if a cell has 1.4 inches or more
    margins = (left, 0.62, top, bottom)
    high = top + bottom + 0.85 * down
    with picture(out, STEM, high, "Win rate of EEF minus RFT at equal budget", about, margins) as axes:
        _draw_cells(axes, table, labels, headline if framed else (), size)
    return Path(out) / f"{STEM}.png"


def in_words(path: str) -> str:
    """A parameter's name as words: ``expert noise: late`` for ``expert_noise.late``."""
    return path.replace("_", " ").replace(".", ": ")


def setting_at(row: dict[str, Any], path: str) -> Any:
    """The value at a dotted path into a run's configuration; lists and dicts as JSON, so that values can be keys."""
    value = row["config"]
    for name in path.split("."):
        items = dict(enumerate(value)) if isinstance(value, list) else value if isinstance(value, dict) else {}
        by_name = {str(key): item for key, item in items.items()}
        if name not in by_name:
            raise FigureError(
                f"{path!r}: {name!r} is not in the configuration of {row['run_id']} (it has: "
                f"{', '.join(sorted(by_name)) or 'nothing'}); choose a parameter that every run of the sweep sets, a "
                "nested one with dots"
            )
        value = by_name[name]
    return json.dumps(value) if isinstance(value, (list, dict)) or value is None else value


def _sortable(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _cell(runs: pd.DataFrame, where: str) -> dict[str, Any]:
    """One row of the map's table, without x and y."""
    groups = by_arm(comparable(runs))
    eef, rft, bc = ([arm for arm in groups if arm.method == name] for name in ("eef", "rft", "sft_pos"))
    if (len(eef), len(bc)) != (1, 1) or len({arm.experts for arm in rft}) != 1:
        raise FigureError(
            f"{where} needs the runs of one EEF arm, of sft_pos and of RFT with one or more n; it has "
            f"{'; '.join(arm_names(groups).values())}"
        )
    tables = {arm: read_episodes(group) for arm, group in groups.items()}
    spent = {arm: dict(zip(group["seed"], group["episodes"], strict=True)) for arm, group in groups.items()}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in spent.values())))
    if not seeds:
        raise FigureError(f"{where}: its arms have no seed in common: run all with the same seeds")
    table = tables[eef[0]][tables[eef[0]]["seed"].isin(seeds)]
    parts = []
    for seed in seeds:
        budget, most, largest = spent[eef[0]][seed], spent[rft[-1]][seed], rft[-1].n or 1
        if budget > most:
            raise FigureError(
                f"{where}, seed {seed}: EEF spent {budget:.0f} simulated episodes, RFT with n = {largest} only "
                f"{most:.0f}, and nothing is extrapolated: add RFT with n = {math.ceil(budget * largest / most)}"
            )
        points = [(spent[arm][seed], tables[arm][tables[arm]["seed"] == seed]) for arm in (*bc, *rft)]
        parts.append(_at_budget(points, budget).assign(seed=seed))
    try:
        difference = paired(table, pd.concat(parts))
    except ValueError as error:
        raise FigureError(f"{where}: {error}") from None
    both = table.merge(pd.concat(parts), on=["seed", "task"], suffixes=("", "_rft"))
    both = both[~(both["error"] | both["error_rft"])]
    cloned = tables[bc[0]][tables[bc[0]]["seed"].isin(seeds)]
    rows = [row for row in records(groups[eef[0]]) if row["seed"] in seeds]
    skills = extras_of(rows[0]["env"]).skills
    expert = results((t for row in rows for t in read_stage(row, "experts")), skills)
    expert = expert[~expert["error"]]
    wins = expert[expert["won"]]
    return {
        "seeds": len(seeds),
        "n_test": table["task"].nunique(),
        "episodes_eef": sum(spent[eef[0]][seed] for seed in seeds) / len(seeds),
        **{f"win_{name}": interval(both, value)[0] for name, value in (("eef", "won"), ("rft", "won_rft"))},
        "win_bc": interval(cloned).mean,
        **{name: getattr(difference, name) for name in ("difference", "low", "high")},
        "expert_win_rate": expert["won"].mean(),
        **{f"expert_wins_{name}": wins[name].mean() for name in list(skills)[:1]},
        "run_ids": " ".join(sorted(run for group in groups.values() for run in group["run_id"])),
    }


def _at_budget(points: list[tuple[float, pd.DataFrame]], budget: float) -> pd.DataFrame:
    """``task``, ``won``, ``error`` at a budget: interpolated between its neighbours in ``points``.

    A point is (episodes, table of one seed).
    """
    points = sorted(points, key=lambda point: point[0])
    upper = max(1, next(place for place, (episodes, _) in enumerate(points) if episodes >= budget))
    (fewer, before), (more, after) = points[upper - 1 : upper + 1]
    weight = (budget - fewer) / (more - fewer)
    columns = ["task", "won", "error"]
    both = before[columns].merge(after[columns], on="task", suffixes=("_1", "_2"), validate="one_to_one")
    both["won"] = (1 - weight) * both["won_1"].astype(float) + weight * both["won_2"].astype(float)
    both["error"] = both["error_1"] | both["error_2"]
    return both[["task", "won", "error"]]


def _range(values: pd.Series) -> str:
    return " to ".join(dict.fromkeys(f"{value:.0f}" for value in (values.min(), values.max())))


def _draw_cells(axes: Any, table: pd.DataFrame, labels: Sequence[str], headline: Sequence[Any], size: float) -> None:
    """``labels`` of x and y; ``size`` scales the texts of the cells."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    levels = {name: sorted(set(table[name]), key=_sortable) for name in ("x", "y")}
    most = max(1.0, 100 * float(table["difference"].abs().max()))
    scale = ScalarMappable(
        Normalize(-most, most), colormaps["RdBu_r"]
    )  # from RFT's hue to EEF's, distinct for colour-blind readers
    for x, y in product(range(len(levels["x"])), range(len(levels["y"]))):
        axes.text(x, y, "not run", ha="center", va="center", color="#999999", fontsize=8 * size, gid="empty", zorder=0)
    for row in records(table):
        x, y = (levels[name].index(row[name]) for name in ("x", "y"))
        points, low, high = (100 * row[name] for name in ("difference", "low", "high"))
        few = row["seeds"] < LEAST_SEEDS or pd.isna(low)
        includes_zero = few or not (low > 0 or high < 0)
        colour = [end + (1 - end) * _PALE * includes_zero for end in scale.to_rgba(points)]
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.55
        ink = "white" if dark else "#222222"
        if includes_zero:
            edge = "#ffffff" if dark else "#888888"
            at = (x - 0.49, y - 0.48)
            axes.add_patch(Rectangle(at, 0.98, 0.96, fill=False, hatch="//", edgecolor=edge, alpha=0.25, linewidth=0))
        if [row["x"], row["y"]] == [*headline]:
            at = (x - 0.485, y - 0.475)
            axes.add_patch(
                Rectangle(at, 0.97, 0.95, fill=False, edgecolor="black", linewidth=2, zorder=3, gid="headline")
            )
        seeds = "one seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
        texts: list[tuple[float, str, dict[str, Any]]] = [
            (
                -0.2,
                f"{'▲' if points > 0 else '▼'} {points:+.1f}",
                {"fontsize": 12 * size, "weight": "normal" if includes_zero else "bold"},
            ),
            (0.08, seeds if few else f"[{low:+.1f}, {high:+.1f}]", {"fontsize": 8 * size}),
            (0.31, f"EEF {percent(row['win_eef'])}, RFT {percent(row['win_rft'])}", {"fontsize": 6.8 * size}),
        ]
        for shift, text, style in texts:
            axes.text(x, y + shift, text.replace("-", "−"), ha="center", va="center", color=ink, **style)
    axes.set_xlim(-0.5, len(levels["x"]) - 0.5)
    axes.set_ylim(len(levels["y"]) - 0.5, -0.5)
    axes.set_xticks(range(len(levels["x"])), levels["x"])
    axes.set_yticks(range(len(levels["y"])), levels["y"])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(scale, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("EEF minus RFT, points", fontsize=8)
    bar.outline.set_visible(False)
