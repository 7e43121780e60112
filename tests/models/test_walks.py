"""The text of the small ScienceWorld base: walks without a focus, and a tokenizer that loses nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eef.agents.chat import Chat
from eef.envs.scienceworld import ScienceWorld
from eef.models import pretrain, walks
from eef.trajectory import Trajectory


@pytest.fixture(scope="module")
def env() -> Iterator[ScienceWorld]:
    made = ScienceWorld("lifespan-longest-lived", valid_actions=True, max_steps=40)
    yield made
    made.close()


@pytest.fixture(scope="module")
def walked(env: ScienceWorld) -> list[Trajectory]:
    return walks.walks(env, 6, seed=3, longest=6)


def test_walks_are_seeded_and_show_no_focus(env: ScienceWorld, walked: list[Trajectory]) -> None:
    assert walks.walks(env, 6, seed=3, longest=6) == walked
    assert walks.walks(env, 6, seed=4, longest=6) != walked
    assert {one.task for one in walked} <= set(env.tasks("train"))
    for one in walked:
        moves, names, asked = one.actions[:-2], one.actions[-2].split(", "), one.actions[-1]
        assert 3 <= len(moves) <= 6 and not any(action.startswith("focus") for action in moves)
        assert one.turns[-3].observation.endswith(f"\n{walks.NAMES}") and "agent" in names
        assert asked.startswith("Your task is to find the animal with the longest life span.") and asked in one.prompt


def test_nothing_is_lost_between_text_and_tokens(env: ScienceWorld, walked: list[Trajectory]) -> None:
    tokenizer = walks.make_tokenizer(walked, 400)
    talk = Chat.of(tokenizer).begin()
    env.reset(env.tasks("test")[0])
    for action in env.available_actions()["actions"]:
        assert talk.decode_action(talk.encode_action(action)) == action
    for one in walked:
        ids = tokenizer(one.prompt, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == one.prompt


def test_a_base_learns_from_walks(walked: list[Trajectory]) -> None:
    tokenizer = walks.make_tokenizer(walked, 400)
    rows = walks.rows(Chat.of(tokenizer), walked, 256)
    assert all(len(row.ids) <= 256 and all(row.mask) for row in rows)
    model = pretrain.make_model(tokenizer, 32, 1, 2, 256)
    before = pretrain.mean_loss(model, rows)
    pretrain.train(model, rows, tokenizer.pad_token_id, epochs=6, batch_size=2)
    assert pretrain.mean_loss(model, rows) < before - 0.5
