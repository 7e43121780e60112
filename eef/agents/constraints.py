"""Constrained decoding: which tokens may be said next, so that an answer is one of the available actions.

What may be said is decided on the bytes of the actions, so that any tokenisation of an action counts, whatever the
tokenizer merges. Bytes are compared, not characters: a token may hold a part of a character.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from eef.agents.chat import Chat, Dialogue
from eef.agents.token_bytes import TokenBytes, token_bytes_of
from eef.envs import EnvError

_MARKUP = re.compile(r"\[[A-Za-z]\w*\]")  # what a page writes between its parts: [SEP], [button], [button_]
_BLANK = b" "[0]
_END = -1  # in a trie of words: a word ends here
Places = tuple[Any, ...]  # of a search: nodes of the trie, numbers of bytes


class State(NamedTuple):
    """How far an answer has got.

    ``text`` is what was said. ``low`` and ``high`` bound the sorted actions that begin with it. ``search`` holds the
    places in a search that it leads to. ``ended`` counts the ids of the end that were said.
    """

    text: bytes
    low: int
    high: int
    search: Places = ()
    ended: int = 0


@dataclass
class Constraints:
    """What may be said next: the actions by their bytes, sorted, and a search of words where there is a search bar.

    ``ids`` are the canonical ids of each action, ``longest`` the most tokens that a search may have.
    """

    talk: Dialogue
    token_bytes: TokenBytes
    texts: list[bytes]
    ids: list[tuple[int, ...]]
    actions: list[str]
    search: Search | None = None
    longest: int = 64
    _said: list[int] = field(default_factory=list)
    _states: list[State] = field(default_factory=list)

    @classmethod
    def of(cls, talk: Dialogue, available: dict[str, Any], page: str, longest: int = 64) -> Constraints:
        """The constraints that an environment's ``available_actions`` set.

        Search words are those of ``page``, the subtask's first page: a search is for what the subtask asks, and where
        WebShop shows a search bar it shows that page again. Actions that the tokenizer cannot say, or that no ids tell
        apart, are left out; of those that differ in case and blanks alone the first stays. EnvError where there is no
        action, ValueError where the tokenizer can say none, and where it cannot be used
        (:func:`eef.agents.token_bytes.token_bytes_of`).
        """
        token_bytes, talk, end = token_bytes_of(talk.chat.tokenizer), talk.copy(), len(talk.chat.end)
        actions = available.get("actions")
        if actions is None:
            actions = [f"click[{name}]" for name in available["clickables"] if name != "search"]
        rows = []
        for action in dict.fromkeys(actions):
            ids = tuple(talk.encode_action(action)[:-end])
            rows.append((token_bytes.decode(ids), ids, action))
        alike: dict[bytes, set[str]] = {}  # the actions that share a text, without case and blanks
        for text, _, action in rows:
            alike.setdefault(text, set()).add(" ".join(action.split()).casefold())
        firsts = {text: (text, ids, action) for text, ids, action in reversed(rows)}.values()
        rows = sorted(row for row in firsts if len(alike[row[0]]) == 1 and row[0] and token_bytes.can_encode(row[0]))
        search = _search(talk.chat, page) if available.get("has_search_bar") else None
        if not actions and search is None:
            where = "and the page has no word to search for" if available.get("has_search_bar") else "and no search bar"
            raise EnvError(f"there is no available action, {where}")
        if not rows and search is None:
            raise ValueError(
                f"constrained_decoding=True: the tokenizer of {talk.chat.tokenizer.name_or_path!r} can say none of the "
                f"{len(actions)} available actions. Set constrained_decoding=False"
            )
        texts, names = [row[0] for row in rows], [row[2] for row in rows]
        spelled = [
            ids if all(map(token_bytes.is_text, ids)) else tuple(token_bytes.encode(text)) for text, ids, _ in rows
        ]
        return cls(talk, token_bytes, texts, spelled, names, search, longest)

    def __post_init__(self) -> None:
        self._usual = max(map(len, self.ids), default=0)

    @property
    def max_tokens(self) -> int:
        """How many tokens an answer may take before its end, with the longest tokens where its tokens are unusual."""
        return max(2 * self._usual, self.longest if self.search else 0)

    def allowed(self, said: Sequence[int]) -> list[int]:
        """The ids that may follow ``said``, in increasing order; empty when it is complete.

        It is a single id where there is no choice: one answer is left, or all remaining answers continue with the same
        canonical id.
        """
        state, end = self._state(said), self.talk.chat.end
        if state.ended:
            return [end[state.ended]] if state.ended < len(end) else []
        whole = self._whole(state)
        group = self.ids[state.low : state.high]
        if state.search and self.search is not None:
            group.append(self.search.ids)
        if not whole and (forced := self._forced(state, tuple(said), group)) is not None:
            return [forced]
        following: set[int] = set()
        late = len(said) >= self._usual  # from here on only the longest tokens, so that unusual spellings end
        for text in self.texts[state.low : state.high]:
            rest = text[len(state.text) :]
            if late and rest:
                following.add(self.token_bytes.first_id(rest))
                continue
            for size, ids in self.token_bytes.prefixes(rest):
                if self.token_bytes.can_encode(rest[size:]):
                    following.update(ids)
        if state.search and self.search is not None:
            following.update(self.search.following(state.search, self.longest - len(said)))
        return sorted(following | {end[0]} if whole else following)

    def action(self, said: Sequence[int]) -> str:
        """The action that a complete answer stands for. ValueError for an answer that is not complete."""
        state = self._state(said)
        if state.ended == len(self.talk.chat.end):
            if state.low < state.high and self.texts[state.low] == state.text:
                return self.actions[state.low]
            if self.search is not None and self.search.whole(state.search):
                aliases = self.talk.aliases
                if aliases is not None:
                    return aliases.decode_action(state.text.decode())
                return f"search[{self.search.query(state.text)}]"
        raise ValueError(f"the ids {list(said)} are not a complete answer ({state.text!r})")

    def _state(self, said: Sequence[int]) -> State:
        """The state after ``said``; what was worked out for its beginning is used again."""
        if not self._states:
            self._states.append(State(b"", 0, len(self.texts), self.search.start if self.search else ()))
        common = 0
        while common < min(len(said), len(self._said)) and said[common] == self._said[common]:
            common += 1
        del self._said[common:], self._states[common + 1 :]
        for token in said[common:]:
            self._states.append(self._after(self._states[-1], token))
            self._said.append(token)
        return self._states[-1]

    def _after(self, state: State, token: int) -> State:
        end = self.talk.chat.end
        if state.ended or (token == end[0] and self._whole(state)):
            right = state.ended < len(end) and token == end[state.ended]
            return state._replace(ended=state.ended + 1) if right else State(state.text, 0, 0)
        new = self.token_bytes.bytes_of[token] if self.token_bytes.is_text(token) else b""
        text = state.text + new
        size = len(text)
        low = bisect_left(self.texts, text, state.low, state.high)
        high = bisect_right(self.texts, text, low, state.high, key=lambda one: one[:size])
        search = self.search.after(state.search, new) if self.search else ()
        return State(text, low, high, search) if new else State(state.text, 0, 0)

    def _whole(self, state: State) -> bool:
        """Whether what was said is a whole answer."""
        if state.low < state.high and self.texts[state.low] == state.text:
            return True
        return self.search is not None and self.search.whole(state.search)

    def _forced(self, state: State, said: tuple[int, ...], group: list[tuple[int, ...]]) -> int | None:
        """The next id where there is no choice to make, else None."""
        if not group:
            return None
        size, first = len(said), group[0]
        if len(first) > size and first[:size] == said and all(ids[: size + 1] == first[: size + 1] for ids in group):
            return first[size]
        if state.high - state.low == len(group) == 1:
            return self.token_bytes.first_id(self.texts[state.low][len(state.text) :])
        return None


class Search:
    """``search[`` + words with a blank between them + ``]``, as an automaton over bytes.

    A place in it is a node of the trie of words, or the number of bytes of the closing that were said. A state holds
    all places that the text so far leads to. ``ids`` is the common beginning of the canonical ids of all searches.
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
            node[_END] = {}
        node = self.root
        for byte in reversed(opening):
            node = {byte: node}
        self.start: Places = (node,)
        longest = len(opening) + max(map(len, words)) + len(closing)
        free = token_bytes.has_byte_tokens(b"".join((opening, *words, b" ", closing)))
        self._far = longest if free else math.inf  # with more tokens left than this, any search can end
        self._tokens: dict[tuple[int, ...], list[tuple[tuple[int, ...], Places]]] = {}
        self._costs: dict[int, float] = {}

    def after(self, state: Places, text: bytes) -> Places:
        """The state after ``text``; empty where no search goes on like this."""
        for byte in text:
            places: list[Any] = []
            for place in state:
                if isinstance(place, int):
                    if self.closing[place : place + 1] == bytes([byte]):
                        places.append(place + 1)
                    continue
                if byte in place:
                    places.append(place[byte])
                if _END in place and byte == _BLANK:
                    places.append(self.root)
                if _END in place and byte == self.closing[0]:
                    places.append(1)
            state = tuple(places)
        return state

    def whole(self, state: Places) -> bool:
        """Whether a search ends here."""
        return len(self.closing) in state

    def query(self, text: bytes) -> str:
        """The words in the bytes of a whole search."""
        return text[len(self.opening) : len(text) - len(self.closing)].decode()

    def following(self, state: Places, left: int) -> list[int]:
        """The ids that may follow; only those after which the search can end within ``left`` tokens, theirs included.

        Where none can, those that end it soonest.
        """
        key = tuple(place if isinstance(place, int) else -id(place) for place in state)
        if key not in self._tokens:
            self._tokens[key] = list(self._walk(state))
        pairs = self._tokens[key]
        if left > self._far:
            return [token for ids, _ in pairs for token in ids]
        costs = [self._cost(after) for _, after in pairs]
        most = max(left - 1, min(costs, default=0))
        return [
            token
            for (ids, _), cost in zip(pairs, costs, strict=True)
            if cost <= most and cost < math.inf
            for token in ids
        ]

    def _walk(self, state: Places) -> Iterator[tuple[tuple[int, ...], Places]]:
        """The tokens that may follow, and the states after them."""
        stack = [(b"", state)]
        while stack:
            said, places = stack.pop()
            following: set[int] = set()
            for place in places:
                if isinstance(place, int):
                    following.update(self.closing[place : place + 1])
                elif _END in place:
                    following.update(place, (_BLANK, self.closing[0]))
                else:
                    following.update(place)
            for byte in following - {_END}:
                text = said + bytes([byte])
                ids, longer = self.token_bytes.lookup(text)
                after = self.after(places, text[-1:]) if ids or longer else ()
                if ids:
                    yield ids, after
                if longer:
                    stack.append((text, after))

    def _cost(self, state: Places) -> float:
        """The fewest tokens that end the search from here; infinite where none do."""
        return min(self._count(self.closing[one:]) if isinstance(one, int) else self._node(one) for one in state)

    def _node(self, node: dict[int, Any]) -> float:
        if id(node) not in self._costs:
            self._costs[id(node)] = min(self._count(rest + self.closing) for rest in _rests(node))
        return self._costs[id(node)]

    def _count(self, text: bytes) -> float:
        return len(self.token_bytes.encode(text)) if self.token_bytes.can_encode(text) else math.inf


