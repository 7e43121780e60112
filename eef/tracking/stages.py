"""The key of a stage, computed from what the stage receives.

A stage is a function ``body(inputs, ...)`` of one dataclass, and it reads nothing else. Its result depends on the
fields of ``inputs``, on the code of the body, of the environment and of functions among the inputs, and on the
libraries that this code uses. All of these enter the key, so nothing is listed by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import isfunction
from pathlib import Path
from typing import Any

from eef.files import digest
from eef.tracking.keys import code_key, path_key, source_modules

# Declares the settings, whose values are in the keys. A new help text or check must not make stages anew.
_DECLARATIONS = frozenset({"eef.settings"})


def stage_key(body: Callable[..., Any], inputs: Any) -> dict[str, Any]:
    """The key of the stage that ``body`` makes from the dataclass ``inputs``: ``inputs`` and ``code``."""
    return {"inputs": key_of(inputs), "code": _code_key(body.__module__, *_environment_modules(inputs))}


def key_of(value: Any) -> Any:
    """The part of a key that represents ``value``.

    - dataclass: its fields. Field metadata may hold ``key``: a function that maps the value to its key, or None to
      leave the field out. With ``argument``, the name of the Trainer's argument that takes the value, the key holds
      that name as well. With ``key_at_default`` None, the field is left out while it has its default, so that a field
      that is added later does not change the keys of stages that do not use it.
    - environment: its class, ``state_key()`` and ``max_steps``
    - module-level function: its qualified name, and the code of its module with what that imports
    - folder of an earlier stage: its name, which contains its key
    - any other path: its contents
    - sequence of dataclasses (trajectories, examples, starts): one hash of all of them
    - numbers, strings, None, and lists and dictionaries of the above

    TypeError for anything else, since a stage must not depend on a value that its key does not cover.
    """
    if hasattr(value, "state_key"):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"class": kind, "state": key_of(value.state_key()), "max_steps": value.max_steps}
    if isfunction(value):
        if "<" in value.__qualname__:  # a lambda or a nested function, whose closure is not in its code
            raise TypeError(f"{value.__qualname__} cannot enter a stage: define the function at module level")
        return {"function": f"{value.__module__}.{value.__qualname__}", "code": _code_key(value.__module__)}
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: key for each in fields(value) if (key := _field_key(each, value)) is not _LEFT_OUT}
    if isinstance(value, Path):
        return value.name if (value / "stage.json").is_file() else path_key(value)
    if isinstance(value, Mapping):
        return {str(name): key_of(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        keys = [key_of(item) for item in value]
        return digest(keys) if any(map(is_dataclass, _flat(value))) else keys
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot enter a stage: its key would equal that of None")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{type(value).__name__} cannot enter a stage: use numbers, strings, dataclasses, module-level functions or an "
        "environment"
    )


def _code_key(*modules: str) -> dict[str, Any]:
    return code_key(*modules, skip=_DECLARATIONS)


_LEFT_OUT = object()


def _field_key(each: Any, owner: Any) -> Any:
    value = getattr(owner, each.name)
    if "key_at_default" in each.metadata and value == each.default:
        return _LEFT_OUT
    if "argument" in each.metadata:
        return {each.metadata["argument"]: key_of(value)}
    if "key" not in each.metadata:
        return key_of(value)
    return _LEFT_OUT if each.metadata["key"] is None else each.metadata["key"](value)


def _flat(value: Any) -> Iterator[Any]:
    for item in value:
        if isinstance(item, (list, tuple)):
            yield from _flat(item)
        else:
            yield item


def _environment_modules(inputs: Any) -> list[str]:
    """The modules of the environments among the inputs, and of the environments that these wrap."""
    waiting = [getattr(inputs, each.name) for each in fields(inputs)]
    modules: list[str] = []
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (list, tuple, dict)) and len(value) <= 100:  # skips long lists of trajectories
            waiting += value.values() if isinstance(value, dict) else value
        if not hasattr(value, "state_key"):
            continue
        modules += source_modules(type(value))
        waiting += vars(value).values()
    return sorted(set(modules))
