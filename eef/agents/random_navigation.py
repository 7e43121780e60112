"""Random navigation: cheap exploration, against which the value of expert states can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eef.agents.actions import uses
from eef.envs import TextEnv, action_texts, actions_now

if TYPE_CHECKING:  # the code of extras changes no simulation
    from eef.envs.extras import Skill


@dataclass(frozen=True)
class RandomNavigation:
    """With ``probability``, a turn's action is a uniformly random available action that uses one of ``skills``.

    The skills are those of the environment (:func:`eef.envs.extras.navigation_skills`). If no such action is available,
    the policy acts. A random action carries loss like the policy's own.
    """

    probability: float
    skills: tuple[Skill, ...]

    def draw(self, stream: np.random.Generator, env: TextEnv, task: str) -> str | None:
        """The random action of the next turn; None if the policy acts. EnvError if the environment fails."""
        if stream.random() >= self.probability:
            return None
        actions = dict.fromkeys(action_texts(actions_now(env, task)))
        navigation = [action for action in actions if any(uses(action, skill) for skill in self.skills)]
        return navigation[stream.integers(len(navigation))] if navigation else None
