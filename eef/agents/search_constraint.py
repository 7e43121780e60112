"""Constrained decoding of a search: ``search[`` + words of the subtask's first page + ``]``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from eef.agents.chat import Chat
from eef.agents.search_words import search_words
from eef.agents.token_bytes import TokenBytes, token_bytes_of

_BLANK = b" "[0]
_WORD_END = -1  # key of a trie node at which a word ends
Places = tuple[Any, ...]  # see SearchConstraint


class SearchConstraint:
    """An automaton over the bytes of a search: an opening, words with a blank between them, and a closing.

    A place in it is a node of the trie of words, or the number of bytes of the closing so far. A state is the tuple of
    all places that a text leads to; the empty tuple means that no search begins with this text.

    ``ids``: the ids with which the canonical ids of every search begin.
    """

    def __init__(
        self, token_bytes: TokenBytes, opening: bytes, closing: bytes, words: Sequence[bytes], ids: tuple[int, ...]
    ) -> None:
        self.token_bytes, self.opening, self.closing, self.ids = token_bytes, opening, closing, ids
        self.root: dict[int, Any] = {}
        for word in words:
            node = self.root
            for byte in word:
                node = node.setdefault(byte, {})
            node[_WORD_END] = {}
        node = self.root
        for byte in reversed(opening):
            node = {byte: node}
        self.start: Places = (node,)
        longest = len(opening) + max(map(len, words)) + len(closing)
        has_bytes = token_bytes.has_byte_tokens(b"".join((opening, *words, b" ", closing)))
        self._enough_tokens = longest if has_bytes else math.inf  # with more tokens left, any search can end
        self._tokens: dict[tuple[int, ...], list[tuple[tuple[int, ...], Places]]] = {}
        self._costs: dict[int, float] = {}

    def advance(self, state: Places, text: bytes) -> Places:
        """The state after ``text``."""
        for byte in text:
            places: list[Any] = []
            for place in state:
                if isinstance(place, int):
                    if self.closing[place : place + 1] == bytes([byte]):
                        places.append(place + 1)
                    continue
                if byte in place:
                    places.append(place[byte])
                if _WORD_END in place and byte == _BLANK:
                    places.append(self.root)
                if _WORD_END in place and byte == self.closing[0]:
                    places.append(1)
            state = tuple(places)
        return state

    def is_complete(self, state: Places) -> bool:
        """Whether the text so far is a whole search."""
        return len(self.closing) in state

    def query(self, text: bytes) -> str:
        """The words of a whole search."""
        return text[len(self.opening) : len(text) - len(self.closing)].decode()

    def allowed(self, state: Places, tokens_left: int) -> list[int]:
        """The ids after which the search can still end within ``tokens_left`` tokens, the next one included.

        If there is none, those that end it soonest.
        """
        key = tuple(place if isinstance(place, int) else -id(place) for place in state)
        if key not in self._tokens:
            self._tokens[key] = list(self._next_tokens(state))
        pairs = self._tokens[key]
        if tokens_left > self._enough_tokens:
            return [token for ids, _ in pairs for token in ids]
        costs = [self._cost(after) for _, after in pairs]
        highest = max(tokens_left - 1, min(costs, default=0))
        return [
            token
            for (ids, _), cost in zip(pairs, costs, strict=True)
            if cost <= highest and cost < math.inf
            for token in ids
        ]

    def _next_tokens(self, state: Places) -> Iterator[tuple[tuple[int, ...], Places]]:
        """The tokens that may follow, with the states after them."""
        stack = [(b"", state)]
        while stack:
            text, places = stack.pop()
            following: set[int] = set()
            for place in places:
                if isinstance(place, int):
                    following.update(self.closing[place : place + 1])
                elif _WORD_END in place:
                    following.update(place, (_BLANK, self.closing[0]))
                else:
                    following.update(place)
            for byte in following - {_WORD_END}:
                longer_text = text + bytes([byte])
                ids, has_longer = self.token_bytes.lookup(longer_text)
                after = self.advance(places, longer_text[-1:]) if ids or has_longer else ()
                if ids:
                    yield ids, after
                if has_longer:
                    stack.append((longer_text, after))

    def _cost(self, state: Places) -> float:
        """The fewest tokens that end the search; infinite if none do."""
        return min(
            self._count_tokens(self.closing[place:]) if isinstance(place, int) else self._node_cost(place)
            for place in state
        )

    def _node_cost(self, node: dict[int, Any]) -> float:
        if id(node) not in self._costs:
            self._costs[id(node)] = min(self._count_tokens(rest + self.closing) for rest in _word_ends(node))
        return self._costs[id(node)]

    def _count_tokens(self, text: bytes) -> float:
        return len(self.token_bytes.encode(text)) if self.token_bytes.can_encode(text) else math.inf


def _word_ends(node: dict[int, Any]) -> Iterator[bytes]:
    """The bytes that lead from a node of the trie to the end of a word."""
    stack = [(b"", node)]
    while stack:
        text, place = stack.pop()
        for byte, child in place.items():
            if byte == _WORD_END:
                yield text
            else:
                stack.append((text + bytes([byte]), child))


@lru_cache(maxsize=256)
def search_constraint(chat: Chat, page: str) -> SearchConstraint | None:
    """The searches for words of ``page``; None if the tokenizer can write none of its words."""
    token_bytes, dialogue, end = token_bytes_of(chat.tokenizer), chat.begin(), len(chat.end)
    empty = tuple(dialogue.encode_action("search[]")[:-end])
    frame = token_bytes.decode(empty)
    opening, closing = frame[: (split := frame.index(b"[") + 1)], frame[split:]
    rows: list[tuple[bytes, tuple[int, ...]]] = []  # a word and the canonical ids of a search for it alone
    if dialogue.aliases is not None:  # each symbol is a word between blanks
        opening += b" "
        rows = [(symbol.encode(), empty) for symbol in dialogue.aliases.encode(page, prompt=True).split()]
    else:
        for word in search_words(page):
            ids = tuple(dialogue.encode_action(f"search[{word}]")[:-end])
            text = token_bytes.decode(ids)
            if text.startswith(opening) and text.endswith(closing):
                rows.append((text[len(opening) : len(text) - len(closing)], ids))
    rows = [(word, ids) for word, ids in rows if word != b"]" and token_bytes.can_encode(opening + word + closing)]
    if not rows:
        return None
    size, common = 0, []
    first_bytes = {word[:1] for word, _ in rows}
    for column in zip(*(ids for _, ids in rows), strict=False):
        text = token_bytes.bytes_of[column[0]]
        size += len(text)
        joins = size == len(opening) and any(any(token_bytes.lookup(text + first)) for first in first_bytes)
        if len(set(column)) > 1 or size > len(opening) or joins:  # a longer token may reach into the first word
            break
        common.append(column[0])
    return SearchConstraint(token_bytes, opening, closing, [word for word, _ in rows], tuple(common))
