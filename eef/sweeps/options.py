"""A sweep's parameters that are options of methods.

They are known for a notebook whose parameter ``method`` has the comment ``# name of a method``: the names are those of
:data:`eef.methods.METHODS`, and a method's options are the parameters of its function. So adding a method takes its
function and its line in ``METHODS``; the notebook need not declare its options.

An option reaches the methods that have it:

- an option in ``points`` or ``grid`` is set for its points: an error if the method of one of them lacks it;
- an option in ``parameters`` or ``-p`` is for the whole sweep: points whose method lacks it do not get it; an error if
  no method of the sweep has it;
- a default of the notebook reaches the methods that have the option, and is ignored otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any


def names_methods(known: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether the declared parameters ``known`` include a ``method`` that names one of ``METHODS``."""
    return re.match(r"name of a method\b", known.get("method", {}).get("help", "").strip("# ")) is not None


def undeclared(known: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The options of methods that a notebook does not declare, in the form of its declared parameters."""
    if not names_methods(known):
        return {}
    return {
        name: {"default": repr(default), "help": ""}
        for method in _methods().values()
        for name, default in method.items()
        if name not in known
    }


def for_points(
    known: Mapping[str, Mapping[str, str]], default: Any, points: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The parameters of each point. ``points`` holds those of the whole sweep and those of the point itself.

    ``default`` is the notebook's method. ValueError for an option that is refused. Points with an unknown method are
    not changed.
    """
    if not names_methods(known):
        return [{**shared, **own} for shared, own in points]
    methods = _methods()
    every = {name for options in methods.values() for name in options}
    parameters, used, unused = [], set[str](), dict[str, str]()
    for shared, own in points:
        method = {**shared, **own}.get("method", default)
        lacking = every - set(methods[method]) if isinstance(method, str) and method in methods else set()
        if bad := [name for name in own if name in lacking]:
            raise ValueError(_problem(method, bad[0]))
        used |= {name for name in shared if name not in lacking}
        unused |= {name: method for name in shared if name in lacking}
        usable = {name: value for name, value in shared.items() if name not in lacking}
        parameters.append({**usable, **own})
    if wrong := [name for name in unused if name not in used]:
        raise ValueError(f"no method of this sweep has the option {wrong[0]!r}; {_problem(unused[wrong[0]], wrong[0])}")
    return parameters


def _methods() -> dict[str, dict[str, Any]]:
    """The options of each method. A name that is also a setting is a setting."""
    from eef.methods import METHODS, method_options
    from eef.settings import Settings

    settings = {each.name for each in fields(Settings)}
    return {
        method: {name: default for name, default in method_options(method).items() if name not in settings}
        for method in METHODS
    }


def _problem(method: str, option: str) -> str:
    from eef.methods import option_problem

    return option_problem(method, option)
