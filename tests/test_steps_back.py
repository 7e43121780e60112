"""The script that counts what episodes do after a step back from an item."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from eef.trajectory import Trajectory, Turn

ROOT = Path(__file__).resolve().parents[1]
ITEM, LIST = "a lamp [SEP] Buy Now", "Page 1"


@pytest.mark.parametrize(
    ("turns", "won", "outcome", "expected"),
    [
        ([("click[b01]", ITEM), ("click[buy now]", "end")], False, "done", {"lost_without_going_back"}),
        (
            [("click[b01]", ITEM), ("click[< prev]", LIST), ("click[b01]", ITEM)], False, "max_steps",
            {"goes_back", "lost_same_row_again", "lost_out_of_turns"},
        ),
        (
            [("click[b01]", ITEM), ("click[< prev]", LIST), ("click[b02]", ITEM), ("click[buy now]", "end")], True,
            "done", {"goes_back", "opens_another_row", "won"},
        ),
        ([("click[next >]", LIST), ("click[< prev]", LIST)], False, "max_steps", {"lost_out_of_turns"}),
    ],
)  # fmt: skip
def test_counts_of_an_episode(
    turns: list[tuple[str, str]], won: bool, outcome: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    played = tuple(Turn(action, page) for action, page in turns)
    counts = import_module("steps_back").counts(Trajectory("7", LIST, played, float(won), won, outcome=outcome))
    assert {name for name, count in counts.items() if count} - {"episodes"} == expected
