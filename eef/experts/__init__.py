"""Where expert trajectories come from: trajectory files, or the scripted experts of an environment.

A scripted expert plays by rules and errs by chance, so that its failures contain good prefixes, harmful moves and
recoveries. Environments bring their own (:class:`eef.envs.extras.ScriptedExperts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eef.agents.journal import Journal
from eef.envs import EnvError, TextEnv, on_workers
from eef.envs.extras import ScriptedExperts, extras_of, play_scripted
from eef.experts.check import check_lines, load_experts
from eef.experts.offered import as_offered
from eef.files import did_you_mean, joined_names, names_file
from eef.trajectory import Trajectory, Turn

if TYPE_CHECKING:
    from eef.settings import ExpertSettings

OnProgress = Callable[[int, int, int], None]  # episodes, wins and tokens since the last call


@dataclass(frozen=True)
class Expertise:
    """What the expert trajectories of a run depend on.

    ``actions_only``: thoughts in files are left out (:func:`without_thoughts`). ``as_available``: then actions are also
    written as they are available (:mod:`eef.experts.offered`); a policy with aliases writes both forms alike. Both are
    always False without a file, so that all runs share the trajectories of scripted experts, which have no thoughts.
    ``scripted`` follows from ``env`` and ``experts``: the code of the scripted player, and the noise of those named.
    """

    env: TextEnv
    experts: ExpertSettings
    tasks: Sequence[str]
    seed: int
    actions_only: bool = field(default=False, metadata={"key_at_default": None})
    as_available: bool = field(default=False, metadata={"key_at_default": None})
    scripted: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        scripted = extras_of(self.env).experts
        names = joined_names(self.experts.experts)
        noise = {name: scripted.noise[name] for name in names if name in scripted.noise} if scripted else {}
        object.__setattr__(self, "actions_only", self.actions_only and any(map(names_file, names)))
        object.__setattr__(self, "as_available", self.as_available and self.actions_only)
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


def collect_experts(
    inputs: Expertise, folder: Path, on_progress: OnProgress, journal: Path | None = None
) -> list[Trajectory]:
    """The stage of :func:`expert_trajectories`. ``journal`` is the file of its finished episodes."""
    experts = inputs.experts
    trajectories = expert_trajectories(
        inputs.env, experts.experts, inputs.tasks, inputs.seed, on_progress, experts.expert_noise, Journal.open(journal)
    )
    trajectories = _said_as_actions(trajectories) if inputs.actions_only else trajectories
    return as_offered(inputs.env, trajectories) if inputs.as_available else trajectories


def without_thoughts(trajectory: Trajectory) -> Trajectory:
    """``trajectory`` with answers that are actions alone, for a policy whose decoding is constrained to actions.

    Such a policy cannot say anything else. A turn without an action keeps its answer and never carries loss.
    """

    def short(turn: Turn) -> Turn:
        if not turn.action:
            return replace(turn, learn=False)
        return replace(turn, reply="", ids=(), chat="") if turn.reply else turn

    return replace(trajectory, turns=tuple(map(short, trajectory.turns)))


def _said_as_actions(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    thoughts = sum(any(turn.action and turn.reply for turn in item.turns) for item in trajectories)
    if thoughts:
        print(
            f"[experts] the answers of {thoughts} of {len(trajectories)} expert trajectories have thoughts, which "
            "constrained decoding cannot write: only their actions are learnt",
            flush=True,
        )
    return [without_thoughts(item) for item in trajectories]


def demonstrate(
    inputs: Demonstrations, folder: Path, on_progress: OnProgress, journal: Path | None = None
) -> list[Trajectory]:
    """The stage of :func:`demonstrations`. ``journal`` is the file of its finished episodes."""
    return demonstrations(inputs.env, inputs.tasks, on_progress, Journal.open(journal))


def expert_trajectories(
    env: TextEnv,
    names: str,
    tasks: Sequence[str],
    seed: int,
    on_progress: OnProgress | None = None,
    expert_noise: Mapping[str, Any] | None = None,
    journal: Journal | None = None,
) -> list[Trajectory]:
    """Expert trajectories on ``tasks``, in the order of ``names``.

    ``names`` joins scripted experts of the environment and trajectory files by ``+`` (``strong+weak``, ``my.jsonl``).
    ``expert_noise`` replaces error rates of the scripted experts. A file's trajectories on other subtasks are ignored.
    The others are replayed in ``env``; one that diverges has the outcome ``replay_divergence``, so that no method
    learns from it, and ``info["divergence"]`` (:mod:`eef.experts.check`). Episodes of scripted experts that are in
    ``journal`` are not played again, and the others are saved there.

    ValueError for an unknown or duplicated name, a file without a trajectory on ``tasks``, and an unknown or invalid
    error rate; :class:`eef.trajectory.TrajectoryError` for an invalid file.
    """
    scripted = extras_of(env).experts
    trajectories: list[Trajectory] = []
    for source in expert_sources(env, names, expert_noise):
        if isinstance(source, Path):
            trajectories += _read(env, source, tasks)
        elif scripted:
            noise = replace(scripted.noise[source], **(expert_noise or {}))
            first = len(trajectories)
            trajectories += _played(env, scripted, noise, source, tasks, seed, on_progress, journal, first)
    return trajectories


def expert_sources(env: TextEnv, names: str, expert_noise: Mapping[str, Any] | None = None) -> list[str | Path]:
    """The parts of ``names``: names of scripted experts of ``env``, and paths of files. ValueError as in
    :func:`expert_trajectories`.
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
    for name in sources:
        if name not in noise and not names_file(name):
            hint = f"; for the file of this name write ./{name}" if Path(name).is_file() else did_you_mean(name, noise)
            kind = "an existing file" if Path(name).suffix or "/" in name else "a trajectory file"
            raise ValueError(f"expert {name!r} is neither a scripted expert ({known}) nor {kind}{hint}")
    return [name if name in noise else Path(name) for name in sources]


