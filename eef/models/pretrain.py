"""How the small embedded base model is made: its tokenizer, its architecture, and the text that it reads.

The text shows no play: random walks that never buy (what a page looks like after a click), and pages with questions
about them (which rows hold this word, which is the first that holds these, which prices are within the cap, which words
recur, which rows were opened). Words are named anew in each conversation (:class:`eef.envs.webshop.aliases.Aliases`),
so there is nothing to memorise. Muon trains the matrices: it learnt to read from less text than AdamW
(``figures/LOG.md``).
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from eef.agents.chat import Chat, Dialogue
from eef.envs.webshop.aliases import Aliases
from eef.training.rows import IGNORE, Row, collate

if TYPE_CHECKING:
    from eef.envs.webshop import WebShop

_SPECIAL = ["<pad>", "<unk>", "<obs>", "<act>", "<end>"]
_PHRASES = [
    "webshop", "instruction:", "search", "back_to_search", "<_prev", "next_>", "description", "features", "reviews",
    "attributes", "buy_now", "rating:_n.a.", "page", "price", "ditto",
]  # fmt: skip
_WORDS = (
    "i a an and am are at be by can color colors find for from give has have in is it looking lower me my need of on "
    "or price show size sizes than that the to under want which with would like dollars please something"
).split()
_ASKED = ["?has", "?row", "?under", "?most", "?shared", "?lacks", "?opened", "=", "none", "not"]
_KINDS = ["?has"] * 5 + ["?row"] * 4 + ["?under", "?most", "?opened", "?shared"]  # on a page that lists rows
TEMPLATE = (
    "{% for m in messages %}{{ '<obs> ' if m.role == 'user' else '<act> ' }}{{ m.content }} "
    "{% if m.role == 'assistant' %}{{ '<end> ' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<act> {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over a few hundred symbols; contents reach it through ``Aliases``."""
    words = [*_SPECIAL, "search[", "click[", "]", *_PHRASES, *_WORDS, *_ASKED, *map(str, range(61)), *Aliases.symbols()]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", bos_token="<obs>"
    )
    tokenizer.chat_template = TEMPLATE
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
    """A causal model of the given size, freshly initialised; ``architecture`` is a name of transformers' (llama,
    mistral, qwen2, ...), ``kv_heads`` fewer than ``heads`` for grouped queries."""
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


def documents(
    env: WebShop, chat: Chat, count: int, seed: int, split: str = "train", returns: bool = False
) -> list[Row]:
    """``count`` documents from pages of ``env``: a sixth walks with all tokens learnt, else questions on one page.

    ``returns``: longer ways, more item pages, and questions for rows that were not opened yet (the second stage).
    """
    rng = random.Random(f"documents {seed}")
    tasks = env.tasks(split)
    return [_document(env, chat, rng.choice(tasks), rng, index % 6 == 0, returns) for index in range(count)]


def _document(env: WebShop, chat: Chat, task: str, rng: random.Random, walk: bool, returns: bool) -> Row:
    talk = chat.begin()
    page = env.reset(task)
    told = Aliases(frozenset(chat.tokenizer.get_vocab())).encode(page, prompt=True).split()
    ids = talk.encode_observation(page)
    mask = [walk] * len(ids)
    opened: dict[str, list[str]] = {}  # number of the results page -> rows opened there since the last search
    left = rng.randint(2, 6) if walk else rng.choice([2, 3, 4, 5] if returns else [1, 1, 2, 2, 3])
    # most questions are about rows: go back to where some are listed
    back = not walk and rng.random() < (0.6 if returns else 0.75)
    while left > 0 or (back and not _page_number(page)):
        done = left <= 0 and not env.available_actions()["has_search_bar"]
        action = "click[< prev]" if done else _wander(env, page, rng)
        left -= 1
        said = talk.encode_action(action)
        row = re.search(r"r\d+(?= \])", chat.tokenizer.decode(said))
        if row:
            opened.setdefault(_page_number(page), []).append(row[0])
        elif action.startswith("search"):
            opened = {}
        page = env.step(action).observation
        heard = talk.encode_observation(page)
        ids += said + heard
        mask += [walk] * (len(said) + len(heard))
    here = opened.get(_page_number(page), [])
    asked, learnt = _questions(chat, talk, told, page, here, rng, rng.randint(3, 6) if walk else 24, returns)
    return Row(tuple(ids + asked), tuple(mask + learnt))


