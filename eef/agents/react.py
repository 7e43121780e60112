"""The conversation of an agent that thinks aloud (``Thought: ... Action: ...``), in the shape of ETO's prompts.

Instructions from the user (``instructions.txt`` of the environment, our words), an "OK", one example if wanted; then
the subtask's first page, answers, and pages under ``Observation:``. :mod:`eef.agents.actions` reads the answers.
"""

from __future__ import annotations

from eef.agents.chat import OBSERVATION, TASK, Chat
from eef.files import PACKAGE
from eef.trajectory import Trajectory

STOP = "\nObservation:"  # where a model begins to invent what it will see
Message = dict[str, str]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def agent(text: str) -> Message:
    return {"role": "assistant", "content": text or "(nothing)"}  # some servers refuse an empty message


def page(observation: str) -> Message:
    return user(f"{OBSERVATION}{observation}")


def first_page(prompt: str) -> Message:
    """The first page of the subtask itself."""
    return user(f"{TASK}{prompt}")


def opening(name: str, shown: Trajectory | None = None) -> list[Message]:
    """What every conversation in environment ``name`` begins with, up to the subtask's own first page."""
    told = (PACKAGE / "envs" / name / "instructions.txt").read_text(encoding="utf-8").strip()
    talk = [user(told), agent("OK")]
    if shown is not None:
        first = [user(f"First an example.\n\n{shown.prompt}"), *(page(turn.observation) for turn in shown.turns)]
        for heard, turn in zip(first, shown.turns, strict=False):  # nothing is said after the last page
            talk += [heard, agent(f"Thought: {_thought(turn.action)}\nAction: {turn.action}")]
    return talk


def scaffold(chat: Chat, name: str, shown: Trajectory | None = None) -> Chat:
    """The same conversation for a policy: ``chat`` with the opening of environment ``name`` and ReAct answers."""
    words = [message["content"] for message in opening(name, shown)]
    return chat.opened(list(zip(words[::2], words[1::2], strict=True)))


def _thought(action: str) -> str:
    """What the scripted player of an example would say: it has no thoughts of its own."""
    name, _, inside = action.partition("[")
    inside = inside.rstrip("]")
    if name == "search":
        return "I look for what the instruction names."
    if name != "click":
        return f"The next step towards what the task asks for is to {action}."
    return {
        "buy now": "This is the product, and all that was asked for is chosen, so I buy it.",
        "next >": "None of these fits, so I turn to the next page.",
        "< prev": "This is not what I need, so I go back.",
        "back to search": "I had better search again.",
    }.get(inside, f"The instruction leads to {inside} here, so I click it.")
