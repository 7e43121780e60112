"""The states that the simulator has been in, so that it computes none of them twice."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

_LOCK = threading.Lock()


@dataclass
class State:
    """What the simulator said in one state of a task, and the states after it that it has been in, by action.

    States are equal if the simulator said the same.
    """

    page: str
    valid: list[str]
    score: float = 0.0
    completed: bool = False
    after: dict[str, State] = field(default_factory=dict, compare=False, repr=False)


@dataclass
class KnownStates:
    """The states that the simulators of an environment have been in. Its threads share them."""

    room: int  # for how many more states there is room
    first: dict[str, State] = field(default_factory=dict)  # by task

    def keep(self, place: dict[str, State], name: str, state: State) -> State:
        """Keep ``state`` if there is room; returns the state that another thread has kept there, or ``state``."""
        with _LOCK:
            if name not in place and self.room > 0:
                self.room -= 1
                place[name] = state
            return place.get(name, state)
