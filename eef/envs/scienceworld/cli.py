"""ScienceWorld on the command line (see :mod:`eef.envs`)."""

from __future__ import annotations

import argparse
from typing import Any


def collect_defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    """One simulator process per concurrent episode."""
    return {"processes": arguments.concurrency}
