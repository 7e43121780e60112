"""Chat templates of the model families, rewritten from their documentation with their quirks.

Tests cannot download the families' tokenizers, so they train small ones of the same kinds: byte-level BPE with a
pre-tokenizer of words, digits and line breaks, and SentencePiece's BPE with marks for blanks. :func:`real` loads real
ones, if there are any in ``EEF_TOKENIZERS`` or ``../shared/tokenizers``.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast


class Family(NamedTuple):
    """A chat template, its control tokens, and the kind of its tokenizer."""

    template: str
    special: list[str]
    plain: list[str] = []  # control tokens that the family does not mark as special
    kind: str = "bytes"
    bos: str | None = None
    rstrip: bool = False  # special tokens absorb the white space after them


def _turns(user: str, agent: str, prompt: str) -> str:
    """A template of a user turn, an agent turn and a generation prompt; ``c`` is a content."""
    return (
        "{% for m in messages %}{% set c = m.content %}{% if m.role == 'user' %}" + user + "{% else %}" + agent
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}" + prompt + "{% endif %}"
    )  # fmt: skip


CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
LAST_USER = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
THINKS = (
    LAST_USER + "{% for m in messages %}{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n{{ m.content }}<|im_end|>\n{% else %}"
    + CHATML + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
)  # fmt: skip
HEADER = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + (m.content | trim) + '<|eot_id|>' }}"
ASK_LLAMA = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
FAMILIES = {
    # a header per turn, contents trimmed, the BOS written by the template
    "llama-3": Family(
        "{{ '<|begin_of_text|>' }}{% for m in messages %}" + HEADER + "{% endfor %}"
        "{% if add_generation_prompt %}" + ASK_LLAMA + "{% endif %}",
        LLAMA, bos="<|begin_of_text|>",
    ),
    # the current date in a system turn
    "llama-3.2": Family(
        "{{ '<|begin_of_text|>' }}<|start_header_id|>system<|end_header_id|>\n\n"
        "{% if strftime_now is defined %}Today Date: {{ strftime_now('%d %b %Y') }}{% endif %}\n\n<|eot_id|>"
        "{% for m in messages %}" + HEADER + "{% endfor %}{% if add_generation_prompt %}" + ASK_LLAMA + "{% endif %}",
        LLAMA, bos="<|begin_of_text|>",
    ),
    # turns must alternate; a blank before an answer
    "mistral-v0.3": Family(
        "{{ '<s>' }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('turns must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + (m.content | trim) + '</s>' }}{% endif %}{% endfor %}",
        ["<s>", "</s>", "[INST]", "[/INST]"], kind="marks", bos="<s>",
    ),
    # a default system turn
    "qwen2.5": Family(
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help people.<|im_end|>\n{% endif %}"
        "{% for m in messages %}" + CHATML + "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
    ),
    # a think block in answers after the last user turn but not in earlier ones; thinking can be turned off
    "qwen3": Family(
        THINKS + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
        "{% endif %}", ["<|im_start|>", "<|im_end|>"], ["<think>", "</think>"],
    ),
    # the same, but thinking cannot be turned off and no prompt opens a thought
    "qwen3-plain": Family(THINKS + "{% endif %}", ["<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]),
    # every prompt opens a thought, which past answers lack; role tokens are not special
    "deepseek-r1": Family(
        "<s>" + _turns("<｜User｜>{{ c }}", "<｜Assistant｜>{{ c }}</s>", "{{ '<｜Assistant｜><think>\\n' }}"),
        ["<s>", "</s>"], ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"], bos="<s>",
    ),
    # the final channel before past answers, another end after the last one, the current date
    "gpt-oss": Family(
        "<|start|>system<|message|>Current date: {{ strftime_now(\"%Y-%m-%d\") }}<|end|>"
        "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
        "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ["<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>"],
    ),
    # another end after the last answer
    "olmo-3": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if loop.last and m.role == 'assistant' %}<|endoftext|>{% else %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    ),
    # special tokens absorb the line break after them; one more end after the last answer
    "phi-3": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}<|endoftext|>{% endif %}",
        ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"], kind="marks", rstrip=True,
    ),
    # an answer ends with the token that opens the next user turn
    "glm-4": Family(
        "[gMASK]<sop>" + _turns("<|user|>\n{{ c }}", "<|assistant|>\n{{ c }}", "<|assistant|>"),
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
    ),
    "gemma": Family(
        "<bos>" + _turns("<start_of_turn>user\n{{ c | trim }}<end_of_turn>\n",
                         "<start_of_turn>model\n{{ c | trim }}<end_of_turn>\n", "<start_of_turn>model\n"),
        ["<bos>", "<start_of_turn>", "<end_of_turn>"], ["<unused0>"], kind="gemma", bos="<bos>",
    ),
    "cohere": Family(
        "<bos>" + _turns("<|user|>{{ c }}<|end|>", "<|bot|><|response|>{{ c }}<|done|><|end|>", "<|bot|><|response|>"),
        ["<bos>", "<|user|>", "<|bot|>", "<|response|>", "<|done|>", "<|end|>"], bos="<bos>",
    ),
    # roles are plain text, which the tokenizer joins with contents
    "zephyr": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["<s>", "</s>"], kind="marks",
    ),
    "llama-2": Family(
        _turns("<s>[INST] {{ c }} [/INST]", " {{ c }} </s>", ""), ["<s>", "</s>"], kind="marks", bos="<s>"
    ),
    "plain": Family(
        "{% for m in messages %}{{ m.role }}:\n{{ m.content }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}", ["<end>"],
    ),
}  # fmt: skip
TEXTS = [
    "Instruction: [SEP] i need a red shirt, and price lower than 40.00 dollars [SEP] Search",
    "Back to Search [SEP] Page 1 (Total results: 50) [SEP] Next > [SEP] B000000001 [SEP] Cotton Shirt [SEP] $10.71",
    "You move to the kitchen.\nHere you see:\n\ta stove, which is turned off",
    "Thought: The second one fits.\nAction: click[B000000001]",
    "search[red shirt]", "click[buy now]", "teleport to kitchen", "[]", "search[]",
]  # fmt: skip
ENDS = {"glm-4": ["<|user|>"]}  # from the generation config, for a template without an end


@lru_cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of the family's kind, with its control tokens and its template."""
    family = FAMILIES[name]
    core = Tokenizer(models.BPE(byte_fallback=family.kind != "bytes", unk_token=None))
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    byte_tokens = [AddedToken(f"<0x{byte:02X}>", special=False) for byte in range(256)]
    if family.kind == "marks":  # like SentencePiece: blanks are marks, and each text begins with one
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    elif family.kind == "gemma":  # marks, but none at the beginning of a text
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        words = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        core.decoder = decoders.ByteLevel()
        trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
    if family.kind != "bytes":
        trainer.special_tokens = byte_tokens
    if family.kind == "marks":
        core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # marks are only at the beginning of a token
    core.train_from_iterator(TEXTS * 4, trainer)
    if family.kind != "bytes":  # byte tokens belong to the vocabulary and are not added tokens
        core = Tokenizer.from_str(json.dumps({**json.loads(core.to_str()), "added_tokens": []}))
    if family.kind == "marks":
        core.pre_tokenizer = None
    core.add_special_tokens([AddedToken(token, rstrip=family.rstrip, normalized=False) for token in family.special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=family.bos)
    tokenizer.chat_template = family.template
    tokenizer.name_or_path = f"tiny-{name}"
    return tokenizer


def ends_of(name: str) -> list[int]:
    return tokenizer_of(name).convert_tokens_to_ids(ENDS.get(name, []))


REAL = Path(os.environ.get("EEF_TOKENIZERS", Path(__file__).parents[3] / "shared" / "tokenizers"))
REAL_NAMES = ["deepseek_v3", "gemma3", "gptoss", "llama3_1", "qwen3", "smollm2"]
# the vocabularies of all but one have 100,000 tokens and more, which take seconds
REAL_PARAMETERS = [name if name == "smollm2" else pytest.param(name, marks=pytest.mark.slow) for name in REAL_NAMES]


@lru_cache(maxsize=2)
def real(name: str) -> Any:
    """A real tokenizer by the name of its folder in ``REAL``."""
    with tempfile.TemporaryDirectory() as folder:
        for path in (REAL / name).iterdir():
            if path.suffix == ".xz":
                (Path(folder) / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
            else:
                shutil.copy(path, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.name_or_path = name
    return tokenizer
