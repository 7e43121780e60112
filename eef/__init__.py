"""eef: tuning LLM agents on their experts' failures (arXiv 2504.13145).

The names in ``__all__`` are imported when they are first used, so that ``import eef`` stays fast.
"""

import logging
import warnings
from importlib import import_module
from typing import Any

# Libraries log these on every import; a reader of a notebook can change nothing about them.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)

_MODULES = {
    "make_env": "eef.envs",
    "restore": "eef.envs",
    "select": "eef.selection",
    "Start": "eef.rollout",
    "simulate": "eef.rollout",
    "Policy": "eef.agents.policy",
    "Settings": "eef.settings",
}
__all__ = ["Policy", "Settings", "Start", "make_env", "restore", "select", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'eef' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
