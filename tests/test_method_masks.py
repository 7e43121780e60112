"""The tokens that carry loss in the examples of each method, as readable text, for the simulations of one story.

Two subtasks. On ``easy`` the expert wins. On ``hard`` it fails in four moves; of the agent's simulations those from its
states s1 and s3 win, those from s0 and s2 are lost (Figure 1 of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from eef import methods
from eef.agents.policy import Policy
from eef.agents.rollout import Start
from eef.methods import FAILED
from eef.selection import Example
from eef.settings import Settings
from eef.training.rows import collate, rows_of
from eef.trajectory import Trajectory, Turn


def played(task: str, actions: str, won: bool, source: str, prefix: int = 0) -> Trajectory:
    turns = tuple(Turn(f"click[{word}]", "page") for word in actions.split())
    return Trajectory(task, "instruction: find the price", turns, float(won), won, source, prefix=prefix)


EASY = played("easy", "description features buy_now", True, "strong")
FAILURE = played("hard", "next_> reviews <_prev search", False, "strong")
LOST = played("hard", "features buy_now", False, "policy")
STATES = {
    1: played("hard", "next_> features buy_now", True, "policy", prefix=1),
    2: played("hard", "next_> reviews buy_now", False, "policy", prefix=2),
    3: played("hard", "next_> reviews <_prev buy_now", True, "policy", prefix=3),
}


class World:
    @staticmethod
    def can_start_here(observation: str) -> bool:
        return True


@dataclass
class Story:
    """In place of the lab: the experts and simulations above; records what the method trains on."""

    settings: Settings = field(default_factory=Settings)
    tasks: tuple[str, ...] = ("easy", "hard")
    env: Any = World
    trained: list[Any] = field(default_factory=list)

    def experts(self) -> list[Trajectory]:
        return [EASY, FAILURE]

    def from_s0(self, adapter: Path, iteration: int, sample: int, random_navigation: float = 0.0) -> list[Trajectory]:
        return [played("easy", "features buy_now", True, "policy"), LOST]

    def simulate(self, name: str, adapter: Path, starts: list[Start], seed: int) -> list[Trajectory]:
        from_s0 = dict(zip(self.tasks, self.from_s0(adapter, 0, 0), strict=True))
        return [STATES[start.index] if start.index else from_s0[start.task] for start in starts]

    def sampling_seed(self, iteration: int) -> int:
        return iteration

    def sft_start(self, adapter: Path) -> None:
        return None

    def sft(self, name: str, examples: list[Example], start: Path | None = None) -> Path:
        self.trained = list(examples)
        return Path(name)

    def dpo(self, name: str, pairs: list[tuple[Trajectory, Trajectory]], start: Path) -> Path:
        self.trained = [Example(side, 0) for pair in pairs for side in pair]
        return Path(name)


def shown(policy: Policy, example: Example) -> str:
    """The example's tokens from its first action on; those without loss in parentheses."""
    ids, mask = policy.chat.render(example.trajectory, example.mask)
    rows, _ = rows_of(policy, [example])
    labels = collate([{"input_ids": row.ids, "mask": row.mask} for row in rows], policy.pad)["labels"][0]
    assert torch.equal(labels != -100, torch.tensor(mask)), "the labels agree with the mask"
    tokens = [policy.tokenizer.decode([token]) for token in ids]
    first = tokens.index("click[")
    marked = [word if learnt else f"({word})" for word, learnt in zip(tokens[first:], mask[first:], strict=True)]
    return " ".join(marked).replace("(<obs>) (page) (<act>)", "|")


BC = "click[ description ] <end> | click[ features ] <end> | click[ buy_now ] <end>"
OWN = "click[ features ] <end> | click[ buy_now ] <end>"
GOOD = "click[ next_> ] <end> | click[ features ] <end> | click[ buy_now ] <end>"
RECOVERS = (
    "(click[) (next_>) (]) (<end>) | (click[) (reviews) (]) (<end>) | click[ <_prev ] <end> | click[ buy_now ] <end>"
)
IN_S1 = "(click[) (next_>) (]) (<end>)"
IN_S2 = f"{IN_S1} | (click[) (reviews) (]) (<end>)"
IN_S3 = f"{IN_S2} | (click[) (<_prev) (]) (<end>)"
PAIRS = [  # of the flips at s0, s1, s2 and after s3: the win, then the loss
    GOOD, OWN,
    f"{IN_S1} | click[ features ] <end> | click[ buy_now ] <end>",
    f"{IN_S1} | click[ reviews ] <end> | click[ buy_now ] <end>",
    RECOVERS, f"{IN_S2} | click[ buy_now ] <end>",
    f"{IN_S3} | click[ buy_now ] <end>", f"{IN_S3} | click[ search ] <end>",
]  # fmt: skip
SOFT = ["click[ next_> ] <end>", PAIRS[2], f"{IN_S2} | click[ <_prev ] <end>", PAIRS[6]]
ALL_BAD = "click[ next_> ] <end> | click[ reviews ] <end> | click[ <_prev ] <end> | click[ search ] <end>"


@pytest.mark.parametrize(
    ("method", "options", "examples"),
    [
        ("sft_pos", {}, [BC]),
        ("sft_all", {}, [BC, ALL_BAD]),
        ("nat", {}, [BC, ALL_BAD]),
        ("rft", {"n": 1}, [BC, OWN]),
        ("rft", {"n": 6}, [BC, OWN]),
        ("eto", {"n": 1}, ["the win of the expert", OWN]),
        ("eef", {"m": 3}, [BC, OWN, GOOD, RECOVERS]),
        ("eef", {"m": 3, "recovery": False}, [BC, OWN, GOOD]),
        ("eef_adaptive", {"m": 3, "adaptive": False}, [BC, OWN, GOOD, RECOVERS]),
        ("eef_adaptive", {"m": 3}, [BC, GOOD]),
        ("eef_soft", {"m": 3}, [BC, OWN, *SOFT]),
        ("eef_pairs", {"m": 3, "adaptive": False, "verified": False}, PAIRS),
    ],
)
def test_what_carries_loss(policy: Policy, method: str, options: dict[str, Any], examples: list[str]) -> None:
    story = Story()
    if method == "eto":  # a win and a loss on one subtask: the expert wins the hard one too
        won = played("hard", "reviews buy_now", True, "strong")
        story.experts = lambda: [EASY, won]  # type: ignore[method-assign]
        examples = ["click[ reviews ] <end> | click[ buy_now ] <end>", OWN]
    methods.METHODS[method](story, **options)
    assert [shown(policy, example) for example in story.trained] == examples
    failed = [e.trajectory for e in story.trained if e.trajectory.failed and e.trajectory.source == "strong"]
    assert all(t.prompt.startswith(FAILED) == (method == "nat") for t in failed)


def test_without_the_mask_harmful_actions_carry_loss(policy: Policy) -> None:
    """s1 wins and s2 is lost: the expert's ``reviews`` is harmful, and only the ablation learns it."""
    seen = {}
    for masked in (True, False):
        story = Story()
        methods.eef(story, m=3, mask_harmful=masked)  # type: ignore[arg-type]
        seen[masked] = [shown(policy, example) for example in story.trained]
    assert not any(" reviews ]" in text for text in seen[True])
    assert any(" reviews ]" in text for text in seen[False])
