"""The text of the small base model: known symbols, no purchase, and answers that an independent reading confirms."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eef.agents.chat import Chat
from eef.agents.policy import Policy
from eef.envs.webshop import WebShop
from eef.envs.webshop.pretraining import QUESTIONS, documents, vocabulary
from eef.envs.webshop.shopper import WEAK, play_expert
from eef.models.pretrain import accuracy, document_rows, make_model, save, word_tokenizer
from eef.training.rows import Row

KINDS = ("?has", "?row", "?under", "?shared", "?lacks", "?most", "?opened")
COUNT = 150


def rows_of(shop: WebShop, chat: Chat, count: int, seed: int, second_stage: bool = False) -> list[Row]:
    known = frozenset(chat.tokenizer.get_vocab())
    return document_rows(chat, documents(shop, known, count, seed, second_stage=second_stage))


@pytest.fixture(scope="module")
def rows(shop: WebShop, chat: Chat) -> list[Row]:
    return rows_of(shop, chat, COUNT, seed=0)


@pytest.fixture(scope="module")
def texts(rows: list[Row], tokenizer: Any) -> list[list[str]]:
    """Each document as symbols."""
    return [tokenizer.convert_ids_to_tokens(list(row.ids)) for row in rows]


def split_questions(symbols: list[str]) -> tuple[list[str], list[tuple[list[str], list[str]]]]:
    """The symbols before the first question, and ``(question, answer)`` pairs."""
    start = next(index for index, symbol in enumerate(symbols) if symbol in KINDS)
    pairs: list[tuple[list[str], list[str]]] = []
    for symbol in symbols[start:]:
        if symbol in KINDS:
            pairs.append(([], []))
            answering = False
        if symbol == "=":
            answering = True
        else:
            pairs[-1][answering].append(symbol)
    return symbols[:start], pairs


class Reading:
    """An independent reading of the last page, from the document's text alone."""

    def __init__(self, before: list[str]) -> None:
        text = " ".join(before)
        page = text.rsplit("<obs> ", 1)[1].removesuffix(" <act>").removesuffix("<act>").strip()
        self.rest = page.split(" back_to_search", 1)[1]
        head = text.split(" search <act>", 1)[0]
        self.wanted = re.findall(r"\bi\d+\b", head)
        self.actions: list[str] = re.findall(r"<act> (.*?) <end>", text)
        self.titles: dict[str, list[str]] = {}
        listed = self.rest.partition("next_>")[2].split()
        while listed and "next_>" in self.rest:  # a row's name comes after its title and price
            end = next(place for place, symbol in enumerate(listed) if re.fullmatch(r"r\d+", symbol))
            self.titles[listed[end]] = listed[:end]
            listed = listed[end + 1 :]

    def within(self, row: str) -> bool:
        return "$ok" in self.titles[row]

    def shared(self, row: str) -> int:
        return len(set(self.wanted).intersection(self.titles[row]))

    def opened(self) -> list[str]:
        """Rows opened from the listing in view: one query, one page number."""
        seen: dict[int, set[str]] = {}
        place, at = 1, "results"
        for action in self.actions:
            if action.startswith("search["):
                seen, place, at = {}, 1, "results"
            elif action == "click[ next_> ]":
                place += 1
            elif action == "click[ <_prev ]":
                place -= at == "results"
                at = "item" if at == "sub" else "results"
            elif match := re.fullmatch(r"click\[ (r\d+) \]", action):
                seen.setdefault(place, set()).add(match[1])
                at = "item"
            elif action in ("click[ description ]", "click[ features ]", "click[ reviews ]"):
                at = "sub"
        return sorted(seen.get(place, set()), key=lambda row: int(row[1:]))

    def answer(self, question: list[str]) -> list[str]:
        kind, *rest = question
        if kind == "?under":
            return [row for row in self.titles if self.within(row)] or ["none"]
        if kind == "?has":
            return [row for row, title in self.titles.items() if rest[0] in title] or ["none"]
        if kind in ("?shared", "?lacks"):
            there = kind == "?shared"
            return [word for word in self.wanted if (word in self.rest.split()) == there] or ["none"]
        if kind == "?most":
            most = max(map(self.shared, self.titles))
            return [next(row for row in self.titles if self.shared(row) == most)]
        if kind == "?opened":
            return self.opened() or ["none"]
        limit, _, barred = " ".join(rest).partition("not")
        if "looking" in barred:
            barred = " ".join(self.opened())
        words = [symbol for symbol in limit.split() if symbol[0] != "$"]
        cheap = "$ok" in limit.split()
        for row, title in self.titles.items():
            if row not in barred.split() and set(words) <= set(title) and (self.within(row) or not cheap):
                return [row]
        return ["none"]


