"""A conversation as token ids and loss mask, the same for training and for acting.

A training prefix and a rollout prompt are the same ids at every turn. :mod:`eef.agents.chat_template` derives what a
template puts around contents. Contents are always text, even if they spell a control token. Ids that a policy sampled
are never encoded again. Instructions go into the first user turn, because some templates drop a system turn.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eef.agents.chat_template import derive_scaffold
from eef.agents.scaffold import Scaffold, answer_ids, content_encoder, user_ids
from eef.files import did_you_mean
from eef.tracking.keys import code_key
from eef.trajectory import TASK, Trajectory, Turn

if TYPE_CHECKING:
    from eef.envs.extras import WordAliases

OBSERVATION = "Observation:\n"  # before all pages but the first, with ReAct
_OPTIONS = {"instructions": str, "aliases": str, "constrained_decoding": bool}  # of chat.json


@dataclass(frozen=True)
class Chat:
    """How conversations with a policy are written.

    ``opening``: pairs of a user text and the agent's answer, before the subtask's first page. They carry no loss.
    ``react``: answers have the form ``Thought: ... Action: ...`` (:mod:`eef.agents.react`).
    ``aliases``: the environment whose :attr:`eef.envs.extras.Extras.aliases` turn words into symbols, for a policy with
    a small vocabulary; empty for none. ValueError for an environment without aliases.
    """

    tokenizer: Any
    scaffold: Scaffold
    instructions: str = ""
    aliases: str = ""
    opening: tuple[tuple[str, str], ...] = ()
    react: bool = False

    def __post_init__(self) -> None:
        if self.aliases and self._alias_class is None:
            raise ValueError(f"aliases={self.aliases!r}: there is no environment of this name that has aliases")

    @classmethod
    def of(cls, tokenizer: Any, instructions: str = "", aliases: str = "", ends: Collection[int] = ()) -> Chat:
        """The chat of a tokenizer. ``ends`` and errors: see :func:`eef.agents.chat_template.derive_scaffold`."""
        return cls(tokenizer, derive_scaffold(tokenizer, ends), instructions, aliases)

    @property
    def end(self) -> tuple[int, ...]:
        """The ids that end an answer. The policy samples them, and they carry loss."""
        return self.scaffold.end

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end an answer whatever follows: special tokens and the control tokens of the scaffold."""
        return self.scaffold.stops

    def with_opening(self, opening: Sequence[Sequence[str]]) -> Chat:
        """A copy for ReAct answers that begins with ``opening``: pairs of a user text and the agent's answer.

        ValueError for a policy with aliases, which cannot read it.
        """
        if self.aliases:
            raise ValueError("prompt='react' needs a language model: this one has aliases for words (its chat.json)")
        pairs = tuple((user_text, answer) for user_text, answer in opening)
        return replace(self, instructions="", opening=pairs, react=True)

    @cached_property
    def hash(self) -> str:
        """What two runs must share to be comparable: scaffold, instructions, opening, aliases, vocabulary."""
        vocabulary = content_encoder(self.tokenizer).digest
        parts = [*self.scaffold.parts, self.instructions, self.aliases, vocabulary, self.opening, self.react]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def key(self) -> dict[str, str]:
        """The part of a stage's key that represents this chat: its hash and the code of its aliases."""
        kind = self._alias_class
        return {"hash": self.hash, "aliases": code_key(kind.__module__)["sources"] if kind else ""}

    @property
    def vocabulary_size(self) -> int:
        """The largest id of the tokenizer plus one."""
        return content_encoder(self.tokenizer).vocabulary_size

    def begin(self) -> Dialogue:
        """A new conversation."""
        kind = self._alias_class
        return Dialogue(self, kind(self._symbols) if kind else None)

    @property
    def _alias_class(self) -> type[WordAliases] | None:
        if not self.aliases:
            return None
        # by name and not by an import statement: training depends on no environment's code, except for aliases (`key`)
        return import_module("eef.envs.extras").extras_of(self.aliases).aliases

    @cached_property
    def _symbols(self) -> frozenset[str]:
        """The words of a small vocabulary that a page may contain: all but its control tokens."""
        return frozenset(word for word in self.tokenizer.get_vocab() if not re.fullmatch(r"<\w+>", word))

    def render(self, trajectory: Trajectory, learn: Sequence[bool]) -> tuple[list[int], list[bool]]:
        """Ids of the whole conversation and, for each id, whether it carries loss: m_l of the paper's section 3.

        ``learn`` has one entry per turn. An answer and its end carry loss together. Observations carry none. The
        observation after the last action is left out, because no answer follows it.
        """
        if len(learn) != len(trajectory.turns):
            raise ValueError(f"{len(learn)} mask entries for {len(trajectory.turns)} turns (task {trajectory.task})")
        dialogue = self.begin()
        ids: list[int] = []
        mask: list[bool] = []
        for index, turn in enumerate(trajectory.turns):
            observation = dialogue.encode_observation(trajectory.state(index))
            answer = dialogue.encode_turn(turn)
            ids += observation + answer
            mask += [False] * len(observation) + [learn[index]] * len(answer)
        return ids, mask


