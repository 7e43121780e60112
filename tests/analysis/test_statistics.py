"""Intervals and paired differences over seeds: small cases by hand, published values, and synthetic data."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from eef.analysis.statistics import holm, interval, over_seeds, paired, t_test, wilson


def table(won: np.ndarray) -> pd.DataFrame:
    """Seeds x tasks as rows of (seed, task, won)."""
    seeds, tasks = np.indices(won.shape)
    return pd.DataFrame({"seed": seeds.ravel(), "task": [f"t{i}" for i in tasks.ravel()], "won": won.ravel()})


# Over seeds


def test_intervals_over_seeds_have_the_published_ends() -> None:
    """The four extra hours of sleep with the second drug (Student, 1908): 0.75 +- 2.262 * 1.789 / sqrt(10)."""
    drug = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    assert over_seeds(drug) == pytest.approx((0.75, -0.5298, 2.0298), abs=1e-4)
    assert t_test(drug) == pytest.approx(0.2176, abs=1e-4)
    two = over_seeds([0.0, 2.0])
    assert two == pytest.approx((1.0, 1 - 12.706205, 1 + 12.706205), abs=1e-5)


def test_one_seed_has_a_mean_but_no_interval() -> None:
    assert over_seeds([0.5])[0] == 0.5 and np.isnan([*over_seeds([0.5])[1:], t_test([0.5])]).all()
    assert np.isnan(t_test([1.0, 1.0])), "without a spread there is no test"
    assert np.isnan(t_test([1.0, np.nan])), "a seed without a value"
    with pytest.raises(ValueError, match="no values"):
        over_seeds([])


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_empty = holm([0.5, math.nan, 0.6])
    assert with_empty[::2] == [1.0, 1.0] and np.isnan(with_empty[1]), "a missing value is not a comparison"


def test_interval_by_hand() -> None:
    got = interval(table(np.array([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])))
    assert got == pytest.approx((0.5, 0.5 - 4.30265 * 0.25 / 3**0.5, 0.5 + 4.30265 * 0.25 / 3**0.5), abs=1e-5)
    assert got == pytest.approx(over_seeds([0.25, 0.75, 0.5]))


def test_a_seed_with_fewer_rows_weighs_less() -> None:
    rows = table(np.array([[1, 1, 0], [1, 0, 0]])).drop(index=2)
    got = interval(rows)
    assert got.mean == pytest.approx(3 / 5)
    deviations = (2 * (1 - 3 / 5) / 2.5, 3 * (1 / 3 - 3 / 5) / 2.5)  # of a ratio estimate over two clusters
    assert got == pytest.approx(over_seeds(3 / 5 + each for each in deviations))


def test_interval_of_other_values() -> None:
    rows = table(np.zeros((2, 2))).assign(reward=[0.25, 0.75, 0.25, 0.75])
    assert interval(rows, value="reward").mean == 0.5


def test_interval_leaves_errors_out() -> None:
    rows = table(np.array([[1, 1, 0], [1, 0, 0]])).assign(error=[False, False, True, False, False, False])
    assert interval(rows).mean == pytest.approx(3 / 5)
    assert interval(rows.assign(won=1)).mean == 1.0  # the missing pair pulls no resample down


def test_interval_refuses_repeats() -> None:
    rows = table(np.ones((2, 2)))
    with pytest.raises(ValueError, match="seed 0, task t0 is duplicated"):
        interval(pd.concat([rows, rows.iloc[:1]]))


def test_interval_ignores_row_order() -> None:
    rows = table(np.random.default_rng(0).integers(0, 2, (3, 20)))
    assert interval(rows) == interval(rows.sample(frac=1, random_state=1))


def test_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    task_effect = 0.2 * rng.standard_normal(60)  # one test set: the interval is about new seeds on it
    truth = np.clip(0.5 + 0.1 * rng.standard_normal((100_000, 1)) + task_effect, 0, 1).mean()
    covered = 0
    for _ in range(300):
        chance = np.clip(0.5 + 0.1 * rng.standard_normal((5, 1)) + task_effect, 0, 1)
        got = interval(table((rng.random((5, 60)) < chance).astype(int)))
        covered += got.low <= truth <= got.high
    assert 0.92 <= covered / 300 <= 0.98


# Pairs


def test_paired_by_hand() -> None:
    a, b = (
        table(np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]])),
        table(np.array([[0, 0, 0, 0]] * 2 + [[1, 0, 0, 0]])),
    )
    got = paired(a, b)
    assert got[:3] == pytest.approx(over_seeds([0.75, 0.25, 0.0])) and got.p == t_test([0.75, 0.25, 0.0])
    assert (got.gains, got.seeds, got.pairs, got.errors) == (2, 3, 12, 0)
    swapped = paired(b, a)
    assert swapped[:3] == pytest.approx((-got.difference, -got.high, -got.low))
    assert swapped.p == got.p and swapped.gains == 0


def test_two_policies_are_paired_over_subtasks() -> None:
    a, b = table(np.array([[1, 1, 1, 0]])), table(np.array([[0, 0, 0, 0]]))
    assert np.isnan(paired(a, b).low), "one seed has no interval over seeds"
    got = paired(a, b, over="task")
    assert got[:3] == pytest.approx(over_seeds([1, 1, 1, 0])) and got.seeds == 4


def test_equal_methods_do_not_differ() -> None:
    rows = table(np.array([[1, 0, 1], [0, 0, 1]]))
    assert paired(rows, rows).difference == 0.0 and np.isnan(paired(rows, rows)[1:4]).all()


def test_equal_values_have_no_interval_as_they_have_no_p_value() -> None:
    for values in ([0.1, 0.1], [0.1 + 0.2, 0.3, 0.3]):  # equal, and equal but for rounding
        got = over_seeds(values)
        assert got.mean == pytest.approx(values[1]) and np.isnan([*got[1:], t_test(values)]).all()


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    skill = (rng.random((5, 200)) < np.array([[0.2], [0.35], [0.5], [0.65], [0.8]])).astype(int)
    a, b = skill | (rng.random(skill.shape) < 0.1), skill
    got, alone = paired(table(a), table(b)), interval(table(a))
    assert got.high - got.low < 0.2 * (alone.high - alone.low)
    assert got.low > 0 and got.p < 0.05


def test_p_value_is_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(2)
    ps = np.array([t_test(rng.standard_normal(3)) for _ in range(1000)])
    assert 0.03 < np.mean(ps < 0.05) < 0.07 and 0.47 < ps.mean() < 0.53


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
