"""The types of ScienceWorld's options, which are checked before a simulator starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def check_options(**options: Any) -> None:
    """ValueError for an option of a wrong type or out of range. Names of tasks and keywords are checked later."""
    for name, value in options.items():
        fits, wanted = _RULES[name]
        if not fits(value):
            raise ValueError(f"{name} must {wanted}, not {value!r}")


def _is_names(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, Sequence) and bool(texts) and all(isinstance(text, str) for text in texts)


def _is_integer(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tasks": (_is_names, "name at least one task, in a list of texts or as one text, or be 'all'"),
    "simplification": (_is(str), "be one text, with commas between the keywords"),
    "split": (_is(str, Path), "be 'simulator' or a folder with ETO's index files"),
    "variations": (_is(Mapping, type(None)), "give numbers by split, such as {train: 20, test: 12}"),
    "valid_actions": (_is(bool), "be true or false"),
    "cached_states": (_is_integer(0), "be an integer of at least 0"),
    "processes": (_is_integer(1), "be an integer of at least 1"),
    "java": (_is(str, Path, type(None)), "be the path of a Java program"),
    "heap": (_is_integer(1), "be an integer of at least 1, in MB"),
    "timeout": (lambda value: type(value) in (int, float) and value > 0, "be a number of seconds above 0"),
}
