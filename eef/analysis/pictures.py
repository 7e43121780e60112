"""Pictures that look into the episodes of runs: Figure 1 and Figure 2.

Each writes PNG, SVG and the table behind them (CSV) into a folder and returns the PNG's path. The frames come from
:func:`eef.tracking.runs.load_runs`; stages are read from the run folders.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.evaluate import interval, results
from eef.analysis.figures import (
    Arm,
    FigureError,
    arm_name,
    by_arm,
    comparable,
    picture,
    read_episodes,
    read_stage,
    records,
    write_table,
)
from eef.selection import Outcomes, Segment, cut_points, important_states, segments
from eef.trajectory import Trajectory

KINDS = {  # colour and hatch: colours that colour-blind readers tell apart, and a second sign
    "beneficial": ("#009E73", "", "beneficial: from a state that loses to one that wins"),
    "harmful": ("#D55E00", "////", "harmful: from a state that wins to one that loses"),
    "neutral": ("#B0B0B0", "", "neutral"),
}
MARKS = {"won": ("o", "#009E73", "✓"), "lost": ("s", "#D55E00", "✗")}
_HUES = {"rft": "#0072B2", "eef": "#D55E00", "expert": "#CC79A7"}


def outcomes_of(expert: Trajectory, simulations: Iterable[Trajectory]) -> dict[int, Trajectory | None]:
    """What the simulations say of the states of ``expert``, for :mod:`eef.selection`: index -> win, or None (lost).

    A simulation is from s_i where it has a prefix of i turns and these are the expert's; others, and those that an
    infrastructure error ended, are left out. Of several from one state a win counts.
    """
    outcomes: dict[int, Trajectory | None] = {}
    for played in simulations:
        index = played.prefix
        if index >= len(expert) or not _is_from(played, expert, index):
            continue
        if played.won:
            outcomes[index] = outcomes.get(index) or played
        elif played.failed:
            outcomes.setdefault(index, None)
    return outcomes


def failed_trajectory(runs: pd.DataFrame, out: str | Path) -> Path:
    """The paper's Figure 1: a failed expert trajectory, its segments, and how simulations from its states ended.

    The run: of the finished EEF runs (no ablation) the one with the largest m, then the smallest seed, then by
    experts and run id; its first iteration. The trajectory: of the expert failures with a beneficial and a harmful
    segment the one with most of them, then the shortest, then by task and source.

    ``failed_trajectory.csv`` has a row per turn i: run_id, task, source, turn, action, segment (its kind), simulated
    (``won`` or ``lost`` from s_i, empty where none was or it broke), needs_recovery (of s_i). :class:`FigureError`
    where there is no such run or trajectory.
    """
    frame = runs[(runs["method"] == "eef") & runs["m"].notna()] if "method" in runs else runs
    if frame.empty:
        raise FigureError("no finished EEF run, so no simulations from an expert's states to draw (Figure 1)")
    row = min(records(frame), key=lambda row: (-row["m"], row["seed"], str(row["experts"]), row["run_id"]))
    found = []
    for expert, outcomes in _explored(row):
        parts = segments(expert, outcomes)
        kinds = [part.kind for part in parts if part.kind != "neutral"]
        if len(set(kinds)) == 2:
            found.append((-len(kinds), len(expert), expert.task, expert.source, expert, outcomes, parts))
    if not found:
        raise FigureError(
            f"in {row['run_id']} no failed expert trajectory has both a beneficial and a harmful segment: "
            "add EEF runs with more states (m) or more training subtasks"
        )
    expert, outcomes, parts = min(found, key=lambda item: item[:4])[4:]
    recover = set(important_states(expert, outcomes)) - {0}
    table = pd.DataFrame(
        {
            "run_id": row["run_id"],
            "task": expert.task,
            "source": expert.source,
            "turn": index,
            "action": turn.action,
            "segment": next((part.kind for part in parts if part.start <= index < part.stop), ""),
            "simulated": ("won" if outcomes[index] else "lost") if index in outcomes else "",
            "needs_recovery": index in recover,
        }
        for index, turn in enumerate(expert.turns)
    )
    path = write_table(table, out, "failed_trajectory")
    said = textwrap.wrap(f"“{_instruction(expert.prompt)}”", 112)[:4]
    about = f"{row['env']} · expert {expert.source or row['experts']} · M = {int(row['m'])} · seed {row['seed']}"
    size = (8, 0.75 + 0.17 * len(said) + 0.25 * (len(expert) + len(outcomes) + 1) + 0.75)
    margins = (0.15, 0.1, 0.7 + 0.17 * len(said), 0.75)
    with picture(
        out, "failed_trajectory", size, "A failed expert trajectory", "\n".join([about, *said]), margins
    ) as axes:
        _draw_trajectory(axes, expert, outcomes, parts, recover)
    return path.with_suffix(".png")


def _explored(row: dict[str, Any]) -> list[tuple[Trajectory, Outcomes]]:
    """The expert's failures in a run, each with what the first iteration's simulations say of its states."""
    failures = [expert for expert in read_stage(row, "experts") if expert.failed]
    from_s0, from_states = read_stage(row, "s0-0-0"), read_stage(row, "states-0")
    found: list[tuple[Trajectory, Outcomes]] = []
    at = 0  # the stage holds them in order: two experts may share a subtask and its first turns
    for expert in failures:
        mine = []
        for index in cut_points(len(expert), int(row["m"])):
            if at < len(from_states) and _is_from(from_states[at], expert, index):  # else it could not be restored
                mine.append(from_states[at])
                at += 1
        found.append((expert, outcomes_of(expert, [*from_s0, *mine])))
    if at < len(from_states):
        raise FigureError(
            f"{row['folder']}/states-0 holds {len(from_states)} simulations, and number {at} is from no state that the "
            f"failures in its 'experts' stage and M = {row['m']:.0f} ask for: another version of the code made it; "
            "start the run again"
        )
    return found


def _is_from(played: Trajectory, expert: Trajectory, index: int) -> bool:
    return (played.task, played.prefix) == (expert.task, index) and played.turns[:index] == expert.turns[:index]


def expert_states(runs: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """How often simulations win from the states of failed expert trajectories: where an expert's failures help.

    A row per EEF arm and number of pages that the expert had turned before the state (``pages``), with s0 apart
    (``pages`` -1), over all seeds' first iterations: method, experts, m, pages, simulations, won (share). Simulations
    that broke are left out. Written to ``out/expert_states.csv``.
    """
    rows = []
    for row in records(runs[(runs["method"] == "eef") & runs["m"].notna()]):
        for stage in ("s0-0-0", "states-0"):
            for played in read_stage(row, stage):
                turned = sum(action.strip().lower() == "click[next >]" for action in played.actions[: played.prefix])
                pages = turned if played.prefix else -1
                if played.won or played.failed:
                    arm = {"method": row["method"], "experts": row["experts"], "m": int(row["m"])}
                    rows.append({**arm, "pages": pages, "won": played.won})
    if not rows:
        raise FigureError("no finished EEF run, so no simulations from an expert's states to count")
    found = pd.DataFrame(rows).groupby(["method", "experts", "m", "pages"], as_index=False)
    table = found.agg(simulations=("won", "size"), won=("won", "mean"))
    write_table(table, out, "expert_states")
    return table


def _instruction(prompt: str) -> str:
    match = re.search(r"Instruction:\s*(?:\[SEP\])?\s*(.+?)\s*(?:\[SEP\]|\n|$)", prompt)
    return textwrap.shorten(match.group(1) if match else prompt, 440, placeholder=" …")


def _title(action: str, page: str) -> str:
    """The title that ``page`` gives for the product that ``action`` clicks; empty for any other action."""
    clicked = re.fullmatch(r"click\[(\w{10})\]", action.strip(), re.IGNORECASE)
    shown = [re.sub(r"\[/?[\w ]*button_?\]", "", part).strip() for part in re.split(r"\[SEP\]|\n", page)]
    shown = [part for part in shown if part]
    at = [place for place, part in enumerate(shown[:-1]) if clicked and part.lower() == clicked.group(1).lower()]
    return shown[at[0] + 1] if at else ""


def _draw_trajectory(
    axes: Any, expert: Trajectory, outcomes: Outcomes, parts: list[Segment], recover: set[int]
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    places: dict[tuple[str, int], float] = {}
    for index in range(len(expert)):
        for kind in ["state"] * (index in outcomes) + ["turn"]:
            places[kind, index] = len(places) + 0.5
    end = len(places) + 0.5
    for part in parts:
        top, bottom = places["state", part.start], places.get(("state", part.stop), end)
        colour, hatch, _ = KINDS[part.kind]
        high = bottom - top
        axes.add_patch(Rectangle((0.06, top), 0.16, high, facecolor=colour, hatch=hatch, edgecolor="white"))
        axes.add_patch(Rectangle((0.22, top), 7.53, high, facecolor=colour, alpha=0.09, linewidth=0))
    for (kind, index), y in places.items():
        if kind == "turn":
            action, title = expert.turns[index].action, _title(expert.turns[index].action, expert.state(index))
            axes.text(0.62, y, f"a{index}", fontsize=8, color="#777777", ha="right", va="center")
            words = textwrap.shorten(action, 84, placeholder=" …]" if action.endswith("]") else " …")
            said = axes.text(0.72, y, words, fontsize=9, family="DejaVu Sans Mono", va="center")
            room = 92 - len(words)
            if title and room > 10:
                axes.annotate(
                    textwrap.shorten(title, room, placeholder=" …"), (1, 0.5), xycoords=said, xytext=(7, 0),
                    textcoords="offset points", fontsize=8.5, color="#555555", va="center",
                )  # fmt: skip
            continue
        ended = "won" if outcomes[index] else "lost"
        marker, colour, sign = MARKS[ended]
        axes.plot([0.14], [y], marker, color=colour, markersize=12, markeredgecolor="white", zorder=4)
        axes.text(0.14, y, sign, color="white", fontsize=9, weight="bold", ha="center", va="center_baseline", zorder=5)
        note = f"$s_{{{index}}}$: the simulation from here {'won' if outcomes[index] else 'lost'}"
        told = axes.text(0.32, y, note, fontsize=9, va="center", color="#222222", parse_math=True)
        if index in recover:
            axes.annotate(
                "▲ needs recovery", (1, 0.5), xycoords=told, xytext=(10, 0), textcoords="offset points",
                fontsize=8.5, weight="bold", color="#8a3d00", va="center",
            )  # fmt: skip
    over = "episode over" if expert.outcome == "done" else "out of steps"
    axes.plot([0.14], [end], "s", color="#222222", markersize=9, markeredgecolor="white", zorder=4)
    axes.text(0.32, end, f"end: {over}, reward {expert.reward:.2f}, failed", fontsize=9, weight="bold", va="center")
    handles: list[Any] = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=label) for colour, hatch, label in KINDS.values()
    ]
    for ended, (marker, colour, sign) in MARKS.items():
        label = f"state whose simulation {ended} ({sign})"
        handles.append(Line2D([], [], marker=marker, color=colour, linestyle="", markersize=8, label=label))
    handles.append(
        Line2D([], [], marker="^", color="#8a3d00", linestyle="", markersize=6, label="state that needs recovery")
    )
    axes.set_xlim(0, 7.75)
    axes.set_ylim(end + 0.6, 0)
    axes.axis("off")
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.005, 0), ncols=2, frameon=False, fontsize=8.5)


def navigation(runs: pd.DataFrame, out: str | Path) -> Path:
    """The paper's Figure 2: the share of won test episodes that use Next, and that go back; per arm, and the expert.

    Shares are over all seeds' wins together (each win counts once; a seed without a win has no share of its own),
    intervals at 95 % from a bootstrap over seeds and tasks. The expert's bars are of its wins and its failures on the
    training subtasks, one pair per expert. A thin bar shows the share that goes back: by Prev or Back to Search.

    ``navigation.csv`` has a row per bar: bar, method, experts, n, m, seeds, episodes (wins; for an expert's failures,
    failures), next, next_low, next_high, back, back_low, back_high, run_ids. Shares of nothing are empty.
    """
    groups = by_arm(comparable(runs))
    pairs = product(groups, groups)
    several = {one.method for one, other in pairs if one.method == other.method and one.experts != other.experts}
    rows = _expert_rows(records(runs))
    for arm, group in groups.items():
        ids = " ".join(sorted(group["run_id"]))
        row = {"bar": arm_name(arm, arm.method in several), **arm._asdict(), "seeds": group["seed"].nunique()}
        rows.append({**row, **_shares(read_episodes(group), True), "run_ids": ids})
    table = pd.DataFrame(rows)
    for name in ("n", "m"):
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    path = write_table(table, out, "navigation")
    tests = sorted({int(number) for number in pd.to_numeric(runs["n_test"])})
    seeds = runs["seed"].nunique()
    tasks = " to ".join(map(str, dict.fromkeys((tests[0], tests[-1]))))
    about = f"{runs['env'].iloc[0]} · {seeds} seed{'s' * (seeds > 1)} · {tasks} test tasks"
    wide = max(len(line) for bar in table["bar"] for line in _wrapped(bar).split("\n"))
    size, margins = (8, 1.6 + 0.4 * len(table)), (0.25 + 0.078 * wide, 1.6, 0.7, 0.9)
    with picture(
        out, "navigation", size, "Wins that turn a page, and wins that go back", f"{about} · 95 % intervals", margins
    ) as axes:
        _draw_bars(axes, table)
    return path.with_suffix(".png")


def _shares(table: pd.DataFrame, won: bool) -> dict[str, Any]:
    """Of the episodes that were won (or lost) the shares that turn a page and that go back, with intervals."""
    fair = table[~table["error"]]
    counted = fair["won"].astype(bool) == won
    found: dict[str, Any] = {"episodes": int(counted.sum())}
    for name, used in (("next", fair["next"]), ("back", fair["prev"] | fair["back"])):
        share = (math.nan,) * 3
        if counted.any():  # all tasks are drawn, and those without a counted episode add nothing
            share = interval(fair.assign(share=used.astype(float).where(counted)), value="share")
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), share, strict=True))
    return found


def _expert_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars of each expert's wins and failures, from the runs' ``experts`` stages."""
    played: dict[str, dict[int, tuple[str, list[Trajectory]]]] = {}  # source -> seed -> run, trajectories
    read: set[Path] = set()
    for row in sorted(rows, key=lambda row: row["run_id"]):
        stage = (Path(row["folder"]) / "experts").resolve()
        if row["method"] == "ceiling" or stage in read:  # the ceiling has perfect demonstrations instead
            continue
        read.add(stage)
        found = read_stage(row, "experts")
        for source in dict.fromkeys(t.source for t in found):  # strong, and strong again in strong+weak
            mine = (row["run_id"], [t for t in found if t.source == source])
            played.setdefault(source, {}).setdefault(row["seed"], mine)
    out = []
    for source, seeds in sorted(played.items()):
        table = pd.concat([results(mine).assign(seed=seed) for seed, (_, mine) in seeds.items()], ignore_index=True)
        again = table.groupby(["seed", "task"]).cumcount().astype(str)
        table["task"] += "#" + again  # a file may hold several trajectories on one subtask
        name = f"expert {source}" if len(played) > 1 else "expert"
        for bar, won in ((f"{name}: wins", True), (f"{name}: failures", False)):
            row = {"bar": bar, **Arm("expert", source)._asdict(), "seeds": len(seeds)}
            out.append({**row, **_shares(table, won), "run_ids": " ".join(sorted(run for run, _ in seeds.values()))})
    return out


