"""A cache of the states that the simulator has computed, by task and actions, in memory and in files.

Gold paths are cached in files, too. Without a folder that can be read and written there are no files, with one warning.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eef.files import cache_folder

_LOCK = threading.Lock()
_LARGEST_FILE = 2**18  # bytes: in one sweep a state took 1,800

log = logging.getLogger(__name__)


_without: set[Path] = set()  # the folders of which a warning was printed


def _warn(error: OSError) -> None:
    folder = cache_folder()
    if folder not in _without:
        log.warning("ScienceWorld caches no files in %s (%s): set EEF_CACHE to another folder", folder, error.strerror)
    _without.add(folder)


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

    ``folder`` has a file per task, which other processes and later runs share. Each of its lines is one state, the
    first line the first state. A process that deletes the file makes the others forget the task as well.
    """

    room: int  # how many more states may be cached in memory
    folder: Path | None = None
    first: dict[str, State] = field(default_factory=dict)  # by task
    read: dict[str, tuple[int, int]] = field(default_factory=dict)  # of each task's file: bytes, and their checksum

    def start(self, task: str) -> State | None:
        """The first state of ``task``, None if it is not cached. The states in the task's file are read first."""
        with _LOCK:
            if task not in self.first and self.room > 0:
                self._read_new(task)
            return self.first.get(task)

    def add(self, task: str, actions: Sequence[str], state: State) -> State:
        """Cache the ``state`` after ``actions`` if there is room. Returns the cached state, if any, else ``state``."""
        with _LOCK:
            self._read_new(task)
            if self._insert(task, actions, state) and self.folder:
                try:
                    _append(self._file(task), actions, state)
                except OSError as error:  # the disk is full or read-only
                    self._stop_files(error)
            place = self._place(task, actions)
            return state if place is None else place.get(actions[-1] if actions else task, state)

    def forget(self, task: str) -> None:
        """Remove the states of ``task``, in memory and in its file."""
        with _LOCK:
            self._drop(task)
            if self.folder:
                try:
                    self._file(task).unlink(missing_ok=True)
                except OSError as error:
                    self._stop_files(error)

    def _read_new(self, task: str) -> None:
        """Cache the states that other processes have written to the task's file since the last call."""
        if not self.folder:
            return
        try:
            rows = self._file(task).read_bytes() if self._file(task).exists() else b""
        except OSError as error:
            return self._stop_files(error)
        rows = rows[: rows.rfind(b"\n") + 1]
        size, checksum = self.read.get(task, (0, 0))
        if zlib.crc32(rows[:size]) != checksum:  # another process has deleted the file, and may have begun it again
            self._drop(task)
            size = 0
        self.read[task] = len(rows), zlib.crc32(rows)
        for actions, state in sorted(_states(rows[size:]), key=lambda row: len(row[0])):
            self._insert(task, actions, state)

    def _drop(self, task: str) -> None:
        states = [self.first.pop(task)] if task in self.first else []
        while states:
            self.room += 1
            states += states.pop().after.values()
        self.read.pop(task, None)

    def _stop_files(self, error: OSError) -> None:
        _warn(error)
        self.folder = None

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
    create = os.O_CREAT if not actions else 0  # the first line of a file is the first state
    try:
        number = os.open(file, os.O_WRONLY | os.O_APPEND | create, 0o666)
    except FileNotFoundError:
        if create:
            raise
        return  # another process has just deleted the file
    with open(number, "ab", buffering=0) as lines:  # one write for each line: several processes may append
        if lines.tell() < _LARGEST_FILE:
            lines.write(base64.b64encode(zlib.compress(row.encode(), 1)) + b"\n")


def _states(rows: bytes) -> Iterator[tuple[list[str], State]]:
    for line in rows.splitlines():
        try:
            actions, page, valid, score, completed = json.loads(zlib.decompress(base64.b64decode(line)))
        except (ValueError, zlib.error):  # a process was killed while it wrote this line
            continue
        yield actions, State(page, [sys.intern(action) for action in valid], score, completed)


def read_gold(file: Path) -> list[str] | None:
    """The actions in ``file``, None if it is missing or cannot be read."""
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
    except (OSError, ValueError, TypeError):
        return None


def write_gold(file: Path, actions: list[str]) -> None:
    """Write ``actions`` to ``file``, completely or not at all."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(actions), encoding="utf-8")
        part.replace(file)
    except OSError as error:
        _warn(error)
