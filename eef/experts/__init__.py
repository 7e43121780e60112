"""Where expert trajectories come from: trajectory files, or the scripted experts of an environment.

A scripted expert plays by rules and errs by chance, so that its failures contain good prefixes, harmful moves and
recoveries. Environments bring their own (:class:`eef.envs.extras.ScriptedExperts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eef.envs import EnvError, TextEnv, replay_workers
from eef.envs.extras import ScriptedExperts, extras_of
from eef.files import joined_names, names_file
from eef.trajectory import Trajectory, load

if TYPE_CHECKING:
    from eef.settings import ExpertSettings

OnProgress = Callable[[int, int, int], None]  # episodes, wins and tokens since the last call


@dataclass(frozen=True)
class Expertise:
    """What the expert trajectories of a run depend on.

    ``scripted`` follows from ``env`` and ``experts``: the code of the scripted player, and the noise of those named.
    """

    env: TextEnv
    experts: ExpertSettings
    tasks: Sequence[str]
    seed: int
    scripted: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        scripted = extras_of(self.env).experts
        names = joined_names(self.experts.experts)
        noise = {name: scripted.noise[name] for name in names if name in scripted.noise} if scripted else {}
        object.__setattr__(self, "scripted", {"play": scripted.play, "noise": noise} if scripted and noise else {})


@dataclass(frozen=True)
class Demonstrations:
    """What perfect play depends on; ``scripted`` follows from ``env``."""

    env: TextEnv
    tasks: Sequence[str]
    scripted: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        scripted = extras_of(self.env).experts
        value = {"play": scripted.play, "perfect": scripted.perfect} if scripted else {}
        object.__setattr__(self, "scripted", value)


def collect_experts(inputs: Expertise, folder: Path, on_progress: OnProgress) -> list[Trajectory]:
    """The stage of :func:`expert_trajectories`."""
    experts = inputs.experts
    return expert_trajectories(
        inputs.env, experts.experts, inputs.tasks, inputs.seed, on_progress, experts.expert_noise
    )


def demonstrate(inputs: Demonstrations, folder: Path, on_progress: OnProgress) -> list[Trajectory]:
    """The stage of :func:`demonstrations`."""
    return demonstrations(inputs.env, inputs.tasks, on_progress)


def expert_trajectories(
    env: TextEnv,
    names: str,
    tasks: Sequence[str],
    seed: int,
    on_progress: OnProgress | None = None,
    expert_noise: Mapping[str, Any] | None = None,
) -> list[Trajectory]:
    """Expert trajectories on ``tasks``, in the order of ``names``.

    ``names`` joins scripted experts of the environment and trajectory files by ``+`` (``strong+weak``, ``my.jsonl``).
    ``expert_noise`` replaces error rates of the scripted experts. A file's trajectories on other subtasks are ignored.

    ValueError for an unknown or duplicated name, a file without a trajectory on ``tasks``, and an unknown or invalid
    error rate; :class:`eef.trajectory.TrajectoryError` for an invalid file.
    """
    sources = joined_names(names)
    if len(set(sources)) < len(sources):
        raise ValueError(f"experts={names!r} names one expert twice")
    scripted = extras_of(env).experts
    noise = dict(scripted.noise) if scripted else {}
    _check_noise(scripted, expert_noise or {}, env.name)
    known = ", ".join(noise) or f"none for {env.name}"
    if expert_noise and not set(sources) & set(noise):
        raise ValueError(f"expert_noise applies to scripted experts ({known}), but experts={names!r} names none")
    trajectories: list[Trajectory] = []
    for name in sources:
        if scripted and name in noise:
            own_noise = replace(noise[name], **(expert_noise or {}))
            trajectories += _played(env, scripted, own_noise, name, tasks, seed, on_progress)
        elif names_file(name):
            trajectories += _read(Path(name), tasks)
        else:
            hint = f"; for the file of this name write ./{name}" if Path(name).is_file() else ""
            raise ValueError(f"expert {name!r} is neither a scripted expert ({known}) nor a trajectory file{hint}")
    return trajectories


def demonstrations(env: TextEnv, tasks: Sequence[str], on_progress: OnProgress | None = None) -> list[Trajectory]:
    """Perfect play on ``tasks``, on which the upper bound is trained. ValueError without scripted experts."""
    scripted = extras_of(env).experts
    if scripted is None:
        raise ValueError(f"{env.name} has no scripted expert: use a trajectory file, and no method that needs one")
    return _played(env, scripted, scripted.perfect, "perfect", tasks, 0, on_progress)


def one_shot_example(env: TextEnv, split: str, tasks: Sequence[str]) -> Trajectory:
    """A win of the scripted expert on a subtask of ``eval`` or ``train`` that is not among ``tasks`` of ``split``."""
    excluded = set(tasks)
    splits = sorted(("eval", "train"), key=lambda name: name == split)  # another split first: a stable example
    candidates = [task for name in splits for task in env.tasks(name)[::-1] if task not in excluded]
    for task in candidates[:50]:
        episode = demonstrations(env, [task])[0]
        if episode.won:
            return episode
    if candidates:
        raise ValueError(f"one-shot: the scripted expert does not win in {env.max_steps} steps: raise max_steps")
    raise ValueError("one-shot: no subtask is left for the example: use fewer of them (train_tasks, --tasks)")


def _check_noise(scripted: ScriptedExperts | None, expert_noise: Mapping[str, Any], env: str) -> None:
    if expert_noise and scripted is None:
        raise ValueError(f"expert_noise: {env} has no scripted expert")
    defaults = {each.name: each.default for each in fields(scripted.perfect)} if scripted else {}
    for name, value in expert_noise.items():
        if name not in defaults:
            raise ValueError(f"expert_noise: unknown error rate {name!r}, expected one of {', '.join(defaults)}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(defaults[name], float) and not (number and 0 <= value <= 1):
            raise ValueError(f"expert_noise: {name!r} must be a probability in [0, 1], not {value!r}")


def _read(path: Path, tasks: Sequence[str]) -> list[Trajectory]:
    """The trajectories of a file on ``tasks``. Their default source is the stem of the file."""
    wanted, trajectories = set(tasks), load(path)
    own = [replace(item, source=item.source or path.stem) for item in trajectories if item.task in wanted]
    if not own:
        raise ValueError(
            f"{path}: none of its {len(trajectories)} trajectories is on one of the {len(wanted)} training subtasks"
        )
    return own


def _played(
    env: TextEnv,
    scripted: ScriptedExperts,
    noise: Any,
    name: str,
    tasks: Sequence[str],
    seed: int,
    on_progress: OnProgress | None,
) -> list[Trajectory]:
    """One episode of a scripted expert per subtask; ``env`` keeps its state where it can fork."""
    replaying = replay_workers(env, len(tasks))

    def play(worker: TextEnv, task: str) -> Trajectory:
        try:
            played = scripted.play(worker if replaying else worker.fork(), task, noise, seed)
        except EnvError:  # the environment failed: neither won nor lost
            played = Trajectory(task, "", (), outcome="env_error")
        if on_progress:
            on_progress(1, int(played.won), 0)
        return replace(played, source=name)

    players = replaying or [env]
    count = len(players)
    with ThreadPoolExecutor(count) as threads:  # player i plays every count-th subtask, from the i-th on
        shares = threads.map(lambda at: [play(players[at], task) for task in tasks[at::count]], range(count))
        order = sorted(range(len(tasks)), key=lambda index: index % count)
        played = dict(zip(order, chain(*shares), strict=True))
    return [played[index] for index in range(len(tasks))]
