"""ScienceWorld on the command line (see :mod:`eef.envs`)."""

from __future__ import annotations

from typing import Any


def collect_defaults(concurrency: int) -> dict[str, Any]:
    """One simulator process per concurrent episode."""
    return {"processes": concurrency}


def check_defaults() -> dict[str, Any]:
    """No cache, so that replays test the simulator."""
    return {"cached_states": 0}
