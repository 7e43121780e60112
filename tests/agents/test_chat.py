from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from families import tokenizer_of
from hypothesis import given
from hypothesis import strategies as st

from eef.agents.chat import Chat, Dialogue, load_options
from eef.agents.episode import Episode, Start
from eef.envs import Step
from eef.envs.webshop.pretraining import vocabulary
from eef.exchange.conversation import messages_of
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"constrained_decoding": "false"}', '"constrained_decoding" is "false", but must be true or false, without'),
        ('{"constrained_decoding": 1}', '"constrained_decoding" is 1, but must be true or false'),
        ('{"instructions": ["Shop."]}', '"instructions" is \\["Shop."\\], but must be a text in quotes'),
        ('{"instruction": "Shop."}', r"unknown name 'instruction' \(did you mean 'instructions'\?\); known: instr"),
        ('["Shop."]', 'must be an object, such as {"constrained_decoding": true}'),
        ('{"aliases": ', "is not valid JSON"),
    ],
)
def test_a_mistake_in_chat_json_is_one_message(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/chat.json:? {message}"):
        load_options(tmp_path)


def test_the_former_name_of_constrained_decoding_works_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text('{"limited": true}')
    with pytest.warns(FutureWarning, match="'limited' is now called 'constrained_decoding'"):
        assert load_options(tmp_path) == {"constrained_decoding": True}


def test_a_model_with_aliases_learns_the_action_of_an_answer_with_a_thought() -> None:
    """Constrained decoding leaves it nothing else, and its symbols cannot write a thought."""
    pages, thought = ("i need a red shirt", "B000000001 [SEP] Red Shirt", "Buy Now"), "Thought: I look for it.\n"
    actions = ("search[red shirt]", "click[b000000001]", "click[buy now]")
    acts = tuple(Turn(action, page) for action, page in zip(actions, pages, strict=True))
    thinks = tuple(replace(turn, reply=f"{thought}Action: {turn.action}") for turn in acts)
    plain, thoughtful = (Trajectory("0", "i need a red shirt", turns) for turns in (acts, thinks))
    assert CHAT.render(thoughtful, [True] * 3) == CHAT.render(plain, [True] * 3)
    assert messages_of(CHAT, thoughtful, [True] * 3) == messages_of(CHAT, plain, [True] * 3)
    mute = Turn("", "No action was found.", "Thought: hm.")
    assert CHAT.begin().answer_text(mute) == CHAT.begin().answer_text(replace(mute, action="Thought: hm.", reply=""))


@dataclass
class OwnAliases:
    """Aliases of an environment of one's own, which change no word."""

    vocabulary: frozenset[str] = frozenset()

    def copy(self) -> OwnAliases:
        return self

    def encode(self, text: str, prompt: bool = False) -> str:
        return text

    def encode_action(self, action: str) -> str:
        return action

    def decode_action(self, text: str) -> str:
        return text.strip()


def test_an_answer_whose_action_was_read_from_a_label_keeps_the_ids_that_were_sampled() -> None:
    """Else training would read other ids than the policy wrote."""
    chat = replace(Chat.of(tokenizer_of("qwen2.5")), aliases="webshop")
    dialogue = Dialogue(chat, OwnAliases())
    env = SimpleNamespace(step=lambda action: Step("page", 0.0, False))
    episode = Episode(0, Start("0"), env, dialogue, lambda: 0.0, np.random.default_rng(0), "p", [], 9)  # type: ignore[arg-type]
    ids = dialogue.encode_action("Action: click[x]")
    episode.take_turn(ids, None, False)
    (turn,) = episode.turns
    assert (turn.action, turn.reply) == ("click[x]", "Action: click[x]")
    assert dialogue.encode_turn(turn) == ids