def test_the_tokenizer_encodes_and_decodes_each_of_its_words(tokenizer: Any) -> None:
    words = sorted(tokenizer.get_vocab())
    for word in words:
        assert tokenizer(word, add_special_tokens=False)["input_ids"] == [tokenizer.get_vocab()[word]]
    plain = [word for word in words if word not in tokenizer.all_special_tokens]
    text = " ".join(plain)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(plain) and tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert word_tokenizer(vocabulary()).get_vocab() == tokenizer.get_vocab()


def test_the_scaffold_is_three_symbols(chat: Chat, tokenizer: Any) -> None:
    talk, words = chat.begin(), ["<obs>", "search", "<act>", "click[", "buy_now", "]", "<end>"]
    ids = [*talk.encode_observation("Search"), *talk.encode_action("click[buy now]")]
    assert ids == tokenizer.convert_tokens_to_ids(words) and chat.end == (ids[-1],)
    assert talk.encode_observation("Search") == ids[:3]


def test_no_page_of_the_generated_shop_has_an_unknown_symbol(shop: WebShop, chat: Chat, tokenizer: Any) -> None:
    for task in shop.tasks("train") + shop.tasks("test"):
        for played in (play_expert(shop, task), play_expert(shop, task, WEAK, seed=2)):
            ids, mask = chat.render(played, [True] * len(played))
            assert tokenizer.unk_token_id not in ids and len(ids) == len(mask) <= 2048


def test_actions_are_decoded_from_their_own_encoding(shop: WebShop, chat: Chat) -> None:
    for task in shop.tasks("train"):
        played = play_expert(shop, task)
        talk = chat.begin()
        for index, turn in enumerate(played.turns):
            talk.encode_observation(played.state(index))
            assert talk.decode_action(talk.encode_action(turn.action)) == turn.action


def test_documents_follow_their_seed(shop: WebShop, chat: Chat, rows: list[Row]) -> None:
    assert len(rows) == COUNT
    assert rows_of(shop, chat, 12, seed=0) == rows[:12]
    assert rows_of(shop, chat, 12, seed=1) != rows[:12]


def test_the_text_of_the_shipped_models_can_be_reproduced(shop: WebShop, chat: Chat, rows: list[Row]) -> None:
    second = rows_of(shop, chat, COUNT, seed=0, second_stage=True)
    hashes = [
        hashlib.sha256(repr([(row.ids, row.mask) for row in stage]).encode()).hexdigest()[:16]
        for stage in (rows, second)
    ]
    assert hashes == ["c1af9bacec11558c", "fcfd7179f3acdc71"]


def test_documents_contain_known_symbols_and_no_purchase(texts: list[list[str]]) -> None:
    for symbols in texts:
        assert "<unk>" not in symbols and "<pad>" not in symbols and len(symbols) <= 2048
        text = " ".join(symbols)
        assert not re.search(r"click\[ ?buy_now", text) and "<act> buy_now" not in text
        assert re.search(r"<act> search\[ ", text)


def test_the_walk_never_buys_where_it_could(texts: list[list[str]]) -> None:
    """The pages do offer a purchase, so its absence from the actions does not follow from short walks."""
    items = sum("buy_now" in symbols for symbols in texts)
    assert items > COUNT // 4


def test_the_walk_carries_loss_in_a_sixth_of_the_documents(rows: list[Row], texts: list[list[str]]) -> None:
    for index, (row, symbols) in enumerate(zip(rows, texts, strict=True)):
        assert len(row.ids) == len(row.mask) == len(symbols)
        before, questions = split_questions(symbols)
        assert all(learn == (index % 6 == 0) for learn in row.mask[: len(before)])
        place = len(before)
        for question, answer in questions:
            assert answer
            assert not any(row.mask[place : place + len(question) + 1])  # the question and its "="
            place += len(question) + 1
            assert all(row.mask[place : place + len(answer)])
            place += len(answer)
        assert place == len(symbols)


def checked(texts: list[list[str]], walks: bool) -> Iterator[tuple[str, list[str], list[str]]]:
    """``(kind, answer, answer of the independent reading)`` of all questions."""
    for index, symbols in enumerate(texts):
        if (index % 6 == 0) == walks:
            before, questions = split_questions(symbols)
            page = Reading(before)
            for question, answer in questions:
                yield question[0], answer, page.answer(question)


