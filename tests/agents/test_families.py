"""Conversations of every family of chat models, from pages to token ids and back (templates: families.py)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from families import FAMILIES, TEXTS, ends_of, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from eef.agents import react
from eef.agents.chat import Chat
from eef.envs.webshop import WebShop
from eef.experiment import experiment
from eef.lab import make_chat
from eef.settings import Settings
from eef.trajectory import Trajectory, Turn, load

WORDS = st.lists(
    st.sampled_from([*TEXTS, "Crème brûlée 2-in-1", "9.5", "x" * 30, "< Prev", "\n\n", "  two  "]), max_size=4
)
OBSERVATIONS = WORDS.map(" [SEP] ".join)
REPLIES = st.sampled_from(["", "Thought: I look.\n\nAction: search[red shirt]", "Thought: hm", "a  b\n", "click[9.5]"])
TURNS = st.builds(
    Turn, st.sampled_from(["search[red shirt]", "click[buy now]", "click[< prev]"]), OBSERVATIONS, REPLIES
)


@cache
def chat_of(family: str, instructions: str = "") -> Chat:
    return Chat.of(tokenizer_of(family), instructions, ends=ends_of(family))


def by_template(family: str, messages: list[dict[str, str]], generation: bool) -> list[int]:
    """The ids of the family's own template, with the fixed date and with thinking off."""
    template = FAMILIES[family].template
    for form, date in (("strftime_now('%d %b %Y')", "'26 Jul 2024'"), ('strftime_now("%Y-%m-%d")', "'2024-07-26'")):
        template = template.replace(form, date)
    return tokenizer_of(family).apply_chat_template(
        messages, chat_template=template, add_generation_prompt=generation, enable_thinking=False, return_dict=False
    )


@pytest.mark.parametrize("react_prompt", [False, True], ids=["bare", "react"])
@pytest.mark.parametrize("family", FAMILIES)
@given(
    prompt=OBSERVATIONS,
    turns=st.lists(TURNS, min_size=1, max_size=5),
    flags=st.lists(st.booleans(), min_size=5, max_size=5),
)
@settings(max_examples=20)
def test_ids_equal_those_of_the_template(
    family: str, react_prompt: bool, prompt: str, turns: list[Turn], flags: list[bool]
) -> None:
    """In random conversations, the ids of the turns together are those of the conversation, which equal the tokenizer's
    own rendering, and the training row begins with the prompt of every turn.
    """
    tokenizer = tokenizer_of(family)
    chat = chat_of(family, "Shop well.")
    example = Trajectory("9", "a lamp", (Turn("search[lamp]", "a page"), Turn("click[buy now]", "the end")), 1.0, True)
    chat = react.react_chat(chat, "webshop", example) if react_prompt else chat
    trajectory = Trajectory("0", prompt, tuple(turns))
    ids, mask = chat.render(trajectory, flags[: len(turns)])
    rendering = chat.scaffold.rendering
    thought = tokenizer("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"]

    def without_past_thoughts(ids: list[int]) -> list[int]:
        """The template leaves empty thoughts out of past answers, the scaffold has them before all answers."""
        out = list(ids)
        for place in range(len(out) - len(thought) - 1, -1, -1):
            if rendering == "thinking off" and out[place : place + len(thought)] == thought:
                del out[place : place + len(thought)]
        return out

    messages = [*react.opening("webshop", example)] if react_prompt else []
    dialogue, place = chat.begin(), 0
    for index, turn in enumerate(turns):
        page = trajectory.state(index)
        if react_prompt:
            message = react.page_message(page) if index else react.first_page_message(page)
        else:
            message = react.user_message(page if index else f"Shop well.\n\n{page}")
        messages.append({**message, "content": message["content"].strip()})
        place += len(dialogue.encode_observation(page))
        expected_ids = by_template(family, messages, generation=True)
        prompt_ids = without_past_thoughts(ids[:place])
        if rendering == "prefilled":
            assert prompt_ids[: len(expected_ids)] == expected_ids and tokenizer.decode(
                prompt_ids[len(expected_ids) :]
            ).endswith("message|>")
        elif rendering == "past answers":
            assert (
                expected_ids[: len(prompt_ids)] == prompt_ids
                and tokenizer.decode(expected_ids[len(prompt_ids) :]) == "<think>\n"
            )
        else:
            assert prompt_ids == expected_ids
        assert not any(mask[:place][-1:])
        answer = dialogue.encode_turn(turn)
        text = tokenizer.decode(answer[: -len(chat.end)]).strip()
        assert text == (turn.answer if turn.reply or not react_prompt else f"Action: {turn.action}").strip()
        assert mask[place : place + len(answer)] == [flags[index]] * len(answer)
        place += len(answer)
        messages.append({"role": "assistant", "content": text})
    assert place == len(ids)
    whole = by_template(family, [*messages, react.user_message("x")], generation=False)
    ours = without_past_thoughts([*ids, 0])[:-1]
    assert whole[: len(ours)] == ours
    assert sum(token == tokenizer.bos_token_id for token in ids) == (FAMILIES[family].bos is not None) * (
        1 if family != "llama-2" else len(messages) // 2
    )  # never doubled


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_loses_the_instructions(family: str) -> None:
    """Instructions go into the first user turn, whatever the template does with a system turn."""
    chat = chat_of(family, "Shop well.")
    assert "Shop well.\n\ni need a lamp" in chat.tokenizer.decode(chat.begin().encode_observation("i need a lamp"))


