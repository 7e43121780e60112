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


def _next_step(action: str) -> str:
    return f"The next step towards what the task asks for is to {action}."


def _no_note(action: str, observation: str) -> str:
    return ""


@dataclass(frozen=True)
class Skill:
    """A navigation skill (paper, Figure 2): an action that begins with ``pattern``, in any case, uses it.

    ``pattern`` is a regular expression, ``label`` the skill's name in figures. A run's summary counts the skills of one
    ``kind`` together, as ``wins_KIND``.
    """

    pattern: str
    label: str
    kind: str


@dataclass(frozen=True)
class ScriptedExperts:
    """Experts that play by rules and err by chance.

    ``play(env, task, noise, seed)`` plays one episode, and leaves ``env`` at its end. ``noise`` maps the name of each
    expert (``strong``) to a dataclass of its error rates; ``perfect`` is the noise of one that never errs.
    """

    play: Callable[[Any, str, Any, int], Trajectory]
    noise: Mapping[str, Any]
    perfect: Any


@dataclass(frozen=True)
class Extras:
    """What the rest of the package asks an environment for; every field has a default.

    ``instructions``: what a ReAct conversation begins with. ``thought(action)``: what a scripted expert would say
    before an action, in the one-shot example. ``skills``: navigation skills by name; Figure 2 draws the first as its
    main bar. ``groups(env, tasks)``: the group of each subtask (such as a difficulty grade) that win rates are also
    reported for, or None. ``parts(observation)``: the parts of an observation, which a view shows one by one.
    ``goal(observation)``: what the first observation asks for, the heading of Figure 1. ``note(action, observation)``:
    what Figure 1 writes beside an action, such as the title of the product that it opens; ``observation`` is the one
    before the action. ``experts``: scripted experts. ``aliases``: how words become symbols for a policy with a small
    vocabulary, a class with the methods of :class:`eef.envs.webshop.aliases.Aliases`.
    """

    instructions: str = ""
    thought: Callable[[str], str] = _next_step
    skills: Mapping[str, Skill] = field(default_factory=dict)
    groups: Callable[[Any, Sequence[str]], dict[str, str] | None] = lambda env, tasks: None
    parts: Callable[[str], list[str]] = _whole
    goal: Callable[[str], str] = str
    note: Callable[[str, str], str] = _no_note
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
