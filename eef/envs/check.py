"""Check of an environment: ``eef envs check`` plays some episodes and compares what the protocol promises.

In Python, for any object: ``for line in check_env(env): print(line)``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from eef.envs import (
    SPLITS,
    ProtocolError,
    ReplayDivergence,
    Step,
    TextEnv,
    action_texts,
    actions_now,
    first_page,
    replay,
    replay_workers,
    take_step,
)
from eef.envs.errors import own_errors
from eef.envs.extras import Extras, extras_of, play_scripted
from eef.envs.limits import step_limit
from eef.files import digest
from eef.trajectory import Trajectory, TrajectoryError, check, check_reward

_METHODS = {  # what an environment without the method is told to add
    "tasks": "tasks(split) returns the ids of the subtasks of a split, a list of texts",
    "reset": "reset(task) returns the first page, a text",
    "step": "step(action) returns Step(observation, reward, done, valid, info)",
    "available_actions": "available_actions() returns {'actions': [...]}",
    "fork": "fork() returns an independent copy in the same state, such as copy.deepcopy(self)",
    "can_start_here": "can_start_here(observation) returns True where a simulation may start",
    "stamp": "stamp() returns hashes of the data, a dictionary of texts",
    "state_key": "state_key() returns everything that changes an observation, a reward or an available action",
}


@dataclass
class _Played:
    """An episode that the check played: ``pages`` has one text more than ``steps``."""

    task: str
    pages: list[str]
    actions: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def check_env(env: TextEnv, episodes: int = 3, seed: int = 0) -> Iterator[str]:
    """Yields a line for each check that ``env`` passes, with ``episodes`` training subtasks played at random.

    If the actions cannot be listed, the scripted expert plays. The state of ``env`` changes. :class:`ProtocolError` at
    the first failure: it says which method returned what, and what to return instead. ValueError for no episodes.
    """
    if type(episodes) is not int or episodes < 1:
        raise ValueError(f"episodes={episodes!r} must be a positive integer")
    _check_methods(env)
    yield "methods: all are there"
    with _errors(env, "state_key()"):
        key = digest(env.state_key())
    with _errors(env, "stamp()"):
        stamp = env.stamp()
    if not isinstance(stamp, dict) or not all(isinstance(text, str) for item in stamp.items() for text in item):
        raise _fault(env, "stamp()", f"returned {stamp!r}", "a dictionary of texts, such as {'goals': digest(goals)}")
    tasks = _check_tasks(env)
    yield "tasks: " + ", ".join(f"{len(ids)} {split}" for split, ids in tasks.items())

    played_tasks = tasks["train"][:episodes]
    for task in played_tasks:
        with _errors(env, f"reset({task!r})"):
            first, again = first_page(env, task), first_page(env, task)
        if first != again:
            raise _fault(env, f"reset({task!r})", "returned two different pages", "the same page for the same task")
    yield "reset: the same task gives the same page"
    extras = _check_extras(env, first, tasks)
    is_played_by_expert = not _lists_actions(env, extras)
    if is_played_by_expert:
        played = [_by_expert(env, extras, task) for task in played_tasks]
    else:
        rng = random.Random(seed)
        played = [_at_random(env, extras, task, rng) for task in played_tasks]
        first_page(env, played_tasks[0])
        with _errors(env, "step('no such action')"):
            _check_step(env, "no such action", take_step(env, "no such action"))
    yield _summary(env, played, "the scripted expert" if is_played_by_expert else "valid actions at random")

    for episode in played:
        _check_replay(env, episode)
    yield "replay: the same actions give the same pages, rewards and ends"
    yield _check_copies(env, played)
    if digest(env.state_key()) != key or env.stamp() != stamp:
        raise _fault(env, "state_key() or stamp()", "changed during an episode", "what the options and the data set")
    yield "state_key, stamp: the same before and after the episodes"
    parts = [f"{len(extras.skills)} skills"] if extras.skills else []
    if groups := extras.groups(env, tasks["test"]):
        parts.append(f"groups {', '.join(sorted(set(groups.values())))}")
    if extras.experts:
        yield _check_experts(env, extras, played_tasks)
        parts += ["experts " + ", ".join(extras.experts.noise)]
    yield "extras: " + (", ".join(parts) or "none")


def _fault(env: TextEnv, call: str, what: str, instead: str) -> ProtocolError:
    return ProtocolError(f"{type(env).__name__}.{call} {what}: return {instead}")


def _errors(env: TextEnv, call: str) -> AbstractContextManager[None]:
    return own_errors(f"{type(env).__name__}.{call}", NotImplementedError, ReplayDivergence)


def _check_methods(env: TextEnv) -> None:
    kind = type(env).__name__
    for name, remedy in _METHODS.items():
        if not callable(getattr(env, name, None)):
            raise ProtocolError(f"{kind} has no method {name}: add it; {remedy}")
    if not isinstance(getattr(env, "name", None), str):
        raise ProtocolError(f"{kind} has no name: add the attribute name, a text")
    steps = getattr(env, "max_steps", None)
    if type(steps) is not int or steps < 1:
        raise ProtocolError(f"{kind}.max_steps is {steps!r}: set the attribute to a positive integer")


def _check_tasks(env: TextEnv) -> dict[str, list[str]]:
    tasks = {}
    for split in SPLITS:
        call = f"tasks({split!r})"
        with _errors(env, call):
            ids, again = env.tasks(split), env.tasks(split)
        if not isinstance(ids, list) or not all(isinstance(task, str) for task in ids):
            raise _fault(env, call, f"returned {str(ids)[:60]}", "a list of texts, such as ['0', '1']")
        if ids != again:
            raise _fault(env, call, "returned two different lists", "the ids in a fixed order")
        if len(set(ids)) < len(ids):
            raise _fault(env, call, "returned an id twice", "each id once")
        if not ids and split != "eval":
            raise _fault(env, call, "returned no subtask", "at least one; only eval may be empty")
        tasks[split] = ids
    return tasks


def _lists_actions(env: TextEnv, extras: Extras) -> bool:
    """Whether the environment lists its actions. If not, it needs a scripted expert, which can play instead."""
    try:
        with _errors(env, "available_actions()"):
            return "actions" in actions_now(env) or extras.experts is None
    except ProtocolError as error:
        if extras.experts is None or not isinstance(error.__cause__, RuntimeError):
            raise
        return False


def _at_random(env: TextEnv, extras: Extras, task: str, rng: random.Random) -> _Played:
    played = _Played(task, [first_page(env, task)])
    while len(played.steps) < step_limit(env, task) and not (played.steps and played.steps[-1].done):
        with _errors(env, "available_actions()"):
            available = actions_now(env)
        actions = action_texts(available)
        if available.get("actions") is None and available.get("has_search_bar"):
            actions.append(f"search[{extras.goal(played.pages[0])}]")
        if not isinstance(actions, (list, tuple)) or not all(isinstance(action, str) for action in actions):
            raise _fault(env, "available_actions()", f"returned {str(actions)[:60]}", "{'actions': [texts]}")
        if not actions:
            what = f"returned no action after {len(played.steps)} actions"
            raise _fault(env, "available_actions()", what, "at least one, or end the episode with done=True")
        _play(env, played, rng.choice(actions))
    return played


def _by_expert(env: TextEnv, extras: Extras, task: str) -> _Played:
    assert extras.experts is not None
    noise = next(iter(extras.experts.noise.values()), extras.experts.perfect)
    actions = [action for action in _trajectory(env, extras, task, noise).actions if action]
    played = _Played(task, [first_page(env, task)])
    for action in actions[: step_limit(env, task)]:
        _play(env, played, action)
    return played


def _play(env: TextEnv, played: _Played, action: str) -> None:
    with _errors(env, f"step({action!r})"):
        step = take_step(env, action, played.task)
    _check_step(env, action, step)
    if len(played.steps) + 1 == step_limit(env, played.task) and "won" not in step.info:
        raise _fault(env, f"step({action!r})", "is the last step, without info['won']", "info={'won': False} in it")
    played.actions.append(action)
    played.steps.append(step)
    played.pages.append(step.observation)
    with _errors(env, "can_start_here(observation)"):
        can_start = env.can_start_here(step.observation)
    if not isinstance(can_start, bool):
        raise _fault(env, "can_start_here(observation)", f"returned {can_start!r}", "True or False")


def _check_step(env: TextEnv, action: str, step: Step) -> None:
    call = f"step({action!r})"
    for name, value in (("done", step.done), ("valid", step.valid), ("info['won']", step.info.get("won", False))):
        if not isinstance(value, bool):
            raise _fault(env, call, f"has {name}={value!r}, not a bool", f"{name} as True or False, such as bool(...)")
    try:
        check_reward(step.reward)
    except TrajectoryError as error:
        raise ProtocolError(f"{type(env).__name__}.{call}: {error}") from None


def _summary(env: TextEnv, played: list[_Played], player: str) -> str:
    steps = [step for episode in played for step in episode.steps]
    ended, invalid = sum(step.done for step in steps), sum(not step.valid for step in steps)
    won = sum(bool(episode.steps) and bool(episode.steps[-1].info.get("won")) for episode in played)
    return (
        f"step: {len(played)} episodes by {player}, {len(steps)} actions ({invalid} invalid); the environment ended "
        f"{ended}, max_steps={env.max_steps} the others; {won} won"
    )


def _check_replay(env: TextEnv, episode: _Played) -> None:
    try:
        with _errors(env, "step(action)"):
            last = replay(env, episode.task, episode.actions, episode.pages)
    except ReplayDivergence as error:
        raise ProtocolError(
            f"{type(env).__name__}: equal actions gave two different pages ({error.args[0].split(': use ')[0]}): reset "
            "all of the state in reset(task), and draw random numbers from a generator that reset seeds by the task"
        ) from None
    if episode.steps and _end(last) != _end(episode.steps[-1]):
        what = f"gave {_end(episode.steps[-1])} and, replayed, {_end(last)}"
        raise _fault(env, f"step({episode.actions[-1]!r})", what, "the same for equal actions")


def _end(step: Step) -> str:
    return f"reward {step.reward:.3g}, done={step.done}, won={step.info.get('won')}"


def _check_copies(env: TextEnv, played: list[_Played]) -> str:
    """That a fork, or a worker of an environment that cannot fork, plays on as the original, and leaves it alone."""
    try:
        for episode in played:
            half = len(episode.steps) // 2
            with _errors(env, "fork()"):
                replay(env, episode.task, episode.actions[:half], episode.pages[: half + 1])
                twin = env.fork()
            if twin is env:
                raise _fault(env, "fork()", "returned the environment itself", "an independent copy")
            _play_on(env, twin, episode, half, "the copy")
            first_page(twin, played[-1].task)
            _play_on(env, env, episode, half, "after actions in the copy, the original")
    except NotImplementedError:
        return _check_workers(env, played)
    return "fork: a copy plays as the original, and does not change it"


def _play_on(env: TextEnv, player: TextEnv, episode: _Played, begin: int, who: str) -> None:
    for action, step in zip(episode.actions[begin:], episode.steps[begin:], strict=True):
        try:
            with _errors(env, f"step({action!r})"):
                again = take_step(player, action, episode.task)
        except ProtocolError as error:
            raise ProtocolError(f"{type(env).__name__}.fork(): {who}: {error}") from error
        if (again.observation, _end(again)) != (step.observation, _end(step)):
            what = f"{who} shows {again.observation[:60]!r} after {action!r}, not {step.observation[:60]!r}"
            raise _fault(env, "fork():", what, "an independent copy, such as copy.deepcopy(self)")


def _check_workers(env: TextEnv, played: list[_Played]) -> str:
    if not callable(getattr(env, "workers", None)):
        raise ProtocolError(f"{type(env).__name__} can neither fork nor has it workers(count): add one of them")
    with _errors(env, "workers(2)"):
        workers = replay_workers(env, 2)
    if not 1 <= len(workers) <= 2:
        raise _fault(env, "workers(2)", f"returned {len(workers)} environments", "one or two")
    if len({id(worker) for worker in workers}) < len(workers):
        raise _fault(env, "workers(2)", "returned the same environment twice", "independent environments")
    for worker in workers:
        for episode in played:
            _check_replay(worker, episode)
    return "workers: each replays the episodes, since the environment does not fork"


def _check_extras(env: TextEnv, page: str, tasks: dict[str, list[str]]) -> Extras:
    with _errors(env, "extras"):
        extras = extras_of(env)
    if not isinstance(extras, Extras):
        raise ProtocolError(f"{type(env).__name__}.extras is {type(extras).__name__}: set it to eef.envs.extras.Extras")
    with _errors(env, "extras.groups(env, tasks)"):
        groups = extras.groups(env, tasks["test"])
    if groups is not None and set(groups) != set(tasks["test"]):
        raise _fault(env, "extras.groups(env, tasks)", "lacks some of the tasks", "a group of each task, or None")
    calls: list[tuple[str, Any, type]] = []
    with _errors(env, "extras"):
        calls += [("parts(observation)", extras.parts(page), list), ("goal(observation)", extras.goal(page), str)]
        calls += [("note(action, observation)", extras.note("", page), str)]
        calls += [("thought(action)", extras.thought(""), str)]
    for call, value, kind in calls:
        if not isinstance(value, kind):
            raise _fault(env, f"extras.{call}", f"returned {type(value).__name__}", f"a {kind.__name__}")
    return extras


def _trajectory(env: TextEnv, extras: Extras, task: str, noise: Any) -> Trajectory:
    """An episode of the scripted expert."""
    assert extras.experts is not None
    call = f"extras.experts.play(env, {task!r}, ...)"
    with _errors(env, call):
        item = play_scripted(extras.experts, env, task, noise, 0)
    if not isinstance(item, Trajectory):
        raise _fault(env, call, f"returned {type(item).__name__}", "eef.trajectory.Trajectory")
    try:
        check(item)
    except TrajectoryError as error:
        raise ProtocolError(f"{type(env).__name__}.{call}: {error}") from None
    return item


def _check_experts(env: TextEnv, extras: Extras, tasks: list[str]) -> str:
    """That the scripted experts play the same episode twice, and that it is one of the environment."""
    assert extras.experts is not None
    perfect = extras.experts.perfect
    for name, noise in {"perfect": perfect, **extras.experts.noise}.items():
        if isinstance(noise, type) or not is_dataclass(noise) or type(noise) is not type(perfect):
            what = f"is {noise!r} for {name!r}"
            raise _fault(env, "extras.experts.noise", what, "an instance of one dataclass of error rates for all")
    wins = []
    for name, noise in {**extras.experts.noise, "perfect": perfect}.items():
        played = [_trajectory(env, extras, task, noise) for task in tasks]
        wins.append(f"{name} won {sum(item.won for item in played)} of {len(played)}")
        for item in played:
            call = f"extras.experts.play(env, {item.task!r}, ...) of {name!r}"
            if item != _trajectory(env, extras, item.task, noise):
                raise _fault(env, call, "returned two different episodes", "the same one for the same seed")
            if len(item) > (limit := step_limit(env, item.task)):
                raise _fault(env, call, f"has {len(item)} actions, more than max_steps={limit}", f"at most {limit}")
            try:
                pages = [item.state(index) for index in range(len(item) + 1)]
                last = replay(env, item.task, item.actions, pages)
            except ReplayDivergence as error:
                raise ProtocolError(f"{type(env).__name__}.{call} differs from its replay: {error}") from None
            if item.won != bool(last.info.get("won")):
                raise _fault(env, call, f"has won={item.won}, its replay {_end(last)}", "won=step.info['won']")
    return "experts: " + ", ".join(wins)
