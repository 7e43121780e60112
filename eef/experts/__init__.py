"""Where expert trajectories come from: files, or scripted stand-ins of two strengths.

In WebShop the stand-ins play by rule and slip (:mod:`eef.envs.webshop.shopper`). ``strong`` wins 38 % of the
embedded default's training subtasks (GPT-4 in the paper's Table 1: 35.6), ``weak`` 29 % (2,000 episodes each). One in a
hundred wins turns a page, of the failures 77 and 67 % do. Failures hold good prefixes (searches, pages turned,
the right item opened), harmful moves (a wrong row, a wrong option, a hasty purchase) and recoveries (a step back from a
wrong item). In ScienceWorld they follow the simulator's gold path and lapse (:mod:`eef.envs.scienceworld.expert`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from eef.envs import EnvError, TextEnv, replay_workers
from eef.envs.scienceworld import ScienceWorld
from eef.envs.scienceworld.expert import LapseNoise
from eef.envs.scienceworld.expert import play_expert as perform
from eef.envs.webshop import WebShop
from eef.envs.webshop.generate import grade
from eef.envs.webshop.shopper import ShopperNoise, play_expert
from eef.files import joined_names
from eef.trajectory import Trajectory, load

if TYPE_CHECKING:
    from eef.settings import ExpertSettings

STRONG = ShopperNoise(base=0.06, growth=0.02, late=0.75, notice=0.6)
WEAK = ShopperNoise(base=0.1, growth=0.04, late=0.85, notice=0.4)
STAND_INS: dict[str, dict[str, Any]] = {
    "webshop": {"strong": STRONG, "weak": WEAK},
    "scienceworld": {
        "strong": LapseNoise(fail=0.56, detour=0.2, mend=0.15),
        "weak": LapseNoise(fail=0.73, early=0.5, detour=0.2, mend=0.1),
    },
}


@dataclass(frozen=True)
class Expertise:
    """What the expert trajectories of a run depend on."""

    env: TextEnv
    experts: ExpertSettings
    tasks: Sequence[str]
    seed: int


@dataclass(frozen=True)
class Demonstrations:
    """What perfect play depends on."""

    env: TextEnv
    tasks: Sequence[str]


def collect_experts(inputs: Expertise, folder: Path, on_progress: Callable[[int, int, int], None]) -> list[Trajectory]:
    """The stage of :func:`collect`."""
    experts = inputs.experts
    return collect(inputs.env, experts.experts, inputs.tasks, inputs.seed, on_progress, experts.expert_noise)


def demonstrate(inputs: Demonstrations, folder: Path, on_progress: Callable[[int, int, int], None]) -> list[Trajectory]:
    """The stage of :func:`demonstrations`."""
    return demonstrations(inputs.env, inputs.tasks, on_progress)


def collect(
    env: TextEnv,
    names: str,
    tasks: Sequence[str],
    seed: int,
    on_progress: Callable[[int, int, int], None] | None = None,
    expert_noise: Mapping[str, float] | None = None,
) -> list[Trajectory]:
    """Expert trajectories on ``tasks``. ``names`` joins stand-ins and files by ``+`` (``strong+weak``, ``my.jsonl``).

    ``expert_noise`` changes fields of the stand-ins' :class:`~eef.envs.webshop.shopper.ShopperNoise` (how strong they
    are by ``base``, ``growth``, ``notice``, how rarely their wins show navigation by ``late``) or, in ScienceWorld,
    :class:`~eef.envs.scienceworld.expert.LapseNoise`. A file's trajectories on other subtasks are left out. ValueError
    for a name that is neither, that stands twice, or where no trajectory is left, and for unknown fields of
    ``expert_noise``; :class:`eef.trajectory.TrajectoryError` for a torn file.
    """
    found: list[Trajectory] = []
    given = joined_names(names)
    if len(set(given)) < len(given):
        raise ValueError(f"experts={names!r} names one expert twice")
    known = STAND_INS.get(env.name, {})
    there = ", ".join(known) or f"none for {env.name}"
    for name, chance in (expert_noise or {}).items():
        fields = next(iter(known.values())).__dataclass_fields__ if known else {}
        if name not in fields:
            raise ValueError(f"expert_noise: {name!r} is none of {', '.join(fields)}")
        chances = isinstance(fields[name].default, float)
        if chances and (isinstance(chance, bool) or not isinstance(chance, (int, float)) or not 0 <= chance <= 1):
            raise ValueError(f"expert_noise: {name!r} is a chance in [0, 1], not {chance!r}")
    if expert_noise and not set(given) & set(known):
        raise ValueError(f"expert_noise changes stand-ins ({there}) alone, and experts={names!r} names none")
    for name in given:
        if name in known:
            found += _played(env, replace(known[name], **(expert_noise or {})), name, tasks, seed, on_progress)
        elif Path(name).is_file():
            wanted, read = set(tasks), load(name)
            kept = [replace(item, source=item.source or Path(name).stem) for item in read if item.task in wanted]
            if not kept:
                raise ValueError(
                    f"{name}: none of its {len(read)} trajectories is on one of the {len(wanted)} training subtasks"
                )
            found += kept
        else:
            raise ValueError(f"expert {name!r} is neither a stand-in ({there}) nor a trajectory file")
    return found


def demonstrations(
    env: TextEnv, tasks: Sequence[str], on_progress: Callable[[int, int, int], None] | None = None
) -> list[Trajectory]:
    """Perfect play on ``tasks``: what the ceiling is trained on."""
    return _played(
        env, LapseNoise() if isinstance(env, ScienceWorld) else ShopperNoise(), "perfect", tasks, 0, on_progress
    )


def example(env: TextEnv, split: str, tasks: Sequence[str]) -> Trajectory:
    """A win of the scripted player on a subtask of ``eval`` or ``train`` that is not one of ``tasks`` of ``split``."""
    taken = set(tasks)
    parts = sorted(("eval", "train"), key=lambda part: part == split)  # another split first, so that it stays the same
    others = [task for part in parts for task in env.tasks(part)[::-1] if task not in taken]
    for task in others[:50]:
        shown = demonstrations(env, [task])[0]
        if shown.won:
            return shown
    if others:
        raise ValueError(f"one-shot: the scripted player has no win in {env.max_steps} steps: raise max_steps")
    raise ValueError("one-shot: no subtask is left for the example: take fewer of them (train_tasks, --tasks)")


def groups(env: TextEnv, tasks: Sequence[str]) -> dict[str, str] | None:
    """What the win rate is also told for: ``easy``, ``medium`` or ``hard`` (what perfect play needs) for each task of
    a generated shop, the task's name in ScienceWorld; None elsewhere."""
    if isinstance(env, ScienceWorld):
        return {task: task.rpartition("/")[0] for task in tasks}
    if not isinstance(env, WebShop) or not env.generated:
        return None
    return {task: _grade(env, task) for task in tasks}


