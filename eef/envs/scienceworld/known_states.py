"""The states that the simulator has been in, so that it computes none of them twice."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class State:
    """What the simulator said in one state of a task, and the states after it that it has been in, by action."""

    page: str
    valid: list[str]
    score: float = 0.0
    completed: bool = False
    after: dict[str, State] = field(default_factory=dict)


@dataclass
class KnownStates:
    """The states that the simulators of an environment have been in. Its threads share them."""

    room: int  # for how many more states there is room
    first: dict[str, State] = field(default_factory=dict)  # by task

    def keep(self, place: dict[str, State], name: str, state: State) -> None:
        if self.room > 0:
            self.room -= 1
            place[name] = state
