"""A cache of the states that the simulator has computed, by task and actions."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

_LOCK = threading.Lock()


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
    """The cached states of an environment. Its threads share them."""

    room: int  # how many more states may be cached
    first: dict[str, State] = field(default_factory=dict)  # by task

    def add(self, place: dict[str, State], name: str, state: State) -> State:
        """Cache ``state`` if there is room. Returns the cached state of that name, if any, else ``state``."""
        with _LOCK:
            if name not in place and self.room > 0:
                self.room -= 1
                place[name] = state
            return place.get(name, state)
