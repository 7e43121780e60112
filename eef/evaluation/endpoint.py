"""The test episodes of a model behind an OpenAI-compatible endpoint, played by ``eef collect``'s code."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eef.envs import TextEnv
from eef.experts.collection import collect
from eef.experts.endpoint import CollectError, Expert
from eef.tracking.progress import show
from eef.trajectory import Trajectory, load


@dataclass(frozen=True)
class EndpointTest:
    """The inputs of the stage.

    ``address`` and ``request``: the endpoint, and the fields of a request. ``file`` keeps finished episodes, which were
    paid for; it may have those of other subtasks, too.
    """

    env: TextEnv
    model: str
    address: str
    request: Mapping[str, Any]
    one_shot: bool
    split: str
    tasks: Sequence[str]
    expert: Expert = field(metadata={"key": None})
    file: Path = field(metadata={"key": None})
    yes: bool = field(default=False, metadata={"key": None})


def play_endpoint(inputs: EndpointTest, folder: Path, on_progress: Callable[[int, int, int], None]) -> list[Trajectory]:
    """The episodes in the order of the tasks. CollectError if subtasks remain; the same command resumes."""
    file, tasks, before = inputs.file, inputs.tasks, _modified(inputs.file)
    if collect(
        file, inputs.env, inputs.split, len(tasks), inputs.expert, inputs.one_shot, yes=inputs.yes, evaluation=True
    ):
        raise CollectError("not all subtasks were played: start the same command again, it resumes from there")
    if _modified(file) == before:
        show_reused(file)
    by_task = {episode.task: episode for episode in load(file)}
    episodes = [by_task[task] for task in tasks]
    for episode in episodes:
        on_progress(1, int(episode.won), int(episode.info.get("tokens", 0)))
    return episodes


def _modified(file: Path) -> int:
    return file.stat().st_mtime_ns if file.is_file() else 0


def show_reused(file: Path) -> None:
    """Say that no request was sent, since ``file`` has the episodes: a server may have changed under the same name."""
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
    show(f"Reusing the episodes of {date}, no request was sent. To play again, add --root DIR with a new folder.")
