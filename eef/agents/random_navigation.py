"""Random navigation: cheap exploration, against which the value of expert states can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from eef.envs import TextEnv, action_texts, actions_now
from eef.envs.extras import Skill, extras_of, uses


@dataclass(frozen=True)
class RandomNavigation:
    """With ``probability``, a turn's action is a uniformly random available action that uses one of ``skills``.

    If no such action is available, the policy acts. A random action carries loss like the policy's own.
    """

    probability: float
    skills: tuple[Skill, ...]

    @classmethod
    def of(cls, env: TextEnv, probability: float) -> Self | None:
        """With the navigation skills of ``env``; None if ``probability`` is 0. ValueError if it has no skills."""
        skills = tuple(extras_of(env).skills.values())
        if probability and not skills:
            raise ValueError(
                f"random_navigation={probability:g} needs navigation skills, and the environment {env.name!r} has "
                "none: add them to its Extras (eef/envs/extras.py), or leave the option out"
            )
        return cls(probability, skills) if probability else None

    def draw(self, stream: np.random.Generator, env: TextEnv) -> str | None:
        """The random action of the next turn; None if the policy acts. EnvError if the environment fails."""
        if stream.random() >= self.probability:
            return None
        actions = dict.fromkeys(action_texts(actions_now(env)))
        navigation = [action for action in actions if any(uses(action, skill) for skill in self.skills)]
        return navigation[stream.integers(len(navigation))] if navigation else None
