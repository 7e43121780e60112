"""The paper's Figure 1: a failed expert trajectory, and how simulations from its states ended.

A label of a state is reliable if the state was simulated at least 20 times and the 95 % Wilson interval of its win rate
lies above one half (won) or below (lost): with 20 simulations at least 15 or at most 5 wins, with 40 at least 27 or at most 13.
The frames come from :func:`eef.tracking.runs.load_runs`; stages are read from the run folders.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from eef.agents.actions import uses
from eef.analysis.arms import FigureError, plain_eef, read_stage, records
from eef.analysis.drawing import picture
from eef.analysis.statistics import wilson
from eef.analysis.tables import write_table
from eef.envs.extras import Extras, Skill, extras_of
from eef.selection import Example, Outcomes, Segment, cut_points, important_states, segments, select
from eef.trajectory import Trajectory

KINDS = {  # colour, hatch and label of a segment; the colours are distinct for colour-blind readers
    "beneficial": ("#009E73", "", "beneficial: from a losing state to a winning one"),
    "harmful": ("#D55E00", "////", "harmful: from a winning state to a losing one"),
    "neutral": ("#B0B0B0", "", "neutral"),
}
LEAST_SIMULATIONS = 20  # of a state with a reliable label
_COLUMNS = 5.15  # inches from the left: the columns of examples
_MOST_EXAMPLES = 3
_LOSS = "#222222"
MARKS = {  # marker, colour and sign of a state whose simulation won or lost
    "won": ("o", "#009E73", "✓"),
    "lost": ("s", "#D55E00", "✗"),
}


def outcomes_of(expert: Trajectory, simulations: Iterable[Trajectory]) -> dict[int, Trajectory | None]:
    """How simulations from the states of ``expert`` ended, for :mod:`eef.selection`: index -> win, or None (lost).

    A simulation is from s_i if its prefix is the expert's first i turns. Other simulations, and those that ended in an
    infrastructure error, are ignored. If several start from one state, a win counts.
    """
    outcomes: dict[int, Trajectory | None] = {}
    for simulation in simulations:
        index = simulation.prefix
        if index >= len(expert) or not _is_from(simulation, expert, index):
            continue
        if simulation.won:
            outcomes[index] = outcomes.get(index) or simulation
        elif simulation.failed:
            outcomes.setdefault(index, None)
    return outcomes


def is_reliable(wins: int, simulations: int) -> bool:
    """Whether the label of a state with that many wins is reliable, as the top of the module defines it."""
    if simulations < LEAST_SIMULATIONS:
        return False
    low, high = wilson(wins, simulations)
    return low > 0.5 or high < 0.5


def failed_trajectory(runs: pd.DataFrame, out: str | Path) -> Path:
    """The paper's Figure 1: a failed expert trajectory, its segments, and how simulations from its states ended.

    The run is the finished EEF run (no ablation, one simulation per state) with the largest m, then the smallest seed,
    then the first by experts and run id; its first iteration is drawn. The trajectory is the first by
    :func:`clearest_first` of those with a beneficial and a harmful segment. Each label is the outcome of a single
    simulation, which the picture says: another simulation of the same state may end otherwise. Use
    ``experiments/draw_failure.py`` for a failure with reliable labels.

    Writes PNG, SVG, PDF and the table behind them into ``out``; returns the PNG's path. ``failed_trajectory.csv`` has a
    row per turn i: run_id, task, source, turn, action, segment (its kind), simulated (``won`` or ``lost`` from s_i;
    empty if there was no simulation or it ended in an error), needs_recovery (of s_i), carries_loss (how many of the
    selected examples learn the turn). :class:`FigureError` if there is no such run or trajectory.
    """
    frame = plain_eef(runs)
    if frame.empty:
        raise FigureError("no finished EEF run: Figure 1 draws simulations from an expert's states")
    row = min(records(frame), key=lambda row: (-row["m"], row["seed"], str(row["experts"]), row["run_id"]))
    extras = extras_of(row["env"])
    both = [pair for pair in _explored(row) if {"beneficial", "harmful"} <= {part.kind for part in segments(*pair)}]
    if not both:
        raise FigureError(
            f"in {row['run_id']} no failed expert trajectory has both a beneficial and a harmful segment: "
            "add EEF runs with more states (m) or more training subtasks"
        )
    expert, outcomes = clearest_first(both, extras.skills)[0]
    about = f"{row['env']} · expert {expert.source or row['experts']} · M = {int(row['m'])} · seed {row['seed']}"
    about += " · each label rests on one simulation"
    return draw_failure(expert, outcomes, out, about, extras, {"run_id": row["run_id"]})


def draw_failure(
    expert: Trajectory,
    outcomes: Outcomes,
    out: str | Path,
    about: str,
    extras: Extras,
    columns: Mapping[str, Any] | None = None,
    counts: Mapping[int, tuple[int, int]] | None = None,
    notes: Mapping[int, str] | None = None,
) -> Path:
    """Figure 1 of one failure: ``failed_trajectory.png``, ``.svg``, ``.pdf`` and ``.csv`` in ``out``; returns the PNG's
    path.

    On the right, a column for each example that is selected from the failure (:func:`eef.selection.select`) shows which
    turns carry loss: the expert's, and those of the simulation that won.

    ``about`` is written above the goal, and ``columns`` are added to each row of the table. ``counts`` (wins and
    simulations of a state) is for states that were simulated several times; the win rate is drawn at each state.
    :class:`FigureError` unless all labels are reliable and agree with ``outcomes``. ``notes`` (turn -> text) replaces
    the notes of the environment beside the actions.
    """
    for index in sorted(outcomes) if counts else []:
        wins, simulations = (counts or {}).get(index, (0, 0))
        if not is_reliable(wins, simulations) or (2 * wins > simulations) != (outcomes[index] is not None):
            raise FigureError(
                f"task {expert.task}: state {index} is labelled {'won' if outcomes[index] else 'lost'}, but {wins} of "
                f"{simulations} simulations from it won, so the label is not reliable: simulate each state at least "
                f"{LEAST_SIMULATIONS} times, or draw another failure"
            )
    parts = segments(expert, outcomes)
    recover = set(important_states(expert, outcomes)) - {0}
    examples = select(expert, outcomes)
    table = pd.DataFrame(
        {
            **(columns or {}),
            "task": expert.task,
            "source": expert.source,
            "turn": index,
            "action": turn.action,
            "segment": next((part.kind for part in parts if part.start <= index < part.stop), ""),
            "simulated": ("won" if outcomes[index] else "lost") if index in outcomes else "",
            "needs_recovery": index in recover,
            "carries_loss": sum(example.trajectory.prefix > index and example.mask[index] for example in examples),
            **(dict(zip(("wins", "simulations"), counts.get(index, ("", "")), strict=True)) if counts else {}),
        }
        for index, turn in enumerate(expert.turns)
    )
    path = write_table(table, out, "failed_trajectory")
    goal = textwrap.shorten(extras.goal(expert.prompt), 440, placeholder=" …")
    heading = textwrap.wrap(f"“{goal}”", 110)[:4]
    top = 0.6 + 0.14 * len(heading)
    high = top + 0.22 * (len(expert) + len(outcomes) + 2) + 0.75
    subtitle = "\n".join([about, *heading])
    shown = {i: extras.note(turn.action, expert.state(i)) for i, turn in enumerate(expert.turns)} | dict(notes or {})
    with picture(out, path.stem, high, "A failed expert trajectory", subtitle, (0.08, 0.08, top, 0.75)) as axes:
        _draw_trajectory(axes, expert, outcomes, parts, recover, shown, counts or {})
        _draw_examples(axes, expert, outcomes, examples)
    return path.with_suffix(".png")


def clearest_first(
    explored: Iterable[tuple[Trajectory, Outcomes]], skills: Mapping[str, Skill]
) -> list[tuple[Trajectory, Outcomes]]:
    """Failures with the outcomes of their simulations, in the order of how well they explain the method.

    First come those in which a beneficial segment uses one of the environment's navigation ``skills``, and a later
    harmful segment ends in a state that needs recovery. Then those with a beneficial and a harmful segment, then the
    others. Among equals: the fewest turns, then the fewest segments with an effect, then by task and source.
    """

    def place(pair: tuple[Trajectory, Outcomes]) -> tuple[Any, ...]:
        expert, outcomes = pair
        parts = [part for part in segments(expert, outcomes) if part.kind != "neutral"]
        recover = [state for state in important_states(expert, outcomes) if state]
        story = any(
            part.kind == "beneficial"
            and any(
                uses(action, skill) for action in expert.actions[part.start : part.stop] for skill in skills.values()
            )
            and any(state > part.stop for state in recover)
            for part in parts
        )
        kinds = len({part.kind for part in parts})
        return not story, -kinds, len(expert), len(parts), expert.task, expert.source

    return sorted(explored, key=place)


def _explored(row: dict[str, Any]) -> list[tuple[Trajectory, Outcomes]]:
    """The expert's failures in a run, each with how the first iteration's simulations from its states ended."""
    failures = [expert for expert in read_stage(row, "experts") if expert.failed]
    from_s0, from_states = read_stage(row, "s0-0-0"), read_stage(row, "states-0")
    explored: list[tuple[Trajectory, Outcomes]] = []
    at = 0  # the stage has them in order: two experts may share a subtask and its first turns
    for expert in failures:
        own = []
        for index in cut_points(len(expert), int(row["m"])):
            if at < len(from_states) and _is_from(from_states[at], expert, index):  # else it could not be restored
                own.append(from_states[at])
                at += 1
        explored.append((expert, outcomes_of(expert, [*from_s0, *own])))
    if at < len(from_states):
        raise FigureError(
            f"{row['folder']}/states-0 has {len(from_states)} simulations, but number {at} starts from none of the "
            f"states that M = {row['m']:.0f} selects in the failures of stage 'experts': another version of the code "
            "wrote it; start the run again"
        )
    return explored


def _is_from(simulation: Trajectory, expert: Trajectory, index: int) -> bool:
    same_start = (simulation.task, simulation.prefix) == (expert.task, index)
    return same_start and simulation.turns[:index] == expert.turns[:index]


def expert_state_table(runs: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """How often simulations win from the states of failed expert trajectories: where an expert's failures help.

    A row per EEF arm and number of times that the expert had used the environment's first skill before the state
    (``uses``; -1 for s0), over the first iterations of all seeds: method, experts, m, skill, uses, simulations, won
    (share). Simulations that ended in an error are excluded. Written to ``out/expert_states.csv``. :class:`FigureError`
    if there is no such simulation, and for an environment without skills.
    """
    rows = []
    for row in records(plain_eef(runs)):
        skills = extras_of(row["env"]).skills
        if not skills:
            raise FigureError(f"{row['env']} has no navigation skills, which expert states are grouped by")
        name, skill = next(iter(skills.items()))
        arm = {"method": row["method"], "experts": row["experts"], "m": int(row["m"]), "skill": name}
        for stage in ("s0-0-0", "states-0"):
            for simulation in read_stage(row, stage):
                used = sum(uses(action, skill) for action in simulation.actions[: simulation.prefix])
                if simulation.won or simulation.failed:
                    rows.append({**arm, "uses": used if simulation.prefix else -1, "won": simulation.won})
    if not rows:
        raise FigureError("no finished EEF run, so no simulations from an expert's states to count")
    groups = pd.DataFrame(rows).groupby(["method", "experts", "m", "skill", "uses"], as_index=False)
    table = groups.agg(simulations=("won", "size"), won=("won", "mean"))
    write_table(table, out, "expert_states")
    return table


def _rows(expert: Trajectory, outcomes: Outcomes) -> dict[tuple[str, int], float]:
    """The height of each state and turn in the picture, from the top; one row for each."""
    rows: dict[tuple[str, int], float] = {}
    for index in range(len(expert)):
        for kind in ["state"] * (index in outcomes) + ["turn"]:
            rows[kind, index] = len(rows) + 1.5
    return rows


def _draw_trajectory(
    axes: Any,
    expert: Trajectory,
    outcomes: Outcomes,
    parts: list[Segment],
    recover: set[int],
    notes: Mapping[int, str],
    counts: Mapping[int, tuple[int, int]],
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    places = _rows(expert, outcomes)
    end = len(places) + 1.5
    for part in parts:
        top, bottom = places["state", part.start], places.get(("state", part.stop), end)
        colour, hatch, _ = KINDS[part.kind]
        high = bottom - top
        axes.add_patch(Rectangle((0.05, top), 0.14, high, facecolor=colour, hatch=hatch, edgecolor="white"))
        axes.add_patch(Rectangle((0.19, top), _COLUMNS - 0.25, high, facecolor=colour, alpha=0.09, linewidth=0))
    for (kind, index), y in places.items():
        if kind == "turn":
            action = expert.turns[index].action
            axes.text(0.52, y, f"a{index}", fontsize=7, color="#777777", ha="right", va="center")
            words = textwrap.shorten(action, 70, placeholder=" …]" if action.endswith("]") else " …")
            written = axes.text(0.6, y, words, fontsize=7.5, family="DejaVu Sans Mono", va="center")
            room = int((_COLUMNS - 0.8 - 0.063 * len(words)) / 0.056)
            if notes[index] and room > 10:
                axes.annotate(
                    textwrap.shorten(notes[index], room, placeholder=" …"), (1, 0.5), xycoords=written, xytext=(6, 0),
                    textcoords="offset points", fontsize=7, color="#555555", va="center",
                )  # fmt: skip
            continue
        ended = "won" if outcomes[index] else "lost"
        marker, colour, sign = MARKS[ended]
        axes.plot([0.12], [y], marker, color=colour, markersize=10, markeredgecolor="white", zorder=4)
        axes.text(
            0.12, y, sign, color="white", fontsize=7.5, weight="bold", ha="center", va="center_baseline", zorder=5
        )
        note = f"the simulation from here {ended}"
        if index in counts:
            wins, simulations = counts[index]
            note = f"{wins} of {simulations} simulations from here won"
            _draw_win_rate(axes, 3.35, y, wins / simulations, colour)
        axes.text(0.27, y, f"$s_{{{index}}}$: {note}", fontsize=7.5, va="center", color="#222222", parse_math=True)
        if index in recover:
            axes.text(2.2, y, "▲ needs recovery", fontsize=7, weight="bold", color="#8a3d00", va="center")
    over = "episode ended" if expert.outcome == "done" else "out of steps"
    axes.plot([0.12], [end], "s", color="#222222", markersize=7.5, markeredgecolor="white", zorder=4)
    axes.text(0.27, end, f"end: {over}, reward {expert.reward:.2f}, failed", fontsize=7.5, weight="bold", va="center")
    handles: list[Any] = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=label) for colour, hatch, label in KINDS.values()
    ]
    for ended, (marker, colour, sign) in MARKS.items():
        label = f"state from which {'most simulations' if counts else 'the simulation'} {ended} ({sign})"
        handles.append(Line2D([], [], marker=marker, color=colour, linestyle="", markersize=7, label=label))
    handles.append(
        Line2D([], [], marker="^", color="#8a3d00", linestyle="", markersize=5, label="state that needs recovery")
    )
    handles += [
        Line2D([], [], marker="s", color=_LOSS, linestyle="", markersize=5, label="turn that carries loss"),
        Line2D(
            [],
            [],
            marker="s",
            color=_LOSS,
            markerfacecolor="white",
            linestyle="",
            markersize=5,
            label="turn as context",
        ),
    ]
    axes.set_xlim(0, 6.59)  # inches
    axes.set_ylim(end + 0.7, 0)
    axes.axis("off")
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.005, 0), ncols=3, frameon=False, fontsize=7)


def _draw_win_rate(axes: Any, x: float, y: float, rate: float, colour: str) -> None:
    """A bar from 0 to 100 % with a mark at one half, and the rate."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y - 0.22), 1, 0.44, facecolor="white", edgecolor="#999999", linewidth=0.6))
    axes.add_patch(Rectangle((x, y - 0.22), rate, 0.44, facecolor=colour, linewidth=0))
    axes.plot([x + 0.5] * 2, [y - 0.36, y + 0.36], color="#222222", linewidth=0.8)
    axes.text(x + 1.05, y, f"{100 * rate:.0f} %", fontsize=7, va="center")


