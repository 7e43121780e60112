"""What an environment may bring beside the protocol: skills, grades, scripted experts, instructions, views.

Everything here is optional. An environment that :func:`eef.envs.make_env` knows by name has a module ``extras`` in its
folder with an :class:`Extras` called ``EXTRAS``; any other environment may have an attribute ``extras``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from eef.envs import ENVIRONMENTS, TextEnv
from eef.trajectory import Trajectory


def _whole(observation: str) -> list[str]:
    return [observation]


def next_step(action: str) -> str:
    """The thought before ``action`` for an environment without sentences of its own."""
    return f"The next step towards what the task asks for is to {action}."


@dataclass(frozen=True)
class ScriptedExperts:
    """Experts that play by rules and make random mistakes.

    ``play(env, task, noise, seed)`` plays one episode and returns it; equal arguments must give an equal trajectory. It
    may leave ``env`` in any state. ``noise`` maps the name of each expert (such as ``strong``) to a dataclass of its
    error rates, and ``perfect`` holds the rates of an expert that never errs. Define all of them in the module of
    ``play``: its code is part of the key of the expert trajectories.
    """

    play: Callable[[Any, str, Any, int], Trajectory]
    noise: Mapping[str, Any]
    perfect: Any


@dataclass(frozen=True)
class Extras:
    """What the rest of the package asks an environment for; every field has a default.

    ``instructions``: what a ReAct conversation begins with. ``thought(action)``: what a scripted expert would say
    before an action, in the one-shot example. ``skills``: navigation skills (paper, Figure 2), each a name and a
    regular expression of an action. ``groups(env, tasks)``: the group of each subtask (such as a difficulty grade) that
    win rates are also reported for, or None. ``parts(observation)``: the parts of an observation, which a view shows
    one by one. ``experts``: scripted experts. ``aliases``: how words become symbols for a policy with a small
    vocabulary, a class with the methods of :class:`eef.envs.webshop.aliases.Aliases`.
    """

    instructions: str = ""
    thought: Callable[[str], str] = next_step
    skills: Mapping[str, str] = field(default_factory=dict)
    groups: Callable[[Any, Sequence[str]], dict[str, str] | None] = lambda env, tasks: None
    parts: Callable[[str], list[str]] = _whole
    experts: ScriptedExperts | None = None
    aliases: Any = None


def extras_of(env: TextEnv | str) -> Extras:
    """The extras of an environment, or of one by name; the defaults where it brings none."""
    if not isinstance(env, str) and hasattr(env, "extras"):
        return env.extras
    name = env if isinstance(env, str) else env.name
    if name not in ENVIRONMENTS:
        return Extras()
    module = import_module(f"eef.envs.{name}.extras")
    return module.EXTRAS
