"""The processes that train together, as their launcher (``accelerate launch``, torchrun) numbers them."""

from __future__ import annotations

import os

import torch


def world_size() -> int:
    """The number of processes that train together: 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes files and reports steps."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_everyone() -> None:
    """Block until all processes have called this."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
