"""The chat templates of the families, written anew here as their documentation describes them, quirks included.

Their tokenizers cannot be downloaded by a test: small ones of the same kinds (byte-level BPE with a pre-tokenizer of
words, digits and line breaks; SentencePiece's BPE with its marks for blanks) are trained on the spot.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eef import react
from eef.chat import Chat
from eef.envs.webshop import WebShop
from eef.lab import scaffold
from eef.methods import experiment
from eef.settings import Settings
from eef.trajectory import Trajectory, Turn, load

CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
TEMPLATES = {
    # a header per turn, contents trimmed, the BOS written by the template
    "llama-3": "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + (m.content | trim) + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    # turns must alternate; a system message would go to the last user turn
    "mistral-v0.3": "{{ '<s>' }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + (m.content | trim) + '</s>' }}{% endif %}{% endfor %}",
    # a system turn of its own where none is given
    "qwen2.5": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help people.<|im_end|>\n{% endif %}"
    "{% for m in messages %}" + CHATML + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # a think block in the answers after the last user turn, none in those before it
    "qwen3": "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n{{ m.content }}<|im_end|>\n{% else %}"
    + CHATML + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "plain": "{% for m in messages %}{{ m.role }}:\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}",
}  # fmt: skip
SPECIALS = {
    "llama-3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "mistral-v0.3": ["<s>", "</s>", "[INST]", "[/INST]"],
    "qwen2.5": ["<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "plain": ["<end>"],
}
BOS = {"llama-3": "<|begin_of_text|>", "mistral-v0.3": "<s>"}
TEXTS = [
    "Instruction: [SEP] i need a red shirt, and price lower than 40.00 dollars [SEP] Search",
    "Back to Search [SEP] Page 1 (Total results: 50) [SEP] Next > [SEP] B000000001 [SEP] Cotton Shirt [SEP] $10.71",
    "You move to the kitchen.\nHere you see:\n\ta stove, which is turned off",
    "Thought: The second one fits.\nAction: click[B000000001]",
    "search[red shirt]", "click[buy now]", "teleport to kitchen",
]  # fmt: skip


@lru_cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(byte_fallback=family == "mistral-v0.3", unk_token=None))
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS[family], show_progress=False)
    if family == "mistral-v0.3":  # as SentencePiece: blanks are marks, one is put before each piece of text
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer.special_tokens = [*trainer.special_tokens, *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        words = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        core.decoder = decoders.ByteLevel()
        trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXTS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS.get(family), additional_special_tokens=SPECIALS[family]
    )
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


WORDS = st.lists(
    st.sampled_from([*TEXTS, "Crème brûlée 2-in-1", "9.5", "x" * 30, "< Prev", "\n\n", "  two  "]), max_size=4
)
OBSERVATIONS = WORDS.map(" [SEP] ".join)
REPLIES = st.sampled_from(["", "Thought: I look.\n\nAction: search[red shirt]", "Thought: hm", "a  b\n", "click[9.5]"])
TURNS = st.builds(
    Turn, st.sampled_from(["search[red shirt]", "click[buy now]", "click[< prev]"]), OBSERVATIONS, REPLIES
)


@pytest.mark.parametrize("opened", [False, True], ids=["bare", "react"])
@pytest.mark.parametrize("family", TEMPLATES)
@given(
    prompt=OBSERVATIONS,
    turns=st.lists(TURNS, min_size=1, max_size=5),
    flags=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_three_equalities(family: str, opened: bool, prompt: str, turns: list[Turn], flags: list[bool]) -> None:
    """Over random conversations: the ids of the parts are those of the whole, the whole is the tokenizer's own
    rendering, and what is trained on begins with what is acted on at every turn."""
    tokenizer = tokenizer_of(family)
    chat = Chat.of(tokenizer, "Shop well.")
    shown = Trajectory("9", "a lamp", (Turn("search[lamp]", "a page"), Turn("click[buy now]", "the end")), 1.0, True)
    chat = react.scaffold(chat, "webshop", shown) if opened else chat
    trajectory = Trajectory("0", prompt, tuple(turns))
    ids, mask = chat.render(trajectory, flags[: len(turns)])

    messages = [*react.opening("webshop", shown)] if opened else []
    talk, place = chat.begin(), 0
    for index, turn in enumerate(turns):
        page = trajectory.state(index)
        if opened:
            heard = react.page(page) if index else react.first_page(page)
        else:
            heard = react.user(page if index else f"Shop well.\n\n{page}")
        messages.append({**heard, "content": heard["content"].strip()})
        place += len(talk.hear(page))
        asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids[:place] == asked  # the rollout prompt, by the template itself
        assert not any(mask[place - 1 : place])
        said = talk.repeat(turn)
        text = tokenizer.decode(said[: -len(chat.end)]).strip()
        assert text == (turn.said if turn.reply or not opened else f"Action: {turn.action}").strip()
        assert mask[place : place + len(said)] == [flags[index]] * len(said)
        place += len(said)
        messages.append({"role": "assistant", "content": text})
    assert place == len(ids)
    past = tokenizer.apply_chat_template([*messages, react.user("sentinel")], tokenize=False)
    whole = past[: past.rindex("sentinel")]
    assert tokenizer(whole, add_special_tokens=False)["input_ids"][: len(ids)] == ids
    assert sum(token == tokenizer.bos_token_id for token in ids) == (family in BOS)  # never doubled


def test_no_family_loses_the_instructions() -> None:
    """Their place is the first user turn, whatever the template does with a system turn."""
    for family in TEMPLATES:
        chat = Chat.of(tokenizer_of(family), "Shop well.")
        assert "Shop well.\n\ni need a lamp" in chat.tokenizer.decode(chat.begin().hear("i need a lamp"))


def test_what_a_family_does_with_an_answer() -> None:
    """Ends are the policy's to say, line breaks after them are not; no think block in an answer of Qwen3."""
    ends = {name: Chat.of(tokenizer_of(name)) for name in TEMPLATES}
    spoken = {name: chat.tokenizer.decode(chat.end) for name, chat in ends.items()}
    assert spoken == dict(zip(TEMPLATES, ["<|eot_id|>", "</s>", "<|im_end|>", "<|im_end|>", "<end>"], strict=True))
    rendered = ends["qwen3"].render(Trajectory("0", "p", (Turn("a", "o"),)), [True])[0]
    assert "think" not in ends["qwen3"].tokenizer.decode(rendered)