def _page_number(page: str) -> str:
    """The number of a results page, empty on any other page."""
    found = re.search(r"Page (\d+) \(Total", page)
    return found[1] if found else ""


def _wander(env: WebShop, page: str, rng: random.Random) -> str:
    """A random valid action that never buys; the first one searches for some words of the instruction."""
    available = env.available_actions()
    if available["has_search_bar"]:
        words = re.findall(r"[\w'-]+", page.split(" [SEP] ")[2].split(", and price")[0].lower())
        words = [word for word in words if word not in _WORDS or rng.random() < 0.05]
        picked = sorted(rng.sample(range(len(words)), min(len(words), rng.randint(1, 4))))
        return f"search[{' '.join(words[place] for place in picked)}]"
    clickables = [name for name in available["clickables"] if name not in ("buy now", "back to search")]
    moves = [name for name in clickables if name in ("next >", "< prev")]
    return f"click[{rng.choice(moves if moves and rng.random() < 0.35 else clickables)}]"


def _questions(
    chat: Chat,
    talk: Dialogue,
    told: list[str],
    page: str,
    opened: list[str],
    rng: random.Random,
    count: int,
    returns: bool,
) -> tuple[list[int], list[bool]]:
    """Questions on the page in view, in its symbols, and their answers, which alone carry loss."""
    assert talk.aliases is not None
    symbols = talk.aliases.copy().encode(page).split()
    head, listed = _parse(symbols)
    words = [symbol for symbol in told if symbol[0] == "i" and symbol[1:].isdigit()]
    ids: list[int] = []
    mask: list[bool] = []
    for _ in range(count if listed else min(count, 12)):
        question, answer = _question(words, symbols, head, listed, opened, rng, returns)
        for part, learn in ((question, False), (answer, True)):
            new = chat.tokenizer(" ".join(part), add_special_tokens=False)["input_ids"]
            ids += new
            mask += [learn] * len(new)
    return ids, mask


