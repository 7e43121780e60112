"""Means, 95 % intervals and paired differences.

Tables have a row per episode, with columns ``seed`` (training seed), ``task``, the value (``won``) and optionally
``error``. Episodes with an infrastructure error are excluded. Intervals are percentile bootstraps at 95 %. All draws
depend on the ``seed`` argument alone, not on the order of rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """Method a minus method b on the same pairs: mean difference, 95 % interval, p-value, pairs used and excluded."""

    difference: float
    low: float
    high: float
    p: float
    pairs: int
    errors: int


def interval(table: pd.DataFrame, n_boot: int = 2000, seed: int = 0, value: str = "won") -> Interval:
    """Mean of ``value`` over training seeds and tasks, with a two-level bootstrap.

    ``table`` has one row per (seed, task). Each replicate draws seeds, then tasks, and uses the same tasks for all its
    seeds: the seeds share their test tasks, so drawing tasks separately for each seed would treat the luck of the test
    set as if it averaged out. The interval is slightly wide where neither seeds nor tasks matter. ValueError for a
    repeated (seed, task) and for an empty table.
    """
    cells = _cells(without_errors(table), value)
    return Interval(float(np.nanmean(cells.to_numpy())), *_bootstrap(cells, n_boot, seed))


def paired(
    a: pd.DataFrame, b: pd.DataFrame, n_boot: int = 2000, n_perm: int = 10_000, seed: int = 0, value: str = "won"
) -> Paired:
    """Mean of ``value`` of method ``a`` minus that of ``b``, on the same (seed, task) pairs.

    The bootstrap is that of :func:`interval`; both methods share its draws. The p-value comes from a two-sided
    sign-flip permutation test: if the methods were equal, the labels of each task could be swapped, for all its seeds
    at once since these share the task. It is about these trained policies, not about new training seeds (the interval
    is). A pair with an error on either side is excluded and counted.

    ValueError where the two tables hold different (seed, task) pairs, and for a repeated pair.
    """
    keys = ["seed", "task"]
    sets = [set(zip(table["seed"], table["task"], strict=True)) for table in (a, b)]
    if sets[0] != sets[1]:
        unmatched = sets[0] ^ sets[1]
        example = min(unmatched, key=str)
        raise ValueError(
            f"the methods were not run on the same (seed, task) pairs: {len(unmatched)} occur on one side only, such "
            f"as seed {example[0]}, task {example[1]} (in {'a' if example in sets[0] else 'b'})"
        )
    for table in (a, b):
        _refuse_repeats(table)
    both = without_errors(a)[[*keys, value]].merge(without_errors(b)[[*keys, value]], on=keys, suffixes=("_a", "_b"))
    if both.empty:
        raise ValueError(f"no pair to compare: each of the {len(a)} has an infrastructure error on one side")
    both["difference"] = both[f"{value}_a"].astype(float) - both[f"{value}_b"].astype(float)
    cells = _cells(both, "difference")
    low, high = _bootstrap(cells, n_boot, seed)
    p = _sign_flip(cells.sum(axis=0).to_numpy(), n_perm, np.random.default_rng([seed, 1]))
    return Paired(float(both["difference"].mean()), low, high, p, len(both), len(a) - len(both))


def task_bootstrap(values: np.ndarray, n_boot: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % intervals of the column means of ``values`` (tasks x columns), under draws of tasks."""
    n = len(values)
    weights = _draws(np.random.default_rng(seed), n, n_boot)
    low, high = np.percentile(weights @ values / n, [2.5, 97.5], axis=0)
    return low, high


def without_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The rows without an infrastructure error. ValueError where there are none."""
    if table.empty:
        raise ValueError("no episodes: the table has no rows")
    rated = table[~table["error"].astype(bool)] if "error" in table else table
    if rated.empty:
        raise ValueError(f"all {len(table)} episodes ended in an infrastructure error: there is nothing to rate")
    return rated


def _refuse_repeats(table: pd.DataFrame) -> None:
    repeated = table[table.duplicated(["seed", "task"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"seed {first['seed']}, task {first['task']} is duplicated: the table needs one row per (seed, task)"
        )


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
    """Two-sided p-value of sum(clusters) when the sign of each cluster may flip."""
    sizes, counts = np.unique(np.abs(clusters[clusters != 0]), return_counts=True)
    # clusters of one size are interchangeable, so only the number of positive ones needs a draw
    positive = rng.binomial(counts, 0.5, size=(n_perm, len(counts)))
    sums = np.abs((2 * positive - counts) @ sizes)
    return float((1 + np.count_nonzero(sums >= abs(clusters.sum()) - 1e-9)) / (1 + n_perm))


def wilson(wins: int, n: int) -> tuple[float, float]:
    """Ends of the 95 % Wilson interval of a rate of ``wins`` in ``n`` independent episodes.

    It covers the draw of the subtasks for one fixed policy. ValueError for ``n`` below 1.
    """
    if not 0 <= wins <= n or n < 1:
        raise ValueError(f"{wins} wins in {n} episodes have no rate")
    z, rate = 1.959963984540054, wins / n
    middle, half = rate + z * z / (2 * n), z * (rate * (1 - rate) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
