"""Errors of environments, and how an error in an environment's own code is shown."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class EnvError(RuntimeError):
    """A failure of the environment itself, such as a dead simulator or a missing file. It never counts as a loss."""


class ReplayDivergence(EnvError):
    """A replayed action led to another observation than the recorded one."""


class ProtocolError(ValueError):
    """An environment does not do what :class:`eef.envs.TextEnv` says. The message names the class and the method."""


@contextmanager
def own_errors(call: str, *passing: type[Exception], instead: str = "") -> Iterator[None]:
    """Turn an error that the environment raises in ``call`` into a :class:`ProtocolError`, which ends with ``instead``.

    The classes ``passing`` and ProtocolError pass.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (ProtocolError, *passing)):
            raise
        raise ProtocolError(f"{call} raised {describe(error)}{instead and ': '}{instead}") from error


def describe(error: BaseException) -> str:
    """An error of an environment's or expert's own code: its type, its message and the line that raised it."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    name = repr(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    hint = ": every step returns Step(..., info={'won': True or False})" if name == "'won'" else ""
    return f"{type(error).__name__}: {name} ({Path(at.filename).name}, line {at.lineno}){hint}"