def test_answers_are_right(texts: list[list[str]]) -> None:
    """On the documents whose walk carries no loss."""
    total: Counter[str] = Counter()
    none: Counter[str] = Counter()
    for kind, answer, expected in checked(texts, walks=False):
        assert answer == expected, kind
        total[kind] += 1
        none[kind] += answer == ["none"]
    assert set(total) == set(KINDS) == set(QUESTIONS) and min(total.values()) > 50
    assert 0 < none["?row"] < total["?row"] // 2 and 0 < none["?opened"] < total["?opened"]


def test_answers_in_walks_are_right(texts: list[list[str]]) -> None:
    for kind, answer, expected in checked(texts, walks=True):
        assert kind == "?opened" or answer == expected, kind


def test_opened_rows_in_walks_are_right(shop: WebShop, chat: Chat, tokenizer: Any) -> None:
    longer = [tokenizer.convert_ids_to_tokens(list(row.ids)) for row in rows_of(shop, chat, 240, seed=0)]
    wrong = [
        answer for kind, answer, expected in checked(longer, walks=True) if kind == "?opened" and answer != expected
    ]
    assert not wrong


def test_the_second_stage_asks_about_rows_not_opened_yet(shop: WebShop, chat: Chat, tokenizer: Any) -> None:
    rows = rows_of(shop, chat, COUNT, seed=0, second_stage=True)
    longer = [tokenizer.convert_ids_to_tokens(list(row.ids)) for row in rows]
    not_opened = 0
    for index, symbols in enumerate(longer):
        if index % 6:  # walks are tested above
            before, questions = split_questions(symbols)
            page = Reading(before)
            for question, answer in questions:
                assert answer == page.answer(question), question
                not_opened += "looking" in question
    assert not_opened > 50 and not any("click[ buy_now" in " ".join(symbols) for symbols in longer)


class Oracle:
    """Predicts the next symbol of its input, or always another one (except for those in ``spare``)."""

    def __init__(self, size: int, shift: int = 0, spare: frozenset[int] = frozenset()) -> None:
        self.size, self.shift, self.spare = size, shift, spare

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        following = torch.roll(input_ids[0], -1)
        if self.shift:
            spared = torch.tensor([int(token) in self.spare for token in following])
            following = torch.where(spared, following, (following + self.shift) % self.size)
        return SimpleNamespace(logits=torch.nn.functional.one_hot(following, self.size).float()[None])


def test_the_accuracy_of_a_model_that_is_always_right_or_always_wrong(rows: list[Row], tokenizer: Any) -> None:
    size = len(tokenizer)
    assert accuracy(Oracle(size), tokenizer, rows, QUESTIONS) == {kind: 1.0 for kind in sorted(KINDS)}
    assert accuracy(Oracle(size, shift=1), tokenizer, rows, QUESTIONS) == {kind: 0.0 for kind in sorted(KINDS)}


def test_accuracy_counts_whole_answers(rows: list[Row], texts: list[list[str]], tokenizer: Any) -> None:
    """A model that only knows the word ``none`` is right where that is the whole answer."""
    none = frozenset([tokenizer.convert_tokens_to_ids("none")])
    share = accuracy(Oracle(len(tokenizer), 1, none), tokenizer, rows, QUESTIONS)
    answers = [pair for symbols in texts for pair in split_questions(symbols)[1]]
    for kind in KINDS:
        nones = [answer == ["none"] for question, answer in answers if question[0] == kind]
        assert share[kind] == pytest.approx(sum(nones) / len(nones))


def test_a_saved_model_is_small_and_loads_as_a_policy(tokenizer: Any, chat: Chat, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_model(tokenizer, width=128, layers=4, heads=4).eval()  # the size of the embedded base model
    folder = save(model, tokenizer, tmp_path / "base", {"aliases": "webshop", "constrained_decoding": True})
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 10e6
    assert (folder / "model.safetensors").is_file()
    policy = Policy.load(str(folder))
    assert (
        policy.constrained_decoding and policy.chat.aliases and policy.chat.hash == chat.hash and policy.context == 2048
    )
    ids = torch.tensor([[3, 10, 40, 4]])
    device = next(policy.model.parameters()).device
    with torch.inference_mode():
        assert torch.allclose(
            policy.model(input_ids=ids.to(device)).logits.cpu(), model(input_ids=ids).logits, atol=1e-5
        )
