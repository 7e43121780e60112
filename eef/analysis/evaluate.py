"""From episodes to a table and a summary: win rate, reward, skills and cost.

An infrastructure error (see :class:`eef.trajectory.Trajectory`) is neither a win nor a loss. It is counted, shown and
excluded from every rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from eef.agents.actions import problem_counts, uses
from eef.analysis.statistics import task_bootstrap, without_errors
from eef.files import write_json
from eef.trajectory import Trajectory, load

if TYPE_CHECKING:
    from eef.agents.chat import Chat
    from eef.envs.extras import Skill

ANSWERS = [
    "invalid",
    *problem_counts([]),
]  # the last ones: answers without a readable action
OPTIONAL = [*ANSWERS, "max_score"]  # columns of episodes.csv that only some episodes bring
_FIRST, _LAST = ["task", "won", "reward", "steps", "outcome"], ["error"]  # the columns of the skills are between them


@dataclass(frozen=True)
class Scores:
    """What the scores of a run depend on: the stage with its test episodes, each subtask's group, and the skills."""

    episodes: Path
    groups: Mapping[str, str] | None
    skills: Mapping[str, Skill]


def score(inputs: Scores, folder: Path) -> None:
    """Write ``episodes.csv`` (:func:`results`, with the groups where there are any) and ``summary.json``."""
    table = results(load(inputs.episodes / "trajectories.jsonl"), inputs.skills)
    if inputs.groups:
        table["group"] = table["task"].map(dict(inputs.groups))
    table.to_csv(folder / "episodes.csv", index=False)
    write_json(folder / "summary.json", summary(table, inputs.skills, groups=inputs.groups))


def results(trajectories: Iterable[Trajectory], skills: Mapping[str, Skill]) -> pd.DataFrame:
    """One row per episode: task, won, reward, steps, outcome, a column per skill, error, and optional columns.

    ``skills`` are those of the environment (:class:`eef.envs.extras.Extras`). A skill's column says whether the episode
    used it at least once. ``steps`` and skills count the turns that were played, not the replayed prefix. ``error``
    marks an infrastructure error.

    The optional columns exist where an episode has them. ``invalid`` counts a policy's answers that changed nothing;
    ``no_action``, ``ambiguous`` and ``cut`` count those of them from which no action could be read
    (:mod:`eef.agents.actions`). ``max_score`` is the best score of the episode, where the environment reports one;
    without an action it is 0.
    """
    rows = []
    optional: dict[str, None] = {}  # columns, in order
    for trajectory in trajectories:
        optional |= {name: None for name in OPTIONAL if name in trajectory.info}
        acted = trajectory.actions[trajectory.prefix :]
        rows.append(
            {
                "task": trajectory.task,
                "won": trajectory.won,
                "reward": float(trajectory.reward),
                "steps": len(acted),
                "outcome": trajectory.outcome,
                **{name: any(uses(action, skill) for action in acted) for name, skill in skills.items()},
                "error": not (trajectory.won or trajectory.failed),
                **{name: trajectory.info.get(name, 0) for name in ANSWERS},
                "max_score": trajectory.info.get("max_score", None if any(acted) else 0.0),
            }
        )
    return pd.DataFrame(rows, columns=[*_FIRST, *skills, *_LAST, *optional])


def skill_columns(table: pd.DataFrame) -> list[str]:
    """The columns of an ``episodes.csv`` that say which skills were used."""
    known = {*_FIRST, *_LAST, *OPTIONAL, "group", "seed"}
    return [str(name) for name in table if name not in known and table[name].dtype == bool]


def summary(
    table: pd.DataFrame,
    skills: Mapping[str, Skill],
    n_boot: int = 2000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """One policy on one set of tasks, from the table of :func:`results`.

    Rates are fractions in [0, 1], with a bootstrap over tasks. A task with several episodes counts once, by its mean.

    * ``n_test`` (tasks in the rates), ``episodes`` (all of them), ``errors``
    * ``win_rate``, ``win_low``, ``win_high``; ``mean_reward``, ``reward_low``, ``reward_high``
    * ``wins_<kind>`` for each kind of skill: share of won episodes that use such a skill (paper, Figure 2); NaN
      without a win
    * ``mean_max_score`` where the table has ``max_score``
    * ``invalid``, ``no_action``, ``ambiguous`` and ``cut``: answers of all episodes, where the table has them
    * ``win_rate_<group>`` for each group of ``groups`` (task -> group) that has a task in the rates

    ValueError where no episode is left to rate, and for a task that is missing in ``groups``.
    """
    rated = without_errors(table)
    per_task = rated[["won", "reward"]].astype(float).groupby(rated["task"]).mean()
    low, high = task_bootstrap(per_task.to_numpy(), n_boot, seed)
    wins = rated[rated["won"].astype(bool)]
    out: dict[str, float] = {
        "n_test": len(per_task),
        "episodes": len(table),
        "errors": len(table) - len(rated),
        "win_rate": float(per_task["won"].mean()),
        "win_low": float(low[0]),
        "win_high": float(high[0]),
        "mean_reward": float(per_task["reward"].mean()),
        "reward_low": float(low[1]),
        "reward_high": float(high[1]),
    }
    for kind in dict.fromkeys(skill.kind for skill in skills.values()):
        used = wins[[name for name, skill in skills.items() if skill.kind == kind]].any(axis=1)
        out[f"wins_{kind}"] = float(used.mean()) if len(wins) else float("nan")
    if "max_score" in rated:
        out["mean_max_score"] = float(rated["max_score"].groupby(rated["task"]).mean().mean())
    out |= {name: int(table[name].sum()) for name in ANSWERS if name in table}
    if groups is not None:
        missing = [task for task in per_task.index if task not in groups]
        if missing:
            raise ValueError(f"{len(missing)} tasks have no group, such as {missing[0]!r}")
        by_group = per_task["won"].groupby([groups[task] for task in per_task.index]).mean()
        out |= {f"win_rate_{group}": float(rate) for group, rate in by_group.items()}
    return out


def tokens_read(chat: Chat, trajectories: Iterable[Trajectory]) -> int:
    """The tokens that a policy read (prefilled): prompts and pages, each once, as with a cache of keys and values.

    An expert's turns before the start of a simulation are read, too. The page after the last action is not read.
    """
    count = 0
    for trajectory in trajectories:
        ids, _ = chat.render(trajectory, [False] * len(trajectory))
        count += len(ids)
    return count - sum(int(trajectory.info.get("tokens", 0)) for trajectory in trajectories)


def cost(trajectories: Iterable[Trajectory]) -> dict[str, int]:
    """What a set of simulations cost: episodes, env_steps (turns acted), tokens (generated), errors.

    ``tokens`` sums ``info["tokens"]``, 0 where it was not recorded. Episodes that ended in an error count, too.
    """
    out = {"episodes": 0, "env_steps": 0, "tokens": 0, "errors": 0}
    for trajectory in trajectories:
        out["episodes"] += 1
        out["env_steps"] += len(trajectory) - trajectory.prefix
        out["tokens"] += int(trajectory.info.get("tokens", 0))
        out["errors"] += not (trajectory.won or trajectory.failed)
    return out
