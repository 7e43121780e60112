"""What WebShop brings beside the protocol (:class:`eef.envs.extras.Extras`)."""

from __future__ import annotations

from pathlib import Path

from eef.envs.extras import Extras
from eef.envs.webshop.aliases import Aliases

EXTRAS = Extras(
    instructions=Path(__file__).with_name("instructions.txt").read_text(encoding="utf-8").strip(),
    skills={
        "next": r"click\[next >\]",
        "prev": r"click\[< prev\]",
        "back": r"click\[back to search\]",
    },
    aliases=Aliases,
    parts=lambda observation: observation.split(" [SEP] "),
)
