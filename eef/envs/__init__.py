"""Text environments behind one small protocol, made by name with :func:`make_env`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol, cast

from eef.trajectory import Trajectory


class EnvError(RuntimeError):
    """The environment could not do its part (a dead simulator, a missing file): never counted as a loss."""


class ReplayDivergence(EnvError):
    """A replayed action did not lead to the observation that was recorded."""


@dataclass(frozen=True)
class Step:
    """What one action gave: ``reward`` in [0, 1]; ``valid`` False where the action was not understood (a no-op)."""

    observation: str
    reward: float
    done: bool
    valid: bool = True
    info: dict[str, Any] = field(default_factory=dict)


class TextEnv(Protocol):
    """An episodic environment of text, one episode at a time.

    ``won(step)`` of the environment's only definition of success is ``step.info["won"]`` on the last step.
    """

    name: str
    max_steps: int

    def tasks(self, split: str) -> list[str]:
        """Task ids of ``train``, ``eval`` or ``test``, in a fixed order."""
        ...

    def reset(self, task: str) -> str:
        """Begin ``task``; the text of s0."""
        ...

    def step(self, action: str) -> Step: ...

    def available_actions(self) -> dict[str, Any]:
        """``{"has_search_bar": bool, "clickables": [str, ...]}``; ScienceWorld: ``{"actions": [str, ...]}``."""
        ...

    def fork(self) -> TextEnv:
        """The same state, independent from here on. NotImplementedError where only a replay can make one."""
        ...

    def can_start_here(self, observation: str) -> bool:
        """Whether a simulation may start right after ``observation`` (paper, section 4.1)."""
        ...

    def stamp(self) -> dict[str, str]:
        """Hashes that two runs must share to be comparable, such as those of the catalogue and of the split."""
        ...

    def state_key(self) -> dict[str, Any]:
        """All that changes an observation, a reward or an available action, as JSON values: options and hashes of data.

        Stages are reused by it, together with ``max_steps`` and the source code of the environment's class, which need
        not be part of it. Which subtasks belong to a split does not change a state.
        """
        ...


class ReplayEnv(TextEnv, Protocol):
    """An environment that cannot fork: a state is reached by a replay, and each episode takes a worker of its own."""

    def workers(self, count: int) -> list[TextEnv]:
        """At most ``count`` independent environments, usable from one thread each."""
        ...


def replay_workers(env: TextEnv, count: int) -> list[TextEnv]:
    """The environments that ``count`` episodes at once need where ``env`` cannot fork; none where it can."""
    try:
        env.fork()
    except NotImplementedError:
        return cast(ReplayEnv, env).workers(count)
    except EnvError:  # it forks, but failed this time
        pass
    return []


ENVIRONMENTS = {"webshop": "WebShop", "scienceworld": "ScienceWorld"}


def make_env(name: str, **options: Any) -> TextEnv:
    """The environment called ``name`` (``webshop`` or ``scienceworld``); ``options`` are its own keywords, and both
    are kept as ``made``, for processes that need one of their own.

    ValueError for an unknown name, TypeError for an option that it does not have.
    """
    if name not in ENVIRONMENTS:
        raise ValueError(f"unknown environment {name!r}: known are {' and '.join(map(repr, ENVIRONMENTS))}")
    # by name and not by an import statement: a stage then depends on the code of the environment that it receives alone
    env: TextEnv = getattr(import_module(f"eef.envs.{name}"), ENVIRONMENTS[name])(**options)
    vars(env)["made"] = (name, options)
    return env


def restore(env: TextEnv, task: str, actions: list[str], observations: list[str], live: bool = False) -> str:
    """Bring ``env`` to the state after ``actions`` and compare every observation on the way.

    An empty action is an answer that held none: the environment was left alone, and is so again.
    ``observations`` holds the text of s0, s1, ...: one more than ``actions``. Returns the last one.
    :class:`ReplayDivergence` names the first step that differs, or the action that ended the episode too early: before
    the last one or, with ``live``, with the last one, so that no action could follow.
    """
    return replay(env, task, actions, observations, live).observation


def replay(env: TextEnv, task: str, actions: list[str], observations: list[str], live: bool = False) -> Step:
    """:func:`restore`, with the step that led to the last state; its reward is 0.0 where no action was taken."""
    if len(observations) != len(actions) + 1:
        raise ValueError(f"{len(actions)} actions need {len(actions) + 1} observations, not {len(observations)}")
    step = Step(env.reset(task), 0.0, False)
    _compare(task, 0, step.observation, observations[0])
    for index, action in enumerate(actions):
        if step.done:
            raise _ended_early(task, index - 1, len(actions))
        step = env.step(action) if action else replace(step, observation=observations[index + 1])
        _compare(task, index + 1, step.observation, observations[index + 1])
    if step.done and live:
        raise _ended_early(task, len(actions) - 1, len(actions) + 1)
    return step


def _ended_early(task: str, action: int, actions: int) -> ReplayDivergence:
    return ReplayDivergence(
        f"task {task}: the replay ended with action {action}, but the recording has at least {actions} actions: use "
        "the environment and the step limit of the recording"
    )


def _compare(task: str, index: int, seen: str, recorded: str) -> None:
    if seen != recorded:
        shorter = min(len(seen), len(recorded))
        at = next((i for i in range(shorter) if seen[i] != recorded[i]), shorter)
        raise ReplayDivergence(
            f"task {task}, state {index}: the replay shows {seen[at : at + 40]!r} where {recorded[at : at + 40]!r} was "
            f"recorded (character {at}); is it the same catalogue and seed?"
        )


def walk(env: TextEnv, expert: Trajectory, indices: Sequence[int]) -> Iterator[tuple[int, TextEnv, Step]]:
    """Replay ``expert`` once; for each i of ``indices``, in ascending order, yield i, an environment in the state s_i
    and the last step on the way to it.

    Every observation is compared. :class:`ReplayDivergence` is raised where the replay diverges, after the states
    before have been yielded.
    """
    wanted = sorted(set(indices))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < max(len(expert), 1):
        raise ValueError(f"states {wanted} of an expert trajectory of {len(expert)} turns (task {expert.task})")
    step = Step(env.reset(expert.task), 0.0, False)
    _compare(expert.task, 0, step.observation, expert.prompt)
    for index in range(wanted[-1] + 1 if wanted else 0):
        if index in wanted:
            yield index, env.fork(), step
        if index < wanted[-1] and expert.turns[index].action:  # an answer without an action left it alone
            step = env.step(expert.turns[index].action)
            _compare(expert.task, index + 1, step.observation, expert.turns[index].observation)
            if step.done:
                raise _ended_early(expert.task, index, len(expert))


def expert_states(env: TextEnv, expert: Trajectory, indices: list[int]) -> dict[int, TextEnv]:
    """Environments put in the states s_i of ``expert`` for each i of ``indices`` (paper, section 4.1).

    One pass over the expert's actions, a fork at each wanted state, every observation compared. All states or
    :class:`ReplayDivergence`; :func:`walk` also gives the states before a divergence.
    """
    return {index: twin for index, twin, _ in walk(env, expert, indices)}