def _draw_examples(axes: Any, expert: Trajectory, outcomes: Outcomes, examples: list[Example]) -> None:
    """A column for each example: the expert's turns in it, then the turns of the simulation that won."""
    places = _rows(expert, outcomes)
    shown = examples[:_MOST_EXAMPLES]
    more = f" ({len(examples) - len(shown)} more)" if len(examples) > len(shown) else ""
    title = f"example: what carries loss{more}" if shown else "no example: no win"
    axes.text(_COLUMNS, 0.15, title, fontsize=7, weight="bold", va="center")
    for number, example in enumerate(shown):
        x, start = _COLUMNS + 0.18 + 0.42 * number, example.trajectory.prefix
        axes.text(x, 0.8, f"{number + 1}", fontsize=7, weight="bold", ha="center", va="center")
        first = min(places.values())
        axes.plot([x, x], [first - 0.2, places["state", start]], color="#bbbbbb", linewidth=0.8, zorder=1)
        for index in range(start):
            face = _LOSS if example.mask[index] else "white"
            axes.plot([x], [places["turn", index]], "s", color=_LOSS, markerfacecolor=face, markersize=6, zorder=3)
        own = sum(example.mask[start:])
        box = {"boxstyle": "round,pad=0.25", "facecolor": _LOSS, "edgecolor": "none"}
        text = f"+{own}"
        axes.text(
            x,
            places["state", start],
            text,
            fontsize=7,
            color="white",
            weight="bold",
            ha="center",
            va="center",
            bbox=box,
        )
    if shown:
        note = "+k: the k turns of the\nsimulation that won\ncarry loss"
        axes.text(_COLUMNS, len(places) + 1.9, note, fontsize=6.5, color="#444444", va="bottom", linespacing=1.3)
