"""The text of the small ScienceWorld base model: walks without a focus, and a lossless tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eef.agents.chat import Chat
from eef.envs.scienceworld import ScienceWorld
from eef.envs.scienceworld.pretraining import NAMES, random_walks, texts
from eef.models import pretrain
from eef.trajectory import Trajectory


@pytest.fixture(scope="module")
def env() -> Iterator[ScienceWorld]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")  # faster for short plays
        world = ScienceWorld("lifespan-longest-lived", valid_actions=True, max_steps=40)
        yield world
        world.close()


@pytest.fixture(scope="module")
def walks(env: ScienceWorld) -> list[Trajectory]:
    return random_walks(env, 3, seed=3, longest=6)


def test_walks_are_seeded_and_show_no_focus(env: ScienceWorld, walks: list[Trajectory]) -> None:
    assert random_walks(env, 3, seed=3, longest=6) == walks
    assert random_walks(env, 3, seed=4, longest=6) != walks
    assert {walk.task for walk in walks} <= set(env.tasks("train"))
    for walk in walks:
        moves, names, text = walk.actions[:-2], walk.actions[-2].split(", "), walk.actions[-1]
        assert 3 <= len(moves) <= 6 and not any(action.startswith("focus") for action in moves)
        assert walk.turns[-3].observation.endswith(f"\n{NAMES}") and "agent" in names
        assert text.startswith("Your task is to find the animal with the longest life span.") and text in walk.prompt


def test_the_tokenizer_is_lossless(env: ScienceWorld, walks: list[Trajectory]) -> None:
    tokenizer = pretrain.bpe_tokenizer(texts(walks), 400)
    talk = Chat.of(tokenizer).begin()
    env.reset(env.tasks("test")[0])
    for action in env.available_actions()["actions"]:
        assert talk.decode_action(talk.encode_action(action)) == action
    for walk in walks:
        ids = tokenizer(walk.prompt, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == walk.prompt


@pytest.mark.slow
def test_a_model_learns_from_walks(walks: list[Trajectory]) -> None:
    tokenizer = pretrain.bpe_tokenizer(texts(walks), 400)
    rows = pretrain.walk_rows(Chat.of(tokenizer), walks, 192)
    assert all(len(row.ids) <= 192 and all(row.mask) for row in rows)
    model = pretrain.make_model(tokenizer, 32, 1, 2, 192)
    before = pretrain.mean_loss(model, rows)
    pretrain.train(model, rows, tokenizer.pad_token_id, epochs=6, batch_size=2)
    assert pretrain.mean_loss(model, rows) < before - 0.5
