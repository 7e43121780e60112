"""Helpers for child processes."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from typing import Any

SMALL_MODEL = 20_000_000  # parameters; a smaller model is fastest with one thread and two training rows at a time

_LIBC = (
    ctypes.CDLL(None) if sys.platform == "linux" else None
)  # loaded at import, because a forked child must not load libraries


def end_with_parent() -> None:
    """On Linux, end this process when its parent is killed, so that no orphans are left."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def use_threads(model: Any, processes: int = 1) -> None:
    """Set the number of CPU threads of this process by the size of ``model``.

    ``EEF_THREADS`` sets the number. Without it, a model of fewer than ``SMALL_MODEL`` parameters runs in one thread,
    which is fastest and gives the same sums on every machine. A larger model gets this process's share of the cores:
    ``processes`` work on it together, and a sweep runs ``EEF_JOBS`` points at a time.
    """
    import torch  # imported here because it is slow and end_with_parent does not need it

    if (threads := os.environ.get("EEF_THREADS")) is None:
        small = sum(weight.numel() for weight in model.parameters()) < SMALL_MODEL
        sharing = processes * int(os.environ.get("EEF_JOBS", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = "1" if small else str(max(1, cores // sharing))
    torch.set_num_threads(int(threads))


def gpu_ids() -> list[str]:
    """The GPUs of this machine without importing torch: those in ``CUDA_VISIBLE_DEVICES``, or all of ``nvidia-smi``."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in re.split(r"[\s,]+", visible) if name not in ("", "-1")]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return process.stdout.split() if process.returncode == 0 else []


def check_gpu_count(processes: int) -> None:
    """ValueError for more processes than GPUs. Without a GPU any number is allowed."""
    import torch  # imported here because it is slow and end_with_parent does not need it

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ValueError(
            f"processes={processes}, but there are {torch.cuda.device_count()} GPUs: use at most one per GPU"
        )
