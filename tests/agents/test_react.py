"""The opening of a ReAct conversation: instructions, and one example."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from eef.agents.react import opening
from eef.envs.extras import Extras
from eef.trajectory import Trajectory, Turn

EXAMPLE = Trajectory("0", "page 0", (Turn("look", "page 1"), Turn("open door", "page 2")))


@dataclass
class World:
    """An environment as far as an opening needs one."""

    extras: Extras
    name: str = "own"


def test_an_example_has_thoughts_and_leaves_out_its_last_page() -> None:
    world = World(Extras(instructions="Play.", thought=lambda action: f"I {action}."))
    assert [message["content"] for message in opening(world, EXAMPLE)] == [  # type: ignore[arg-type]
        "Play.", "OK",
        "First an example.\n\npage 0", "Thought: I look.\nAction: look",
        "Observation:\npage 1", "Thought: I open door.\nAction: open door",
    ]  # fmt: skip


def test_an_environment_by_name_has_its_own_instructions() -> None:
    assert "search[keywords]" in opening("webshop")[0]["content"]


@pytest.mark.parametrize("env", ["nowhere", World(Extras())])
def test_an_environment_without_instructions_is_refused(env) -> None:
    with pytest.raises(ValueError, match=r"needs instructions.*instructions.txt.*Extras.instructions"):
        opening(env)
