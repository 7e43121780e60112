"""Constrained decoding with tokenizers of each kind: small ones, and real ones if they are available."""

from __future__ import annotations

import os
import random
import re
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import REAL, REAL_PARAMETERS, real, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eef.agents.cached_engine import CachedEngine
from eef.agents.chat import Chat
from eef.agents.constraints import Constraints
from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.agents.sampling import choose
from eef.agents.search_words import search_words
from eef.agents.token_bytes import token_bytes_of
from eef.envs import EnvError
from eef.envs.webshop import WebShop
from eef.envs.webshop.session import State
from eef.experts.offered import as_offered
from eef.models.pretrain import bpe_tokenizer, make_model
from eef.trajectory import Trajectory, Turn

DATA = Path(os.environ.get("EEF_WEBSHOP_DATA") or Path(__file__).resolve().parents[3] / "shared" / "webshop") / "data"
# the end token separates all contents, so any tokenizer can be used
BORDERS = "{% for m in messages %}{{ eos_token if m.role == 'user' else '' }}{{ m.content }}{{ eos_token }}{% endfor %}"
INSTRUCTION = "find me men's boots, size: 9.5 (wide); café 2-pack, and price lower than 170.00 dollars"
PAGE = f"WebShop [SEP] Instruction: [SEP] {INSTRUCTION} [SEP] Search"
NAMES = [
    "back to search", "< prev", "features", "buy now", "x", "x [2 pack]", "x [2 pack", "[]", "]]", "b09kxchwgd",
    "size 9", "size 9.5", "Size 9", "size  9", "[f] it's",
    "café", "caf", "👍", "👍🏽 nice", "👍🏾", "مرحبا بالعالم", "שלום", "中文", "a\u200bb",
]  # fmt: skip
SEARCH_AND_CLICKS = {"has_search_bar": True, "clickables": ["search", *NAMES]}
CLICKS = {"has_search_bar": False, "clickables": NAMES}


def _wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
    core.add_special_tokens(["<s>", "<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", bos_token="<s>", pad_token="<s>")
    tokenizer.chat_template = BORDERS
    return tokenizer


CORPUS = [PAGE, *(f"click[{name}]" for name in NAMES)]


def byte_level(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """Like Qwen and DeepSeek: brackets merge with each other and with the next letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("[", "]"),
        ("]", "]"),
        ("[", "f"),
        ("Ġ", "s"),
        ("Ġ", "["),
        ("i", "n"),
        ("r", "e"),
        ("c", "l"),
        ("cl", "i"),
    ]
    pieces = [*alphabet, *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, merges))
    if normalizer is not None:
        core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return _wrap(core)


def sentencepiece(fallback: bool = True, prepend: bool = True) -> PreTrainedTokenizerFast:
    """Like Llama-2 (with ``prepend``) and Gemma: blanks are marks, unknown characters are bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256) if fallback)]
    characters = sorted({char for text in CORPUS for char in text if ord(char) < 128 and char != " "})
    merges = [("[", "]"), ("]", "]"), ("[", "f"), ("▁", "s"), ("▁", "c"), ("▁s", "e"), ("i", "n"), ("r", "e")]
    pieces += ["▁", *characters, *dict.fromkeys(a + b for a, b in merges)]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback))
    if fallback:
        steps = [normalizers.Prepend("▁")] if prepend else []
        core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)] if prepend else []
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
        core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    core.add_special_tokens(["<unk>"])
    tokenizer = _wrap(core)
    tokenizer.unk_token = "<unk>"
    return tokenizer


def scienceworld() -> PreTrainedTokenizerFast:
    return bpe_tokenizer([PAGE, *CORPUS], 420)


SMALL = {
    "byte-level": byte_level,
    "byte-level, NFC": lambda: byte_level(normalizers.NFC()),
    "sentencepiece, blank first": sentencepiece,
    "sentencepiece": lambda: sentencepiece(prepend=False),
    "metaspace without bytes": lambda: sentencepiece(fallback=False),
    "scienceworld": scienceworld,
}


