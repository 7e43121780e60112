"""The test episodes of a model behind an OpenAI-compatible endpoint, played by ``eef collect``'s code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eef.envs import TextEnv
from eef.experts.collection import collect
from eef.experts.endpoint import CollectError, Expert
from eef.trajectory import Trajectory, load


@dataclass(frozen=True)
class EndpointTest:
    """The inputs of the stage.

    ``request``: the fields of a request. ``file`` keeps finished episodes, which were paid for.
    """

    env: TextEnv
    model: str
    request: Mapping[str, Any]
    one_shot: bool
    split: str
    tasks: Sequence[str]
    expert: Expert = field(metadata={"key": None})
    file: Path = field(metadata={"key": None})
    yes: bool = field(default=False, metadata={"key": None})


def play_endpoint(inputs: EndpointTest, folder: Path, on_progress: Callable[[int, int, int], None]) -> list[Trajectory]:
    """The episodes in the order of the tasks. CollectError if subtasks remain; the same command resumes."""
    tasks = inputs.tasks
    remain = collect(inputs.file, inputs.env, inputs.split, len(tasks), inputs.expert, inputs.one_shot, yes=inputs.yes)
    if remain:
        raise CollectError("not all subtasks were played: start the same command again, it resumes from there")
    by_task = {episode.task: episode for episode in load(inputs.file)}
    for episode in by_task.values():
        on_progress(1, int(episode.won), int(episode.info.get("tokens", 0)))
    return [by_task[task] for task in tasks]
