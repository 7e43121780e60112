"""A KV cache with one row per conversation, and the memory that it may use."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers.cache_utils import DynamicLayer

STEP = 256  # fewest places by which a cache grows
_SHARE = 0.7  # of free memory; the rest is left for activations, logits and copies
_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass
class Plan:
    """Where the next forward pass reads and writes.

    The cache has ``count`` rows with ``room`` places each; padding is written to the last place of a row. The pass
    writes to ``places``, shape (rows, width), of the rows ``rows``, and reads the first ``seen`` places. ``span`` is a
    slice of the same rows if they are adjacent: a slice is read in place, other rows are copied.
    """

    count: int
    room: int = STEP + 1
    rows: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    places: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    span: slice | None = None
    seen: int = 0


class RowLayer(DynamicLayer):
    """Keys and values of one layer, shape (rows, heads, room, head width). Each row is written at its own places."""

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
        read = plan.span if plan.span is not None else plan.rows
        return self.keys[read, :, : plan.seen], self.values[read, :, : plan.seen]

    def resize(self, rows: list[int], count: int, room: int) -> None:
        """Resize to ``count`` rows of ``room`` places. ``rows`` move to the front in this order; others are dropped."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys = _resized(self.keys, rows, count, room)  # one after the other, which needs less memory
            self.values = _resized(self.values, rows, count, room)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` places of row ``source`` to row ``target``."""
        if self.is_initialized:  # not the case for a layer that uses the keys and values of another one
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
    """Bytes that a cache may use: a share of the free memory of the GPU, or of the host within its cgroup's limits."""
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
            free = min(free, int(size) - int(used) + int(counts.get(cached, 0)))  # cached files can be evicted
    return int(_SHARE * max(free, 0))
