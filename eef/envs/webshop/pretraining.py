"""Pretraining text for a small base model: pages, and questions about them, without any winning play.

A document is a random walk that never buys, which shows what a page looks like after a click, and then questions about
the last page: which rows contain this word, which is the first row that contains these words, which prices are within
the cap, which words of the instruction occur, which rows were opened. Words are renamed in each conversation
(:class:`~eef.envs.webshop.aliases.Aliases`), so there is nothing to memorise.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, NamedTuple

from eef.envs.webshop.aliases import Aliases
from eef.trajectory import Trajectory, Turn

if TYPE_CHECKING:
    from eef.envs.webshop import WebShop

_PHRASES = [
    "webshop", "instruction:", "search", "back_to_search", "<_prev", "next_>", "description", "features", "reviews",
    "attributes", "buy_now", "rating:_n.a.", "page", "price", "ditto",
]  # fmt: skip
_WORDS = (
    "i a an and am are at be by can color colors find for from give has have in is it looking lower me my need of on "
    "or price show size sizes than that the to under want which with would like dollars please something"
).split()
QUESTIONS = ("?has", "?row", "?under", "?most", "?shared", "?lacks", "?opened")
_QUESTIONS_ON_ROWS = ["?has"] * 5 + ["?row"] * 4 + ["?under", "?most", "?opened", "?shared"]  # drawn uniformly


class Document(NamedTuple):
    """A walk, whether its tokens carry loss, and ``(question, answer)`` pairs in symbols; answers always carry loss."""

    walk: Trajectory
    learn_walk: bool
    questions: list[tuple[str, str]]


def vocabulary() -> list[str]:
    """The symbols of a base model: a few hundred, beside the special tokens of its conversations."""
    words = ["search[", "click[", "]", *_PHRASES, *_WORDS, *QUESTIONS, "=", "none", "not", *map(str, range(61))]
    return list(dict.fromkeys([*words, *Aliases.symbols()]))


def documents(
    env: WebShop, known: frozenset[str], count: int, seed: int, split: str = "train", second_stage: bool = False
) -> list[Document]:
    """``count`` documents from pages of ``env``, for a tokenizer that knows the symbols ``known``.

    In a sixth of them the walk carries loss, too; the others ask more questions. ``second_stage``: longer walks, more
    item pages, and questions about rows that were not opened yet.
    """
    rng = random.Random(f"documents {seed}")
    tasks = env.tasks(split)
    return [_document(env, known, rng.choice(tasks), rng, index % 6 == 0, second_stage) for index in range(count)]


def _document(
    env: WebShop, known: frozenset[str], task: str, rng: random.Random, learn_walk: bool, second_stage: bool
) -> Document:
    aliases = Aliases(known)
    prompt = page = env.reset(task)
    instruction = aliases.encode(page, prompt=True).split()
    turns: list[Turn] = []
    opened: dict[str, list[str]] = {}  # number of the results page -> rows opened there since the last search
    left = rng.randint(2, 6) if learn_walk else rng.choice([2, 3, 4, 5] if second_stage else [1, 1, 2, 2, 3])
    # most questions are about rows, so most walks return to a page that lists some
    to_results = not learn_walk and rng.random() < (0.6 if second_stage else 0.75)
    while left > 0 or (to_results and not _page_number(page)):
        back = left <= 0 and not env.available_actions()["has_search_bar"]
        action = "click[< prev]" if back else _random_action(env, page, rng)
        left -= 1
        row = re.search(r"r\d+(?= \])", aliases.encode_action(action))
        if row:
            opened.setdefault(_page_number(page), []).append(row[0])
        elif action.startswith("search"):
            opened = {}
        page = env.step(action).observation
        aliases.encode(page)  # the aliases of the next action are those of this page
        turns.append(Turn(action, page))
    words = [symbol for symbol in instruction if symbol[0] == "i" and symbol[1:].isdigit()]
    symbols = aliases.copy().encode(page).split()
    reader = _Reader(words, symbols, opened.get(_page_number(page), []), rng, second_stage)
    count = rng.randint(3, 6) if learn_walk else 24
    questions = [reader.question() for _ in range(count if reader.rows else min(count, 12))]
    return Document(
        Trajectory(task, prompt, tuple(turns)),
        learn_walk,
        [(" ".join(question), " ".join(answer)) for question, answer in questions],
    )


def _page_number(page: str) -> str:
    """The number of a results page, empty on any other page."""
    match = re.search(r"Page (\d+) \(Total", page)
    return match[1] if match else ""


def _random_action(env: WebShop, page: str, rng: random.Random) -> str:
    """A random valid action that never buys; a search takes some words of the instruction."""
    available = env.available_actions()
    if available["has_search_bar"]:
        words = re.findall(r"[\w'-]+", page.split(" [SEP] ")[2].split(", and price")[0].lower())
        words = [word for word in words if word not in _WORDS or rng.random() < 0.05]
        picked = sorted(rng.sample(range(len(words)), min(len(words), rng.randint(1, 4))))
        return f"search[{' '.join(words[index] for index in picked)}]"
    clickables = [name for name in available["clickables"] if name not in ("buy now", "back to search")]
    moves = [name for name in clickables if name in ("next >", "< prev")]
    return f"click[{rng.choice(moves if moves and rng.random() < 0.35 else clickables)}]"


class _Reader:
    """Draws questions about one page and answers them.

    ``words``: the instruction's symbols for words. ``rows``: title and price symbols of each listed row. ``opened``:
    the rows opened from this page.
    """

    def __init__(
        self, words: list[str], symbols: list[str], opened: list[str], rng: random.Random, second_stage: bool
    ) -> None:
        head, self.rows = _parse(symbols)
        self.words, self.rest = words, symbols[len(head) :]
        self.opened, self.rng, self.second_stage = opened, rng, second_stage

    def question(self) -> tuple[list[str], list[str]]:
        """A random question, which ends with ``=``, and its answer."""
        kind = self.rng.choice(_QUESTIONS_ON_ROWS if self.rows else ["?shared", "?lacks"])
        if kind in ("?shared", "?lacks"):
            matches = [word for word in self.words if (word in self.rest) == (kind == "?shared")]
            return [kind, "="], matches or ["none"]
        if kind == "?has":
            every = [symbol for title in self.rows.values() for symbol in title]
            symbol = "$ok" if self.rng.random() < 0.3 else self.rng.choice(every)
            return [kind, symbol, "="], [row for row in self.rows if symbol in self.rows[row]] or ["none"]
        if kind == "?opened":
            return [kind, "="], sorted(set(self.opened), key=lambda row: int(row[1:])) or ["none"]
        if kind == "?under":
            return [kind, "="], self._within_cap() or ["none"]
        if kind == "?most" or not self.words:
            shared = {row: len(set(title) & set(self.words)) for row, title in self.rows.items()}
            return ["?most", "="], [max(self.rows, key=lambda row: shared[row])]
        return self._first_row()

    def _within_cap(self) -> list[str]:
        return [row for row in self.rows if "$ok" in self.rows[row]]

    def _first_row(self) -> tuple[list[str], list[str]]:
        """A question for the first row that contains some words. It may also require a price within the cap, or exclude
        some rows.
        """
        rng, rows = self.rng, list(self.rows)
        symbols = [symbol for symbol in self.rows[rng.choice(rows)] if symbol[0] in "io"]
        if rng.random() < 0.6:  # words of the instruction, if possible some that the page contains
            titles = self.rows.values()
            symbols = [word for word in self.words if any(word in title for title in titles)] or self.words
        symbols = rng.sample(symbols, min(len(symbols), rng.randint(1, 3)))
        fitting = [row for row in rows if all(symbol in self.rows[row] for symbol in symbols)]
        question = ["?row", *symbols]
        if rng.random() < 0.6:
            question.append("$ok")
            within_cap = self._within_cap()
            fitting = [row for row in fitting if row in within_cap]
        if self.second_stage and self.opened and rng.random() < 0.6:
            question += ["not", "looking"]  # "looking" stands for all rows opened so far
            fitting = [row for row in fitting if row not in self.opened]
        elif fitting and rng.random() < 0.4:
            some = rng.random() < 0.4
            excluded = rng.sample(rows, min(len(rows), rng.randint(1, 3))) if some else fitting[: rng.randint(1, 2)]
            question += ["not", *excluded]
            fitting = [row for row in fitting if row not in excluded]
        return [*question, "="], fitting[:1] or ["none"]


def _parse(symbols: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The instruction's symbols, and for each listed row its title and price symbols."""
    ends = [index for index, symbol in enumerate(symbols) if re.fullmatch(r"r\d+", symbol)]
    first = symbols.index("back_to_search") if "back_to_search" in symbols else len(symbols)
    begin = next((index + 1 for index, symbol in enumerate(symbols) if symbol == "next_>"), first)
    begins = [begin, *(end + 1 for end in ends)]
    rows = {symbols[end]: symbols[begin:end] for begin, end in zip(begins, ends, strict=False)}
    return symbols[:first], rows
