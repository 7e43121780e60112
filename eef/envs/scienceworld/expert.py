"""A scripted ScienceWorld expert that follows the simulator's own solution and makes mistakes.

The expert follows the gold path with teleports instead of walks, and carries plants without their flower pots. A fatal
mistake loses the episode: a focus on the wrong object ends it with score -1, the right object is eaten, or the rest of
the path is forgotten (this can still be corrected). Detours, and wrong objects picked up and put back, are harmless. A
failed episode is thus a good prefix, a mistake, and wandering.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass

from eef.envs.scienceworld import ScienceWorld
from eef.trajectory import Trajectory, Turn

_OBJECT = re.compile(r"^\t(?:a substance called |an? |the )([\w ]+?)(?:\s*[(,.]|$)", re.MULTILINE)
_ROOMS = ("kitchen", "hallway", "bedroom", "living room", "workshop", "greenhouse", "outside", "foundry", "art studio")
_MOVED_POT = re.compile(r"move (flower pot \d+) containing (.+) and soil in inventory to (.+)")
_ROOM = re.compile(r"(?:room|location) is called the ([\w ]+)\.")


@dataclass(frozen=True)
class LapseNoise:
    """Error rates of the expert; probabilities in [0, 1].

    ``fail``: probability that an episode has a fatal mistake. ``early``: probability that a fatal mistake happens in
    the first half of the path. (A wrong focus never follows the right one, after which it would be harmless.)
    ``late_tasks``: names of tasks that fail with probability 0.95 and never early, so that they are rare among wins and
    common among failures. ``detour``: probability that an episode leaves the path once and returns. ``mend``:
    probability that it picks up a wrong object and puts it back.
    """

    fail: float = 0.0
    early: float = 0.3
    late_tasks: tuple[str, ...] = ()
    detour: float = 0.0
    mend: float = 0.0


STRONG = LapseNoise(fail=0.56, detour=0.2, mend=0.15)
WEAK = LapseNoise(fail=0.73, early=0.5, detour=0.2, mend=0.1)


def teleported(actions: list[str]) -> list[str]:
    """A gold path in which each walk through doors is one teleport, followed by a look around."""
    path: list[str] = []
    for action in actions:
        if action.startswith("open door to "):
            continue
        if action.startswith("go to "):
            if path[-2:-1] and path[-2].startswith("teleport to ") and path[-1] == "look around":
                del path[-2:]  # the walk only passed through that room
            path += [f"teleport to {action[6:]}", "look around"]
        elif not (action == "look around" and path[-1:] == ["look around"]):
            path.append(action)
    return path


def without_flower_pots(path: list[str]) -> list[str]:
    """A gold path that carries a plant by its name instead of its flower pot by number; any other path as it is.

    The name has just been focused on. The number stands elsewhere on the page, and a small policy does not learn to
    find it (``figures/LOG.md``).
    """
    moves = [*filter(None, map(_MOVED_POT.fullmatch, path))]
    focuses = [action for action in path if action.startswith("focus on ")]
    if len(moves) != 1 or len(focuses) != 1:
        return path
    pot, plant, box = moves[0].groups()
    if focuses[0].endswith(plant):  # "focus on adult pea plant"; else "focus on living thing in flower pot 9"
        plant = focuses[0].removeprefix("focus on ")
    elif not focuses[0].endswith(pot):
        return path
    renamed = {
        focuses[0]: f"focus on {plant}",
        f"pick up {pot}": f"pick up {plant}",
        moves[0][0]: f"move {plant} to {box}",
    }
    return [renamed.get(action, action) for action in path]


def to_valid_action(action: str, valid: list[str], carried: str = "") -> str:
    """The valid action with the meaning of ``action``, which may name an object in other words; else ``action``.

    The gold path has ``move egg dove egg in inventory to red box`` where the valid action is ``move dove to red box``.
    A policy with constrained decoding can only learn valid actions. ``carried``: the object that was picked up last.
    """
    if not valid or action in valid:
        return action
    target = action[action.rfind(" to ") :]
    rewordings = [f"{action[: at.start()]} into {action[at.end() :]}" for at in re.finditer(" in ", action)]
    if action.startswith("move "):
        rewordings.append(f"move {carried}{target}")
    for other in rewordings:
        if other in valid:
            return other
    for start, end in (("move ", target), ("focus on ", ""), ("pick up ", ""), ("mix ", ""), ("eat ", "")):
        if action.startswith(start):
            words_of_action = action[len(start) : len(action) - len(end)].split()
            words_of = {
                other: other[len(start) : len(other) - len(end)].split()
                for other in valid
                if other.startswith(start) and other.endswith(end)
            }
            # A page may name the object more exactly: "adult banana tree" for "banana tree".
            longer = [o for o, words in words_of.items() if not Counter(words_of_action) - Counter(words)]
            if len(longer) == 1:
                return longer[0]
            matches = [o for o, words in words_of.items() if words and not Counter(words) - Counter(words_of_action)]
            return max(
                matches, key=lambda o: (len(words_of[o]), -words_of_action.index(words_of[o][0])), default=action
            )
    return action


def play_expert(env: ScienceWorld, task: str, noise: LapseNoise | None = None, seed: int = 0) -> Trajectory:
    """Play one episode of ``task``. Equal arguments give an equal trajectory; ``noise`` None is perfect play."""
    noise = noise or LapseNoise()
    rng = random.Random(f"{seed} {task}")
    path = without_flower_pots(teleported(env.gold(task)))
    late = task.rpartition("/")[0] in [env.task_name(name) for name in noise.late_tasks]
    fails = rng.random() < (0.95 if late else noise.fail)
    early = not late and rng.random() < noise.early
    needed = [index for index, action in enumerate(path) if not action.startswith(("wait", "look around"))]
    focus = next((index for index in needed if path[index].startswith("focus on ")), needed[-1])
    middle = len(needed) // 2
    at = rng.choice(needed[: max(1, middle)] if early else needed[middle:])
    kind = rng.choice(["wrong focus", "forget", "eat"])
    if kind == "wrong focus" or (kind == "eat" and at <= focus):
        kind, at = "wrong focus", min(at, focus)
    detour = rng.randrange(len(path)) if rng.random() < noise.detour else -1
    mend = rng.randrange(len(path)) if rng.random() < noise.mend else -1

    pages, actions, step, carried = [env.reset(task)], [], None, ""

    limit = env.max_steps_of(task)

    def act(action: str) -> bool:
        """Take ``action``. Returns whether the episode continues."""
        nonlocal step, carried
        if step is None or not (step.done or len(actions) >= limit):
            if env.valid_actions:
                action = to_valid_action(action, env.available_actions()["actions"], carried)
            carried = action[8:] if action.startswith("pick up ") else carried
            step = env.step(action)
            actions.append(action)
            pages.append(step.observation)
        return not (step.done or len(actions) >= limit)

    room, seen = _room(pages[0]) or "hallway", pages[0]
    for index, action in enumerate(path):
        if index == detour:
            elsewhere = rng.choice([name for name in _ROOMS if name != room])
            for move in (f"teleport to {elsewhere}", "look around", f"teleport to {room}"):
                act(move)
        if index == mend and (wrong := _object(seen, rng)):
            act(f"pick up {wrong}")
            act(f"drop {wrong}")
        if fails and index == at:
            if kind == "wrong focus" and (wrong := _object(seen, rng, path[focus])):
                act(f"focus on {wrong}")
            elif kind == "eat":
                act(f"eat {path[focus].removeprefix('focus on ')}")
            if kind != "wrong focus":
                break
        if not act(action):
            break
        room, seen = (action[12:], seen) if action.startswith("teleport to ") else (room, seen)
        seen = pages[-1] if _room(pages[-1]) else seen
    while act(rng.choice(["look around", f"teleport to {rng.choice(_ROOMS)}", "inventory"])):
        pass
    assert step is not None
    turns = tuple(Turn(action, page) for action, page in zip(actions, pages[1:], strict=True))
    info = {name: step.info[name] for name in ("score", "max_score")}
    outcome = "done" if step.done else "max_steps"
    return Trajectory(task, pages[0], turns, step.reward, step.info["won"], "", outcome, info=info)


def _room(page: str) -> str:
    match = _ROOM.search(page)
    return match[1] if match else ""


def _object(page: str, rng: random.Random, action: str = "") -> str:
    """A random object that ``page`` shows and ``action`` does not name; empty if there is none."""
    names = [name for name in _OBJECT.findall(page) if name not in ("agent", "air") and name not in action]
    return rng.choice(names) if names else ""