@pytest.fixture(scope="module", params=[*SMALL, *(REAL_PARAMETERS if REAL.is_dir() else [])])
def text_chat(request) -> Chat:
    if request.param in SMALL:
        return Chat.of(SMALL[request.param]())
    tokenizer = copy(real(request.param))
    tokenizer.chat_template = BORDERS
    return Chat.of(tokenizer)


@pytest.fixture(scope="module")
def brackets() -> Chat:
    return Chat.of(byte_level())


def encodable(constraints: Constraints) -> list[str]:
    """The actions of ``CLICKS`` that the tokenizer can write: all unless it lacks characters."""
    token_bytes = constraints.token_bytes
    actions = [f"click[{name}]" for name in NAMES]
    return actions if token_bytes.has_byte_tokens("🙂".encode()) else [action for action in actions if action.isascii()]


def walk(constraints: Constraints, rng: random.Random, goal: bytes | None = None) -> list[int]:
    """A complete answer of random allowed ids; with ``goal``, one that stands for these bytes."""
    answer: list[int] = []
    text, ended = b"", False
    while allowed := constraints.allowed(answer):
        if goal is not None and not ended:
            text = constraints.token_bytes.decode(answer)
            allowed = [
                token
                for token in allowed
                if text != goal and goal.startswith(text + constraints.token_bytes.bytes_of[token])
            ] or [token for token in allowed if text == goal and token == constraints.dialogue.chat.end[0]]
            ended = text == goal
        assert allowed, f"{goal!r} cannot be continued after {text!r}"
        answer.append(rng.choice(allowed))
        assert len(answer) < 1000, "the answer does not end"
    return answer


def not_allowed(constraints: Constraints, ids: list[int]) -> list[int]:
    """Those of ``ids`` that are not allowed at their place."""
    return [token for place, token in enumerate(ids) if token not in constraints.allowed(ids[:place])]


def is_search(action: str, words: list[str]) -> bool:
    match = re.fullmatch(r"search\[(.+)\]", action)
    return match is not None and set(match[1].split(" ")) <= set(words)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_random_allowed_ids_end_in_an_action_or_a_search_of_page_words(text_chat: Chat, seed: int) -> None:
    words = search_words(PAGE)
    for available in (SEARCH_AND_CLICKS, CLICKS):
        constraints = Constraints.of(text_chat.begin(), available, PAGE)
        answer = walk(constraints, random.Random(seed))
        action = constraints.action(answer)
        assert action in encodable(constraints) or (available["has_search_bar"] and is_search(action, words))
        assert constraints.token_bytes.decode(answer[: -len(text_chat.end)]).decode().strip() == action
        assert text_chat.begin().decode_action(answer) == action


def test_every_action_is_allowed_in_any_tokenisation(text_chat: Chat) -> None:
    dialogue, rng = text_chat.begin(), random.Random(0)
    constraints = Constraints.of(dialogue, SEARCH_AND_CLICKS, PAGE)
    assert sorted(constraints.actions) == sorted(encodable(constraints))
    for action in encodable(constraints):
        ids = dialogue.encode_action(action)
        assert (
            not not_allowed(constraints, ids) and constraints.allowed(ids) == [] and constraints.action(ids) == action
        )
        for _ in range(3):
            assert (
                constraints.action(walk(constraints, rng, constraints.token_bytes.decode(ids[: -len(text_chat.end)])))
                == action
            )


def test_the_whole_instruction_can_be_searched_for(text_chat: Chat) -> None:
    dialogue, rng = text_chat.begin(), random.Random(0)
    constraints = Constraints.of(dialogue, SEARCH_AND_CLICKS, PAGE, longest=400)
    instruction = INSTRUCTION if "click[café]" in constraints.actions else INSTRUCTION.replace("café ", "")
    for words in (instruction, "boots size 9.5 wide wide"):
        ids = dialogue.encode_action(f"search[{words}]")
        assert (
            not not_allowed(constraints, ids)
            and constraints.allowed(ids) == []
            and constraints.action(ids) == f"search[{words}]"
        )
        again = walk(constraints, rng, constraints.token_bytes.decode(ids[: -len(text_chat.end)]))
        assert constraints.action(again) == f"search[{words}]"


