"""A conversation as token ids and loss mask, by one scaffold for training and for acting.

What a chat template puts around contents is derived and proven by :mod:`eef.agents.scaffold`. A training prefix and a
rollout prompt are the same ids at every turn, contents are text whatever they spell, and the ids that a policy sampled
are kept as they are. Instructions go into the first user turn: some templates lose a system turn.

``aliases`` is for small policies with a small vocabulary (:class:`eef.agents.aliases.Aliases`).
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from eef.agents.aliases import Aliases
from eef.agents.scaffold import Scaffold, answer_ids, content_encoder, derive, user_ids
from eef.trajectory import Trajectory, Turn

TASK, OBSERVATION = "Now your task.\n\n", "Observation:\n"  # before the first page and the others, for ReAct answers


@dataclass(frozen=True)
class Chat:
    """How conversations with a policy are written: its tokenizer's scaffold, and what precedes the first page.

    ``opening``: pairs of a user text and the agent's answer. They carry no loss. ``react``: answers have the form
    ``Thought: ... Action: ...`` (:mod:`eef.agents.react`).
    """

    tokenizer: Any
    scaffold: Scaffold
    instructions: str = ""
    aliases: bool = False
    opening: tuple[tuple[str, str], ...] = ()
    react: bool = False

    @classmethod
    def of(cls, tokenizer: Any, instructions: str = "", aliases: bool = False, ends: Collection[int] = ()) -> Chat:
        """The chat of a tokenizer; ``ends`` and errors as of :func:`eef.agents.scaffold.derive`."""
        return cls(tokenizer, derive(tokenizer, ends), instructions, aliases)

    @property
    def end(self) -> tuple[int, ...]:
        """The ids that close an answer. The policy samples them, and they carry loss."""
        return self.scaffold.end

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end an answer whatever follows: special tokens, and those that the scaffold is made of."""
        return self.scaffold.stops

    def opened(self, opening: Sequence[Sequence[str]]) -> Chat:
        """The same for ReAct answers, after an ``opening`` of pairs: what the user said, what the agent answered.

        ValueError for a policy that cannot read it: one whose words are named anew in each conversation.
        """
        if self.aliases:
            raise ValueError("prompt='react' is for language models: this small policy knows no words (its chat.json)")
        pairs = tuple((asked, answered) for asked, answered in opening)
        return replace(self, instructions="", opening=pairs, react=True)

    @cached_property
    def hash(self) -> str:
        """What two runs must share to be comparable: scaffold, instructions, opening, aliases, vocabulary."""
        vocabulary = content_encoder(self.tokenizer).digest
        parts = [*self.scaffold.parts, self.instructions, self.aliases, vocabulary, self.opening, self.react]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        """The largest id of the tokenizer, and one more."""
        return content_encoder(self.tokenizer).size

    def begin(self) -> Dialogue:
        """A new conversation."""
        return Dialogue(self, Aliases(self._symbols) if self.aliases else None)

    @cached_property
    def _symbols(self) -> frozenset[str]:
        """The words of a small vocabulary that a page may hold: not its control tokens."""
        return frozenset(word for word in self.tokenizer.get_vocab() if not re.fullmatch(r"<\w+>", word))

    def render(self, trajectory: Trajectory, learn: Sequence[bool]) -> tuple[list[int], list[bool]]:
        """Ids of the whole conversation and, for each, whether it carries loss: m_l of the paper's section 3.

        ``learn`` has one entry per turn. An utterance and its end carry loss together; observations never do. The
        observation after the last action is left out: nothing is said after it.
        """
        if len(learn) != len(trajectory.turns):
            raise ValueError(f"{len(learn)} mask entries for {len(trajectory.turns)} turns (task {trajectory.task})")
        talk = self.begin()
        ids: list[int] = []
        mask: list[bool] = []
        for index, turn in enumerate(trajectory.turns):
            heard = talk.encode_observation(trajectory.state(index))
            said = talk.encode_turn(turn)
            ids += heard + said
            mask += [False] * len(heard) + [learn[index]] * len(said)
        return ids, mask


@dataclass
class Dialogue:
    """One conversation in progress, the same for training and acting; :meth:`copy` for a fork."""

    chat: Chat
    aliases: Aliases | None
    turn: int = 0

    def copy(self) -> Dialogue:
        return Dialogue(self.chat, self.aliases.copy() if self.aliases else None, self.turn)

    def encode_observation(self, observation: str) -> list[int]:
        """Ids from the end of the last utterance to the place where the agent speaks."""
        chat, text = self.chat, observation
        if self.aliases is not None:
            text = self.aliases.read(text, prompt=self.turn == 0)
        if self.turn == 0 and chat.instructions:
            text = f"{chat.instructions}\n\n{text}"
        if chat.react:
            text = f"{OBSERVATION if self.turn else TASK}{text}"
        encode, first = content_encoder(chat.tokenizer), self.turn == 0
        ids: list[int] = []
        for user_text, answer in chat.opening if first else ():
            ids += user_ids(encode, chat.scaffold, user_text, first) + self.encode_action(answer)
            first = False
        self.turn += 1
        return ids + user_ids(encode, chat.scaffold, text, first)

    def encode_action(self, reply: str) -> list[int]:
        """Ids of what the agent says, its end included."""
        text = self.aliases.read_action(reply) if self.aliases is not None else reply
        return list(_answer(self.chat.tokenizer, self.chat.scaffold, text))

    def encode_turn(self, turn: Turn) -> list[int]:
        """Ids of a turn that was taken: those that a policy of this scaffold sampled, else those of its text."""
        if turn.ids and turn.chat == self.chat.hash:
            return list(turn.ids)
        bare = self.chat.react and turn.action and not turn.reply  # an expert without thoughts
        return self.encode_action(f"Action: {turn.action}" if bare else turn.said)

    def decode_action(self, ids: Sequence[int]) -> str:
        """The text of sampled ids (their end left off): the inverse of :meth:`encode_action`."""
        end = list(self.chat.end)
        ids = list(ids)
        if end and ids[-len(end) :] == end:
            ids = ids[: -len(end)]
        text = self.chat.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self.aliases.write_action(text) if self.aliases is not None else text.strip()


@lru_cache(maxsize=1 << 16)
def _answer(tokenizer: Any, scaffold: Scaffold, text: str) -> tuple[int, ...]:
    """Ids of an answer. Cached, because constrained decoding renders all available actions at each step."""
    return tuple(answer_ids(content_encoder(tokenizer), scaffold, text))


def load_options(folder: str | Path) -> dict[str, Any]:
    """``chat.json`` beside a model: ``{"instructions": str, "aliases": bool, "constrained_decoding": bool}``.

    Empty for a model without one. The former name ``limited`` still works, with a warning.
    """
    path = Path(folder) / "chat.json"
    options = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "limited" in options:
        warnings.warn(f"{path}: 'limited' is now called 'constrained_decoding'", FutureWarning, stacklevel=2)
        options.setdefault("constrained_decoding", options.pop("limited"))
    return options
