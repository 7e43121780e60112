"""ScienceWorld on the command line (see :mod:`eef.envs`)."""

from __future__ import annotations

from typing import Any


def collect_defaults(concurrency: int) -> dict[str, Any]:
    """One simulator process per concurrent episode."""
    return {"processes": concurrency}


def check_defaults() -> dict[str, Any]:
    """The simulator computes every step: a known state says nothing about it."""
    return {"remember": 0}
