"""What WebShop adds to the protocol (:class:`eef.envs.extras.Extras`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eef.envs import EnvError
from eef.envs.extras import Extras, ScriptedExperts, Skill, next_step
from eef.envs.webshop.aliases import Aliases
from eef.envs.webshop.embedded import grade
from eef.envs.webshop.shopper import STRONG, WEAK, ShopperNoise, play_expert

if TYPE_CHECKING:
    from eef.envs.webshop import WebShop

_GRADING_STEPS = 100  # perfect play of the default catalogue needs at most 15
_RICH = {  # sentences of the instructions, and what is true of pages of the mode text_rich
    "its parts separated by [SEP].": "each part on a line of its own, and names of what you can press between [button] "
    "and [button_].",
    "The page does not show which options you have chosen.": "The options that you have chosen are between "
    "[clicked button] and [clicked button_].",
}
_THOUGHTS = {
    "buy now": "This is the product, and all that was asked for is chosen, so I buy it.",
    "next >": "None of these fits, so I turn to the next page.",
    "< prev": "This is not what I need, so I go back.",
    "back to search": "I had better search again.",
}


def thought(action: str) -> str:
    """What the scripted expert says before ``action`` in the one-shot example."""
    name, _, inside = action.partition("[")
    inside = inside.rstrip("]")
    if name == "search":
        return "I look for what the instruction names."
    if name != "click":
        return next_step(action)
    return _THOUGHTS.get(inside, f"The instruction leads to {inside} here, so I click it.")


def grades(env: WebShop, tasks: Sequence[str]) -> dict[str, str] | None:
    """``easy``, ``medium`` or ``hard`` for each task of a generated catalogue, by the moves that perfect play needs.

    Neither the step limit nor the form of pages changes a grade. A task that perfect play does not win is ``ungraded``.
    None for official data.
    """
    if not env.generated:
        return None
    env = env.fork()
    env.max_steps = max(env.max_steps, _GRADING_STEPS)
    return {task: _grade(env, task) for task in tasks}


def _grade(env: WebShop, task: str) -> str:
    try:
        played = play_expert(env, task)
        return grade(played.actions) if played.won else "ungraded"
    except EnvError:  # one broken task must not stop the grading of the others
        return "ungraded"


def instructions_in(env: WebShop, text: str) -> str:
    """The instructions ``text`` for the form of ``env``'s pages."""
    for sentence, other in _RICH.items() if env.observation == "text_rich" else ():
        text = text.replace(sentence, other)
    return text


def parts(observation: str) -> list[str]:
    """The parts of a page of either form: between [SEP], or lines."""
    if " [SEP] " in observation:
        return observation.split(" [SEP] ")
    return [line for line in observation.split("\n") if line] or [observation]


def contents(env: WebShop, task: str) -> dict[str, Any]:
    """The goal of a task without its drawn price cap, and the product that the goal was written for."""
    wanted = env.shop.goals[int(task)]
    return {"goal": wanted.content, "product": wanted.asin}


def goal(observation: str) -> str:
    """The instruction on the first page."""
    match = re.search(r"Instruction:\s*(?:\[SEP\])?\s*(.+?)\s*(?:\[SEP\]|\n|$)", observation)
    return match.group(1) if match else observation


def product_title(action: str, observation: str) -> str:
    """The title that a page of results gives for the product that ``action`` opens; empty for any other action."""
    clicked = re.fullmatch(r"click\[(\w{10})\]", action.strip(), re.IGNORECASE)
    parts = [re.sub(r"\[/?[\w ]*button_?\]", "", part).strip() for part in re.split(r"\[SEP\]|\n", observation)]
    parts = [part for part in parts if part]
    at = [place for place, part in enumerate(parts[:-1]) if clicked and part.lower() == clicked.group(1).lower()]
    return parts[at[0] + 1] if at else ""


EXTRAS = Extras(
    instructions=Path(__file__).with_name("instructions.txt").read_text(encoding="utf-8").strip(),
    instructions_in=instructions_in,
    thought=thought,
    skills={
        "next": Skill(r"click\[next >\]", "Next", "paging"),
        "prev": Skill(r"click\[< prev\]", "Prev", "paging"),
        "back": Skill(r"click\[back to search\]", "Back to Search", "back"),
    },
    groups=grades,
    contents=contents,
    aliases=Aliases,
    parts=parts,
    experts=ScriptedExperts(play_expert, {"strong": STRONG, "weak": WEAK}, perfect=ShopperNoise()),
    goal=goal,
    note=product_title,
)