@dataclass
class Dialogue:
    """One conversation in progress, for training and for acting; :meth:`copy` for a fork."""

    chat: Chat
    aliases: WordAliases | None
    turn: int = 0

    def copy(self) -> Dialogue:
        return Dialogue(self.chat, self.aliases.copy() if self.aliases else None, self.turn)

    def user_text(self, observation: str) -> str:
        """The text of the next user turn: the observation with its prefix, symbols and, in the first one, instructions.

        Each observation is passed once, in order.
        """
        chat, text = self.chat, observation
        if self.aliases is not None:
            text = self.aliases.encode(text, prompt=self.turn == 0)
        if self.turn == 0 and chat.instructions:
            text = f"{chat.instructions}\n\n{text}"
        if chat.react:
            text = f"{OBSERVATION if self.turn else TASK}{text}"
        self.turn += 1
        return text

    def answer_text(self, turn: Turn) -> str:
        """The text of a turn's answer, as the model writes it. A model with aliases writes no thoughts."""
        if self.aliases is not None:
            return self.aliases.encode_action(turn.action or turn.reply)
        without_thought = self.chat.react and turn.action and not turn.reply  # an expert that gives only actions
        return f"Action: {turn.action}" if without_thought else turn.answer

    def encode_observation(self, observation: str) -> list[int]:
        """Ids from the end of the last answer to the beginning of the next one."""
        chat, first, text = self.chat, self.turn == 0, self.user_text(observation)
        encode = content_encoder(chat.tokenizer)
        ids: list[int] = []
        for user_text, answer in chat.opening if first else ():
            ids += user_ids(encode, chat.scaffold, user_text, first) + self.encode_action(answer)
            first = False
        return ids + user_ids(encode, chat.scaffold, text, first)

    def encode_action(self, answer: str) -> list[int]:
        """Ids of the agent's answer with its end."""
        text = self.aliases.encode_action(answer) if self.aliases is not None else answer
        return list(_encode_answer(self.chat.tokenizer, self.chat.scaffold, text))

    def encode_turn(self, turn: Turn) -> list[int]:
        """Ids of a turn: those that a policy with this scaffold sampled, else those of its text."""
        if turn.ids and turn.chat == self.chat.hash:
            return list(turn.ids)
        return list(_encode_answer(self.chat.tokenizer, self.chat.scaffold, self.answer_text(turn)))

    def decode_action(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, without their end: the inverse of :meth:`encode_action`."""
        end = list(self.chat.end)
        ids = list(ids)
        if end and ids[-len(end) :] == end:
            ids = ids[: -len(end)]
        text = self.chat.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self.aliases.decode_action(text) if self.aliases is not None else text.strip()


@lru_cache(maxsize=1 << 16)
def _encode_answer(tokenizer: Any, scaffold: Scaffold, text: str) -> tuple[int, ...]:
    """Ids of an answer. Cached, because constrained decoding encodes all available actions at each step."""
    return tuple(answer_ids(content_encoder(tokenizer), scaffold, text))


def load_options(folder: str | Path) -> dict[str, Any]:
    """``chat.json`` beside a model: ``{"instructions": str, "aliases": str, "constrained_decoding": bool}``.

    Empty for a model without one. The former name ``limited`` still works, with a warning; so does ``"aliases": false``
    for none. ValueError for an unknown name, a value of another type, and a file that is not a JSON object.
    """
    path = Path(folder) / "chat.json"
    try:
        options = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f'{path} must be an object, such as {{"constrained_decoding": true}}')
    if "limited" in options:
        warnings.warn(f"{path}: 'limited' is now called 'constrained_decoding'", FutureWarning, stacklevel=2)
        options.setdefault("constrained_decoding", options.pop("limited"))
    for name, value in options.items():
        if name not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            raise ValueError(f"{path}: unknown name {name!r}{did_you_mean(name, _OPTIONS)}; known: {known}")
        if name != "aliases" and type(value) is not _OPTIONS[name]:
            wanted = "true or false, without quotes" if _OPTIONS[name] is bool else "a text in quotes"
            raise ValueError(f"{path}: {json.dumps(name)} is {json.dumps(value)}, but must be {wanted}")
    aliases = options.get("aliases") or ""
    if not isinstance(aliases, str):
        raise ValueError(
            f'{path}: "aliases" is {json.dumps(aliases)}, but must be a name: write the name of the environment whose '
            'aliases this model was trained with, or "" for none'
        )
    return {**options, "aliases": aliases} if "aliases" in options else options
