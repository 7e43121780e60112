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

    A task that cannot be played is ``ungraded``. None for official data.
    """
    return {task: _grade(env, task) for task in tasks} if env.generated else None


def _grade(env: WebShop, task: str) -> str:
    try:
        return grade(play_expert(env, task).actions)
    except EnvError:  # one broken task must not stop the grading of the others
        return "ungraded"


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
    thought=thought,
    skills={
        "next": Skill(r"click\[next >\]", "Next", "paging"),
        "prev": Skill(r"click\[< prev\]", "Prev", "paging"),
        "back": Skill(r"click\[back to search\]", "Back to Search", "back"),
    },
    groups=grades,
    contents=contents,
    aliases=Aliases,
    parts=lambda observation: observation.split(" [SEP] "),
    experts=ScriptedExperts(play_expert, {"strong": STRONG, "weak": WEAK}, perfect=ShopperNoise()),
    goal=goal,
    note=product_title,
)