def _grade(env: WebShop, task: str) -> str:
    try:
        return grade(play_expert(env, task).actions)
    except EnvError:  # a subtask that cannot be played has no grade, and no say in the others'
        return "ungraded"


def _played(
    env: TextEnv,
    expert_noise: Any,
    name: str,
    tasks: Sequence[str],
    seed: int,
    on_progress: Callable[[int, int, int], None] | None,
) -> list[Trajectory]:
    def one(seat: TextEnv, task: str) -> Trajectory:
        try:
            if isinstance(seat, ScienceWorld):
                played = perform(seat, task, expert_noise, seed)
            else:
                played = play_expert(cast(WebShop, seat), task, expert_noise, seed)
        except EnvError:  # of the machinery: neither won nor lost
            played = Trajectory(task, "", (), outcome="env_error")
        if on_progress:
            on_progress(1, int(played.won), 0)
        return replace(played, source=name)

    if not isinstance(env, (WebShop, ScienceWorld)):
        raise ValueError(f"there is no {name} player of {env.name}: give a trajectory file")
    seats = replay_workers(env, len(tasks)) or [env]
    with ThreadPoolExecutor(len(seats)) as threads:  # a seat plays every so manieth task
        shares = threads.map(lambda at: [one(seats[at], task) for task in tasks[at :: len(seats)]], range(len(seats)))
        played = dict(zip(sorted(range(len(tasks)), key=lambda i: i % len(seats)), chain(*shares), strict=True))
    return [played[place] for place in range(len(tasks))]
