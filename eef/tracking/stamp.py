"""The stamp of a run: where it came from. Commit, versions, machine, and hashes that say which runs are comparable."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eef.files import PACKAGE, plain
from eef.tracking.keys import LIBRARIES


def stamp(env_stamp: Mapping[str, Any], chat_hash: str) -> dict[str, Any]:
    """The contents of ``stamp.json``. Two runs may be compared if their ``hashes`` are equal.

    ``hashes`` are those of the environment's ``stamp()`` and the hash of the chat format.
    """
    top = _git("rev-parse", "--show-toplevel")
    own_repository = top is not None and Path(top).resolve() == PACKAGE.parent  # not one around a virtual environment
    changes = _git("status", "--porcelain") if own_repository else None
    torch = sys.modules.get("torch")  # not imported only for the stamp
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch else []
    return {
        "commit": (_git("rev-parse", "HEAD") if own_repository else None) or "unknown",
        "dirty": None if changes is None else bool(changes),
        "versions": installed_versions(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpus[0].name if gpus else None,
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
        "cuda": torch.version.cuda if torch and gpus else None,
        "hashes": {**plain(env_stamp), "chat": chat_hash},
    }


@cache
def installed_versions() -> dict[str, str]:
    """The installed versions of Python and of the libraries that results may depend on, local parts included."""
    versions = {"python": platform.python_version()}
    for name in ("eef", *LIBRARIES, "papermill", "wandb"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def machine() -> dict[str, Any]:
    """The device and the number of threads: they change the last bits of sums, but are not part of a stage's key."""
    torch = sys.modules.get("torch")  # a stage without torch computes nothing on a device
    if torch is None:
        return {}
    return {"device": "cuda" if torch.cuda.is_available() else "cpu", "threads": torch.get_num_threads()}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


@cache
def _cpu() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match.group(1) if match else platform.processor() or platform.machine()
