"""Intervals and paired differences: small cases by hand, and resampling on synthetic data."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from eef.analysis.statistics import interval, paired, wilson


def table(won: np.ndarray) -> pd.DataFrame:
    """Seeds x tasks as rows of (seed, task, won)."""
    seeds, tasks = np.indices(won.shape)
    return pd.DataFrame({"seed": seeds.ravel(), "task": [f"t{i}" for i in tasks.ravel()], "won": won.ravel()})


# Two-level bootstrap


def test_interval_by_hand() -> None:
    assert interval(table(np.ones((3, 4)))) == (1.0, 1.0, 1.0)
    got = interval(table(np.array([[1, 0], [1, 0]])))
    assert got == (0.5, 0.0, 1.0)  # two tasks, one never won: a draw may hold either alone


def test_interval_of_other_values() -> None:
    rows = table(np.zeros((2, 2))).assign(reward=[0.25, 0.75, 0.25, 0.75])
    assert interval(rows, value="reward").mean == 0.5


def test_interval_leaves_errors_out() -> None:
    rows = table(np.array([[1, 1, 0], [1, 0, 0]])).assign(error=[False, False, True, False, False, False])
    assert interval(rows).mean == pytest.approx(3 / 5)
    assert interval(rows.assign(won=1)) == (1.0, 1.0, 1.0)  # the missing pair pulls no resample down


def test_interval_refuses_repeats() -> None:
    rows = table(np.ones((2, 2)))
    with pytest.raises(ValueError, match="seed 0, task t0 is duplicated"):
        interval(pd.concat([rows, rows.iloc[:1]]))


def test_interval_ignores_row_order() -> None:
    rows = table(np.random.default_rng(0).integers(0, 2, (3, 20)))
    assert interval(rows) == interval(rows.sample(frac=1, random_state=1))


def test_shared_tasks_are_drawn_together() -> None:
    # with tasks that decide all, more seeds add no knowledge: the interval must not shrink
    tasks = np.random.default_rng(0).integers(0, 2, 100)
    one, many = interval(table(tasks[None])), interval(table(np.tile(tasks, (8, 1))))
    assert one.high - one.low == pytest.approx(2 * 1.96 * tasks.std() / 10, rel=0.12)
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.15)


def simulated(rng: np.random.Generator, seeds: int, tasks: int, shift: float = 0.0) -> np.ndarray:
    """Wins whose chance depends on seed and task; about 0.5 + shift on average."""
    chance = 0.5 + shift + 0.05 * rng.standard_normal((seeds, 1)) + 0.2 * rng.standard_normal(tasks)
    return (rng.random((seeds, tasks)) < chance).astype(int)


def test_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        got = interval(table(simulated(rng, seeds=5, tasks=60)), n_boot=300)
        covered += got.low <= 0.5 <= got.high
    assert 0.88 <= covered / 150 <= 1.0


# Pairs


def test_paired_by_hand() -> None:
    a, b = table(np.array([[1, 1, 1, 0]])), table(np.array([[0, 0, 0, 0]]))
    got = paired(a, b)
    assert got.difference == 0.75 and got.pairs == 4 and got.errors == 0
    assert got.p == pytest.approx(2 / 8, abs=0.02)  # of 8 ways to sign three equal gains, two are as large
    swapped = paired(b, a)
    assert (swapped.difference, swapped.low, swapped.high) == (-0.75, -got.high, -got.low)
    assert swapped.p == got.p


def test_equal_methods_do_not_differ() -> None:
    rows = table(np.array([[1, 0, 1], [0, 0, 1]]))
    assert paired(rows, rows)[:4] == (0.0, 0.0, 0.0, 1.0)


def test_seeds_of_one_task_are_one_cluster() -> None:
    # ten seeds that win on one task more are one observation, not ten
    a, b = np.zeros((10, 5)), np.zeros((10, 5))
    a[:, 0] = 1
    assert paired(table(a), table(b)).p == 1.0


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    skill = np.tile(rng.integers(0, 2, 200), (5, 1))
    a, b = skill | (rng.random(skill.shape) < 0.1), skill
    got, alone_a, alone_b = paired(table(a), table(b)), interval(table(a)), interval(table(b))
    unpaired = math.hypot(alone_a.high - alone_a.low, alone_b.high - alone_b.low)
    assert got.high - got.low < 0.6 * unpaired
    assert got.low > 0 and got.p < 0.01


def test_p_value_is_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(2)
    ps = [
        paired(table(rng.integers(0, 2, (3, 40))), table(rng.integers(0, 2, (3, 40))), n_boot=50, n_perm=400).p
        for _ in range(150)
    ]
    assert np.mean(np.array(ps) < 0.05) < 0.12
    assert 0.4 < np.mean(ps) < 0.65


def test_paired_leaves_out_pairs_with_an_error() -> None:
    a = table(np.array([[1, 1, 0]])).assign(error=[True, False, False])
    b = table(np.array([[0, 0, 0]])).assign(error=[False, False, True])
    got = paired(a, b)
    assert (got.difference, got.pairs, got.errors) == (1.0, 1, 2)
    with pytest.raises(ValueError, match="no pair to compare"):
        paired(a.iloc[[0, 2]], b.iloc[[0, 2]])


def test_paired_refuses_different_pairs() -> None:
    rows = table(np.ones((2, 3)))
    with pytest.raises(
        ValueError, match=r"not run on the same .*: 1 occur on one side only, .*seed 1, task t2 \(in a\)"
    ):
        paired(rows, rows.iloc[:-1])
    with pytest.raises(ValueError, match="is duplicated"):
        paired(pd.concat([rows, rows]), rows)


def test_paired_ignores_row_order() -> None:
    rng = np.random.default_rng(3)
    a, b = table(rng.integers(0, 2, (3, 20))), table(rng.integers(0, 2, (3, 20)))
    assert paired(a, b) == paired(a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=2))


def test_the_wilson_interval_has_the_published_ends_and_a_width_at_both_extremes() -> None:
    """Ends of 81 in 263 from Newcombe (1998), table I."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4) and wilson(1, 1)[1] == 1.0
    with pytest.raises(ValueError, match="3 wins in 2 episodes"):
        wilson(3, 2)
