"""What ScienceWorld adds to the protocol (:class:`eef.envs.extras.Extras`)."""

from __future__ import annotations

from pathlib import Path

from eef.envs.extras import Extras, ScriptedExperts
from eef.envs.scienceworld.expert import STRONG, WEAK, LapseNoise, play_expert

EXTRAS = Extras(
    instructions=Path(__file__).with_name("instructions.txt").read_text(encoding="utf-8").strip(),
    groups=lambda env, tasks: {task: task.rpartition("/")[0] for task in tasks},
    experts=ScriptedExperts(play_expert, {"strong": STRONG, "weak": WEAK}, perfect=LapseNoise()),
)