@given(seed=st.integers(0, 2**32 - 1), longest=st.integers(30, 80))
@settings(max_examples=15)
def test_a_search_ends_within_the_limit(text_chat: Chat, seed: int, longest: int) -> None:
    constraints = Constraints.of(text_chat.begin(), {"has_search_bar": True, "clickables": ["search"]}, PAGE, longest)
    answer = walk(constraints, random.Random(seed))
    assert is_search(constraints.action(answer), search_words(PAGE))
    assert len(answer) <= longest + len(text_chat.end)


def test_a_limit_that_is_too_short_still_gives_a_whole_search(text_chat: Chat) -> None:
    constraints = Constraints.of(text_chat.begin(), {"has_search_bar": True, "clickables": ["search"]}, PAGE, longest=1)
    for seed in range(5):
        assert is_search(constraints.action(walk(constraints, random.Random(seed))), search_words(PAGE))


def test_brackets_that_are_one_token_allow_a_search(brackets: Chat) -> None:
    """The opening is ``search[``, though ``[]`` is one token; the words are those of the page, not of the scaffold."""
    dialogue, tokenizer = brackets.begin(), brackets.tokenizer
    assert "[]" in tokenizer.convert_ids_to_tokens(dialogue.encode_action("search[]"))
    constraints = Constraints.of(dialogue, {"has_search_bar": True, "clickables": ["search"]}, PAGE)
    ids = dialogue.encode_action("search[find café]")
    assert not not_allowed(constraints, ids) and constraints.action(ids) == "search[find café]"
    opening = constraints.token_bytes.encode(b"search[")
    firsts = {constraints.token_bytes.bytes_of[token] for token in constraints.allowed(opening)}
    assert firsts and all(any(word.encode().startswith(first) for word in search_words(PAGE)) for first in firsts)


def test_actions_of_an_expert_file_can_be_said(shop: WebShop) -> None:
    """A file may have them as the page shows them."""
    chat, env = Chat.of(tokenizer_of("qwen2.5"), "Shop."), shop.fork()
    page = env.reset(shop.tasks("train")[0])
    search = f"search[{env.goal()['query'].title()}]"
    env.step(search)
    actions = [search, "click[Next >]", "click[< Prev]", f"click[{env.results()[0]}]", "click[Buy Now]"]
    steps = [env.reset(shop.tasks("train")[0]), *(env.step(action).observation for action in actions)]
    turns = tuple(map(Turn, actions, steps[1:]))

    def sayable(said: list[str]) -> list[bool]:
        env.reset(shop.tasks("train")[0])
        answers = []
        for action in said:
            ids = chat.begin().encode_action(action)
            constraints = Constraints.of(chat.begin(), env.available_actions(), page)
            answers.append(all(token in constraints.allowed(ids[:at]) for at, token in enumerate(ids)))
            assert env.step(action).valid
        return answers

    assert not any(sayable(actions)[1:])
    (learnt,) = as_offered(shop, [Trajectory(shop.tasks("train")[0], page, turns)])
    assert all(sayable(learnt.actions))


def test_search_words_come_from_the_page_alone(brackets: Chat) -> None:
    chat = replace(brackets, instructions="Answer with secrets.", opening=(("Zebra?", "Quagga."),))
    constraints, dialogue = Constraints.of(chat.begin(), SEARCH_AND_CLICKS, PAGE), chat.begin()
    assert not not_allowed(constraints, dialogue.encode_action("search[find]"))
    for word in ("secrets", "secrets.", "Zebra?", "Quagga", "[SEP]", "SEP"):
        assert not_allowed(constraints, dialogue.encode_action(f"search[{word}]"))


def test_search_words_are_those_between_blanks_with_and_without_punctuation() -> None:
    page = (
        "WebShop [SEP] Instruction: [SEP] Find men's boots, size 9.5 (2 pack) [new] - हिन्दी [SEP] [button] Go [button_]"
    )
    words = search_words(page)
    assert {"Find", "find", "men's", "boots,", "boots", "9.5", "(2", "2", "pack)", "pack", "हिन्दी", "-"} <= set(words)
    assert not {"[SEP]", "[button]", "SEP", "button", "button_", "", "[new]"} & set(words)
    assert len(words) == len(set(words))


