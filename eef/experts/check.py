"""Expert trajectories of files are replayed before anything learns from them.

A file that was recorded with other data, other options or by hand shows pages that do not exist. So each trajectory
is replayed in the environment of the run: its first page, every observation, and its end (``won`` and ``reward``) must
be those of the file. A trajectory whose last action does not end the episode has the outcome ``max_steps``; at the step
limit of the run it may also have ``done``.

Not replayed are trajectories whose ``info["no_replay"]`` gives a reason, such as ETO's of ScienceWorld, and those that
ended in an infrastructure error, from which no method learns. The last observation of a trajectory may be empty: files
that end with an action do not have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eef.envs import SPLITS, EnvError, Step, TextEnv, first_page, on_workers, take_step
from eef.envs.limits import step_limit
from eef.trajectory import Trajectory, TrajectoryError, load_lines

_TOLERANCE = 0.01  # of rewards, which files may round
_SHOWN = 60  # characters of an observation in a message
_LISTED = 10  # divergences in a report


@dataclass(frozen=True)
class Divergence:
    """The first difference between a trajectory of a file and its replay.

    ``place`` is where the file has it (``line 3``). ``turn`` is the index of the turn, which the text counts from 1,
    None for the first page; ``action`` is its action. ``expected`` is what the file says and ``actual`` what the
    environment does, both shortened.
    """

    place: str
    task: str
    turn: int | None
    action: str
    expected: str
    actual: str

    def __str__(self) -> str:
        after = "the first page" if self.turn is None else f"turn {self.turn + 1}, after {self.action!r}"
        return (
            f"{self.place}, task {self.task}, {after}: the file has {self.expected}, the environment has {self.actual}"
        )


@dataclass(frozen=True)
class Report:
    """The check of a file. ``str(report)`` is for reading; ``failed`` says whether something must be changed.

    ``trajectories``: those checked, in the file's order. One that diverges is neither won nor lost: its outcome is
    ``replay_divergence``. ``not_replayed`` counts those that cannot be replayed. ``ignored``: trajectories on subtasks
    of no wanted split. ``splits``: for each split with trajectories, its name, their number, the number of their
    subtasks, and the number of all its subtasks.
    """

    path: str
    trajectories: list[Trajectory]
    divergences: list[Divergence]
    not_replayed: int = 0
    errors: int = 0
    ignored: int = 0
    splits: tuple[tuple[str, int, int, int], ...] = ()

    @property
    def failed(self) -> bool:
        return bool(self.divergences) or not self.trajectories

    @property
    def first_line(self) -> str:
        """One line: how many trajectories diverge, and the first difference."""
        if not self.divergences:
            return f"{self.path}: no trajectory diverges from the environment"
        counts = f"{len(self.divergences)} of {len(self.trajectories)} trajectories diverge from the environment"
        return f"{self.path}: {counts}; the first: {self.divergences[0]}"

    def __str__(self) -> str:
        total, wins = len(self.trajectories), sum(item.won for item in self.trajectories)
        replayed = total - self.not_replayed - self.errors - len(self.divergences)
        lines = [f"{self.path}: {total} trajectories checked, {replayed} replayed without a difference, {wins} won"]
        lines += [f"{name}: {count} on {tasks} of {known} subtasks" for name, count, tasks, known in self.splits]
        if self.not_replayed:
            lines += [f"{self.not_replayed} cannot be replayed, they are only learnt from"]
        if self.errors:
            lines += [f"{self.errors} ended in an error of the environment and are left out"]
        if self.ignored:
            lines += [f"{self.ignored} are on other subtasks and are ignored"]
        if not total:
            lines += [
                "no trajectory is on a subtask of the environment: `experts` needs the ids of its subtasks, which "
                "`eef tasks` lists"
            ]
        if self.divergences:
            lines += [f"{len(self.divergences)} diverge{'s' * (len(self.divergences) == 1)} from the environment:"]
            lines += [f"  {each}" for each in self.divergences[:_LISTED]]
            lines += [f"  and {len(self.divergences) - _LISTED} more"] * (len(self.divergences) > _LISTED)
            lines += [_ADVICE]
        return "\n".join(lines)


_UNFINISHED = (
    'an unfinished episode (max_steps={}): add the missing turns, or write "outcome": "max_steps" if a step limit '
    "ended it"
)
_ADVICE = (
    "Record the file again, or use the data, options and seed of its recording; `eef import` reads conversations of "
    "other layouts (docs/experts.md). divergent_experts=drop leaves such trajectories out and counts them"
)


def load_experts(path: str | Path) -> list[tuple[str, Trajectory]]:
    """As :func:`eef.trajectory.load_lines`; :class:`TrajectoryError` for a file without a trajectory."""
    lines = load_lines(path)
    if not lines:
        raise TrajectoryError(
            f"{path} is empty: write one trajectory per line (docs/file_formats.md), for example with "
            "eef.trajectory.save"
        )
    return lines


def check_file(path: str, env: TextEnv, split: str | None = None) -> Report:
    """Replay the trajectories of a file in ``env``: those on subtasks of ``split``, or of any split.

    TrajectoryError for an invalid file, FileNotFoundError for a missing one, ValueError for an unknown split.
    """
    lines = load_experts(path)
    tasks = {name: set(env.tasks(name)) for name in ((split,) if split else SPLITS)}
    on_split = {name: [item.task for _, item in lines if item.task in known] for name, known in tasks.items()}
    wanted = [(place, item) for place, item in lines if any(item.task in known for known in tasks.values())]
    report = check_lines(path, wanted, env)
    splits = tuple((name, len(ids), len(set(ids)), len(tasks[name])) for name, ids in on_split.items() if ids)
    return replace(report, ignored=len(lines) - len(wanted), splits=splits)


def check_lines(path: str, lines: Sequence[tuple[str, Trajectory]], env: TextEnv) -> Report:
    """Replay trajectories of the file ``path``, each with its place in the file."""
    results = on_workers(env, lines, lambda worker, line: _replayed(worker, *line))
    trajectories, divergences = [], []
    for (_, item), result in zip(lines, results, strict=True):
        if isinstance(result, Divergence):
            divergences.append(result)
            text = f"{path}, {result}"
            item = replace(item, won=False, outcome="replay_divergence", info={**item.info, "divergence": text})
        elif result:  # the environment failed
            item = replace(item, won=False, outcome=result)
        trajectories.append(item)
    errors = sum(not (item.won or item.failed) for item in trajectories) - len(divergences)
    return Report(str(path), trajectories, divergences, sum(map(_is_unchecked, trajectories)), errors)


def _replayed(worker: Callable[[], TextEnv], place: str, item: Trajectory) -> Divergence | str:
    """The first difference between ``item`` and its replay; the outcome ``env_error`` where the environment fails; else
    an empty string.
    """
    if "no_replay" in item.info or not (item.won or item.failed):
        return ""
    try:
        return _first_difference(worker(), place, item) or ""
    except EnvError:
        return "env_error"


def _first_difference(env: TextEnv, place: str, item: Trajectory) -> Divergence | None:
    def differs(turn: int | None, expected: str, actual: str) -> Divergence:
        return Divergence(place, item.task, turn, "" if turn is None else item.turns[turn].action, expected, actual)

    limit = step_limit(env, item.task)
    if len(item) > limit:
        return differs(limit, f"{len(item)} turns", f"at most max_steps={limit}")
    page = first_page(env, item.task)
    if page != item.prompt:
        return differs(None, *_excerpts(item.prompt, page))
    step, last = Step(page, 0.0, False), len(item) - 1
    for index, turn in enumerate(item.turns):
        if step.done:
            return differs(index, "a further turn", f"no more turns: the episode ended with turn {index}")
        if not turn.action:  # an answer without an action did not reach the environment
            continue
        step = take_step(env, turn.action, item.task)
        if step.observation != turn.observation and (turn.observation or index < last):
            return differs(index, *_excerpts(turn.observation, step.observation))
    if not step.done and item.outcome == "done" and len(item) < limit:
        return differs(last if item.turns else None, "outcome 'done'", _UNFINISHED.format(limit))
    won, reward = bool(step.info.get("won")), float(step.reward)
    if won != item.won or (step.done and abs(reward - item.reward) > _TOLERANCE):
        ends = [f"{'won' if a else 'not won'} with reward {b:.3g}" for a, b in ((item.won, item.reward), (won, reward))]
        return differs(last if item.turns else None, *ends)
    return None


def _excerpts(expected: str, actual: str) -> tuple[str, str]:
    """The part of two texts around their first difference."""
    shorter = min(len(expected), len(actual))
    at = next((i for i in range(shorter) if expected[i] != actual[i]), shorter)
    start = max(0, at - _SHOWN // 3) if at > _SHOWN // 2 else 0
    shown = []
    for text in (expected, actual):
        excerpt = text[start : start + _SHOWN]
        dots = ("..." if start else "", "..." if len(text) > start + _SHOWN else "")
        shown.append(repr(f"{dots[0]}{excerpt}{dots[1]}") if text else "no text")
    return shown[0], shown[1]


def _is_unchecked(item: Trajectory) -> bool:
    return "no_replay" in item.info


def expert_counts(trajectories: Iterable[Trajectory]) -> dict[str, int]:
    """What a run reports about its experts: ``expert_divergences`` and ``expert_errors``, which no method learns from,
    and ``experts_not_replayed``.
    """
    rows = list(trajectories)
    count: Callable[[Any], int] = lambda test: sum(map(test, rows))  # noqa: E731
    return {
        "expert_divergences": count(lambda item: item.outcome == "replay_divergence"),
        "expert_errors": count(lambda item: not (item.won or item.failed or item.outcome == "replay_divergence")),
        "experts_not_replayed": count(_is_unchecked),
    }


def refuse_divergent(trajectories: Sequence[Trajectory]) -> None:
    """Raise :class:`TrajectoryError` with the first difference if one of ``trajectories`` diverges."""
    divergent = [item for item in trajectories if "divergence" in item.info]
    if divergent:
        first = divergent[0].info["divergence"]
        counts = f"{len(divergent)} of {len(trajectories)} expert trajectories diverge from the environment"
        raise TrajectoryError(f"{counts}; the first: {first}. {_ADVICE}")
