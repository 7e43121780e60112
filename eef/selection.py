"""What to learn from an expert's trajectory: the selection step of EEF (section 4 of the paper, Figure 1).

The policy was simulated from some states s_i of one expert trajectory, and each simulation won or lost. The steps, in
the order of the paper's algorithm: :func:`cut_points`, :func:`segments`, :func:`important_states`, :func:`solution`,
:func:`select`. They are pure functions, and the order of ``outcomes`` does not matter.

``outcomes`` maps the index i of a simulated state s_i to the winning simulation from it, or to None if it lost. States
whose simulation ended in an infrastructure error are left out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from eef.trajectory import Trajectory

Outcomes = Mapping[int, Trajectory | None]
Kind = Literal["beneficial", "harmful", "neutral"]


@dataclass(frozen=True)
class Segment:
    """The expert's actions a_start ... a_(stop-1) between two neighbouring simulated states, and their effect."""

    start: int
    stop: int
    kind: Kind


@dataclass(frozen=True)
class Example:
    """A trajectory to train on. ``learn_from`` is the first turn that carries loss; earlier turns are context.

    ``weight`` multiplies the loss of its tokens. ValueError unless it is a positive number.
    """

    trajectory: Trajectory
    learn_from: int
    weight: float = field(default=1.0, metadata={"key_at_default": None})

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight={self.weight!r} of an example must be a positive number: leave the example out")

    @property
    def mask(self) -> tuple[bool, ...]:
        """Whether each turn's action carries loss (m in section 3 of the paper)."""
        return tuple(i >= self.learn_from and turn.learn for i, turn in enumerate(self.trajectory.turns))


