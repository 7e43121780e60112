"""What the rows and pages of stored conversations mean: the subtask of a row, and pages after unreadable answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from eef.files import PACKAGE

EXPLANATIONS = {  # the observation after an answer without a readable action, by its problem (eef.agents.actions)
    "NO_ACTION": "No action was found in your answer, so nothing was done: give one after the words 'Action: '.",
    "AMBIGUOUS": (
        "Your answer does not name exactly one complete action, so nothing was done: write one action on one line "
        "after the words 'Action: ', and nothing after it."
    ),
    "CUT": "Your answer was cut because it was too long, and nothing was done: write less before the words 'Action: '.",
}


@cache
def eto_task_names() -> list[str]:
    """Names of the tasks that ETO's ids give by number. An environment keeps them in its ``eto_tasks.json``."""
    return [name for path in sorted(PACKAGE.glob("envs/*/eto_tasks.json")) for name in json.loads(path.read_text())]


def subtask_of(row: Mapping[str, Any]) -> tuple[Any, bool]:
    """The subtask that a row names, and whether by an ETO id of the form ``TASK_VARIATION``, such as ``11_7``.

    ``task`` counts unless it is the name of a benchmark: a word of letters with which the id begins, as in
    ``webshop_511``, in a row without ``outcome``.
    """
    name, task = str(row.get("id", "")), row.get("task")
    first, underscore, variation = name.partition("_")
    benchmark = underscore and first == task and first.isalpha() and "outcome" not in row
    if task not in (None, "") and not benchmark:
        return str(task) if type(task) is int else task, False
    if re.fullmatch(r"\d+_\d+", name, re.ASCII) and int(first) < len(eto_task_names()):
        return f"{eto_task_names()[int(first)]}/{variation}", True
    return name.rsplit("_", 1)[-1], False