def test_a_search_may_contain_any_words_of_the_page_with_single_blanks(text_chat: Chat) -> None:
    constraints = Constraints.of(
        text_chat.begin(), {"has_search_bar": True, "clickables": ["search"]}, PAGE, longest=1000
    )
    words = search_words(PAGE) if "click[café]" in encodable(constraints) else search_words(PAGE.replace("café", ""))
    text = f"search[{' '.join(words * 2)}]"
    assert not not_allowed(constraints, text_chat.begin().encode_action(text))
    assert not_allowed(constraints, text_chat.begin().encode_action("search[ find]"))
    assert not_allowed(constraints, text_chat.begin().encode_action("search[find  me]"))
    assert not_allowed(constraints, text_chat.begin().encode_action("search[]"))


def test_an_option_that_is_a_prefix_of_another_may_end_or_continue(brackets: Chat) -> None:
    end = brackets.end[0]
    constraints = Constraints.of(brackets.begin(), {"actions": ["look", "look at x", "look at"]}, "")
    for action, more in (("look", True), ("look at", True), ("look at x", False)):
        allowed = constraints.allowed(brackets.begin().encode_action(action)[: -len(brackets.end)])
        assert end in allowed and (len(allowed) > 1) == more


def test_an_end_of_several_ids_is_required_whole(brackets: Chat) -> None:
    dialogue = Ended(brackets.begin(), (brackets.end[0], brackets.tokenizer.convert_tokens_to_ids("]]")))
    constraints = Constraints.of(dialogue, {"actions": ["look", "look at"]}, "")
    answer = dialogue.encode_action("look")
    assert constraints.allowed(answer[:-1]) == [answer[-1]] and constraints.allowed(answer) == []
    assert constraints.action(answer) == "look"
    with pytest.raises(ValueError, match="not a complete answer"):
        constraints.action(answer[:-1])


class Ended:
    """A conversation with another end of answers."""

    def __init__(self, dialogue, end: tuple[int, ...]) -> None:
        self.talk, self.aliases = dialogue, None
        self.size, self.chat = (
            len(dialogue.chat.end),
            type("Chat", (), {"end": end, "tokenizer": dialogue.chat.tokenizer})(),
        )

    def copy(self) -> Ended:
        return self

    def encode_action(self, reply: str) -> list[int]:
        return [*self.talk.encode_action(reply)[: -self.size], *self.chat.end]


def test_the_only_answer_left_is_forced(text_chat: Chat) -> None:
    dialogue = text_chat.begin()
    constraints = Constraints.of(dialogue, {"has_search_bar": False, "clickables": ["back to search"]}, PAGE)
    ids = dialogue.encode_action("click[back to search]")
    assert [constraints.allowed(ids[:place]) for place in range(len(ids))] == [[token] for token in ids]
    both = Constraints.of(dialogue, {"actions": ["click[x", "click[y"]}, PAGE)
    shared = [
        token
        for token, other in zip(dialogue.encode_action("click[x"), dialogue.encode_action("click[y"), strict=False)
        if token == other
    ]
    assert both.allowed([]) == shared[:1], "a common beginning leaves no choice"
    other = constraints.token_bytes.lookup(constraints.texts[0][:1])[0]  # another first token than the tokenizer's own
    if other and other[0] != ids[0]:
        assert len(constraints.allowed([other[0]])) == 1


def test_ids_with_the_same_bytes_are_all_allowed() -> None:
    tokenizer = sentencepiece(prepend=False)
    chat = Chat.of(tokenizer)
    constraints = Constraints.of(chat.begin(), {"actions": ["ab", "ac"]}, "")
    after = constraints.allowed(chat.begin().encode_action("ab")[:1])
    same = tokenizer.convert_tokens_to_ids(["b", "<0x62>"])
    assert (
        set(same) <= set(after)
        and constraints.action([*chat.begin().encode_action("ab")[:1], same[1], *chat.end]) == "ab"
    )


