"""How the small base models are made: tokenizer, architecture, training rows and pretraining.

An environment provides the text (its module ``pretraining``). Muon trains the matrices because it needed less text than
AdamW (``figures/LOG.md``).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from eef.agents.chat import Chat
from eef.training.rows import IGNORE, Row, collate
from eef.trajectory import Trajectory

_WORD_TEMPLATE = (
    "{% for m in messages %}{{ '<obs> ' if m.role == 'user' else '<act> ' }}{{ m.content }} "
    "{% if m.role == 'assistant' %}{{ '<end> ' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<act> {% endif %}"
)
_BPE_TEMPLATE = (
    "{% for m in messages %}{{ '<obs>' if m.role == 'user' else '<act>' }}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ '<end>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<act>{% endif %}"
)


def word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at whitespace and knows the words of ``vocabulary``; all others are ``<unk>``."""
    words = ["<pad>", "<unk>", "<obs>", "<act>", "<end>", *vocabulary]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", bos_token="<obs>"
    )
    tokenizer.chat_template = _WORD_TEMPLATE
    return tokenizer


def bpe_tokenizer(texts: Iterable[str], size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``size`` tokens, trained on ``texts``. It is lossless."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a word is one token at every position
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<obs>", "<act>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<obs>", eos_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<act>"]})
    tokenizer.chat_template = _BPE_TEMPLATE
    return tokenizer


def make_model(
    tokenizer: Any,
    width: int,
    layers: int,
    heads: int,
    context: int = 2048,
    architecture: str = "llama",
    kv_heads: int | None = None,
) -> Any:
    """A causal language model with random weights.

    ``architecture``: a model type of transformers (``llama``, ``mistral``, ``qwen2``). ``kv_heads``: fewer than
    ``heads`` for grouped-query attention; None for as many.
    """
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.08,  # about 1 / sqrt(width): with the usual 0.02 a narrow model starts far slower
    )
    return AutoModelForCausalLM.from_config(config)


def document_rows(chat: Chat, documents: Iterable[tuple[Trajectory, bool, list[tuple[str, str]]]]) -> list[Row]:
    """Documents as training rows.

    A document is an episode, whether its tokens carry loss, and ``(question, answer)`` pairs about its last
    observation, of which only the answers carry loss.
    """
    rows = []
    for episode, learn_episode, questions in documents:
        conversation = chat.begin()
        ids = conversation.encode_observation(episode.prompt)
        for turn in episode.turns:
            ids += conversation.encode_action(turn.action) + conversation.encode_observation(turn.observation)
        mask = [learn_episode] * len(ids)
        for question, answer in questions:
            for text, learn in ((question, False), (answer, True)):
                new = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
                ids += new
                mask += [learn] * len(new)
        rows.append(Row(tuple(ids), tuple(mask)))
    return rows


def walk_rows(chat: Chat, walks: Iterable[Trajectory], context: int) -> list[Row]:
    """Random walks as training rows of at most ``context`` tokens, all of which carry loss."""
    rows = []
    for walk in walks:
        ids = chat.render(walk, [True] * len(walk))[0][:context]
        rows.append(Row(tuple(ids), (True,) * len(ids)))
    return rows


def train(
    model: Any,
    rows: list[Row],
    pad: int,
    *,
    epochs: float = 1.0,
    lr: float = 3e-3,
    lr_matrices: float = 5e-3,
    batch_size: int = 8,
    micro_batch_size: int = 2,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Pretrain ``model`` in place on the tokens of ``rows`` that carry loss. Returns the mean loss of each step.

    Muon trains the matrices, AdamW embeddings and norms. The rates warm up over 5 % of the steps, then follow a cosine.
    A step takes ``batch_size`` rows, ``micro_batch_size`` at a time; ``on_step(step, steps, loss)`` is called after it.
    """
    rng = random.Random(seed)
    matrices = {id(p) for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    optimizers: list[Any] = [
        torch.optim.Muon(
            [p for p in model.parameters() if id(p) in matrices], lr=lr_matrices, weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [p for p in model.parameters() if id(p) not in matrices], lr=lr, betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]  # fmt: skip
    peaks = (lr_matrices, lr)
    steps = max(1, round(len(rows) / batch_size * epochs))
    order: list[int] = []
    losses = []
    model.train()
    for step in range(steps):
        if len(order) < batch_size:
            order = rng.sample(range(len(rows)), len(rows)) + order
        batch = sorted((rows[order.pop()] for _ in range(min(batch_size, len(rows)))), key=lambda row: len(row.ids))
        scale = min(1.0, (step + 1) / (0.05 * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
        tokens, total = sum(sum(row.mask[1:]) for row in batch), 0.0
        for start in range(0, len(batch), micro_batch_size):
            micro_batch = [{"input_ids": row.ids, "mask": row.mask} for row in batch[start : start + micro_batch_size]]
            inputs = collate(micro_batch, pad)
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
            )
            (loss / max(1, tokens)).backward()
            total += float(loss.detach())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(total / max(1, tokens))
        if on_step:
            on_step(step + 1, steps, losses[-1])
    model.eval()
    return losses


@torch.inference_mode()
def mean_loss(model: Any, rows: list[Row]) -> float:
    """Mean negative log-likelihood (nats) per token of ``rows``, given the tokens before it."""
    total = sum(
        float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        for ids in (torch.tensor([row.ids]) for row in rows)
    )
    return total / sum(len(row.ids) - 1 for row in rows)


@torch.inference_mode()
def accuracy(model: Any, tokenizer: Any, rows: list[Row], questions: Sequence[str]) -> dict[str, float]:
    """Share of questions that the model answers correctly, by the symbol that a question begins with (``questions``).

    An answer is correct if each of its tokens is the most likely one, given the tokens before it.
    """
    kinds = dict(zip(tokenizer.convert_tokens_to_ids(list(questions)), questions, strict=True))
    correct: dict[str, list[bool]] = {}
    for row in rows:
        predicted = model(input_ids=torch.tensor([row.ids])).logits[0].argmax(-1).tolist()
        kind, answering = "", False
        for index, token in enumerate(row.ids):
            if token in kinds:
                kind, answering = kinds[token], False
            elif kind and row.mask[index] and not answering:
                correct.setdefault(kind, []).append(predicted[index - 1] == token)
                answering = True
            elif kind and row.mask[index]:
                correct[kind][-1] &= predicted[index - 1] == token
    return {kind: sum(answers) / len(answers) for kind, answers in sorted(correct.items())}


def save(model: Any, tokenizer: Any, folder: str | Path, options: dict[str, Any]) -> Path:
    """Save model, tokenizer and ``chat.json`` in the format that :meth:`eef.agents.policy.Policy.load` reads."""
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat.json").write_text(json.dumps(options), encoding="utf-8")
    return folder