def cut_points(n: int, m: int) -> list[int]:
    """The states l, 2l, ..., ml of an expert trajectory of ``n`` turns to simulate from (section 4.1).

    l = floor(n / (m + 1)), but at least 1: a trajectory that is too short for ``m`` states gives all its states after
    s0. s0 itself is not included. ValueError for ``m`` < 1.
    """
    if m < 1:
        raise ValueError(f"M must be at least 1, not {m}: otherwise no expert state is simulated")
    length = max(1, n // (m + 1))
    return [j * length for j in range(1, m + 1) if j * length < n]


def outcome(simulations: Sequence[Trajectory]) -> Trajectory | None:
    """The outcome of a state: the first win if at least half of its ``simulations`` won, else None.

    Half is enough: from such a state the policy wins as often as it loses, so it has a solution of its own and needs
    none of the expert's later actions. ``simulations`` contains no infrastructure error.
    """
    wins = [simulation for simulation in simulations if simulation.won]
    return wins[0] if wins and 2 * len(wins) >= len(simulations) else None


def segments(expert: Trajectory, outcomes: Outcomes) -> list[Segment]:
    """Cut the expert's actions at the simulated states, and name the effect of each segment (Figure 1).

    A ``beneficial`` segment leads from a state that lost to one that won, a ``harmful`` segment from a state that won
    to one that lost; all others are ``neutral``. The paper calls all actions from a state that lost to a later one that
    won beneficial. Here only the last of these segments has that name, but :func:`solution` uses them all. The last
    segment ends with the trajectory, which counts as lost unless the expert won. Actions before the first simulated
    state belong to no segment.
    """
    won = {index: outcomes[index] is not None for index in sorted(outcomes)}
    won.setdefault(len(expert), expert.won)
    kinds: dict[tuple[bool, bool], Kind] = {(False, True): "beneficial", (True, False): "harmful"}
    ends = list(won.items())
    return [
        Segment(start, stop, kinds.get((before, after), "neutral")) for (start, before), (stop, after) in pairwise(ends)
    ]


def important_states(expert: Trajectory, outcomes: Outcomes, recovery: bool = True) -> list[int]:
    """Indices of the important states: s0, and each state that lost after a harmful segment (it needs recovery).

    s0 is included only if it was simulated. With ``recovery=False`` it is the only important state.
    """
    states = [0] if 0 in outcomes else []
    if recovery:
        states += [part.stop for part in segments(expert, outcomes) if part.kind == "harmful" and part.stop in outcomes]
    return states


def solution(outcomes: Outcomes, state: int) -> int | None:
    """Index of the simulated state whose simulation is the solution of ``state``: ``state`` itself if it won, else the
    nearest later state that won; None if there is none.

    The expert's actions from ``state`` to that state are not harmful, because all states between them lost.
    """
    return min((index for index, win in outcomes.items() if index >= state and win is not None), default=None)


def select(
    expert: Trajectory,
    outcomes: Outcomes,
    mask_harmful: bool = True,
    recovery: bool = True,
    one_per_state: bool = True,
    restart_only: bool = False,
) -> list[Example]:
    """The training examples of one expert trajectory: one solution for each important state (section 4.2).

    ``outcomes`` is described at the top of the module. A winning simulation from s_i includes the expert's first i
    turns (``prefix == i``). In the example for an important state, all turns before that state are context, so harmful
    expert actions never carry loss. An important state without a solution gives no example. Examples are sorted by
    ``learn_from``, and no two share a trajectory.

    Each ablation changes one rule:

    * ``mask_harmful=False``: the same trajectories, but every turn carries loss (``learn_from`` is 0), including the
      expert's harmful actions. Turns with ``learn=False`` still carry none.
    * ``recovery=False``: s0 is the only important state.
    * ``one_per_state=False``: every winning simulation gives one example. It carries loss from the important state that
      it solves, including the expert's actions from there; a win that solves no important state carries loss from the
      state it was simulated from.
    * ``restart_only=True``: the same trajectories, but no expert action carries loss (``learn_from`` is the state that
      the winning simulation started from). What is left of EEF is where its simulations start.

    ValueError for ``restart_only`` without ``mask_harmful``, for the index of a state that the expert does not have,
    for a "win" that is not won, and for a win that does not continue the expert's trajectory.
    """
    if restart_only and not mask_harmful:
        raise ValueError("restart_only=True needs mask_harmful=True: without the mask, expert actions carry loss")
    _check(expert, outcomes)
    learn_from_of: dict[int, int] = {}  # state that won -> first turn with loss
    for state in important_states(expert, outcomes, recovery):
        solved_by = solution(outcomes, state)
        if solved_by is not None:
            learn_from_of[solved_by] = state  # a state that won lies between two important states: no two share one
    wins = {index: win for index, win in outcomes.items() if win is not None}
    if not one_per_state:
        learn_from_of = {index: learn_from_of.get(index, index) for index in wins}
    if restart_only:
        learn_from_of = {index: index for index in learn_from_of}
    return [Example(wins[index], learn_from_of[index] if mask_harmful else 0) for index in sorted(learn_from_of)]


def with_random_segment(example: Example, expert: Trajectory, seed: Sequence[int]) -> list[Example]:
    """The control for "beneficial": ``example`` with loss on the simulation alone, and an example of a segment of
    ``expert``, the trajectory that the simulation started from. The segment is drawn uniformly among those with as many
    turns as ``expert`` has with loss in ``example``, and of these as many with ``learn=True``.

    Only which expert turns carry loss changes, not how many. The draw depends on ``seed`` and ``learn_from`` alone. An
    example without loss on expert turns is returned as it is.
    """
    win, begin = example.trajectory, example.learn_from
    size = win.prefix - begin
    if size <= 0:
        return [example]
    learnt = [sum(turn.learn for turn in expert.turns[at : at + size]) for at in range(len(expert) - size + 1)]
    starts = [at for at, number in enumerate(learnt) if number == learnt[begin]]
    start = random.Random(" ".join(map(str, (*seed, begin)))).choice(starts)
    segment = replace(expert, turns=expert.turns[: start + size], prefix=start + size, won=False, reward=0.0)
    return [Example(win, win.prefix), Example(segment, start)]


def wins(trajectories: Iterable[Trajectory]) -> list[Example]:
    """An example of each win, with loss on all turns; equal actions on the same subtask count once."""
    return distinct(t for t in trajectories if t.won)


def explorable(experts: Sequence[Trajectory], wins_too: bool = False) -> list[Trajectory]:
    """The expert trajectories whose states EEF simulates (section 4.1): failures, with ``wins_too`` also wins.

    Left out are those that cannot be replayed and those without a turn. ValueError if none is left.
    """
    explored = [t for t in experts if t.failed or (wins_too and t.won)]
    if left := [t for t in explored if len(t) and "no_replay" not in t.info]:
        return left
    if explored:
        raise ValueError(
            f"EEF explores failed expert trajectories, but none of the {len(explored)} can be replayed: use experts "
            "that were recorded in this environment, or the method rft"
        )
    raise ValueError(
        "EEF explores failed expert trajectories, but there are none: use weaker experts, or the method rft"
    )


def expert_wins(experts: Sequence[Trajectory]) -> list[Example]:
    """The positive expert data. ValueError where no expert trajectory won."""
    examples = wins(experts)
    if not examples:
        raise ValueError(
            f"none of the {len(experts)} expert trajectories won, so behaviour cloning has nothing to learn from: "
            "check 'experts', and in a file that 'won' is true (ETO: reward 1) where the subtask was solved"
        )
    return examples


def merge(positives: list[Example], solutions: Sequence[Example], one_per_state: bool = True) -> list[Example]:
    """``positives``, then the ``solutions`` that are not among them.

    Two solutions are of the same state if subtask, ``learn_from`` and the actions before it are equal (two experts may
    share a state); only the first is kept. Without ``one_per_state`` all different solutions are kept.
    """
    by_state: dict[tuple[Any, ...], Example] = {}
    for example in solutions:
        actions = tuple(example.trajectory.actions)
        state = actions[: example.learn_from] if one_per_state else actions
        by_state.setdefault((example.trajectory.task, example.learn_from, state), example)
    known = {_task_and_actions(example.trajectory) for example in positives}
    return positives + [
        example
        for example in by_state.values()
        if example.learn_from or _task_and_actions(example.trajectory) not in known
    ]


def distinct(trajectories: Iterable[Trajectory]) -> list[Example]:
    """One example per trajectory. Of equal ones (subtask and actions) the first remains, at the place of the last."""
    by_key: dict[Any, Trajectory] = {}
    for trajectory in trajectories:
        key = _task_and_actions(trajectory)
        by_key[key] = by_key.pop(key, trajectory)
    return [Example(trajectory, 0) for trajectory in by_key.values()]


def _task_and_actions(trajectory: Trajectory) -> tuple[str, tuple[str, ...]]:
    return trajectory.task, tuple(trajectory.actions)


def count(examples: Iterable[Example]) -> dict[str, int]:
    """Size of a selection: examples, examples for states after s0, turns, turns with loss, expert turns with loss."""
    examples = list(examples)
    return {
        "examples": len(examples),
        "later_examples": sum(example.learn_from > 0 for example in examples),
        "turns": sum(len(example.trajectory) for example in examples),
        "loss_turns": sum(sum(example.mask) for example in examples),
        "expert_loss_turns": sum(sum(example.mask[: example.trajectory.prefix]) for example in examples),
    }


def _check(expert: Trajectory, outcomes: Outcomes) -> None:
    """Refuse outcomes that would silently put loss on the wrong actions."""
    last = max(len(expert) - 1, 0)
    for index, win in sorted(outcomes.items()):
        where = f"task {expert.task}, outcome at s_{index}"
        if not 0 <= index <= last:
            raise ValueError(f"{where}: an expert trajectory of {len(expert)} turns has the states 0 to {last}")
        if win is None:
            continue
        if not win.won:
            raise ValueError(f"{where}: this simulation was not won; pass None for a loss")
        if win.task != expert.task:
            raise ValueError(f"{where}: the simulation is of another task ({win.task})")
        if win.prefix != index:
            raise ValueError(f"{where}: its first {index} turns must be the expert's, but its prefix is {win.prefix}")
        if win.turns[:index] != expert.turns[:index]:
            differs = next((i for i in range(min(index, len(win))) if win.turns[i] != expert.turns[i]), len(win))
            raise ValueError(f"{where}: the simulation does not begin with the expert's turns (turn {differs} differs)")
