"""Trajectories as training rows: token ids and loss masks, and how rows are batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DataCollatorWithFlattening

if TYPE_CHECKING:
    from eef.agents.policy import Policy
    from eef.selection import Example

IGNORE = -100  # transformers leaves tokens with this label out of the loss


@dataclass(frozen=True)
class Row:
    """One conversation: token ids and, for each, whether it carries loss and the weight of its loss (empty: all 1)."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    weights: tuple[float, ...] = ()

    @property
    def item(self) -> dict[str, Any]:
        """The row as :func:`collate` and :func:`flatten` take it."""
        return {"input_ids": self.ids, "mask": self.mask} | ({"weights": self.weights} if self.weights else {})


def rows_of(policy: Policy, examples: Sequence[Example]) -> tuple[list[Row], int]:
    """One training row for each example, and the number of examples dropped because they exceed the context."""
    rows, dropped = [], 0
    for example in examples:
        ids, mask = policy.chat.render(example.trajectory, example.mask)
        if len(ids) > policy.context:
            dropped += 1
        elif any(mask):
            rows.append(Row(tuple(ids), tuple(mask), (example.weight,) * len(ids) if example.weight != 1 else ()))
    return rows, dropped


def merge_prefix_rows(rows: Sequence[Row]) -> list[Row]:
    """Merge rows that are prefixes of other rows into these, with the union of their masks.

    A causal model gives a token the same loss in both, so the gradient of the sum does not change. Rows are merged only
    where their masks are disjoint: a token that a method counts twice stays in two rows. A merged row takes the place
    of the first of its rows.
    """
    order = sorted(range(len(rows)), key=lambda place: rows[place].ids, reverse=True)  # prefixes after longer rows
    merged: list[tuple[Row, int]] = []  # and the place of each
    for place in order:
        row = rows[place]
        at = _longer_row(merged, row)
        if at is None:
            merged.append((row, place))
        else:
            longer, first = merged[at]
            mask = tuple(a or b for a, b in zip(row.mask, longer.mask, strict=False)) + longer.mask[len(row.mask) :]
            merged[at] = (Row(longer.ids, mask, _merged_weights(row, longer)), min(first, place))
    return [row for row, _ in sorted(merged, key=lambda pair: pair[1])]


def _merged_weights(row: Row, longer: Row) -> tuple[float, ...]:
    """Each token's weight is that of the row in which it carries loss."""
    if not (row.weights or longer.weights):
        return ()
    size = len(longer.ids)
    inner, outer = row.weights or (1.0,) * len(row.ids), longer.weights or (1.0,) * size
    return tuple(inner[at] if at < len(row.ids) and row.mask[at] else outer[at] for at in range(size))


def _longer_row(merged: Sequence[tuple[Row, int]], row: Row) -> int | None:
    """Index of the last merged row that begins with ``row`` and has a disjoint mask; all that begin so are last."""
    for at in range(len(merged) - 1, -1, -1):
        longer = merged[at][0]
        if longer.ids[: len(row.ids)] != row.ids:
            return None
        if not any(a and b for a, b in zip(row.mask, longer.mask, strict=False)):
            return at
    return None


def collate(items: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """A batch of rows padded on the right: ``input_ids``, ``attention_mask``, ``labels``, each (rows, longest).

    If a row has weights, there is also ``weights`` (rows, longest), in float32; 1 for rows without.
    """
    longest = max(len(item["input_ids"]) for item in items)
    ids = torch.full((len(items), longest), pad)
    labels = torch.full((len(items), longest), IGNORE)
    attention = torch.zeros((len(items), longest), dtype=torch.long)
    for place, item in enumerate(items):
        row, size = torch.tensor(item["input_ids"]), len(item["input_ids"])
        ids[place, :size] = row
        attention[place, :size] = 1
        labels[place, :size] = _labels(item)
    batch = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    if any("weights" in item for item in items):
        batch["weights"] = torch.ones((len(items), longest))
        for place, item in enumerate(items):
            batch["weights"][place, : len(item["input_ids"])] = _weights(item)
    return batch


def flatten(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of rows in sequence, without padding: ``input_ids``, ``labels``, ``position_ids``, each (1, tokens).

    ``weights`` as in :func:`collate`, (1, tokens). Positions that restart at 0 separate the rows. An attention mask or
    a cache would let them attend to each other.
    """
    rows = [{"input_ids": list(item["input_ids"]), "labels": _labels(item).tolist()} for item in items]
    batch = {**DataCollatorWithFlattening()(rows), "use_cache": False}
    if any("weights" in item for item in items):
        batch["weights"] = torch.cat([_weights(item) for item in items])[None]
    return batch


def _weights(item: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(item["weights"]) if "weights" in item else torch.ones(len(item["input_ids"]))


def _labels(item: dict[str, Any]) -> torch.Tensor:
    return torch.where(torch.tensor(item["mask"]), torch.tensor(item["input_ids"]), IGNORE)