def test_a_template_that_asks_for_another_answer_than_it_renders_is_refused() -> None:
    tokenizer = tokenizer_of("plain")
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = kept.replace("assistant:\n{% endif", "assistant (thinking): {% endif")
        with pytest.raises(ValueError, match="renders a past answer otherwise"):
            Chat.of(tokenizer)
    finally:
        tokenizer.chat_template = kept


def test_sampled_ids_are_kept_where_their_text_would_give_others() -> None:
    chat = Chat.of(tokenizer_of("llama-3"))
    letters = [chat.tokenizer.convert_tokens_to_ids(letter) for letter in "search[redĠshirt]"]
    sampled = (*letters, *chat.end)
    turn = Turn("search[red shirt]", "o", "", True, sampled, chat.hash)
    assert chat.begin().spoken(sampled) == turn.action and chat.begin().say(turn.action) != list(sampled)
    trajectory = Trajectory("0", "p", (turn,))
    ids, mask = chat.render(trajectory, [True])
    assert tuple(ids[-len(sampled) :]) == sampled and mask[-len(sampled) :] == [True] * len(sampled)
    other = Chat.of(tokenizer_of("qwen2.5"))  # another tokenizer reads the text
    assert other.render(trajectory, [True])[0][-1:] == list(other.end)
    assert other.tokenizer.decode(other.render(trajectory, [True])[0]).endswith("search[red shirt]<|im_end|>")


def test_a_language_model_goes_through_a_run_with_thoughts(tmp_path: Path) -> None:
    """From a folder, prompted as the experts are, one example shown: trained on experts without thoughts, tested."""
    tokenizer = tokenizer_of("qwen2.5")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8192, eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    shop = WebShop(catalogue={"products": 700, "train": 20, "eval": 2, "test": 20}, max_steps=15)
    settings = Settings(model=str(tmp_path / "model"), prompt="react", one_shot=True, max_new_tokens=8, epochs=1)
    found = experiment("sft_pos", shop, settings, 0, train_tasks=8, test_tasks=2, root=tmp_path, wandb="disabled")
    assert found["errors"] == 0 and found["win_rate"] == 0
    (table,) = tmp_path.glob("webshop__*/test/trajectories.jsonl")
    for played in load(table):
        assert not any(turn.learn for turn in played.turns if not turn.action)
        assert all(turn.reply or not turn.action for turn in played.turns) and played.outcome == "max_steps"
    with pytest.raises(ValueError, match="no room for thoughts"):
        experiment("sft_pos", shop, replace(settings, limited=True), 0, root=tmp_path, wandb="disabled", train_tasks=8)
    shop.max_steps = 1
    with pytest.raises(ValueError, match="no win in 1 steps"):
        experiment("sft_pos", shop, settings, 0, root=tmp_path, wandb="disabled", train_tasks=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "reakt"}, "prompt='reakt': known are"),
        ({"one_shot": True}, "needs prompt='react'"),
        ({"prompt": "react"}, "knows no words"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_made(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaffold(Settings(**changes), WebShop(catalogue={"products": 700, "train": 2, "test": 2}), [])
