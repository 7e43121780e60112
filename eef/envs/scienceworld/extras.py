"""What ScienceWorld brings beside the protocol (:class:`eef.envs.extras.Extras`)."""

from __future__ import annotations

from pathlib import Path

from eef.envs.extras import Extras

EXTRAS = Extras(
    instructions=Path(__file__).with_name("instructions.txt").read_text(encoding="utf-8").strip(),
    groups=lambda env, tasks: {task: task.rpartition("/")[0] for task in tasks},
)
