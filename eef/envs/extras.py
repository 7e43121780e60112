"""Optional parts of an environment: skills, grades, scripted experts, instructions, views.

An environment in :data:`eef.envs.ENVIRONMENTS` has a module ``extras`` in its folder, with an :class:`Extras` called
``EXTRAS``. Any other environment may have an attribute ``extras``. Everything is optional.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, Self

from eef.envs import ENVIRONMENTS, EnvError, ProtocolError, TextEnv
from eef.envs.errors import describe

if TYPE_CHECKING:
    from eef.trajectory import Trajectory


def _whole(observation: str) -> list[str]:
    return [observation]


def next_step(action: str) -> str:
    """The thought before ``action`` for an environment without sentences of its own."""
    return f"The next step towards what the task asks for is to {action}."


def _subtask(env: Any, task: str) -> dict[str, Any]:
    return {"subtask": task}


def _no_note(action: str, observation: str) -> str:
    return ""


@dataclass(frozen=True)
class Skill:
    """A navigation skill (paper, Figure 2): an action that begins with ``pattern``, in any case, uses it.

    ``pattern`` is a regular expression, ``label`` the skill's name in figures. A run's summary counts the skills of one
    ``kind`` together, as ``wins_KIND``. ValueError if ``pattern`` is not valid.
    """

    pattern: str
    label: str
    kind: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"skill {self.label!r}: the pattern {self.pattern!r} is not a valid regular expression ({error}): "
                "write a backslash before [ ] ( ) ? * + . |, as in r'click\\[next >\\]'"
            ) from None


@dataclass(frozen=True)
class ScriptedExperts:
    """Experts that play by rules and make random mistakes.

    ``play(env, task, noise, seed)`` plays one episode and returns it; equal arguments must give an equal trajectory. It
    may leave ``env`` in any state. ``noise`` maps the name of each expert (such as ``strong``) to a dataclass of its
    error rates, and ``perfect`` contains the rates of an expert without errors. ``play`` must be a module-level
    function, since the code of its module is part of the key of the expert trajectories.
    """

    play: Callable[[Any, str, Any, int], Trajectory]
    noise: Mapping[str, Any]
    perfect: Any


def play_scripted(experts: ScriptedExperts, env: TextEnv, task: str, noise: Any, seed: int) -> Trajectory:
    """An episode of a scripted expert. EnvError as the environment raises it, ProtocolError for other errors."""
    try:
        return experts.play(env, task, noise, seed)
    except (EnvError, ProtocolError):
        raise
    except Exception as error:
        name = f"{experts.play.__module__}.{experts.play.__qualname__}"
        raise ProtocolError(f"the scripted expert {name} failed on task {task!r}: {describe(error)}") from error


class WordAliases(Protocol):
    """The symbols of one conversation, for a policy whose ``vocabulary`` has few words."""

    def __init__(self, vocabulary: frozenset[str]) -> None: ...

    def copy(self) -> Self:
        """The same state, independent from now on."""
        ...

    def encode(self, text: str, prompt: bool = False) -> str:
        """An observation as symbols separated by blanks. ``prompt``: it is the subtask's first page."""
        ...

    def encode_action(self, action: str) -> str: ...

    def decode_action(self, text: str) -> str:
        """The inverse of :meth:`encode_action`."""
        ...


@dataclass(frozen=True)
class Extras:
    """The optional parts; every field has a default.

    ``instructions``: the first message of a ReAct conversation. ``instructions_in(env, instructions)``: the same for
    the options of ``env``, such as the form of its pages. ``thought(action)``: the sentence before an action in
    the one-shot example, which a scripted expert plays. ``skills``: navigation skills by name; results tables get one
    column per skill, and Figure 2 draws the first as its main bar. ``groups(env, tasks)``: a group for each task, such
    as a difficulty grade, or None; win rates are also reported per group. ``parts(observation)``: the parts of an
    observation, which views show one by one. ``goal(observation)``: what the first observation asks for, the heading of
    Figure 1. ``note(action, observation)``: what Figure 1 writes beside an action, such as the title of the product
    that it opens; ``observation`` is the one before the action. ``contents(env, task)``: what a subtask is made of, by
    name, such as its goal and its product; what training and test subtasks share is counted by it. ``experts``:
    scripted experts. ``aliases``: a class of
    the protocol :class:`WordAliases`, which replaces words by symbols, for a policy with a small vocabulary.
    """

    instructions: str = ""
    thought: Callable[[str], str] = next_step
    skills: Mapping[str, Skill] = field(default_factory=dict)
    groups: Callable[[Any, Sequence[str]], dict[str, str] | None] = lambda env, tasks: None
    parts: Callable[[str], list[str]] = _whole
    goal: Callable[[str], str] = str
    note: Callable[[str, str], str] = _no_note
    contents: Callable[[Any, str], Mapping[str, Any]] = _subtask
    experts: ScriptedExperts | None = None
    aliases: type[WordAliases] | None = None
    instructions_in: Callable[[Any, str], str] = lambda env, text: text


def extras_of(env: TextEnv | str) -> Extras:
    """The extras of an environment, or of the one with that name; the defaults if it has none."""
    if not isinstance(env, str) and hasattr(env, "extras"):
        return env.extras
    name = env if isinstance(env, str) else env.name
    if name not in ENVIRONMENTS or find_spec(f"eef.envs.{name}.extras") is None:
        return Extras()
    extras: Extras = import_module(f"eef.envs.{name}.extras").EXTRAS
    return extras


def navigation_skills(env: TextEnv, random_navigation: float) -> tuple[Skill, ...]:
    """The skills of ``env`` if ``random_navigation``, a probability, is not 0. ValueError if ``env`` has none."""
    skills = tuple(extras_of(env).skills.values()) if random_navigation else ()
    if random_navigation and not skills:
        raise ValueError(
            f"random_navigation={random_navigation:g} needs navigation skills, and the environment {env.name!r} has "
            "none: add them to its Extras (eef/envs/extras.py), or leave the option out"
        )
    return skills
