"""The paper's Figure 1: a failed expert trajectory, and how simulations from its states ended.

A label of a state is reliable if the state was simulated at least 20 times and the 95 % Wilson interval of its win rate
lies above one half (won) or below it (lost). With 20 simulations that is at least 15 wins or at most 5, with 40 at
least 27 or at most 13. The frames come from :func:`eef.tracking.runs.load_runs`; stages are read from the run folders.
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
from eef.analysis.failure_drawing import draw_examples, draw_trajectory
from eef.analysis.statistics import wilson
from eef.analysis.tables import write_table
from eef.envs.extras import Extras, Skill, extras_of
from eef.selection import Outcomes, cut_points, important_states, segments, select
from eef.trajectory import Trajectory

LEAST_SIMULATIONS = 20  # of a state with a reliable label


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
    top = 0.5 + 0.14 * len(heading)
    high = top + 0.22 * (len(expert) + len(outcomes) + 2) + 0.75
    subtitle = "\n".join([about, *heading])
    shown = {i: extras.note(turn.action, expert.state(i)) for i, turn in enumerate(expert.turns)} | dict(notes or {})
    with picture(out, path.stem, high, "A failed expert trajectory", subtitle, (0.08, 0.08, top, 0.75)) as axes:
        draw_trajectory(axes, expert, outcomes, parts, recover, shown, counts or {})
        draw_examples(axes, expert, outcomes, examples)
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