def _wrapped(label: str) -> str:
    return textwrap.fill(label, 34)


def _draw_bars(axes: Any, table: pd.DataFrame) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    back = bool((table["back"] > 0).any())
    for y, row in enumerate(records(table)):
        hue = next((colour for name, colour in _HUES.items() if str(row["method"]).startswith(name)), "#777777")
        failures = row["bar"].endswith("failures")
        counted = f"{row['episodes']} {'failures' if failures else 'wins'}"
        if not row["episodes"]:
            axes.text(102, y, f"no {counted.split()[1]}", va="center", fontsize=8.5)
            continue
        bars = [("next", y - 0.09 * back, 0.5, hue, 1.0), ("back", y + 0.28, 0.16, hue, 0.4)][: 1 + back]
        for name, at, high, colour, alpha in bars:
            share, low, up = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
            hatch = "////" if failures and name == "next" else ""
            axes.barh(at, share, high, color=colour, alpha=alpha, hatch=hatch, edgecolor="white", linewidth=0, zorder=2)
            ends = [[max(0, share - low)], [max(0, up - share)]]
            grey, wide = ("#222222", 1.2) if name == "next" else ("#777777", 0.8)
            axes.errorbar(share, at, xerr=ends, color=grey, elinewidth=wide, capsize=3 * wide - 1, zorder=3)
        text = f"{100 * row['next']:.0f} % of {counted}"
        axes.text(102, y, text, va="center", fontsize=8.5)
    axes.set_yticks(range(len(table)), [_wrapped(bar) for bar in table["bar"]])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of won episodes (for failures: of failed ones), %")
    handles: list[Any] = [
        Patch(color="#555555", label="Next used"),
        *([Patch(color="#555555", alpha=0.4, label="Prev or Back to Search used")] * back),
        Line2D([], [], color="#222222", linewidth=1.2, label="95 % interval"),
    ]
    place = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.48 / (0.4 * len(table))), "borderaxespad": 0}
    axes.legend(handles=handles, ncols=3, frameon=False, fontsize=8.5, **place)
