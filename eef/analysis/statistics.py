"""Means, 95 % intervals and paired differences.

A claim about a method is a claim about new training seeds. Its interval is Student t over seeds, by :func:`over_seeds`
and nothing else, and each seed counts once. One seed has no interval. :func:`task_bootstrap` and :func:`wilson` are
about one trained policy and other subtasks.

Tables have a row per episode, with columns ``seed`` (training seed), ``task``, the value (``won``) and optionally
``error``. Episodes with an infrastructure error are excluded. No result depends on the order of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import mpmath
import numpy as np
import pandas as pd

_KEYS = ["seed", "task"]


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval; the ends are NaN for a single value and for equal values."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """Method a minus method b on the same pairs.

    ``p`` is the two-sided p-value of a t-test over seeds, not adjusted for several comparisons (:func:`holm`).
    ``gains`` counts those of the ``seeds`` with a positive difference, ``pairs`` and ``errors`` the pairs used and
    excluded.
    """

    difference: float
    low: float
    high: float
    p: float
    gains: int
    seeds: int
    pairs: int
    errors: int


def over_seeds(values: Iterable[float]) -> Interval:
    """Mean of one value per training seed, with its 95 % interval by Student t. ValueError without a value.

    Equal values show no spread, so they have no interval, as they have no p-value (:func:`t_test`).
    """
    numbers = np.array([*values], dtype=float)
    if not len(numbers):
        raise ValueError("no values: a mean over seeds needs at least one")
    mean = float(numbers.mean())
    error = _standard_error(numbers) if len(numbers) > 1 else 0.0
    half = _t_quantile(len(numbers) - 1) * error if error else math.nan
    return Interval(mean, mean - half, mean + half)


def t_test(values: Iterable[float]) -> float:
    """Two-sided p-value of the mean of one value per training seed being 0, by Student t.

    NaN where all are equal or one is NaN.
    """
    numbers = np.array([*values], dtype=float)
    error = _standard_error(numbers) if len(numbers) > 1 else 0.0
    return _t_tails(abs(float(numbers.mean())) / error, len(numbers) - 1) if error > 0 else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons after Holm's correction, in their order. NaN stays NaN and does not count."""
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def interval(table: pd.DataFrame, value: str = "won") -> Interval:
    """Mean of ``value`` over all rows, with its interval over seeds (:func:`over_seeds`).

    ``table`` has one row per (seed, task). ValueError for a repeated (seed, task) and for an empty table.
    """
    rated = without_errors(table).sort_values(_KEYS)
    _refuse_repeats(rated)
    return over_seeds(_by_unit(rated[value], rated["seed"]))


def paired(a: pd.DataFrame, b: pd.DataFrame, value: str = "won", over: str = "seed") -> Paired:
    """Mean of ``value`` of method ``a`` minus that of ``b``, on the same (seed, task) pairs.

    Interval and p-value are over seeds. A pair with an error on either side is excluded and counted. ``over="task"``
    puts subtasks in the place of seeds: that compares two trained policies and says nothing about their methods.

    ValueError where the two tables hold different (seed, task) pairs, and for a repeated pair.
    """
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
    rated = [without_errors(table)[[*_KEYS, value]].sort_values(_KEYS) for table in (a, b)]
    both = rated[0].merge(rated[1], on=_KEYS, suffixes=("_a", "_b"))
    if both.empty:
        raise ValueError(f"no pair to compare: each of the {len(a)} has an infrastructure error on one side")
    gain = both[f"{value}_a"].astype(float) - both[f"{value}_b"].astype(float)
    by_unit = _by_unit(gain, both[over])
    gains = int((gain.groupby(both[over]).sum() > 0).sum())
    return Paired(*over_seeds(by_unit), t_test(by_unit), gains, len(by_unit), len(both), len(a) - len(both))


def read_by_task(path: str | Path) -> pd.DataFrame:
    """A CSV file with the ids of subtasks in ``task``, which are texts. Only an empty cell is missing: NA is an id."""
    return pd.read_csv(path, dtype={"task": str}, keep_default_na=False, na_values=[""])


def task_bootstrap(values: np.ndarray, n_boot: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % intervals of the column means of ``values`` (tasks x columns), under draws of tasks."""
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot).astype(float)
    low, high = np.percentile(weights @ values / n, [2.5, 97.5], axis=0)
    return low, high


def without_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The rows without an infrastructure error. ValueError where there are none."""
    if table.empty:
        raise ValueError("no episodes: the table has no rows")
    rated = table[~table["error"].astype(bool)] if "error" in table else table
    if rated.empty:
        outcomes = "; ".join(table["outcome"].unique()) if "outcome" in table else "an infrastructure error"
        advice = ". The context has no room for a first turn: raise it" if outcomes == "context_overflow" else ""
        raise ValueError(f"all {len(table)} episodes ended in {outcomes}: there is nothing to rate{advice}")
    return rated


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


def _by_unit(values: pd.Series, units: pd.Series) -> pd.Series:
    """The mean of ``values`` in each unit (seed).

    Units with more rows than others weigh more, so that the mean over units is that over all rows: the value of a unit
    is the mean of all rows plus the unit's sum of deviations from it, divided by the mean number of rows of a unit. Its
    spread is that of a ratio estimate over clusters. Where all units have equally many rows, it is the unit's mean.
    """
    values = values.astype(float)
    deviations = (values - values.mean()).groupby(units)
    return values.mean() + deviations.sum() / deviations.size().mean()


def _refuse_repeats(table: pd.DataFrame) -> None:
    repeated = table[table.duplicated(_KEYS)]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"seed {first['seed']}, task {first['task']} is duplicated: the table needs one row per (seed, task)"
        )


def _standard_error(numbers: np.ndarray) -> float:
    """Of the mean. Numbers that are equal but for rounding have none."""
    deviation = float(numbers.std(ddof=1))
    return 0.0 if deviation < 1e-12 else deviation / len(numbers) ** 0.5


def _t_tails(t: float, df: int) -> float:
    """Probability that Student t with ``df`` degrees of freedom is further from 0 than ``t``."""
    return float(mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True))


@lru_cache
def _t_quantile(df: int) -> float:
    """Half-width of the 95 % interval in standard errors: 12.71 for two seeds, 2.26 for ten."""
    return float(mpmath.findroot(lambda t: _t_tails(float(t), df) - 0.05, (1.9, 13), solver="illinois", tol=1e-18))
