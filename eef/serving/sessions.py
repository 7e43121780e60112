"""Sessions of a served environment: episodes that start in expert states, named tools, forks.

This module knows no protocol and needs no web library. :mod:`eef.serving.app` speaks OpenEnv.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from eef.envs import SPLITS, EnvError, Step, TextEnv, actions_now, first_page, replay, replay_workers, take_step
from eef.envs.limits import step_limit
from eef.files import did_you_mean


@dataclass(frozen=True)
class TextTool:
    """A named tool with one argument, a text. ``form.format(text)`` is the action that it takes."""

    name: str
    argument: str
    description: str
    form: str

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        return {"type": "object", "properties": {self.argument: {"type": "string"}}, "required": [self.argument]}


PAGE_TOOLS = (
    TextTool("search", "query", "Enter a query into the search bar of the page.", "search[{}]"),
    TextTool("click", "element", "Click a button or a link of the page.", "click[{}]"),
)
TEXT_TOOLS = (TextTool("act", "action", "Take one action, written as a text.", "{}"),)


class ToolMistake(ValueError):
    """A tool call that cannot be made. ``kind`` is a type of error in the OpenEnv protocol."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Episode:
    """One episode of a session. ``step`` is the result of the last action, or s0 with reward 0.

    ``actions`` and ``observations`` cover the whole episode, the prefix included; there is one more observation than
    there are actions. ``outcome`` is empty in a running episode, else ``done`` or ``max_steps``.
    """

    task: str
    actions: tuple[str, ...]
    observations: tuple[str | None, ...]
    step: Step
    prefix: int = 0
    outcome: str = ""
    episode_id: str = ""
    available_actions: dict[str, Any] | None = None

    @property
    def won(self) -> bool:
        return bool(self.outcome == "done" and self.step.info.get("won"))


@dataclass
class _Seat:
    """An environment that one session uses, and the lock of everything that it shares with others."""

    env: TextEnv
    lock: Any


class Served:
    """An environment that sessions share. Sessions never see each other's episodes.

    If ``env`` can fork, each session plays a fork, one action at a time, since forks share caches. If it cannot, each
    session takes a worker of its own when its first episode starts; ``sessions`` then becomes the number of workers.
    The ``fork_id`` of an episode is random and known to its session only. Whoever has it may copy the episode.
    """

    def __init__(self, env: TextEnv, sessions: int = 64) -> None:
        if sessions < 1:
            raise ValueError(f"the number of sessions must be positive, not {sessions}")
        self.env, self.name, self.max_steps = env, env.name, env.max_steps
        self._lock = threading.RLock()
        self._free = deque(_Seat(worker, threading.RLock()) for worker in replay_workers(env, sessions))
        self.can_fork = not self._free
        self.sessions = len(self._free) or sessions
        self.tasks = {split: env.tasks(split) for split in SPLITS}
        self.forkable: WeakValueDictionary[str, Session] = WeakValueDictionary()  # by the fork_id of their episodes
        task = next((tasks[0] for tasks in self.tasks.values() if tasks), None)
        if task is None:
            raise ValueError(f"{self.name} has no subtask: choose other options")
        first_page(env, task)
        self.lists_actions = _lists_actions(env)
        self.tools = PAGE_TOOLS if self.lists_actions and "clickables" in actions_now(env) else TEXT_TOOLS

    def take_seat(self) -> _Seat:
        """An environment for one session. EnvError if all workers are in use."""
        if self.can_fork:
            with self._lock:
                return _Seat(self.env.fork(), self._lock)
        try:
            return self._free.popleft()
        except IndexError:
            raise EnvError(
                f"all {self.sessions} workers of {self.name} are in use: close a session, or start the server with more"
            ) from None

    def give_back(self, seat: _Seat) -> None:
        if not self.can_fork:
            self._free.append(seat)

    def task_of(self, task: Any, split: Any, index: Any, seed: Any) -> str:
        """The task that a reset names: ``task``, or number ``index`` of ``split``, or one drawn with ``seed``."""
        if task is not None:
            if split is not None or index is not None:
                raise ValueError("give either 'task', or 'split' and 'index'")
            if not isinstance(task, str):
                raise ValueError(f"'task' must be a text, not {type(task).__name__}")
            return task
        ids = self.ids(split if split is not None else next(name for name, ids in self.tasks.items() if ids))
        if not ids:
            raise ValueError(f"the split {split!r} of {self.name} has no subtask")
        if index is None:
            return random.Random(seed if isinstance(seed, int) else None).choice(ids)
        if type(index) is not int or not 0 <= index < len(ids):
            raise ValueError(f"'index' must be a number from 0 to {len(ids) - 1}, not {index!r}")
        return ids[index]

    def ids(self, split: Any) -> list[str]:
        """The task ids of a split. ValueError for another split."""
        if not isinstance(split, str) or split not in self.tasks:
            raise ValueError(f"unknown split {split!r}: use {', '.join(self.tasks)}")
        return self.tasks[split]


