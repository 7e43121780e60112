"""From episodes to honest numbers: win rate, reward, skills and cost, each with its uncertainty.

An infrastructure error (see :class:`eef.trajectory.Trajectory`) is neither a win nor a loss: it is counted, shown and
left out of every rate. All intervals are percentile bootstraps at 95 %, and all draws depend on the ``seed`` argument
alone, not on the order of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from eef.agents.actions import problem_counts
from eef.files import write_json
from eef.trajectory import Trajectory, load

FAIR = ("done", "max_steps")  # outcomes that count; any other is an infrastructure error
SKILLS = {  # the navigation skills of Figure 2
    "next": re.compile(r"click\[next >\]", re.IGNORECASE),
    "prev": re.compile(r"click\[< prev\]", re.IGNORECASE),
    "back": re.compile(r"click\[back to search\]", re.IGNORECASE),
}
ANSWERS = ["invalid", *problem_counts([])]  # answers that changed nothing, and those of them without a readable action
COLUMNS = ["task", "won", "reward", "steps", "outcome", *SKILLS, "error"]


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """Method a less method b on the same pairs: mean difference, 95 % interval, p-value, pairs used and left out."""

    difference: float
    low: float
    high: float
    p: float
    pairs: int
    errors: int


@dataclass(frozen=True)
class Scores:
    """What the scores of a run depend on: the stage that holds its test episodes, and the group of each subtask."""

    episodes: Path
    groups: Mapping[str, str] | None


def score(inputs: Scores, folder: Path) -> None:
    """Write ``episodes.csv`` (:func:`results`, with the group where there is one) and ``summary.json``."""
    table = results(load(inputs.episodes / "trajectories.jsonl"))
    if inputs.groups:
        table["group"] = table["task"].map(dict(inputs.groups))
    table.to_csv(folder / "episodes.csv", index=False)
    write_json(folder / "summary.json", summary(table, groups=inputs.groups))


def results(trajectories: Iterable[Trajectory]) -> pd.DataFrame:
    """One row per episode: task, won, reward, steps, outcome, next, prev, back, error; counts and max_score where there
    are any.

    The counts are those of a policy's answers: ``invalid`` ones changed nothing; ``no_action``, ``ambiguous`` and
    ``cut`` say of how many of them no action could be read, and why (:mod:`eef.agents.actions`). ``max_score`` is the
    best score of the episode, where the environment tells one: ETO's reward in ScienceWorld.
    ``steps`` and the skills look at the turns that were acted, not at a given prefix. ``next``, ``prev`` and ``back``
    say whether the episode used that skill at least once; ``error`` marks an infrastructure error.
    """
    rows = []
    optional: dict[str, None] = {}  # columns, in order
    for trajectory in trajectories:
        optional |= {name: None for name in [*ANSWERS, "max_score"] if name in trajectory.info}
        acted = trajectory.actions[trajectory.prefix :]
        used = {skill: any(pattern.match(action.strip()) for action in acted) for skill, pattern in SKILLS.items()}
        rows.append(
            {
                "task": trajectory.task,
                "won": trajectory.won,
                "reward": float(trajectory.reward),
                "steps": len(acted),
                "outcome": trajectory.outcome,
                **used,
                "error": trajectory.outcome not in FAIR,
                **{name: trajectory.info.get(name, 0) for name in ANSWERS},
                "max_score": trajectory.info.get("max_score"),
            }
        )
    return pd.DataFrame(rows, columns=[*COLUMNS, *optional])


def summary(
    table: pd.DataFrame, n_boot: int = 2000, seed: int = 0, groups: Mapping[str, str] | None = None
) -> dict[str, float]:
    """One policy on one set of tasks, from the table of :func:`results`.

    Rates are fractions in [0, 1], with a bootstrap over tasks; a task with several episodes counts once, by its mean.

    * ``n_test`` (tasks in the rates), ``episodes`` (all of them), ``errors``
    * ``win_rate``, ``win_low``, ``win_high``; ``mean_reward``, ``reward_low``, ``reward_high``
    * ``mean_max_score`` where the table has ``max_score``: what ETO reports of ScienceWorld
    * ``invalid``, ``no_action``, ``ambiguous`` and ``cut``: answers of all episodes, where the table has them
    * ``wins_paging`` and ``wins_back``: share of won episodes that use next or prev, and back (Figure 2); NaN without
      a win
    * ``win_rate_<group>`` for each group of ``groups`` (task -> group) that has a task in the rates

    ValueError where no episode is left to rate, and for a task that ``groups`` does not name.
    """
    fair = _fair(table)
    per_task = fair[["won", "reward"]].astype(float).groupby(fair["task"]).mean()
    n = len(per_task)
    weights = _draws(np.random.default_rng(seed), n, n_boot)
    low, high = np.percentile(weights @ per_task.to_numpy() / n, [2.5, 97.5], axis=0)
    wins = fair[fair["won"].astype(bool)]
    out: dict[str, float] = {
        "n_test": n,
        "episodes": len(table),
        "errors": len(table) - len(fair),
        "win_rate": float(per_task["won"].mean()),
        "win_low": float(low[0]),
        "win_high": float(high[0]),
        "mean_reward": float(per_task["reward"].mean()),
        "reward_low": float(low[1]),
        "reward_high": float(high[1]),
        "wins_paging": float((wins["next"] | wins["prev"]).mean()) if len(wins) else float("nan"),
        "wins_back": float(wins["back"].mean()) if len(wins) else float("nan"),
    }
    if "max_score" in fair:
        out["mean_max_score"] = float(fair["max_score"].groupby(fair["task"]).mean().mean())
    out |= {name: int(table[name].sum()) for name in ANSWERS if name in table}
    if groups is not None:
        unnamed = [task for task in per_task.index if task not in groups]
        if unnamed:
            raise ValueError(f"{len(unnamed)} tasks have no group, the first of them {unnamed[0]!r}")
        by_group = per_task["won"].groupby([groups[task] for task in per_task.index]).mean()
        out |= {f"win_rate_{group}": float(rate) for group, rate in by_group.items()}
    return out


def interval(table: pd.DataFrame, n_boot: int = 2000, seed: int = 0, value: str = "won") -> Interval:
    """Mean of ``value`` over training seeds and tasks, with a two-level bootstrap.

    ``table`` has a row per (seed, task) with columns seed, task, ``value``; rows with a true ``error`` are left out.
    Each replicate draws seeds, then tasks, the same tasks for all its seeds: the seeds share their test tasks, so to
    draw tasks apart for each seed would count the luck of the test set as if it averaged out. The interval is
    slightly wide where neither seeds nor tasks matter. ValueError for a repeated (seed, task) and for no rows.
    """
    cells = _cells(_fair(table), value)
    return Interval(float(np.nanmean(cells.to_numpy())), *_bootstrap(cells, n_boot, seed))


def paired(
    a: pd.DataFrame, b: pd.DataFrame, n_boot: int = 2000, n_perm: int = 10_000, seed: int = 0, value: str = "won"
) -> Paired:
    """Mean of ``value`` of method ``a`` less that of ``b``, on the same (seed, task) pairs.

    Tables as in :func:`interval`, which also explains the bootstrap; both methods share its draws. The p-value is of a
    two-sided sign-flip permutation test: were the methods alike, the labels of each task could be swapped, for all its
    seeds at once since these share the task. It asks about these trained policies, not about new training seeds (the
    interval does). A pair with an error on either side is left out and counted.

    ValueError where the two tables hold different (seed, task) pairs, or one pair twice.
    """
    keys = ["seed", "task"]
    sets = [set(zip(table["seed"], table["task"], strict=True)) for table in (a, b)]
    if sets[0] != sets[1]:
        only = sets[0] ^ sets[1]
        example = min(only, key=str)
        raise ValueError(
            f"the methods were not run on the same (seed, task) pairs: {len(only)} stand on one side only, such as "
            f"seed {example[0]}, task {example[1]} (in {'a' if example in sets[0] else 'b'})"
        )
    for table in (a, b):
        _refuse_repeats(table)
    both = _fair(a)[[*keys, value]].merge(_fair(b)[[*keys, value]], on=keys, suffixes=("_a", "_b"))
    if both.empty:
        raise ValueError(f"no pair to compare: each of {len(a)} has an infrastructure error on one side")
    both["difference"] = both[f"{value}_a"].astype(float) - both[f"{value}_b"].astype(float)
    cells = _cells(both, "difference")
    low, high = _bootstrap(cells, n_boot, seed)
    p = _sign_flip(cells.sum(axis=0).to_numpy(), n_perm, np.random.default_rng([seed, 1]))
    return Paired(float(both["difference"].mean()), low, high, p, len(both), len(a) - len(both))


def cost(trajectories: Iterable[Trajectory]) -> dict[str, int]:
    """What a set of simulations took: episodes, env_steps (turns acted), tokens (generated), errors.

    ``tokens`` sums ``info["tokens"]``, 0 where it was not recorded. Episodes that ended in an error are paid for, too.
    """
    out = {"episodes": 0, "env_steps": 0, "tokens": 0, "errors": 0}
    for trajectory in trajectories:
        out["episodes"] += 1
        out["env_steps"] += len(trajectory) - trajectory.prefix
        out["tokens"] += int(trajectory.info.get("tokens", 0))
        out["errors"] += trajectory.outcome not in FAIR
    return out


def _fair(table: pd.DataFrame) -> pd.DataFrame:
    """The rows without an infrastructure error."""
    if table.empty:
        raise ValueError("no episodes: the table has no rows")
    fair = table[~table["error"].astype(bool)] if "error" in table else table
    if fair.empty:
        raise ValueError(f"all {len(table)} episodes ended in an infrastructure error: there is nothing to rate")
    return fair


def _refuse_repeats(table: pd.DataFrame) -> None:
    repeated = table[table.duplicated(["seed", "task"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(f"seed {first['seed']}, task {first['task']} stands twice: one row per (seed, task) is needed")


def _cells(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """``value`` as seeds x tasks, both sorted; NaN where a pair is missing."""
    _refuse_repeats(table)
    return table.assign(**{value: table[value].astype(float)}).pivot(index="seed", columns="task", values=value)


def _draws(rng: np.random.Generator, n: int, n_boot: int) -> np.ndarray:
    """How often each of ``n`` units is drawn in each resample: (n_boot, n), rows sum to n."""
    return rng.multinomial(n, np.full(n, 1 / n), size=n_boot).astype(float)


def _bootstrap(cells: pd.DataFrame, n_boot: int, seed: int) -> tuple[float, float]:
    """Ends of the 95 % interval of the mean of ``cells`` (seeds x tasks) under draws of rows, then of columns."""
    rng = np.random.default_rng(seed)
    values = cells.to_numpy()
    present = ~np.isnan(values)
    rows, columns = (_draws(rng, size, n_boot) for size in values.shape)
    total = ((rows @ np.where(present, values, 0.0)) * columns).sum(axis=1)
    drawn = ((rows @ present.astype(float)) * columns).sum(axis=1)
    means = total[drawn > 0] / drawn[drawn > 0]  # a resample of missing pairs alone has no mean
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _sign_flip(clusters: np.ndarray, n_perm: int, rng: np.random.Generator) -> float:
    """Two-sided p-value of sum(clusters) when each cluster may change its sign."""
    sizes, counts = np.unique(np.abs(clusters[clusters != 0]), return_counts=True)
    # clusters of one size are interchangeable, so only how many of them turn positive needs a draw
    positive = rng.binomial(counts, 0.5, size=(n_perm, len(counts)))
    sums = np.abs((2 * positive - counts) @ sizes)
    return float((1 + np.count_nonzero(sums >= abs(clusters.sum()) - 1e-9)) / (1 + n_perm))
