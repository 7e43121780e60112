from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eef.agents.chat import Chat, load_options
from eef.envs.webshop.pretraining import vocabulary
from eef.models.pretrain import word_tokenizer
from eef.trajectory import Trajectory, Turn

CHAT = Chat.of(word_tokenizer(vocabulary()), aliases="webshop")  # test_families.py has the templates of language models
SEGMENTS = st.sampled_from(
    ["Instruction:", "i need a red shirt, and price lower than 40.00 dollars", "Back to Search", "< Prev", "Next >",
     "B000000001", "X48Y1Z94MS", "Norwick Cotton Shirt", "$10.71 to $18.34", "color", "dark blue", "9.5", "Buy Now",
     "Page 2 (Total results: 50)", "Crème brûlée 2-in-1"]
)  # fmt: skip
OBSERVATIONS = st.lists(SEGMENTS, min_size=1, max_size=12).map(" [SEP] ".join)
ACTIONS = st.sampled_from(["search[red shirt]", "click[buy now]", "click[next >]", "click[dark blue]", "click[< prev]"])


@st.composite
def conversations(draw: st.DrawFn) -> Trajectory:
    turns = draw(st.lists(st.builds(Turn, ACTIONS, OBSERVATIONS), min_size=1, max_size=6))
    return Trajectory("0", draw(OBSERVATIONS), tuple(turns))


@given(trajectory=conversations(), flags=st.lists(st.booleans(), min_size=6, max_size=6))
def test_rendering_masks_and_prefixes_agree(trajectory: Trajectory, flags: list[bool]) -> None:
    learn = flags[: len(trajectory)]
    ids, mask = CHAT.render(trajectory, learn)
    assert len(ids) == len(mask)
    dialogue, place = CHAT.begin(), 0
    for index, turn in enumerate(trajectory.turns):
        observation = dialogue.encode_observation(trajectory.state(index))
        assert ids[place : place + len(observation)] == observation  # the training prefix is the rollout prompt
        assert not any(mask[place : place + len(observation)])
        place += len(observation)
        answer = dialogue.encode_action(turn.action)
        assert ids[place : place + len(answer)] == answer
        assert mask[place : place + len(answer)] == [learn[index]] * len(answer)
        place += len(answer)
    assert place == len(ids)


def test_a_copy_is_independent() -> None:
    dialogue = CHAT.begin()
    dialogue.encode_observation("i need a red shirt")
    twin = dialogue.copy()
    twin.encode_observation("B000000001 [SEP] Blue Shirt [SEP] $1.0")
    assert dialogue.aliases is not None and dialogue.aliases.rows == {} and dialogue.turn == 1 and twin.turn == 2


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = word_tokenizer(vocabulary())
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Chat.of(tokenizer)


def test_a_template_that_loses_a_message_is_refused() -> None:
    tokenizer = word_tokenizer(vocabulary())
    tokenizer.chat_template = "{{ messages[0].content }}<|end|>"
    with pytest.raises(ValueError, match="drops, repeats or reorders"):
        Chat.of(tokenizer)


def test_a_mask_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 mask entries for 1 turns"):
        CHAT.render(Trajectory("0", "p", (Turn("a", "o"),)), [True, True])


def test_aliases_are_those_of_a_named_environment() -> None:
    assert CHAT.begin().aliases is not None and Chat.of(word_tokenizer(vocabulary())).begin().aliases is None
    for name in ("scienceworld", "nowhere"):
        with pytest.raises(ValueError, match=f"aliases='{name}'.*no environment of this name"):
            Chat.of(word_tokenizer(vocabulary()), aliases=name)


def test_chat_json_names_the_environment_of_its_aliases(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    assert load_options(tmp_path) == {}
    path.write_text('{"aliases": "webshop", "constrained_decoding": true}')
    assert load_options(tmp_path) == {"aliases": "webshop", "constrained_decoding": True}
    path.write_text('{"aliases": false}')  # the former form for none
    assert load_options(tmp_path) == {"aliases": ""}
    path.write_text('{"aliases": true}')
    with pytest.raises(ValueError, match=r'chat.json: "aliases" is true.*write the name of the environment'):
        load_options(tmp_path)


def test_the_former_name_of_constrained_decoding_works_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text('{"limited": true}')
    with pytest.warns(FutureWarning, match="'limited' is now called 'constrained_decoding'"):
        assert load_options(tmp_path) == {"constrained_decoding": True}