def demonstrations(
    env: TextEnv, tasks: Sequence[str], on_progress: OnProgress | None = None, journal: Journal | None = None
) -> list[Trajectory]:
    """Perfect play on ``tasks``, on which the upper bound is trained. ValueError without scripted experts.

    ``journal``: see :func:`expert_trajectories`.
    """
    scripted = extras_of(env).experts
    if scripted is None:
        raise ValueError(f"{env.name} has no scripted expert: use a trajectory file, and no method that needs one")
    return _played(env, scripted, scripted.perfect, "perfect", tasks, 0, on_progress, journal)


def one_shot_example(env: TextEnv, split: str, tasks: Sequence[str]) -> Trajectory:
    """A win of the scripted expert on a subtask of ``eval`` or ``train`` that is not among ``tasks``.

    ``split``: the one that is played; the example is of another if possible.
    """
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


def _read(env: TextEnv, path: Path, tasks: Sequence[str]) -> list[Trajectory]:
    """The trajectories of a file on ``tasks``, each replayed. Their default source is the stem of the file.

    One that diverges gets the outcome ``replay_divergence`` (:func:`eef.experts.check.check_lines`).
    """
    report = check_lines(str(path), on_tasks(path, tasks), env)
    if report.divergences:
        print(f"[experts] {report.first_line}", flush=True)
    return [replace(item, source=item.source or path.stem) for item in report.trajectories]


def on_tasks(path: Path, tasks: Sequence[str]) -> list[tuple[str, Trajectory]]:
    """The trajectories of a file on ``tasks``, with their places. ValueError if there are none."""
    wanted, lines = set(tasks), load_experts(path)
    own = [(place, item) for place, item in lines if item.task in wanted]
    if not own:
        raise ValueError(
            f"{path}: none of its {len(lines)} trajectories is on one of the {len(wanted)} training subtasks"
            f"; the file has task {lines[0][1].task!r}, the environment {next(iter(tasks), None)!r}"
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
    journal: Journal | None,
    first: int = 0,
) -> list[Trajectory]:
    """One episode of a scripted expert per subtask; ``env`` keeps its state where it can fork.

    In ``journal`` the subtasks are numbered from ``first``.
    """
    saved = journal or Journal()

    def play(worker: Callable[[], TextEnv], number: int) -> None:
        task = tasks[number - first]
        try:
            played = play_scripted(scripted, worker(), task, noise, seed)
        except EnvError:  # the environment failed: neither won nor lost
            played = Trajectory(task, "", (), outcome="env_error")
        saved.append(number, replace(played, source=name))
        if on_progress:
            on_progress(1, int(played.won), 0)

    numbers = range(first, first + len(tasks))
    on_workers(env, saved.missing(numbers, on_progress), play)
    return [saved.episodes[number] for number in numbers]
