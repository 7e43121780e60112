"""A trajectory as messages, as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eef.agents.chat import Chat
from eef.trajectory import Trajectory


@dataclass(frozen=True)
class Message:
    """One message. ``role`` is ``user`` or ``assistant``; ``learn`` says whether the message carries loss."""

    role: str
    content: str
    learn: bool = False


def messages_of(chat: Chat | None, trajectory: Trajectory, learn: Sequence[bool]) -> list[Message]:
    """The conversation whose ids :meth:`eef.agents.chat.Chat.render` returns, as messages.

    ``learn`` has one entry per turn. Opening, instructions, prefixes of pages and symbols of a small vocabulary are
    those of ``chat``. Without a chat the texts are those of the environment. The observation after the last action is
    left out.

    A tokenizer's template may tokenise an answer in another way than the policy sampled it
    (:func:`count_sampled`). Only ids and labels are exact then.
    """
    if len(learn) != len(trajectory.turns):
        raise ValueError(f"{len(learn)} mask entries for {len(trajectory.turns)} turns (task {trajectory.task})")
    messages = []
    for user_text, answer in chat.opening if chat else ():
        messages += [Message("user", user_text.strip()), Message("assistant", answer.strip())]
    dialogue = chat.begin() if chat else None
    for index, turn in enumerate(trajectory.turns):
        page, answer = trajectory.state(index), turn.answer
        if dialogue:
            page, answer = dialogue.user_text(page).strip(), dialogue.answer_text(turn).strip()
        messages += [Message("user", page), Message("assistant", answer, bool(learn[index]))]
    return messages


def count_sampled(chat: Chat | None, trajectories: Sequence[Trajectory]) -> int:
    """The number of answers that a policy with this chat sampled as ids that their text does not give."""
    return sum(bool(turn.ids) and chat is not None and turn.chat == chat.hash for t in trajectories for turn in t.turns)
