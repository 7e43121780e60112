from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eef.agents.aliases import Aliases
from eef.agents.chat import Chat
from eef.envs.webshop.pretraining import vocabulary
from eef.models.pretrain import word_tokenizer
from eef.trajectory import Trajectory, Turn

CHAT = Chat.of(
    word_tokenizer(vocabulary()), aliases=True
)  # tests/agents/test_families.py has the templates of language models
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
    talk, place = CHAT.begin(), 0
    for index, turn in enumerate(trajectory.turns):
        heard = talk.encode_observation(trajectory.state(index))
        assert ids[place : place + len(heard)] == heard  # the training prefix is the rollout prompt
        assert not any(mask[place : place + len(heard)])
        place += len(heard)
        said = talk.encode_action(turn.action)
        assert ids[place : place + len(said)] == said
        assert mask[place : place + len(said)] == [learn[index]] * len(said)
        place += len(said)
    assert place == len(ids)


@given(observation=OBSERVATIONS, prompt=OBSERVATIONS)
def test_aliases_invert_for_every_listed_product_and_word(observation: str, prompt: str) -> None:
    aliases = Aliases(frozenset(word_tokenizer(vocabulary()).get_vocab()))
    aliases.read(prompt, prompt=True)
    aliases.read(observation)
    for asin in aliases.rows:
        assert aliases.write_action(aliases.read_action(f"click[{asin}]")) == f"click[{asin}]"
    for action in ("click[buy now]", "click[next >]", "click[< prev]", "search[red shirt]", "click[dark blue]"):
        assert aliases.write_action(aliases.read_action(action)) == action


def test_aliases_name_the_prompts_words_first_and_rows_by_place() -> None:
    aliases = Aliases(frozenset(word_tokenizer(vocabulary()).get_vocab()))
    assert aliases.read("i need a red shirt, and price lower than 40.00 dollars", prompt=True).split() == (
        "i need a i0 i1 and price lower than $cap dollars".split()
    )
    page = "Page 1 (Total results: 50) [SEP] Next > [SEP] B000000001 [SEP] Big Red Shirt [SEP] $40.0"
    assert aliases.read(page) == "page 1 next_> o0 i0 i1 $ok r1"
    assert aliases.read("B000000009 [SEP] Shirt [SEP] $40.01 to $1,250.0") == "i1 $over to $over r1"
    assert aliases.read_action("click[B000000009]") == "click[ r1 ]"
    assert "b000000001" not in aliases.rows  # a new page, new rows


def test_what_the_prompt_told_at_length_is_not_read_again() -> None:
    aliases = Aliases(frozenset(word_tokenizer(vocabulary()).get_vocab()))
    wish = "i need a red shirt, and price lower than 40.00 dollars"
    assert "ditto" not in aliases.read(f"Instruction: [SEP] {wish} [SEP] Search", prompt=True)
    assert aliases.read(f"Instruction: [SEP] {wish} [SEP] < Prev") == "instruction: ditto <_prev"
    assert aliases.copy().read(wish) == "ditto"


def test_aliases_forget_the_oldest_of_too_many_words() -> None:
    aliases = Aliases(frozenset())
    aliases.read(" ".join(f"word{n}" for n in range(300)))
    assert aliases.words["word299"] == "o43" and "word43" not in aliases.words and "word44" in aliases.words
    assert len(aliases.words) == len(set(aliases.words.values())) == 256


def test_a_copy_goes_its_own_way() -> None:
    talk = CHAT.begin()
    talk.encode_observation("i need a red shirt")
    twin = talk.copy()
    twin.encode_observation("B000000001 [SEP] Blue Shirt [SEP] $1.0")
    assert talk.aliases is not None and talk.aliases.rows == {} and talk.turn == 1 and twin.turn == 2


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
