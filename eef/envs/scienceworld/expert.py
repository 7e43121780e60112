"""A scripted ScienceWorld expert that follows the simulator's own solution and noise.

The way is the gold path in teleport form. A lapse spoils the episode: a focus on the wrong thing ends it with score
-1, the right thing is eaten, or the rest of the way is forgotten (which can still be made good). Detours, and wrong
things taken and put back, do not spoil it. Before the lapse lies a good prefix, behind it wandering.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass

from eef.envs.scienceworld import ScienceWorld
from eef.trajectory import Trajectory, Turn

_THING = re.compile(r"^\t(?:a substance called |an? |the )([\w ]+?)(?:\s*[(,.]|$)", re.MULTILINE)
_ROOMS = ("kitchen", "hallway", "bedroom", "living room", "workshop", "greenhouse", "outside", "foundry", "art studio")
_ROOM = re.compile(r"(?:room|location) is called the ([\w ]+)\.")


@dataclass(frozen=True)
class LapseNoise:
    """How the expert errs; chances in [0, 1].

    ``fail``: of an episode, that something spoils it. ``early``: of such an episode, that it happens in the first half
    of the way (a wrong focus never comes after the right one, when it does no harm). ``late_tasks``: names of tasks
    on which it all but always fails, and after most of the way: its wins hardly show them, its failures do.
    ``detour``: of an episode, to leave the way and come back; ``mend``: to take a wrong thing and put it back.
    """

    fail: float = 0.0
    early: float = 0.3
    late_tasks: tuple[str, ...] = ()
    detour: float = 0.0
    mend: float = 0.0


STRONG = LapseNoise(fail=0.56, detour=0.2, mend=0.15)
WEAK = LapseNoise(fail=0.73, early=0.5, detour=0.2, mend=0.1)


def teleported(actions: list[str]) -> list[str]:
    """A gold path whose walks through doors are one teleport each, with a look around behind it."""
    out: list[str] = []
    for action in actions:
        if action.startswith("open door to "):
            continue
        if action.startswith("go to "):
            if out[-2:-1] and out[-2].startswith("teleport to ") and out[-1] == "look around":
                del out[-2:]  # passed through
            out += [f"teleport to {action[6:]}", "look around"]
        elif not (action == "look around" and out[-1:] == ["look around"]):
            out.append(action)
    return out


def listed(action: str, valid: list[str], held: str = "") -> str:
    """The valid action that says what ``action`` says, which may name a thing in other words; else ``action``.

    The gold path says ``move egg dove egg in inventory to red box`` where the list has ``move dove to red box``, and a
    policy whose decoding is limited to the list can only learn what is listed. ``held``: what was picked up last.
    """
    if not valid or action in valid:
        return action
    target = action[action.rfind(" to ") :]
    rewordings = [f"{action[: at.start()]} into {action[at.end() :]}" for at in re.finditer(" in ", action)]
    if action.startswith("move "):
        rewordings.append(f"move {held}{target}")
    for other in rewordings:
        if other in valid:
            return other
    for start, end in (("move ", target), ("focus on ", ""), ("pick up ", ""), ("mix ", ""), ("eat ", "")):
        if action.startswith(start):
            asked = action[len(start) : len(action) - len(end)].split()
            named = {
                other: other[len(start) : len(other) - len(end)].split()
                for other in valid
                if other.startswith(start) and other.endswith(end)
            }
            fitting = [other for other, words in named.items() if words and not Counter(words) - Counter(asked)]
            return max(fitting, key=lambda other: (len(named[other]), -asked.index(named[other][0])), default=action)
    return action


def play_expert(env: ScienceWorld, task: str, noise: LapseNoise | None = None, seed: int = 0) -> Trajectory:
    """One episode of the expert on ``task``; equal arguments give an equal trajectory."""
    noise = noise or LapseNoise()
    rng = random.Random(f"{seed} {task}")
    way = teleported(env.gold(task))
    late = task.rpartition("/")[0] in noise.late_tasks
    spoils = rng.random() < (0.95 if late else noise.fail)
    early = not late and rng.random() < noise.early
    needed = [index for index, action in enumerate(way) if not action.startswith(("wait", "look around"))]
    focus = next((index for index in needed if way[index].startswith("focus on ")), needed[-1])
    middle = len(needed) // 2
    at = rng.choice(needed[: max(1, middle)] if early else needed[middle:])
    kind = rng.choice(["wrong focus", "forget", "eat"])
    if kind == "wrong focus" or (kind == "eat" and at <= focus):
        kind, at = "wrong focus", min(at, focus)
    detour = rng.randrange(len(way)) if rng.random() < noise.detour else -1
    mend = rng.randrange(len(way)) if rng.random() < noise.mend else -1

    pages, actions, step, held = [env.reset(task)], [], None, ""

    def act(action: str) -> bool:
        """Whether the episode goes on."""
        nonlocal step, held
        if step is None or not step.done:
            if env.valid_actions:
                action = listed(action, env.available_actions()["actions"], held)
            held = action[8:] if action.startswith("pick up ") else held
            step = env.step(action)
            actions.append(action)
            pages.append(step.observation)
        return not step.done

    room, seen = _room(pages[0]) or "hallway", pages[0]
    for index, action in enumerate(way):
        if index == detour:
            elsewhere = rng.choice([name for name in _ROOMS if name != room])
            for move in (f"teleport to {elsewhere}", "look around", f"teleport to {room}"):
                act(move)
        if index == mend and (thing := _thing(seen, rng)):
            act(f"pick up {thing}")
            act(f"drop {thing}")
        if spoils and index == at:
            if kind == "wrong focus" and (thing := _thing(seen, rng, way[focus])):
                act(f"focus on {thing}")
            elif kind == "eat":
                act(f"eat {way[focus].removeprefix('focus on ')}")
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
    return Trajectory(task, pages[0], turns, step.reward, step.info["won"], "", "done", info=info)


def _room(page: str) -> str:
    found = _ROOM.search(page)
    return found[1] if found else ""


def _thing(page: str, rng: random.Random, action: str = "") -> str:
    """A thing that ``page`` shows and ``action`` does not name; empty without one."""
    found = [name for name in _THING.findall(page) if name not in ("agent", "air") and name not in action]
    return rng.choice(found) if found else ""
