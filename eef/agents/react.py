"""Conversations with an agent that thinks aloud (``Thought: ... Action: ...``), in the form of ETO's prompts.

A conversation begins with the environment's instructions, the answer "OK" and, if wanted, one example. Then follow the
subtask's first page, the agent's answers, and later pages after ``Observation:``. :mod:`eef.agents.actions` reads the
answers.
"""

from __future__ import annotations

from eef.agents.chat import OBSERVATION, Chat
from eef.envs import TextEnv
from eef.envs.extras import extras_of
from eef.trajectory import TASK, Trajectory

STOP = "\nObservation:"  # where a model begins to invent the next page
Message = dict[str, str]


def user_message(text: str) -> Message:
    return {"role": "user", "content": text}


def agent_message(text: str) -> Message:
    return {"role": "assistant", "content": text or "(nothing)"}  # some servers refuse an empty message


def page_message(observation: str) -> Message:
    """A page after an action."""
    return user_message(f"{OBSERVATION}{observation}")


def first_page_message(prompt: str) -> Message:
    """The subtask's first page."""
    return user_message(f"{TASK}{prompt}")


def opening(env: TextEnv | str, example: Trajectory | None = None) -> list[Message]:
    """The messages before a subtask's first page, in an environment or in one by name.

    ``example`` is shown with the thoughts that the environment's extras write. ValueError for an environment without
    instructions.
    """
    extras = extras_of(env)
    if not extras.instructions:
        name = env if isinstance(env, str) else env.name
        raise ValueError(
            f"prompt='react' needs instructions for the environment {name!r}: write them to instructions.txt in its "
            "folder, and pass them as Extras.instructions (eef/envs/extras.py)"
        )
    named = isinstance(env, str)
    words = extras.instructions if named else extras.instructions_in(env, extras.instructions)
    messages = [user_message(words), agent_message("OK")]
    if example is not None:
        page = user_message(f"First an example.\n\n{example.prompt}")
        for turn in example.turns:  # the page after the last action is left out
            answer = f"Thought: {extras.thought(turn.action)}\nAction: {turn.action}"
            messages += [page, agent_message(answer)]
            page = page_message(turn.observation)
    return messages


def react_chat(chat: Chat, env: TextEnv | str, example: Trajectory | None = None) -> Chat:
    """``chat`` with the opening of an environment and ReAct answers."""
    texts = [message["content"] for message in opening(env, example)]
    return chat.with_opening(list(zip(texts[::2], texts[1::2], strict=True)))
