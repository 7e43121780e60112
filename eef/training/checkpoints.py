"""Checkpoints from which a killed training resumes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from eef.training.ranks import is_main_process, wait_for_everyone, world_size

_COMPLETE = "whole.pt"  # in a complete checkpoint: the random state at the start of its epoch


class Checkpoints(TrainerCallback):
    """Checkpoints in ``folder``, at most one in ``seconds``. Each is marked when it is complete; only the last is kept.

    They are written at logged steps only, so that each logged loss is the mean over all of its steps. ``last`` is the
    checkpoint to resume from, or None.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds, self.saved_at = folder, seconds, time.monotonic()
        markers = list(folder.glob(f"checkpoint-*/{_COMPLETE}"))
        last = max(markers, key=lambda path: int(path.parent.name.split("-")[1]), default=None)
        self.last = last.parent if last else None
        self.random_state = torch.load(last, weights_only=True) if last else None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.random_state is not None and self.last is not None:  # the epoch's order of rows is drawn from it
            torch.set_rng_state(self.random_state)
            self.last = None
        self.random_state = torch.get_rng_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_log and state.global_step < state.max_steps:
            due = [time.monotonic() - self.saved_at >= self.seconds]
            control.should_save = bool(broadcast_object_list(due)[0]) if world_size() > 1 else due[0]

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for_everyone()  # every process has written its random state
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        if is_main_process():
            epoch_start = torch.get_rng_state() if float(state.epoch).is_integer() else self.random_state
            torch.save(epoch_start, checkpoint / f".{_COMPLETE}")
            os.replace(checkpoint / f".{_COMPLETE}", checkpoint / _COMPLETE)
            for other in self.folder.glob("checkpoint-*"):
                if other != checkpoint:
                    shutil.rmtree(other)
        wait_for_everyone()
        self.saved_at = time.monotonic()


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints in ``folder``."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
