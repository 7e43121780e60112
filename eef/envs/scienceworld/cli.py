"""ScienceWorld on the command line (see :mod:`eef.envs`)."""

from __future__ import annotations

import argparse
from typing import Any


def collect_defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each episode at a time takes its own simulator process."""
    return {"processes": arguments.concurrency}
