"""Pretraining text for a small base model: random walks that never focus, and the names of things.

The eight short subtasks are won by a focus on the right thing, so a walk without a focus shows no winning play. Each
walk ends with the names by which actions refer to the things in view (``baby baby beaver`` for ``baby beaver`` on a
page), and with the text of the task, which a model can only recite by attending to the first page.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from eef.envs import TextEnv
from eef.trajectory import Trajectory, Turn

if TYPE_CHECKING:
    from eef.envs.scienceworld import ScienceWorld

_MOVES = {  # the beginning of an action, and how often it is drawn
    "teleport to": 5,
    "look around": 4,
    "pick up": 4,
    "move": 4,
    "look at": 2,
    "pour": 1,
    "inventory": 1,
    "eat": 1,
}
NAMES, TASK = "names", "asked"  # the last lines of the observations before the names and before the task's text


def random_walk(env: TextEnv, task: str, seed: int, longest: int = 8) -> Trajectory:
    """Between ``longest // 2`` and ``longest`` random valid actions on ``task``, none of which is a focus.

    Half of the actions with a target go to a target in the task's text. Two turns follow: the names of all things that
    could be focused on, and the task's text.
    """
    rng = random.Random(f"{seed} {task}")
    prompt, turns, held = env.reset(task), [], ""
    text = prompt.split("\n")[1]
    for _ in range(rng.randint(longest // 2, longest)):
        valid = env.available_actions()["actions"]
        kinds = {kind: [action for action in valid if action.startswith(kind)] for kind in _MOVES}
        with_held = [action for action in kinds["move"] if held and action.startswith(f"move {held} ")]
        kinds["move"] = with_held or kinds["move"]
        possible = [kind for kind, actions in kinds.items() if actions]
        kind = rng.choices(possible, [_MOVES[kind] for kind in possible])[0] if possible else ""
        actions = kinds.get(kind, valid)  # all, where the simulator asks which of several things is meant
        targeted = [action for action in actions if " to " in action and f" {action.rpartition(' to ')[2]}" in text]
        action = rng.choice(targeted if targeted and rng.random() < 0.5 else actions)
        held = action[8:] if kind == "pick up" else held
        turns.append(Turn(action, env.step(action).observation))
    names = [action[9:] for action in env.available_actions()["actions"] if action.startswith("focus on ")]
    turns[-1] = Turn(turns[-1].action, f"{turns[-1].observation}\n{NAMES}")
    turns += [Turn(", ".join(names) or "none", TASK), Turn(text, "")]
    return Trajectory(task, prompt, tuple(turns), 0.0, False, "walk")


def random_walks(env: ScienceWorld, count: int, seed: int, longest: int = 8) -> list[Trajectory]:
    """``count`` walks on training subtasks drawn with ``seed``, in parallel on all simulators of ``env``."""
    rng, tasks = random.Random(seed), env.tasks("train")
    drawn = [rng.choice(tasks) for _ in range(count)]
    workers = env.workers(count)
    with ThreadPoolExecutor(len(workers)) as threads, tqdm(desc="walks", total=count, mininterval=5) as bar:

        def share(worker: TextEnv, first: int) -> list[Trajectory]:
            walks = []
            for number in range(first, count, len(workers)):
                walks.append(random_walk(worker, drawn[number], seed + number, longest))
                bar.update()
            return walks

        shares = list(threads.map(share, workers, range(len(workers))))
    return [shares[number % len(workers)][number // len(workers)] for number in range(count)]


def texts(walks: Sequence[Trajectory]) -> Iterator[str]:
    """All text of ``walks``, on which a tokenizer is trained."""
    for walk in walks:
        yield walk.prompt
        yield from (turn.action for turn in walk.turns)
        yield from (turn.observation for turn in walk.turns)
