"""Preference pairs of a run, in the conversational form of TRL's DPO: ``prompt``, ``chosen``, ``rejected``.

EEF gives verified flips: at one state of an expert's failure, an action of the agent that led to a win, and the action
of the expert, which led to a loss (:func:`flips`). ETO gives its own pairs: a win and a failure of one subtask
(:func:`trajectory_pair`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from eef.agents.chat import Chat
from eef.exchange.conversation import messages_of
from eef.exchange.source import chat_of_run, choose_stage, stages_with
from eef.files import RunError, read_json
from eef.trajectory import Trajectory, load

State = tuple[str, tuple[str, ...]]  # the subtask, and the actions that lead to the state


@dataclass(frozen=True)
class Flip:
    """At state ``state`` of ``expert`` the agent's action in ``win`` led to a win, the expert's action to a loss.

    ``next_state`` is the next simulated state of the expert, which lost; ``len(expert)`` stands for the expert's end.
    """

    expert: Trajectory
    state: int
    next_state: int
    win: Trajectory


def flips(experts: Iterable[Trajectory], simulations: Iterable[Trajectory]) -> list[Flip]:
    """The verified flips of ``simulations`` of the agent from states of ``experts``, s0 included.

    A flip at state s_i of an expert's failure is verified if

    1. a simulation from s_i won, in any iteration: its first own action led to a win;
    2. the next simulated state s_j of the same expert lost, so that at least one simulation from s_j failed and none
       won. If no later state was simulated, the expert's own end is the loss;
    3. the two actions at s_i differ, both answers had a readable action, and the winning one may carry loss: an answer
       with an invented page may not.

    Between s_i and s_j the expert plays a_i ... a_(j-1). With j = i + 1 only the action a_i lies between a state that
    won and one that lost. Simulations with an infrastructure error are neither wins nor losses. A state is a subtask
    and the actions from s0: simulations of two experts that share these count for both. Equal flips count once.
    """
    wins: dict[State, list[Trajectory]] = {}
    lost: set[State] = set()
    for simulation in simulations:
        state = (simulation.task, tuple(simulation.actions[: simulation.prefix]))
        if simulation.won and len(simulation) > simulation.prefix:
            wins.setdefault(state, []).append(simulation)
        elif simulation.failed:
            lost.add(state)
    flips: dict[Any, Flip] = {}
    for expert in experts:
        if not expert.failed:
            continue
        states = [(expert.task, tuple(expert.actions[:index])) for index in range(len(expert))]
        simulated = [index for index, state in enumerate(states) if state in wins or state in lost]
        for index, after in pairwise([*simulated, len(expert)]):
            if after < len(expert) and states[after] in wins:
                continue
            for win in wins.get(states[index], ()):
                chosen, rejected = win.turns[index].action, expert.turns[index].action
                if chosen and rejected and chosen != rejected and win.turns[index].learn:
                    flips.setdefault((*states[index], chosen, rejected), Flip(expert, index, after, win))
    return list(flips.values())


def flip_row(chat: Chat | None, flip: Flip) -> dict[str, Any]:
    """The row of a flip: ``prompt`` ends with the state's page; ``chosen`` and ``rejected`` are one answer each."""
    sides = []
    for item in (flip.win, flip.expert):
        until = replace(item, turns=item.turns[: flip.state + 1])
        messages = messages_of(chat, until, [False] * len(until))
        sides.append([{"role": each.role, "content": each.content} for each in messages])
    (*prompt, chosen), (*_, rejected) = sides
    where = {"task": flip.expert.task, "state": flip.state, "next_state": flip.next_state, "source": flip.expert.source}
    return {"kind": "flip", **where, "prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def trajectory_pair(chat: Chat | None, won: Trajectory, lost: Trajectory) -> dict[str, Any]:
    """The row of one of ETO's pairs: ``prompt`` contains the turns that both share, ``state`` is their number.

    Shared turns give the same log-likelihood on both sides, so DPO's loss does not change if they move to the prompt.
    """
    if won.prompt != lost.prompt:
        raise ValueError(f"task {won.task}: the win and the failure begin with different pages")
    shared, longest = 0, min(len(won), len(lost)) - 1
    while shared < longest and _same_turn(won, lost, shared):
        shared += 1
    start = 2 * (shared + len(chat.opening if chat else ())) + 1
    sides = []
    for item in (won, lost):
        messages = messages_of(chat, item, [False] * len(item))
        sides.append([{"role": each.role, "content": each.content} for each in messages])
    where = {"task": won.task, "state": shared, "source": lost.source}
    return {
        "kind": "eto",
        **where,
        "prompt": sides[0][:start],
        "chosen": sides[0][start:],
        "rejected": sides[1][start:],
    }


def _same_turn(one: Trajectory, other: Trajectory, index: int) -> bool:
    a, b = one.turns[index], other.turns[index]
    return (a.answer, a.observation) == (b.answer, b.observation)


def run_pairs(
    folder: Path, stage: str | None = None, model: str | None = None, plain: bool = False
) -> tuple[list[dict[str, Any]], str]:
    """The rows of the pairs of the run in ``folder``, and a line that counts them.

    ETO's pairs are those of one DPO stage, by default the last. Flips are of all simulations of the run. RunError for
    a run without either, and where no flip is verified.
    """
    if stage or stages_with(folder, "pairs.jsonl"):
        name = choose_stage(folder, "pairs.jsonl", stage, "DPO")
        chat = None if plain else chat_of_run(folder, folder / name, model)
        sides = load(folder / name / "pairs.jsonl")
        pairs = zip(sides[::2], sides[1::2], strict=True)
        rows = [trajectory_pair(chat, won, lost) for won, lost in pairs if len(won) and len(lost)]
        return rows, f"{len(rows)} pairs of a win and a failure, of {name}"
    names = [name for name in stages_with(folder, "trajectories.jsonl") if _is_simulation(folder / name)]
    if not names or not (folder / "experts").is_dir():
        raise RunError(
            f"{folder.name} has no pairs: they come from simulations of expert states (method eef) or from ETO"
        )
    simulations = [item for name in names for item in load(folder / name / "trajectories.jsonl")]
    experts = load(folder / "experts" / "trajectories.jsonl")
    verified = flips(experts, simulations)
    counts = f"{len(simulations)} simulations, {sum(item.won for item in simulations)} won"
    if not verified:
        raise RunError(f"{folder.name}: no flip is verified among {counts}, of {', '.join(names)}")
    chat = None if plain else chat_of_run(folder, folder / names[0], model)
    return [
        flip_row(chat, each) for each in verified
    ], f"{len(verified)} verified flips of {counts}, {_adjacent(verified)}"


def _adjacent(verified: Sequence[Flip]) -> str:
    count = sum(flip.next_state == flip.state + 1 for flip in verified)
    return f"{count} with a single action of the expert between the two states"


def _is_simulation(path: Path) -> bool:
    """Whether the stage holds simulations for training; its key lists the states where they start."""
    stage = read_json(path / "stage.json")
    return stage["name"] != "test" and "starts" in stage["key"]["inputs"]
