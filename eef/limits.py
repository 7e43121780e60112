"""Constrained decoding: which tokens may be said next, so that an answer is one of the available actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eef.chat import Dialogue

Trie = dict[int, "Trie"]


@dataclass(frozen=True)
class Limits:
    """What may be said next: a trie of token ids, with one open place for search words.

    ``words`` may fill the place that follows ``opening`` (the ids of ``search[``), ``closing`` ends it.
    """

    trie: Trie
    opening: tuple[int, ...] = ()
    words: frozenset[int] = frozenset()
    closing: tuple[int, ...] = ()
    longest: int = 12

    @classmethod
    def of(cls, talk: Dialogue, available: dict[str, Any], prompt_ids: Sequence[int]) -> Limits:
        """The limits that an environment's ``available_actions`` set; search words are those of the prompt."""
        actions = available.get("actions") or [f"click[{name}]" for name in available["clickables"] if name != "search"]
        trie: Trie = {}
        for action in actions:
            node = trie
            for token in talk.say(action):
                node = node.setdefault(token, {})
        if not available.get("has_search_bar"):
            return cls(trie)
        blank, filled = talk.say("search[]"), talk.say("search[search]")
        shared = next(i for i, (a, b) in enumerate(zip(blank, filled, strict=False)) if a != b)
        opening, closing = tuple(blank[:shared]), tuple(blank[shared:])
        specials = set(talk.chat.tokenizer.all_special_ids)
        return cls(trie, opening, frozenset(prompt_ids) - specials - {closing[0]}, closing)

    def allowed(self, said: Sequence[int]) -> list[int]:
        """The ids that may follow ``said``; empty when it is complete."""
        size = len(self.opening)
        if size and tuple(said[:size]) == self.opening and len(said) >= size:
            inner = list(said[size:])
            if self.closing[0] in inner:
                return [self.closing[n]] if (n := len(inner) - inner.index(self.closing[0])) < len(self.closing) else []
            return (
                [self.closing[0]]
                if len(inner) >= self.longest
                else [*self.words, *([self.closing[0]] if inner else [])]
            )
        if size and tuple(said) == self.opening[: len(said)] and not self.trie:
            return [self.opening[len(said)]]
        node = self.trie
        for token in said:
            node = node.get(token, {})
        following = list(node)
        if size and tuple(said) == self.opening[: len(said)] and self.opening[len(said)] not in following:
            following.append(self.opening[len(said)])
        return following