def test_sampled_ids_are_kept_if_their_text_has_other_ids() -> None:
    chat = Chat.of(tokenizer_of("llama-3"))
    letters = [chat.tokenizer.convert_tokens_to_ids(letter) for letter in "search[redĠshirt]"]
    sampled = (*letters, *chat.end)
    turn = Turn("search[red shirt]", "o", "", True, sampled, chat.hash)
    assert chat.begin().decode_action(sampled) == turn.action and chat.begin().encode_action(turn.action) != list(
        sampled
    )
    trajectory = Trajectory("0", "p", (turn,))
    ids, mask = chat.render(trajectory, [True])
    assert tuple(ids[-len(sampled) :]) == sampled and mask[-len(sampled) :] == [True] * len(sampled)
    other = Chat.of(tokenizer_of("qwen2.5"))  # another tokenizer encodes the text
    assert other.render(trajectory, [True])[0][-1:] == list(other.end)
    assert other.tokenizer.decode(other.render(trajectory, [True])[0]).endswith("search[red shirt]<|im_end|>")


def test_a_run_of_a_language_model_with_thoughts(tmp_path: Path) -> None:
    """A model with the ReAct prompt and one example is trained on experts without thoughts, and tested."""
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
    result = experiment("sft_pos", shop, settings, 0, train_tasks=8, test_tasks=2, root=tmp_path, wandb="disabled")
    assert result["errors"] == 0 and result["win_rate"] == 0
    (table,) = tmp_path.glob("webshop__*/test/trajectories.jsonl")
    for played in load(table):
        assert not any(turn.learn for turn in played.turns if not turn.action)
        assert all(turn.reply or not turn.action for turn in played.turns) and played.outcome == "max_steps"
    with pytest.raises(ValueError, match="no room for thoughts"):
        experiment(
            "sft_pos",
            shop,
            replace(settings, constrained_decoding=True),
            0,
            root=tmp_path,
            wandb="disabled",
            train_tasks=8,
        )
    shop.max_steps = 1
    with pytest.raises(ValueError, match="does not win in 1 steps"):
        experiment("sft_pos", shop, settings, 0, root=tmp_path, wandb="disabled", train_tasks=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "reakt"}, "prompt='reakt' must be one of"),
        ({"one_shot": True}, "needs prompt='react'"),
        ({"prompt": "react"}, "needs a language model"),
    ],
)
def test_incompatible_settings_are_refused_first(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_chat(Settings(**changes), WebShop(catalogue={"products": 700, "train": 2, "test": 2}), [])
