"""The check of imported trajectories by replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eef.envs import SPLITS, EnvError, TextEnv, first_page, on_workers, take_step
from eef.envs.limits import step_limit
from eef.experts.check import Report, check_lines
from eef.trajectory import Trajectory


@dataclass(frozen=True)
class Checked:
    """Trajectories that passed the check, and its report."""

    trajectories: list[Trajectory]
    report: Report


def checked(path: Path, lines: Sequence[tuple[str, Trajectory, bool]], env: TextEnv) -> Checked:
    """Replay ``lines`` of the file ``path`` as ``eef experts check`` does; unknown ends are those of the replay."""
    tasks = {task for split in SPLITS for task in env.tasks(split)}
    wanted = [line for line in lines if line[1].task in tasks]
    ends = play_ends(env, [item for _, item, known in wanted if not known])
    items = [(place, item if known else next(ends)) for place, item, known in wanted]
    report = replace(check_lines(str(path), items, env), ignored=len(lines) - len(wanted))
    passed = [item for item in report.trajectories if item.won or item.failed]
    return Checked(passed, report)


def play_ends(env: TextEnv, items: Sequence[Trajectory]) -> Iterator[Trajectory]:
    """``items`` with the reward and the outcome that their actions have in ``env``. Pages are not compared here.

    An episode that the environment did not end was ended by its step limit, or by another one if the row says so. Else
    it keeps the outcome ``done``, and the check finds it unfinished. A failure of the environment ends one episode.
    """

    def end(worker: Callable[[], TextEnv], item: Trajectory) -> Trajectory:
        reward, won, done = 0.0, False, False
        try:
            played = worker()
            first_page(played, item.task)
            for turn in item.turns:
                if turn.action and not done:
                    step = take_step(played, turn.action, item.task)
                    reward, won, done = float(step.reward), bool(step.info.get("won")), step.done
        except EnvError:
            return replace(item, reward=0.0, won=False, outcome="env_error")
        outcome = "done" if done else "max_steps" if len(item) >= step_limit(env, item.task) else item.outcome
        return replace(item, reward=reward, won=won, outcome=outcome)

    return iter(on_workers(env, items, end))