def _lists_actions(env: TextEnv) -> bool:
    try:
        actions_now(env)
    except EnvError:
        raise
    except RuntimeError:  # an environment that does not compute its valid actions
        return False
    return True


class Session:
    """One session: it plays one episode at a time. :meth:`close` gives its environment back."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._seat: _Seat | None = None
        self._episode: Episode | None = None
        self.fork_id = ""  # of the current episode
        self.closed = False

    @property
    def episode(self) -> Episode | None:
        """The current episode, or None before the first one and after an error of the environment."""
        return self._episode

    def reset(
        self,
        task: str | None = None,
        split: str | None = None,
        index: int | None = None,
        seed: int | None = None,
        prefix: Sequence[Any] | None = None,
        prompt: str | None = None,
        fork: str | None = None,
        episode_id: str | None = None,
        **unknown: Any,
    ) -> Episode:
        """Start an episode: in s0 of a subtask, in the state after ``prefix``, or in a copy of another episode.

        The subtask is ``task``, or number ``index`` of ``split``, or one drawn from ``split`` (default: train) with
        ``seed``. ``prefix`` lists the actions that lead to an expert state, as texts or as objects with ``action`` and
        ``observation`` (the turns of a trajectory file). Each given observation is compared, and so is ``prompt``, the
        text of s0. ``fork`` is the ``fork_id`` of a running episode, of this session or another one.

        ValueError for a wrong argument, :class:`~eef.envs.ReplayDivergence` if an observation differs, EnvError if the
        environment fails.
        """
        if unknown:
            known = ("task", "split", "index", "seed", "prefix", "prompt", "fork", "episode_id")
            name = str(next(iter(unknown)))
            hint = did_you_mean(name, known)
            raise ValueError(f"reset has no argument {name!r}{hint}; its arguments are {', '.join(known)}")
        for name, value in (("episode_id", episode_id), ("prompt", prompt), ("fork", fork)):
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name!r} must be a text, not {type(value).__name__}")
        if seed is not None and type(seed) is not int:
            raise ValueError(f"'seed' must be an integer, not {seed!r}")
        if fork is not None:
            if any(value is not None for value in (task, split, index, prefix, prompt)):
                raise ValueError("'fork' copies a whole episode: give no task, prefix or prompt with it")
            episode = self._fork(fork)
        else:
            name = self._served.task_of(task, split, index, seed)
            turns = _read_prefix(prefix, step_limit(self._served.env, name))
            episode = self._start(name, [action for action, _ in turns], [prompt, *(page for _, page in turns)])
        self.fork_id = uuid.uuid4().hex
        self._served.forkable[self.fork_id] = self
        self._episode = replace(episode, episode_id=episode_id or uuid.uuid4().hex)
        return self._episode

    def call(self, tool: str, arguments: dict[str, Any]) -> Episode:
        """Call a tool. :class:`ToolMistake` for an unknown tool, wrong arguments or a finished episode.

        RuntimeError without an episode, EnvError if the environment fails; the session then needs a reset.
        """
        action, episode = self._action(tool, arguments), self._episode
        if self.closed:
            raise RuntimeError("this session has ended: connect again")
        if episode is None or self._seat is None:
            raise RuntimeError("there is no episode: call reset first")
        if episode.outcome:
            raise ToolMistake("execution_error", f"the episode is over ({episode.outcome}): call reset")
        self._episode = None  # until the environment has answered
        with self._seat.lock:
            step = take_step(self._seat.env, action, episode.task)
            actions = (*episode.actions, action)
            limit = "max_steps" if len(actions) >= step_limit(self._served.env, episode.task) else ""
            self._episode = replace(
                episode,
                actions=actions,
                observations=(*episode.observations, step.observation),
                step=step,
                outcome="done" if step.done else limit,
                available_actions=self._available(),
            )
            return self._episode

    def close(self) -> None:
        """End the session. Its environment may serve another one. Calling it again does nothing."""
        self.closed, seat, self._seat = True, self._seat, None
        self._end_episode()
        if seat is not None:
            with seat.lock:
                self._served.give_back(seat)

    def _action(self, tool: str, arguments: dict[str, Any]) -> str:
        known_tool = next((each for each in self._served.tools if each.name == tool), None)
        if known_tool is None:
            names = [each.name for each in self._served.tools]
            hint = did_you_mean(tool, names)
            raise ToolMistake("tool_not_found", f"there is no tool {tool!r}{hint}: use {' or '.join(names)}")
        if list(arguments) != [known_tool.argument] or not isinstance(arguments[known_tool.argument], str):
            raise ToolMistake("invalid_args", f"{tool} takes one argument, {known_tool.argument!r}, which is a text")
        return known_tool.form.format(arguments[known_tool.argument])

    def _start(self, task: str, actions: Sequence[str], observations: Sequence[str | None]) -> Episode:
        seat = self._take()
        with seat.lock:
            step = replay(seat.env, task, actions, observations, live=True)
            last = (*observations[:-1], step.observation)
            return Episode(task, tuple(actions), last, step, len(actions), available_actions=self._available())

    def _fork(self, fork_id: str) -> Episode:
        source = self._served.forkable.get(fork_id)
        seat, episode = (source._seat, source._episode) if source is not None else (None, None)
        if source is None or seat is None or episode is None or episode.outcome:
            raise ValueError("'fork' names no running episode: give the fork_id of its state, before it ends or resets")
        if not self._served.can_fork:
            copied = self._start(episode.task, episode.actions, episode.observations)
            return replace(copied, prefix=episode.prefix, step=episode.step)
        with seat.lock:  # all forks share this lock, so the source cannot move meanwhile
            episode = source._episode
            if source.fork_id != fork_id or episode is None or episode.outcome:
                raise ValueError("'fork' names an episode that has just ended")
            twin = seat.env.fork()
            self._take().env = twin
            return episode

    def _take(self) -> _Seat:
        if self.closed:
            raise RuntimeError("this session has ended: connect again")
        self._end_episode()
        if self._seat is None:
            self._seat = self._served.take_seat()
        return self._seat

    def _end_episode(self) -> None:
        self._episode = None
        self._served.forkable.pop(self.fork_id, None)
        self.fork_id = ""

    def _available(self) -> dict[str, Any] | None:
        return actions_now(self._seat.env) if self._served.lists_actions and self._seat is not None else None


def _read_prefix(prefix: Any, max_steps: int) -> list[tuple[str, str | None]]:
    """``(action, observation or None)`` for each action of a prefix. ValueError if it is not a prefix."""
    if prefix is None:
        return []
    if not isinstance(prefix, (list, tuple)):
        raise ValueError(f"'prefix' must be a list of actions, not {type(prefix).__name__}")
    if len(prefix) >= max_steps:
        raise ValueError(f"'prefix' has {len(prefix)} actions, but an episode has at most max_steps={max_steps}")
    turns: list[tuple[str, str | None]] = []
    for number, turn in enumerate(prefix, start=1):
        action, page = (turn.get("action"), turn.get("observation")) if isinstance(turn, dict) else (turn, None)
        if not isinstance(action, str) or not isinstance(page, (str, type(None))):
            raise ValueError(f"'prefix', item {number}: write an action, or {{'action': TEXT, 'observation': TEXT}}")
        turns.append((action, page))
    return turns
