"""Helpers for child processes."""

from __future__ import annotations

import ctypes
import signal
import sys

_LIBC = (
    ctypes.CDLL(None) if sys.platform == "linux" else None
)  # loaded at import, because a forked child must not load libraries


def end_with_parent() -> None:
    """On Linux, end this process when its parent is killed, so that no orphans are left."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def check_gpu_count(processes: int) -> None:
    """ValueError for more processes than GPUs. Without a GPU any number is allowed."""
    import torch  # imported here because it is slow and end_with_parent does not need it

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ValueError(
            f"processes={processes}, but there are {torch.cuda.device_count()} GPUs: use at most one per GPU"
        )
