"""The rows of each format of ``eef export``, and the files that they are written to.

- ``trl``: ``input_ids`` and ``labels``, the rows that our SFT trains on; TRL's SFTTrainer uses them as they are.
- ``messages``: ``messages`` of ``role`` and ``content``, with the mask under a chosen key.
- ``sharegpt``: ``conversations`` of ``from`` and ``value``, with the mask under a chosen key.
- ``eef``: our JSON Lines, with the mask in ``learn`` of each turn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eef.exchange.conversation import messages_of
from eef.exchange.source import Selected
from eef.experts.lines import line_of
from eef.files import RunError, disk_errors
from eef.selection import Example
from eef.training.rows import IGNORE, merge_prefix_rows, rows_of
from eef.trajectory import Trajectory

# The key of the mask in each message, and its type: Axolotl and AgentGym read booleans, slime and verl compare with 1.
MASK_KEYS: dict[str, type] = {"train": bool, "step_loss_mask": int, "loss": bool, "loss_mask": int}
DEFAULT_KEYS = {"messages": "train", "sharegpt": "loss"}
_COUNTS = ("examples", "rows", "dropped", "tokens", "learnt_tokens")


def trl_rows(selected: Selected) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """The rows that our SFT trains on, and their counts (those of ``sft.json``).

    Each row has ``input_ids`` and ``labels``; labels without loss are -100. Examples beyond the context are dropped,
    and examples that are prefixes of others train in one row with them, as in :func:`eef.training.sft.sft`.
    ValueError without a model or a token with loss, RunError where the counts are not those that training reported.
    """
    if selected.chat is None or selected.context is None:
        raise ValueError("the format trl needs the ids of a model: name it with --model")
    policy: Any = SimpleNamespace(chat=selected.chat, context=selected.context)
    single, dropped = rows_of(policy, selected.examples)
    rows = merge_prefix_rows(single)
    if not rows:
        raise ValueError(
            f"{selected.name}: no token carries loss; {dropped} of {len(selected.examples)} examples exceed the "
            f"context of {selected.context} tokens"
        )
    tokens, learnt = sum(len(row.ids) for row in rows), sum(sum(row.mask) for row in rows)
    counts = dict(zip(_COUNTS, (len(single), len(rows), dropped, tokens, learnt), strict=True))
    differing = [name for name in _COUNTS if selected.report.get(name, counts[name]) != counts[name]]
    if differing:
        raise RunError(
            f"{selected.name}: training reported {differing[0]}={selected.report[differing[0]]}, but its examples now "
            f"give {counts[differing[0]]}: export with the version of eef that made the run (stamp.json has its commit)"
        )
    labels = ([token if learn else IGNORE for token, learn in zip(row.ids, row.mask, strict=True)] for row in rows)
    return [{"input_ids": list(row.ids), "labels": each} for row, each in zip(rows, labels, strict=True)], counts


def message_rows(selected: Selected, key: str) -> Iterator[dict[str, Any]]:
    """One row per example: what is known about the episode, and ``messages`` with ``key`` in each of them."""
    kind = MASK_KEYS[key]
    for example in selected.examples:
        messages = messages_of(selected.chat, example.trajectory, example.mask)
        said = [{"role": each.role, "content": each.content, key: kind(each.learn)} for each in messages]
        yield {**_episode(selected, example.trajectory), "messages": said}


def sharegpt_rows(selected: Selected, key: str) -> Iterator[dict[str, Any]]:
    """As :func:`message_rows`, with ``conversations`` of ``from`` and ``value``. ``item_id`` is for AgentGym."""
    kind, names = MASK_KEYS[key], {"user": "human", "assistant": "gpt"}
    for example in selected.examples:
        messages = messages_of(selected.chat, example.trajectory, example.mask)
        said = [{"from": names[each.role], "value": each.content, key: kind(each.learn)} for each in messages]
        episode = _episode(selected, example.trajectory)
        yield {"item_id": example.trajectory.task, **episode, "conversations": said}


def _episode(selected: Selected, item: Trajectory) -> dict[str, Any]:
    opening = 2 * len(selected.chat.opening) if selected.chat else 0
    end = {"reward": float(item.reward), "won": item.won, "outcome": item.outcome, "prefix": item.prefix}
    return {"task": item.task, "source": item.source, **end, "opening": opening}


def masked(example: Example) -> Trajectory:
    """The trajectory of an example, with its mask in ``learn`` of each turn."""
    turns = [replace(turn, learn=learn) for turn, learn in zip(example.trajectory.turns, example.mask, strict=True)]
    return replace(example.trajectory, turns=tuple(turns))


def write_trajectories(path: Path, trajectories: Iterable[Trajectory]) -> int:
    """Write our JSON Lines, with the version in each line. Returns the number of lines. ValueError for another suffix.

    TrajectoryError for an invalid trajectory. The file is written completely or not at all.
    """
    check_jsonl(path)
    return _write_lines(path, map(line_of, trajectories))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON Lines (``.jsonl``, ``.json``) or parquet (``.parquet``). Returns the number of rows.

    The file is written completely or not at all. ValueError for another suffix.
    """
    check_suffix(path)
    if path.suffix != ".parquet":
        return _write_lines(path, (json.dumps(row) + "\n" for row in rows))
    pyarrow = import_pyarrow(path)
    table = pyarrow.Table.from_pylist(list(rows))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(table, beside)
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return int(table.num_rows)


def check_jsonl(path: Path) -> None:
    """ValueError unless the name is one of our own JSON Lines."""
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: our own format is JSON Lines: choose a name that ends in .jsonl")


def check_suffix(path: Path) -> None:
    """ValueError unless the name says JSON Lines or parquet."""
    if path.suffix not in (".jsonl", ".json", ".parquet"):
        raise ValueError(f"{path}: the name must end in .jsonl, .json (both JSON Lines) or .parquet")


def import_pyarrow(path: Path) -> Any:
    """The library pyarrow, with its module parquet. ValueError where it is missing."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path}: parquet needs pyarrow: pip install -e '.[export]', or use JSON Lines (.jsonl)"
        ) from None
    return pyarrow


def _write_lines(path: Path, lines: Iterable[str]) -> int:
    beside, count = path.with_name(f".{path.name}.{os.getpid()}"), 0
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "w", encoding="utf-8") as out:
                for line in lines:
                    count += out.write(line) > 0
                out.flush()
                os.fsync(out.fileno())
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return count
