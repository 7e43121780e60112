"""Aliases: words as symbols for policies with a small vocabulary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eef.envs.webshop.aliases import Aliases
from eef.envs.webshop.pretraining import vocabulary

SEGMENTS = st.sampled_from(
    ["Instruction:", "i need a red shirt, and price lower than 40.00 dollars", "Back to Search", "< Prev", "Next >",
     "B000000001", "X48Y1Z94MS", "Norwick Cotton Shirt", "$10.71 to $18.34", "color", "dark blue", "9.5", "Buy Now",
     "Page 2 (Total results: 50)", "Crème brûlée 2-in-1"]
)  # fmt: skip
OBSERVATIONS = st.lists(SEGMENTS, min_size=1, max_size=12).map(" [SEP] ".join)


@given(observation=OBSERVATIONS, prompt=OBSERVATIONS)
def test_decoding_an_action_inverts_encoding_it(observation: str, prompt: str) -> None:
    aliases = Aliases(frozenset(vocabulary()))
    aliases.encode(prompt, prompt=True)
    aliases.encode(observation)
    for asin in aliases.rows:
        assert aliases.decode_action(aliases.encode_action(f"click[{asin}]")) == f"click[{asin}]"
    for action in ("click[buy now]", "click[next >]", "click[< prev]", "search[red shirt]", "click[dark blue]"):
        assert aliases.decode_action(aliases.encode_action(action)) == action


def test_words_get_symbols_in_order_and_rows_by_their_place() -> None:
    aliases = Aliases(frozenset(vocabulary()))
    assert aliases.encode("i need a red shirt, and price lower than 40.00 dollars", prompt=True).split() == (
        "i need a i0 i1 and price lower than $cap dollars".split()
    )
    page = "Page 1 (Total results: 50) [SEP] Next > [SEP] B000000001 [SEP] Big Red Shirt [SEP] $40.0"
    assert aliases.encode(page) == "page 1 next_> o0 i0 i1 $ok r1"
    assert aliases.encode("B000000009 [SEP] Shirt [SEP] $40.01 to $1,250.0") == "i1 $over to $over r1"
    assert aliases.encode_action("click[B000000009]") == "click[ r1 ]"
    assert "b000000001" not in aliases.rows  # a new page, new rows


def test_a_long_passage_of_the_prompt_is_encoded_once() -> None:
    aliases = Aliases(frozenset(vocabulary()))
    wish = "i need a red shirt, and price lower than 40.00 dollars"
    assert "ditto" not in aliases.encode(f"Instruction: [SEP] {wish} [SEP] Search", prompt=True)
    assert aliases.encode(f"Instruction: [SEP] {wish} [SEP] < Prev") == "instruction: ditto <_prev"
    assert aliases.copy().encode(wish) == "ditto"


def test_the_oldest_word_gives_its_symbol_to_a_new_one() -> None:
    aliases = Aliases(frozenset())
    aliases.encode(" ".join(f"word{n}" for n in range(300)))
    assert aliases.words["word299"] == "o43" and "word43" not in aliases.words and "word44" in aliases.words
    assert len(aliases.words) == len(set(aliases.words.values())) == 256
