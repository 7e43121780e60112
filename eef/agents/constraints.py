"""Constrained decoding: which tokens may come next, so that an answer is one of the available actions.

Actions are compared as bytes. So every tokenisation of an action counts, and a token may contain part of a character.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eef.agents.chat import Dialogue
from eef.agents.search_constraint import Places, SearchConstraint, search_constraint
from eef.agents.token_bytes import TokenBytes, token_bytes_of
from eef.envs import EnvError, action_texts


class State(NamedTuple):
    """The state of an unfinished answer.

    ``text``: its bytes. ``low`` and ``high``: the range of sorted actions that begin with them. ``search``: the state
    of a search (:class:`~eef.agents.search_constraint.SearchConstraint`). ``ended``: how many ids of the end follow.
    """

    text: bytes
    low: int
    high: int
    search: Places = ()
    ended: int = 0


@dataclass
class Constraints:
    """The available actions, and a search if there is a search bar.

    ``texts`` are the bytes of the actions, sorted. ``ids`` are their canonical ids and ``actions`` their names, in the
    same order. ``longest`` is the greatest number of tokens in a search.
    """

    dialogue: Dialogue
    token_bytes: TokenBytes
    texts: list[bytes]
    ids: list[tuple[int, ...]]
    actions: list[str]
    search: SearchConstraint | None = None
    longest: int = 64
    _answer: list[int] = field(default_factory=list)  # the last answer, with its states: they are used again
    _states: list[State] = field(default_factory=list)

    @classmethod
    def of(cls, dialogue: Dialogue, available: dict[str, Any], page: str, longest: int = 64) -> Constraints:
        """The constraints that an environment's ``available_actions`` set.

        ``page`` is the subtask's first page, whose words a search may contain. Some actions are left out: those that
        the tokenizer cannot write, and different ones that it writes alike. Of actions that differ only in case and
        blanks, the first remains.

        EnvError if there is no action. ValueError if the tokenizer can write none of the actions, or cannot be used at
        all (:func:`eef.agents.token_bytes.token_bytes_of`).
        """
        chat, dialogue = dialogue.chat, dialogue.copy()
        token_bytes, end = token_bytes_of(chat.tokenizer), len(chat.end)
        actions = action_texts(available)
        rows = []
        for action in dict.fromkeys(actions):
            ids = tuple(dialogue.encode_action(action)[:-end])
            rows.append((token_bytes.decode(ids), ids, action))
        same_text: dict[bytes, set[str]] = {}  # the actions with a text, ignoring case and blanks
        for text, _, action in rows:
            same_text.setdefault(text, set()).add(" ".join(action.split()).casefold())
        firsts = {text: (text, ids, action) for text, ids, action in reversed(rows)}.values()
        rows = sorted(
            row for row in firsts if len(same_text[row[0]]) == 1 and row[0] and token_bytes.can_encode(row[0])
        )
        search = search_constraint(chat, page) if available.get("has_search_bar") else None
        if not actions and search is None:
            reason = "the page has no word to search for" if available.get("has_search_bar") else "no search bar"
            raise EnvError(f"there is no available action, and {reason}")
        if not rows and search is None:
            raise ValueError(
                f"constrained_decoding=True: the tokenizer of {chat.tokenizer.name_or_path!r} can write none of the "
                f"{len(actions)} available actions. Set constrained_decoding=False"
            )
        texts, names = [row[0] for row in rows], [row[2] for row in rows]
        canonical = [
            ids if all(map(token_bytes.is_text, ids)) else tuple(token_bytes.encode(text)) for text, ids, _ in rows
        ]
        return cls(dialogue, token_bytes, texts, canonical, names, search, longest)

    def __post_init__(self) -> None:
        self._longest_action = max(map(len, self.ids), default=0)

    @property
    def max_tokens(self) -> int:
        """The greatest number of tokens in an answer, without its end and in any tokenisation."""
        return max(2 * self._longest_action, self.longest if self.search else 0)

    def allowed(self, answer: Sequence[int]) -> list[int]:
        """The ids that may follow the ids ``answer``, in increasing order; empty if the answer is complete.

        A single id if there is no choice: one action is left, or all that are left have the same next canonical id.
        """
        state, end = self._state(answer), self.dialogue.chat.end
        if state.ended:
            return [end[state.ended]] if state.ended < len(end) else []
        complete = self._is_complete(state)
        group = self.ids[state.low : state.high]
        if state.search and self.search is not None:
            group.append(self.search.ids)
        if not complete and (forced := self._forced(state, tuple(answer), group)) is not None:
            return [forced]
        following: set[int] = set()
        # past the longest canonical ids only the longest tokens are allowed, so that every tokenisation ends
        only_longest = len(answer) >= self._longest_action
        for text in self.texts[state.low : state.high]:
            rest = text[len(state.text) :]
            if only_longest and rest:
                following.add(self.token_bytes.first_id(rest))
                continue
            for size, ids in self.token_bytes.prefixes(rest):
                if self.token_bytes.can_encode(rest[size:]):
                    following.update(ids)
        if state.search and self.search is not None:
            following.update(self.search.allowed(state.search, self.longest - len(answer)))
        return sorted(following | {end[0]} if complete else following)

    def action(self, answer: Sequence[int]) -> str:
        """The action of a complete answer. ValueError for an incomplete one."""
        state = self._state(answer)
        if state.ended == len(self.dialogue.chat.end):
            if state.low < state.high and self.texts[state.low] == state.text:
                return self.actions[state.low]
            if self.search is not None and self.search.is_complete(state.search):
                aliases = self.dialogue.aliases
                if aliases is not None:
                    return aliases.decode_action(state.text.decode())
                return f"search[{self.search.query(state.text)}]"
        raise ValueError(f"the ids {list(answer)} are not a complete answer ({state.text!r})")

    def _state(self, answer: Sequence[int]) -> State:
        """The state after ``answer``. States of the ids that it shares with the last answer are used again."""
        if not self._states:
            self._states.append(State(b"", 0, len(self.texts), self.search.start if self.search else ()))
        common = 0
        while common < min(len(answer), len(self._answer)) and answer[common] == self._answer[common]:
            common += 1
        del self._answer[common:], self._states[common + 1 :]
        for token in answer[common:]:
            self._states.append(self._advance(self._states[-1], token))
            self._answer.append(token)
        return self._states[-1]

    def _advance(self, state: State, token: int) -> State:
        end = self.dialogue.chat.end
        if state.ended or (token == end[0] and self._is_complete(state)):
            matches = state.ended < len(end) and token == end[state.ended]
            return state._replace(ended=state.ended + 1) if matches else State(state.text, 0, 0)
        new = self.token_bytes.bytes_of[token] if self.token_bytes.is_text(token) else b""
        text = state.text + new
        size = len(text)
        low = bisect_left(self.texts, text, state.low, state.high)
        high = bisect_right(self.texts, text, low, state.high, key=lambda action: action[:size])
        search = self.search.advance(state.search, new) if self.search else ()
        return State(text, low, high, search) if new else State(state.text, 0, 0)

    def _is_complete(self, state: State) -> bool:
        """Whether the text so far is a complete action."""
        if state.low < state.high and self.texts[state.low] == state.text:
            return True
        return self.search is not None and self.search.is_complete(state.search)

    def _forced(self, state: State, answer: tuple[int, ...], group: list[tuple[int, ...]]) -> int | None:
        """The next id if there is no choice, else None. ``group``: the canonical ids of what is left."""
        if not group:
            return None
        size, first = len(answer), group[0]
        if len(first) > size and first[:size] == answer and all(ids[: size + 1] == first[: size + 1] for ids in group):
            return first[size]
        if state.high - state.low == len(group) == 1:
            return self.token_bytes.first_id(self.texts[state.low][len(state.text) :])
        return None
