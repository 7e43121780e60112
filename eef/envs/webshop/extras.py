"""What WebShop brings beside the protocol (:class:`eef.envs.extras.Extras`)."""

from __future__ import annotations

import re
from pathlib import Path

from eef.envs.extras import Extras, Skill


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
    skills={
        "next": Skill(r"click\[next >\]", "Next", "paging"),
        "prev": Skill(r"click\[< prev\]", "Prev", "paging"),
        "back": Skill(r"click\[back to search\]", "Back to Search", "back"),
    },
    parts=lambda observation: observation.split(" [SEP] "),
    goal=goal,
    note=product_title,
)
