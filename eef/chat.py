"""A conversation as token ids and loss mask, by one scaffold for training and for acting.

The scaffold is what a tokenizer's chat template puts around the contents, found by rendering sentinels; contents
are tokenised apart, so a training prefix and a rollout prompt are the same ids at every turn, and the ids that a
policy sampled are kept as they are. Instructions go into the first user turn: some templates lose a system turn.

Why each family is treated as it is (tests/test_chat.py renders them all):

- Llama-3: the template writes the BOS itself, so nothing here lets a tokenizer add one more.
- Mistral v0.3: a blank stands between tag and content, and its tokenizer joins the two: the blank is tokenised with the
  content. The one before an answer is not part of the prompt that the policy sees, but said (and learnt) with it.
- Qwen2.5: the template opens with a system turn of its own, which becomes part of what opens the conversation. The
  line break after an answer's end is not the policy's to say.
- Qwen3: only the last answer is rendered with a think block, so one history would have two renderings. Every answer is
  rendered as a past one, without it.

``aliases`` is for small policies with a small vocabulary (:class:`eef.aliases.Aliases`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from eef.aliases import Aliases
from eef.trajectory import Trajectory, Turn

TASK, OBSERVATION = "Now your task.\n\n", "Observation:\n"  # before the first page and the others, for ReAct answers


@dataclass(frozen=True)
class Chat:
    """The scaffold of one tokenizer: literal text around contents, as token ids.

    ``before`` opens the conversation up to the first user content; ``to_agent`` lies between user content and what
    the agent says; ``end`` closes it (sampled by the policy, and learnt); ``to_user`` leads to the next user content.
    ``user_lead`` and ``agent_lead``: text between scaffold and content that a tokenizer may join with the content.
    ``opening``: what user and agent said before the subtask's first page, never learnt. ``react``: answers have the
    form ``Thought: ... Action: ...`` (:mod:`eef.react`).
    """

    tokenizer: Any
    before: tuple[int, ...]
    to_agent: tuple[int, ...]
    end: tuple[int, ...]
    to_user: tuple[int, ...]
    instructions: str = ""
    aliases: bool = False
    user_lead: str = ""
    agent_lead: str = ""
    opening: tuple[tuple[str, str], ...] = ()
    react: bool = False

    @classmethod
    def of(cls, tokenizer: Any, instructions: str = "", aliases: bool = False) -> Chat:
        """Derive the scaffold; ValueError where the template drops or rewrites what it is given."""
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template: load a chat model, or set tokenizer.chat_template")
        marks = ["sentinel0", "sentinel1", "sentinel2", "sentinel3"]
        roles = ["user", "assistant", "user", "assistant"]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        asked = tokenizer.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
        parts = re.split("|".join(marks), whole)
        if len(parts) != 5:
            raise ValueError("the chat template drops or repeats a message: this tokenizer needs another template")
        to_agent = asked.split(marks[2])[1]
        end, to_user = _split_end(parts[2], parts[4])
        if not parts[1].startswith(to_agent):
            raise ValueError("the chat template renders a past answer otherwise than it asks for one: use another")
        agent_lead = parts[1][len(to_agent) :]
        leads = {text[len(text.rstrip(" ")) :] for text in (parts[0], to_user)}
        user_lead = leads.pop() if len(leads) == 1 else ""
        before, to_user = parts[0].removesuffix(user_lead), to_user.removesuffix(user_lead)
        ids = [
            tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, to_agent, end, to_user)
        ]
        if not ids[2]:
            raise ValueError("the chat template puts nothing after an assistant turn: a policy could not end its turn")
        specials = set(tokenizer.all_special_ids)
        stop = next((place for place, token in enumerate(ids[2], start=1) if token in specials), len(ids[2]))
        to_user_ids = ids[2][stop:] + ids[3]  # a newline after the end token is not the policy's to say
        return cls(tokenizer, ids[0], ids[1], ids[2][:stop], to_user_ids, instructions, aliases, user_lead, agent_lead)

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
        """What two runs must share to be comparable: scaffold, instructions, opening, aliases, vocabulary size."""
        parts: list[Any] = [
            self.before,
            self.to_agent,
            self.end,
            self.to_user,
            self.instructions,
            self.aliases,
            len(self.tokenizer),
        ]
        parts += [part for part in (self.user_lead, self.agent_lead, self.opening, self.react) if part]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @cached_property
    def control(self) -> frozenset[int]:
        """The ids of all tokens that the tokenizer flags as special: no content and no answer holds one."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(self.tokenizer.all_special_ids) | {place for place, token in added.items() if token.special}

    @cached_property
    def size(self) -> int:
        """How many ids the tokenizer has."""
        return len(self.tokenizer)

    def begin(self) -> Dialogue:
        """A new conversation."""
        known = frozenset(self.tokenizer.get_vocab()) if self.aliases else frozenset()
        return Dialogue(self, Aliases(known) if self.aliases else None)

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
            heard = talk.hear(trajectory.state(index))
            said = talk.repeat(turn)
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

    def hear(self, observation: str) -> list[int]:
        """Ids from the end of the last utterance to the place where the agent speaks."""
        chat, text = self.chat, observation
        if self.aliases is not None:
            text = self.aliases.read(text, prompt=self.turn == 0)
        if self.turn == 0 and chat.instructions:
            text = f"{chat.instructions}\n\n{text}"
        if chat.react:
            text = f"{OBSERVATION if self.turn else TASK}{text}"
        ids = list(chat.before if self.turn == 0 else chat.to_user)
        if self.turn == 0:
            for asked, answered in chat.opening:
                ids += [*self._ids(asked), *chat.to_agent, *self.say(answered), *chat.to_user]
        self.turn += 1
        return [*ids, *self._ids(text), *chat.to_agent]

    def say(self, reply: str) -> list[int]:
        """Ids of what the agent says, its end included."""
        text = self.aliases.read_action(reply) if self.aliases is not None else reply
        return [*_utterance(self.chat.tokenizer, self.chat.agent_lead + text.strip()), *self.chat.end]

    def repeat(self, turn: Turn) -> list[int]:
        """Ids of a turn that was taken: those that a policy of this scaffold sampled, else those of its text."""
        if turn.ids and turn.chat == self.chat.hash:
            return list(turn.ids)
        bare = self.chat.react and not turn.reply  # an expert without thoughts
        return self.say(f"Action: {turn.action}" if bare else turn.said)

    def spoken(self, ids: Sequence[int]) -> str:
        """The text of sampled ids (their end left off): the inverse of :meth:`say`."""
        end = list(self.chat.end)
        ids = list(ids)
        if end and ids[-len(end) :] == end:
            ids = ids[: -len(end)]
        text = self.chat.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self.aliases.write_action(text) if self.aliases is not None else text.strip()

    def _ids(self, text: str) -> list[int]:
        return self.chat.tokenizer(self.chat.user_lead + text.strip(), add_special_tokens=False)["input_ids"]


@lru_cache(maxsize=1 << 16)
def _utterance(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of what an agent says: kept, since limited decoding renders all available actions at each step."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _split_end(between: str, last: str) -> tuple[str, str]:
    """What closes an utterance (all of it follows the last one too) and what opens the next user turn."""
    common = 0
    while common < min(len(between), len(last)) and between[common] == last[common]:
        common += 1
    return between[:common], between[common:]


def action_of(reply: str) -> str:
    """The environment's action in a reply: what follows ``Action: ``, or all of it."""
    match = re.search(r"Action: (.*)", reply, re.DOTALL)
    return (match[1] if match else reply).strip()


def load_options(folder: str | Path) -> dict[str, Any]:
    """``chat.json`` beside a model: ``{"instructions": str, "aliases": bool}``; empty for a model without one."""
    path = Path(folder) / "chat.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
