"""Former names of parameters, which sweep files and ``-p`` may still use (``RENAMED`` in :mod:`eef.settings`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from eef.settings import RENAMED


def former_names(names: Iterable[str]) -> bool:
    """Whether one of ``names``, or the part before its first dot, is a former name."""
    return any(name.partition(".")[0] in RENAMED for name in names)


def replacements(declared: Collection[str]) -> dict[str, str]:
    """Former name -> current name, for each renamed parameter of a notebook that declares ``declared``.

    A notebook that still declares a former name keeps it.
    """
    return {old: new for old, new in RENAMED.items() if new in declared and old not in declared}


def rename_keys(values: Mapping[str, Any], current: Mapping[str, str], where: str) -> dict[str, Any]:
    """``values`` under current names, in the same order. Raises ValueError if both names of a parameter are set."""
    for old, new in current.items():
        if old in values and new in values:
            raise ValueError(f"{where}: {old!r} is the former name of {new!r}, and both are set: keep {new!r}")
    return {current.get(key, key): value for key, value in values.items()}


def rename_path(name: str, current: Mapping[str, str]) -> str:
    """A dotted name, such as ``slips.late``, with the current name of its parameter."""
    first, dot, rest = name.partition(".")
    return f"{current.get(first, first)}{dot}{rest}"


def notices(names: Iterable[str], current: Mapping[str, str], where: str) -> tuple[str, ...]:
    """One message for each former name in ``names``."""
    first = dict.fromkeys(name.partition(".")[0] for name in names)
    return tuple(
        f"{where}: parameter {old!r} is now called {current[old]!r}; the former name still works in this version"
        for old in first
        if old in current
    )
