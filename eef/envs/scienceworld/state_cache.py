"""A cache of the states that the simulator has computed, by task and actions, in memory and in files."""

from __future__ import annotations

import base64
import json
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LOCK = threading.Lock()
_LARGEST_FILE = 2**18  # bytes: in one sweep a state took 1,800


@dataclass
class State:
    """The output of the simulator in one state of a task, and the cached next states, by action.

    Two states are equal if the output is equal.
    """

    page: str
    valid: list[str]
    score: float = 0.0
    completed: bool = False
    after: dict[str, State] = field(default_factory=dict, compare=False, repr=False)


@dataclass
class StateCache:
    """The cached states of an environment. Its threads share them.

    ``folder`` has a file per task, which other processes and later runs share. Each of its lines is one state.
    """

    room: int  # how many more states may be cached in memory
    folder: Path | None = None
    first: dict[str, State] = field(default_factory=dict)  # by task

    def start(self, task: str) -> State | None:
        """The first state of ``task``, None if it is not cached. The states in the task's file are read first."""
        with _LOCK:
            if task not in self.first and self.room > 0 and self.folder:
                for actions, state in _read(self._file(task)):
                    self._insert(task, actions, state)
            return self.first.get(task)

    def add(self, task: str, actions: Sequence[str], state: State) -> State:
        """Cache the ``state`` after ``actions`` if there is room. Returns the cached state, if any, else ``state``."""
        with _LOCK:
            if self._insert(task, actions, state) and self.folder:
                try:
                    _append(self._file(task), actions, state)
                except OSError:  # the disk is full or read-only
                    self.folder = None
            place = self._place(task, actions)
            return state if place is None else place.get(actions[-1] if actions else task, state)

    def forget(self, task: str) -> None:
        """Remove the states of ``task``, in memory and in its file."""
        with _LOCK:
            self.first.pop(task, None)
            if self.folder:
                self._file(task).unlink(missing_ok=True)

    def _file(self, task: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{task}.states"

    def _place(self, task: str, actions: Sequence[str]) -> dict[str, State] | None:
        """Where the state after ``actions`` is cached, by its last action; None if a state before it is not cached."""
        if not actions:
            return self.first
        state = self.first.get(task)
        for action in actions[:-1]:
            state = state.after.get(action) if state else None
        return state.after if state else None

    def _insert(self, task: str, actions: Sequence[str], state: State) -> bool:
        """Cache ``state`` in memory. Returns whether it is new, and there is room."""
        place, name = self._place(task, actions), actions[-1] if actions else task
        if place is None or name in place or self.room <= 0:
            return False
        self.room -= 1
        place[name] = state
        return True


def _append(file: Path, actions: Sequence[str], state: State) -> None:
    row = json.dumps([list(actions), state.page, state.valid, state.score, state.completed])
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as lines:  # one write for each line: several processes may append
        if lines.tell() < _LARGEST_FILE:
            lines.write(base64.b64encode(zlib.compress(row.encode(), 1)) + b"\n")


def _read(file: Path) -> Iterator[tuple[list[str], State]]:
    lines = file.read_bytes().splitlines() if file.is_file() else []
    for line in lines:
        try:
            actions, page, valid, score, completed = json.loads(zlib.decompress(base64.b64decode(line)))
        except (ValueError, zlib.error):  # a process was killed while it wrote this line
            continue
        yield actions, State(page, [sys.intern(action) for action in valid], score, completed)
