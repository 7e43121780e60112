"""Keys and values of many conversations in one tensor per layer, and how much memory they may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers.cache_utils import DynamicLayer

STEP = 256  # places by which a cache grows at least
_SHARE = 0.7  # of the free memory; the rest is for activations, logits and copies
_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass
class Plan:
    """Where the next forward pass reads and writes: ``places`` (rows, width) in the rows ``rows``; the last place of
    each row (``room`` - 1) takes what padding writes. ``span``: the same rows where they lie side by side, as a slice,
    which is read where it is; others are copied together. The cache has ``count`` rows."""

    count: int
    room: int = STEP + 1
    rows: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    places: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    span: slice | None = None
    seen: int = 0


class RowLayer(DynamicLayer):
    """Keys and values of all conversations, (rows, heads, room, width); each row is written at its own places."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.plan
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (
                like.new_zeros((plan.count, like.shape[1], plan.room, like.shape[3]))
                for like in (key_states, value_states)
            )
        assert self.keys is not None and self.values is not None
        rows = plan.rows[:, None]
        self.keys[rows, :, plan.places] = key_states.transpose(1, 2)
        self.values[rows, :, plan.places] = value_states.transpose(1, 2)
        held = plan.span if plan.span is not None else plan.rows
        return self.keys[held, :, : plan.seen], self.values[held, :, : plan.seen]

    def resize(self, rows: list[int], count: int, room: int) -> None:
        """Resize to ``count`` rows of ``room`` places. ``rows`` move to the front in this order, others go."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys = _resized(self.keys, rows, count, room)  # one after the other: less memory at once
            self.values = _resized(self.values, rows, count, room)

    def copy(self, source: int, target: int, length: int) -> None:
        if self.is_initialized:  # a layer that uses another one's keys and values is not
            assert self.keys is not None and self.values is not None
            self.keys[target, :, :length] = self.keys[source, :, :length]
            self.values[target, :, :length] = self.values[source, :, :length]


def _resized(old: torch.Tensor, rows: list[int], count: int, room: int) -> torch.Tensor:
    new = old.new_zeros((count, old.shape[1], room, old.shape[3]))
    places = min(old.shape[2], room) - 1  # the last one is for padding
    if rows == list(range(len(rows))):
        new[: len(rows), :, :places] = old[: len(rows), :, :places]
    else:
        for target, source in enumerate(rows):
            new[target, :, :places] = old[source, :, :places]
    return new


def available_memory(device: torch.device) -> int:
    """Bytes that a cache may take: a share of what is free on the GPU, or of the host's memory within its limits."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_SHARE * free)
    free = psutil.virtual_memory().available
    for group, limit, current, cached in _CGROUPS:
        try:
            size, used = (Path(group, name).read_text().strip() for name in (limit, current))
            counts = dict(line.split() for line in Path(group, "memory.stat").read_text().splitlines())
        except OSError:  # no such group on this machine
            continue
        if size.isdigit():
            free = min(free, int(size) - int(used) + int(counts.get(cached, 0)))  # cached files make room
    return int(_SHARE * max(free, 0))
