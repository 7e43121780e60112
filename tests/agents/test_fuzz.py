"""Pages that spell control tokens, in prompts, rollouts, constrained decoding and training, for every family.

``EEF_FUZZ_PAGES=10000 pytest tests/agents/test_fuzz.py`` sets the number of pages per family.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, REAL, REAL_NAMES, ends_of, real, tokenizer_of
from test_scaffold import control_ids, pages
from transformers import LlamaConfig, LlamaForCausalLM

from eef.agents.chat import Chat
from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.envs import Step, TextEnv
from eef.selection import Example
from eef.training.rows import rows_of
from eef.training.sft import sft
from eef.trajectory import Trajectory, Turn

COUNT = int(os.environ.get("EEF_FUZZ_PAGES", "60"))


class Pages(TextEnv):
    """Two random pages for each subtask, with parts of the page as clickables."""

    name, max_steps = "pages", 2

    def __init__(self, drawn: list[str]) -> None:
        self.pages = drawn

    def tasks(self, split: str) -> list[str]:
        return [str(number) for number in range(0, len(self.pages) - 1, 2)]

    def reset(self, task: str) -> str:
        self.at = int(task)
        return self.pages[self.at]

    def step(self, action: str) -> Step:
        self.at += 1
        return Step(self.pages[self.at % len(self.pages)], 0.0, False, True, {"won": False})

    def available_actions(self) -> dict[str, Any]:
        words = self.pages[self.at % len(self.pages)][:2000].split() or ["x"]
        return {"has_search_bar": True, "clickables": [*words[:20], " ".join(words[:4]), "buy now"]}

    def fork(self) -> Pages:
        twin = Pages(self.pages)
        twin.at = getattr(self, "at", 0)
        return twin

    def stamp(self) -> dict[str, Any]:
        return {"data": "random pages"}

    def state_key(self) -> dict[str, Any]:
        return {"pages": len(self.pages)}


def policy_of(tokenizer: Any, ends: list[int]) -> Policy:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    chat = Chat.of(tokenizer, "Shop well.", ends=ends)
    return Policy(LlamaForCausalLM(config).eval(), tokenizer, chat, tokenizer.name_or_path, 1024, False, 6)


@pytest.mark.parametrize(
    "family", [*FAMILIES, *(pytest.param(f"real {name}", marks=pytest.mark.slow) for name in REAL_NAMES)]
)
def test_pages_in_rollouts_and_training(family: str, tmp_path: Path) -> None:
    name = family.removeprefix("real ")
    if family != name and not REAL.is_dir():
        pytest.skip(f"no real tokenizers at {REAL} (EEF_TOKENIZERS)")
    tokenizer = tokenizer_of(name) if family == name else real(name)
    policy = policy_of(tokenizer, ends_of(name) if family == name else [])
    world, control = Pages(list(pages(tokenizer, random.Random(3), COUNT))), control_ids(tokenizer)
    starts = [Start(task) for task in world.tasks("train")]
    free = simulate(policy, world, starts)
    assert all(one.outcome in ("max_steps", "context_overflow") for one in free)
    policy.constrained_decoding = True
    constrained = simulate(policy, world, starts)
    assert all(one.info["invalid"] == 0 for one in constrained)
    played = [one for one in [*constrained, *free] if one.turns]
    for one in played:
        ids, _ = policy.chat.render(one, [True] * len(one))
        plain = Trajectory("0", "x", tuple(Turn("x", "x") for _ in one.turns))
        own = [token for token in policy.chat.render(plain, [True] * len(one))[0] if token in control]
        # a policy may sample control tokens that are neither special nor part of the scaffold, such as <think>
        assert [token for token in ids if token in control & policy.stops] == own, one
    examples = [Example(one, 0) for one in played[: len(played) if family == name else 12]]  # large vocabularies
    assert rows_of(policy, examples)[0]
    sft(policy, examples, tmp_path / "full", epochs=1, lr=1e-4, batch_size=8, seed=0)
