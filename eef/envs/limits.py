"""The largest number of turns in an episode of a subtask."""

from __future__ import annotations

from eef.envs import ProtocolError, TextEnv


def step_limit(env: TextEnv, task: str, most: int | None = None) -> int:
    """``env.max_steps_of(task)`` if the environment has this method, but at most ``most`` (default ``env.max_steps``).

    :class:`ProtocolError` if the method does not return a positive integer.
    """
    limit = env.max_steps if most is None else most
    if not hasattr(env, "max_steps_of"):
        return limit
    steps = env.max_steps_of(task)
    if type(steps) is not int or steps < 1:
        call = f"{type(env).__name__}.max_steps_of({task!r})"
        raise ProtocolError(f"{call} returned {steps!r}: return a positive integer")
    return min(limit, steps)
