"""Trajectories as rows to train on: token ids, which of them carry loss, and how rows make a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DataCollatorWithFlattening

if TYPE_CHECKING:
    from eef.agents.policy import Policy
    from eef.selection import Example

IGNORE = -100  # the label that transformers leaves out of the loss


@dataclass(frozen=True)
class Row:
    """One conversation: token ids and, for each, whether it carries loss."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]


def rows_of(policy: Policy, examples: Sequence[Example]) -> tuple[list[Row], int]:
    """Examples as training rows, one each, and how many were dropped because they exceed the policy's context."""
    rows, dropped = [], 0
    for example in examples:
        ids, mask = policy.chat.render(example.trajectory, example.mask)
        if len(ids) > policy.context:
            dropped += 1
        elif any(mask):
            rows.append(Row(tuple(ids), tuple(mask)))
    return rows, dropped


def united(rows: Sequence[Row]) -> list[Row]:
    """Rows of which one's ids begin another's become one row with the union of their masks; the others stay.

    A causal model gives a token the same loss in both, so the gradient of the sum is the same. Only masks that do not
    meet are united: a token that a method counts twice stays in two rows and weighs twice. A union stands where the
    first of its rows stood.
    """
    order = sorted(range(len(rows)), key=lambda place: rows[place].ids, reverse=True)  # a beginning after its ends
    hosts: list[tuple[Row, int]] = []
    for place in order:
        row = rows[place]
        at = _host(hosts, row)
        if at is None:
            hosts.append((row, place))
        else:
            host, earliest = hosts[at]
            mask = tuple(a or b for a, b in zip(row.mask, host.mask, strict=False)) + host.mask[len(row.mask) :]
            hosts[at] = (Row(host.ids, mask), min(earliest, place))
    return [row for row, _ in sorted(hosts, key=lambda pair: pair[1])]


def _host(hosts: Sequence[tuple[Row, int]], row: Row) -> int | None:
    """The last of ``hosts`` that begins with ``row`` and learns none of its tokens; those that begin so are last."""
    for at in range(len(hosts) - 1, -1, -1):
        host = hosts[at][0]
        if host.ids[: len(row.ids)] != row.ids:
            return None
        if not any(a and b for a, b in zip(row.mask, host.mask, strict=False)):
            return at
    return None


def collate(items: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right: ``input_ids``, ``attention_mask``, ``labels``, each (rows, longest)."""
    longest = max(len(item["input_ids"]) for item in items)
    ids = torch.full((len(items), longest), pad)
    labels = torch.full((len(items), longest), IGNORE)
    attention = torch.zeros((len(items), longest), dtype=torch.long)
    for place, item in enumerate(items):
        row, size = torch.tensor(item["input_ids"]), len(item["input_ids"])
        ids[place, :size] = row
        attention[place, :size] = 1
        labels[place, :size] = _labels(item)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def flatten(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows one behind the other without padding: ``input_ids``, ``labels``, ``position_ids``, each (1, tokens).

    What keeps the rows apart is that positions begin anew; an attention mask or a cache would let them see each other.
    """
    rows = [{"input_ids": list(item["input_ids"]), "labels": _labels(item).tolist()} for item in items]
    return {**DataCollatorWithFlattening()(rows), "use_cache": False}


def _labels(item: dict[str, Any]) -> torch.Tensor:
    return torch.where(torch.tensor(item["mask"]), torch.tensor(item["input_ids"]), IGNORE)
