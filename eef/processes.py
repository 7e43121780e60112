"""What every process that we start needs."""

from __future__ import annotations

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a forked child must not load libraries


def end_with_parent() -> None:
    """On Linux a child is ended when its parent is killed outright, so that a restart does not meet its orphans."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def enough_gpus(processes: int) -> None:
    """ValueError for more processes than GPUs, where there are GPUs."""
    import torch  # heavy, and the command line needs only the function above

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ValueError(f"processes={processes}, but there are {torch.cuda.device_count()} GPUs: one process for each")