def test_control_tokens_never_stand_for_text(text_chat: Chat) -> None:
    token_bytes = token_bytes_of(text_chat.tokenizer)
    added = text_chat.tokenizer.added_tokens_decoder
    for token in [*text_chat.tokenizer.all_special_ids, *added]:
        assert not token_bytes.is_text(token) or (not added[token].special and not token_bytes.bytes_of[token].strip())
    name = added[text_chat.end[0]].content
    action = f"click[{name}]"  # an option that spells the end of an answer
    constraints = Constraints.of(text_chat.begin(), {"has_search_bar": False, "clickables": [name, "x"]}, PAGE)
    if action in constraints.actions:
        goal = constraints.texts[constraints.actions.index(action)]
        assert constraints.action(walk(constraints, random.Random(0), goal)) == action


def test_actions_with_the_same_ids_are_left_out() -> None:
    chat = Chat.of(byte_level(normalizers.NFC()))
    one, two = "click[café]", "click[café]"
    assert Constraints.of(chat.begin(), {"actions": [one, "x"]}, "").actions == [one, "x"], (
        "as the environment writes it"
    )
    assert Constraints.of(chat.begin(), {"actions": [one, two, "x", "x"]}, "").actions == ["x"]
    with pytest.raises(ValueError, match="can write none of the 2 available actions"):
        Constraints.of(chat.begin(), {"actions": [one, two]}, "")


@pytest.mark.parametrize("decoder", [decoders.BPEDecoder(), decoders.ByteFallback(), decoders.CTC()])
def test_a_tokenizer_with_an_unknown_decoder_is_refused(decoder) -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.decoder = decoder
    tokenizer.name_or_path = "some/model"
    with pytest.raises(ValueError, match="'some/model'.*decoder.*constrained_decoding=False"):
        token_bytes_of(tokenizer)


