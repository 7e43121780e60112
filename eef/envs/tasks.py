"""The list of an environment's subtasks: ``eef tasks`` prints it."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from eef.envs import SPLITS, TextEnv
from eef.envs.extras import extras_of

_WIDTH = 100  # characters of a goal on a line of the screen


def task_rows(env: TextEnv, split: str | None = None) -> Iterator[dict[str, str]]:
    """``id``, ``split`` and ``goal`` of each subtask of a split, or of all splits. Resets ``env``."""
    goal = extras_of(env).goal
    for name in [split] if split else SPLITS:
        for task in env.tasks(name):
            yield {"id": task, "split": name, "goal": " ".join(goal(env.reset(task)).split())}


def print_tasks(env: TextEnv, split: str | None = None, file: str | None = None) -> None:
    """Print the subtasks, one on a line, or write them as CSV to ``file`` (``-``: to standard output)."""
    rows = task_rows(env, split)
    if file is None:
        for row in rows:
            text = row["goal"]
            print(f"{row['id']:<8} {row['split']:5}  {text if len(text) <= _WIDTH else text[:_WIDTH] + ' ...'}")
        return
    with open(1 if file == "-" else file, "w", encoding="utf-8", newline="", closefd=file != "-") as out:
        writer = csv.DictWriter(out, ["id", "split", "goal"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