def _parse(symbols: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The instruction's symbols, and for each listed row its title and price symbols."""
    stops = [place for place, symbol in enumerate(symbols) if re.fullmatch(r"r\d+", symbol)]
    first = symbols.index("back_to_search") if "back_to_search" in symbols else len(symbols)
    opens = next((place + 1 for place, symbol in enumerate(symbols) if symbol == "next_>"), first)
    rows = {
        symbols[stop]: symbols[start:stop] for start, stop in zip([opens, *(s + 1 for s in stops)], stops, strict=False)
    }
    return symbols[:first], rows


def _question(
    words: list[str],
    symbols: list[str],
    head: list[str],
    listed: dict[str, list[str]],
    opened: list[str],
    rng: random.Random,
    returns: bool,
) -> tuple[list[str], list[str]]:
    kind = rng.choice(_KINDS if listed else ["?shared", "?lacks"])
    if kind in ("?shared", "?lacks"):
        rest = symbols[len(head) :]
        return [kind, "="], [word for word in words if (word in rest) == (kind == "?shared")] or ["none"]
    if kind == "?has":
        held = "$ok" if rng.random() < 0.3 else rng.choice([symbol for row in listed.values() for symbol in row])
        return ["?has", held, "="], [row for row in listed if held in listed[row]] or ["none"]
    if kind == "?opened":
        return ["?opened", "="], sorted(set(opened), key=lambda row: int(row[1:])) or ["none"]
    within = [row for row in listed if "$ok" in listed[row]]
    if kind == "?under":
        return ["?under", "="], within or ["none"]
    shared = {row: len(set(title) & set(words)) for row, title in listed.items()}
    if kind == "?most" or not words:
        return ["?most", "="], [max(listed, key=lambda row: shared[row])]
    rows = list(listed)
    about = listed[rng.choice(rows)]
    asked = [symbol for symbol in about if symbol[0] in "io"]
    if rng.random() < 0.6:  # words of the instruction that the page holds, as far as it does
        asked = [symbol for symbol in words if any(symbol in title for title in listed.values())] or words
    asked = rng.sample(asked, min(len(asked), rng.randint(1, 3)))
    fits = [row for row in rows if all(symbol in listed[row] for symbol in asked)]
    query = ["?row", *asked]
    if rng.random() < 0.6:
        query.append("$ok")
        fits = [row for row in fits if row in within]
    if returns and opened and rng.random() < 0.6:
        query += ["not", "looking"]  # not looked at yet: a word of the vocabulary, here for the rows opened
        fits = [row for row in fits if row not in opened]
    elif fits and rng.random() < 0.4:
        barred = (
            rng.sample(rows, min(len(rows), rng.randint(1, 3))) if rng.random() < 0.4 else fits[: rng.randint(1, 2)]
        )
        query += ["not", *barred]
        fits = [row for row in fits if row not in barred]
    return [*query, "="], fits[:1] or ["none"]


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
    told: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Pretrain ``model`` in place on the learnt tokens of ``rows``; the mean loss of each step is returned.

    Muon for the matrices, AdamW for embeddings and norms, warm-up over 5 % of the steps and a cosine. A step takes
    ``batch_size`` rows, ``micro_batch_size`` at a time. ``told(step, steps, loss)`` is called after each.
    """
    rng = random.Random(seed)
    inner = {id(p) for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    both: list[Any] = [
        torch.optim.Muon(
            [p for p in model.parameters() if id(p) in inner], lr=lr_matrices, weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [p for p in model.parameters() if id(p) not in inner], lr=lr, betas=(0.9, 0.98), weight_decay=0.0
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
        for optimizer, peak in zip(both, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
        learnt, total = sum(sum(row.mask[1:]) for row in batch), 0.0
        for place in range(0, len(batch), micro_batch_size):
            piece = [{"input_ids": row.ids, "mask": row.mask} for row in batch[place : place + micro_batch_size]]
            given = collate(piece, pad)
            logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
            )
            (loss / max(1, learnt)).backward()
            total += float(loss.detach())
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(total / max(1, learnt))
        if told:
            told(step + 1, steps, losses[-1])
    model.eval()
    return losses


@torch.inference_mode()
def mean_loss(model: Any, rows: list[Row]) -> float:
    """Mean negative log-likelihood (nats) of a token of ``rows`` given those before it."""
    total = sum(
        float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        for ids in (torch.tensor([row.ids]) for row in rows)
    )
    return total / sum(len(row.ids) - 1 for row in rows)


@torch.inference_mode()
def accuracy(model: Any, tokenizer: Any, rows: list[Row]) -> dict[str, float]:
    """Share of questions whose whole answer is the likeliest token at each place, by kind of question."""
    kinds = {tokenizer.convert_tokens_to_ids(kind): kind for kind in _ASKED if kind[0] == "?"}
    right: dict[str, list[bool]] = {}
    for row in rows:
        guessed = model(input_ids=torch.tensor([row.ids])).logits[0].argmax(-1).tolist()
        kind, answering = "", False
        for place, token in enumerate(row.ids):
            if token in kinds:
                kind, answering = kinds[token], False
            elif kind and row.mask[place] and not answering:
                right.setdefault(kind, []).append(guessed[place - 1] == token)
                answering = True
            elif kind and row.mask[place]:
                right[kind][-1] &= guessed[place - 1] == token
    return {kind: sum(found) / len(found) for kind, found in sorted(right.items())}


def save(model: Any, tokenizer: Any, folder: str | Path, options: dict[str, Any]) -> Path:
    """Model, tokenizer and ``chat.json`` as :meth:`eef.agents.policy.Policy.load` reads them."""
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat.json").write_text(json.dumps(options), encoding="utf-8")
    return folder