def test_a_tokenizer_that_changes_the_text_is_refused_with_the_difference() -> None:
    tokenizer = byte_level(normalizers.Replace("click", "press"))
    tokenizer.name_or_path = "some/model"
    with pytest.raises(
        ValueError, match=r"'some/model'.*'click\[back to search\]'.*at byte 0.*constrained_decoding=False"
    ):
        token_bytes_of(tokenizer)
    lower = Chat.of(byte_level(normalizers.Lowercase()))
    policy = Policy(None, lower.tokenizer, lower, "lower", 512, constrained_decoding=True)
    with pytest.raises(ValueError, match="first difference is at byte"):
        simulate(policy, WebShop(catalogue={"products": 60, "train": 1, "eval": 0, "test": 0}), [Start("0")])


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_choosing_among_columns_equals_masking_the_others(temperature: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        logits = torch.tensor(rng.normal(size=(4, 50)) * 4).float()
        choices = [list(rng.permutation(50)[: rng.integers(1, 20)]) for _ in range(3)] + [None]
        uniform = rng.random(4)
        masked = logits.clone()
        for row, choice in enumerate(choices):
            if choice is not None:
                masked[row, [column for column in range(50) if column not in choice]] = float("-inf")
        draws = [lambda u=u: float(u) for u in uniform]
        whole = choose(masked, [None] * 4, draws, temperature)
        assert choose(logits, [c and [int(x) for x in c] for c in choices], draws, temperature) == whole
    assert choose(torch.zeros(1, 5), [[3]], [lambda: 1 - 2**-53], 1.0) == [3]


def dialogue_on_results(policy: Policy):
    dialogue = policy.chat.begin()
    page = "WebShop [SEP] Instruction: [SEP] i need a red shirt [SEP] Search"
    prompt_ids = dialogue.encode_observation(page)
    dialogue.encode_observation(
        "Back to Search [SEP] Next > [SEP] B000000001 [SEP] Red Shirt [SEP] $9.0 [SEP] B000000002 [SEP] Hat [SEP] $8.0"
    )
    return dialogue, prompt_ids, page


def test_symbols_have_one_tokenisation(policy: Policy) -> None:
    dialogue, _, page = dialogue_on_results(policy)
    names = ["back to search", "next >", "b000000001", "b000000002"]
    constraints = Constraints.of(dialogue, {"has_search_bar": False, "clickables": names}, page)
    answers: list[str] = []

    def every(answer: list[int]) -> None:
        allowed = constraints.allowed(answer)
        for token in allowed:
            every([*answer, token])
        if not allowed:
            answers.append(constraints.action(answer))

    every([])
    assert sorted(answers) == sorted(f"click[{name}]" for name in names)


def test_symbols_of_a_search_are_those_of_the_first_page(policy: Policy) -> None:
    dialogue, _, page = dialogue_on_results(policy)
    constraints = Constraints.of(dialogue, {"has_search_bar": True, "clickables": ["search"]}, page, longest=8)
    opening = dialogue.encode_action("search[red]")[:1]
    assert constraints.allowed([]) == opening
    words = policy.tokenizer.convert_ids_to_tokens(constraints.allowed(opening))
    assert set(words) == {
        "webshop",
        "instruction:",
        "i",
        "need",
        "a",
        "i0",
        "i1",
        "search",
    }  # no scaffold, no closing bracket
    closing = dialogue.encode_action("search[red]")[-2:]
    answer = [*opening, *[constraints.allowed(opening)[0]] * 6]
    assert constraints.allowed(answer[:-1]) != closing[:1] and closing[0] in constraints.allowed(answer[:-1])
    assert constraints.allowed(answer) == closing[:1]  # the search must end
    assert constraints.allowed([*answer, *closing]) == []
    assert constraints.action(dialogue.encode_action("search[red shirt]")) == "search[red shirt]"


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_constrained_decoding_gives_only_available_actions(seed: int, tokenizer, chat) -> None:
    torch.manual_seed(0)
    policy = Policy(make_model(tokenizer, 32, 1, 2).eval(), tokenizer, chat, "random", 512, True)
    dialogue, prompt, page = dialogue_on_results(policy)
    names = ["back to search", "b000000001", "b000000002"]
    engine = CachedEngine(policy, 1)
    engine.start({0: prompt})
    rng = np.random.default_rng(seed)
    constraints = Constraints.of(dialogue, {"has_search_bar": True, "clickables": names}, page)
    answer = constraints.action(engine.generate([0], {0: rng.random}, 1.0, {0: constraints})[0])
    assert answer in {f"click[{name}]" for name in names} or (answer.startswith("search[") and answer.endswith("]"))


@pytest.mark.parametrize("build", [byte_level, sentencepiece], ids=["byte-level", "sentencepiece"])
def test_a_language_model_with_constrained_decoding_takes_no_invalid_action(build, shop: WebShop) -> None:
    torch.manual_seed(0)
    chat = Chat.of(build(), instructions="Say secret words.")
    policy = Policy(make_model(chat.tokenizer, 16, 1, 2, 16384).eval(), chat.tokenizer, chat, "random", 16384, True)
    played = simulate(policy, shop, [Start(task) for task in shop.tasks("test")[:4]], seed=1, max_steps=3)
    for one in played:
        assert one.outcome in ("done", "max_steps") and one.info["invalid"] == 0
        assert is_search(one.actions[0], search_words(one.prompt))


OPTIONS = [
    "3 oz.",
    "5'2\" x 7'4\"",
    "(2 pack)",
    "a|b",
    "red & blue",
    "16",
    '16"',
    "size: 9.5 (wide)",
    "$10 card",
    "x-large",
    "+",
]


@pytest.fixture
def item(chat: Chat):
    """A conversation on a page whose options contain punctuation."""
    dialogue = chat.begin()
    dialogue.encode_observation("WebShop [SEP] Instruction: [SEP] i need a red shirt [SEP] Search")
    dialogue.encode_observation(
        f"Back to Search [SEP] < Prev [SEP] size [SEP] {' [SEP] '.join(OPTIONS)} [SEP] Shirt [SEP] Buy Now"
    )
    return dialogue


def test_symbols_click_an_option_as_the_page_writes_it(item) -> None:
    distinct = [name for name in OPTIONS if not name.startswith("16")]
    constraints = Constraints.of(item, {"has_search_bar": False, "clickables": [*OPTIONS, "buy now"]}, "")
    assert sorted(constraints.actions) == sorted(f"click[{name}]" for name in [*distinct, "buy now"])
    for name in [*distinct, "buy now"]:
        ids = item.encode_action(f"click[{name}]")
        assert constraints.action(ids) == item.copy().decode_action(ids) == f"click[{name}]"


def test_symbols_that_several_options_share_are_not_guessed(item) -> None:
    assert item.encode_action("click[16]") == item.encode_action('click[16"]')
    assert item.decode_action(item.encode_action("click[16]")) not in ("click[16]", 'click[16"]')
    fork = item.copy()
    fork.encode_observation('Back to Search [SEP] < Prev [SEP] 16" [SEP] Buy Now')
    assert fork.decode_action(fork.encode_action("click[16]")) == 'click[16"]', "the current page counts"
    assert item.decode_action(item.encode_action("click[3 oz.]")) == "click[3 oz.]", "a fork changes nothing"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no official products at {DATA}: set EEF_WEBSHOP_DATA")
def test_symbols_click_every_option_of_the_official_products(chat: Chat) -> None:
    shop = WebShop(data=DATA, human_goals=True)
    first = shop.reset(shop.tasks("test")[0])
    goal, values, shared = shop.state.goal, 0, []
    for product in shop.shop.by_asin.values():
        shop.state = State(goal, "item", ("red",), 1, product.asin)
        dialogue = chat.begin()
        dialogue.encode_observation(first)
        dialogue.encode_observation(shop._render(shop.state))
        names = {value for _, group in product.options for value in group}
        actions = Constraints.of(dialogue, shop.available_actions(), first).actions
        for name in names:
            ids = dialogue.copy().encode_action(f"click[{name}]")
            alike = [other for other in names if dialogue.copy().encode_action(f"click[{other}]") == ids]
            if len(alike) > 1:
                shared.append(name)
            assert (f"click[{name}]" in actions) == (len(alike) == 1)
            assert (dialogue.copy().decode_action(ids) == f"click[{name}]") == (len(alike) == 1)
        values += len(names)
    assert values > 8000 and len(shared) <= 10, "nearly all options have symbols of their own"


def test_a_search_may_contain_a_word_of_many_bytes(text_chat: Chat) -> None:
    word = "赤いシャツ" * 20  # 300 bytes
    constraints = Constraints.of(
        text_chat.begin(), {"has_search_bar": True, "clickables": []}, f"find {word}", longest=1250
    )
    answer: list[int] = []
    while following := constraints.allowed(answer):
        answer.append(following[-1])
    assert re.fullmatch(rf"search\[(find|{word}|{word.lower()}| )+\]", constraints.action(answer))


def test_long_options_end_in_any_tokenisation(brackets: Chat) -> None:
    """Even with the shortest tokens: past the canonical length only the longest tokens are allowed."""
    names = [f"{'a very long option ' * 60}{number}" for number in range(2)]
    constraints = Constraints.of(brackets.begin(), {"has_search_bar": False, "clickables": names}, "")
    answer: list[int] = []
    while following := constraints.allowed(answer):
        answer.append(min(following, key=lambda token: len(constraints.token_bytes.bytes_of[token]) or 99))
        assert len(answer) <= constraints.max_tokens + len(brackets.end)
    assert constraints.action(answer) in [f"click[{name}]" for name in names]


def test_a_page_without_actions_is_an_environment_error(brackets: Chat) -> None:
    for available in ({"actions": []}, {"has_search_bar": True, "clickables": ["search"]}):
        with pytest.raises(EnvError, match="there is no available action"):
            Constraints.of(brackets.begin(), available, "[SEP]")


def test_actions_that_differ_only_in_blanks_become_one(brackets: Chat) -> None:
    assert Constraints.of(brackets.begin(), {"actions": ["open door", "open door ", "x"]}, "").actions == [
        "open door",
        "x",
    ]