def _rests(node: dict[int, Any]) -> Iterator[bytes]:
    """What may follow up to the end of a word."""
    stack = [(b"", node)]
    while stack:
        said, place = stack.pop()
        for byte, child in place.items():
            if byte == _END:
                yield said
            else:
                stack.append((said + bytes([byte]), child))


@lru_cache(maxsize=256)
def _search(chat: Chat, page: str) -> Search | None:
    """A search of the words of ``page`` as the agent says them; None where it can say none of them."""
    token_bytes, talk, end = token_bytes_of(chat.tokenizer), chat.begin(), len(chat.end)
    empty = tuple(talk.encode_action("search[]")[:-end])
    frame = token_bytes.decode(empty)
    opening, closing = frame[: (split := frame.index(b"[") + 1)], frame[split:]
    rows: list[tuple[bytes, tuple[int, ...]]] = []
    if talk.aliases is not None:  # each symbol is a word between blanks
        opening += b" "
        rows = [(symbol.encode(), empty) for symbol in talk.aliases.encode(page, prompt=True).split()]
    else:
        for word in search_words(page):
            ids = tuple(talk.encode_action(f"search[{word}]")[:-end])
            text = token_bytes.decode(ids)
            if text.startswith(opening) and text.endswith(closing):
                rows.append((text[len(opening) : len(text) - len(closing)], ids))
    rows = [(word, ids) for word, ids in rows if word != b"]" and token_bytes.can_encode(opening + word + closing)]
    if not rows:
        return None
    size, shared = 0, []
    starts = {word[:1] for word, _ in rows}
    for column in zip(*(ids for _, ids in rows), strict=False):
        text = token_bytes.bytes_of[column[0]]
        size += len(text)
        joins = size == len(opening) and any(any(token_bytes.lookup(text + start)) for start in starts)
        if len(set(column)) > 1 or size > len(opening) or joins:  # a longer token may hold the first word's beginning
            break
        shared.append(column[0])
    return Search(token_bytes, opening, closing, [word for word, _ in rows], tuple(shared))


def search_words(page: str) -> list[str]:
    """The words of a page that may be searched for: what stands between blanks, as it stands there and without the
    punctuation around it, in its own case and in lower case.

    Brackets delimit a search, so no word holds one, and what a page writes between its parts (``[SEP]``) is no word.
    """
    words: dict[str, None] = {}
    for word in page.split():
        if not _MARKUP.fullmatch(word):
            bare = _bare(word)
            words |= dict.fromkeys((word, bare, word.lower(), bare.lower()))
    return [word for word in words if word and "[" not in word and "]" not in word]


def _bare(word: str) -> str:
    """A word without the punctuation around it."""
    marks = [unicodedata.category(char)[0] == "P" for char in word]
    if all(marks):
        return ""
    return word[marks.index(False) : len(word) - marks[::-1].index(False)]
