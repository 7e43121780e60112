"""Rates, intervals and tests: small cases by hand, and sanity of the resampling on synthetic data."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from eef.analysis.evaluate import cost, interval, paired, results, summary
from eef.trajectory import Trajectory, Turn


def episode(task: str, reward: float = 0.0, actions: tuple[str, ...] = (), **rest) -> Trajectory:
    turns = tuple(Turn(action, "page") for action in actions)
    return Trajectory(task, "s0", turns, reward=reward, won=reward == 1.0, **rest)


def table(won: np.ndarray) -> pd.DataFrame:
    """Seeds x tasks as rows of (seed, task, won)."""
    seeds, tasks = np.indices(won.shape)
    return pd.DataFrame({"seed": seeds.ravel(), "task": [f"t{i}" for i in tasks.ravel()], "won": won.ravel()})


EPISODES = [
    episode("a", 1.0, ("search[red shoe]", "click[Next >]", "click[b01]", "click[Buy Now]")),
    episode("b", 1.0, ("search[hat]", "click[< Prev]", "click[Back to Search]", "click[buy now]")),
    episode("c", 0.5, ("search[next >]", "click[< prev]", "click[buy now]")),
    episode("d", 0.0, ("search[cup]",), outcome="max_steps"),
    episode("e", 0.0, ("search[cup]",), outcome="env_error"),
]


# Results and summary


def test_results_by_hand() -> None:
    got = results(EPISODES)
    assert list(got.columns) == ["task", "won", "reward", "steps", "outcome", "next", "prev", "back", "error"]
    assert got["steps"].tolist() == [4, 4, 3, 1, 1]
    assert got["next"].tolist() == [True, False, False, False, False]  # a search for "next >" is no skill
    assert got["prev"].tolist() == [False, True, True, False, False]
    assert got["back"].tolist() == [False, True, False, False, False]
    assert got["error"].tolist() == [False, False, False, False, True]


def test_results_look_at_acted_turns() -> None:
    row = results([episode("a", 1.0, ("click[next >]", "click[buy now]"), prefix=1)]).iloc[0]
    assert row["steps"] == 1 and not row["next"]


def test_answers_without_a_readable_action_are_counted_where_they_are_known() -> None:
    counts = {"invalid": 4, "no_action": 1, "ambiguous": 0, "cut": 2}
    played = [episode("a", 1.0, info=counts), episode("b", 0.0, outcome="env_error", info=counts), episode("c", 0.0)]
    table = results(played)
    assert table["invalid"].tolist() == [4, 4, 0] and table["cut"].tolist() == [2, 2, 0]
    got = summary(table)
    assert {name: got[name] for name in counts} == {"invalid": 8, "no_action": 2, "ambiguous": 0, "cut": 4}
    assert "invalid" not in summary(results([episode("c", 0.0)]))


def test_results_of_nothing_keep_their_columns() -> None:
    assert list(results([]).columns) == list(results(EPISODES).columns)


def test_summary_by_hand() -> None:
    got = summary(results(EPISODES), groups={"a": "easy", "b": "hard", "c": "hard", "d": "hard"})
    assert (got["n_test"], got["episodes"], got["errors"]) == (4, 5, 1)
    assert got["win_rate"] == 0.5 and got["mean_reward"] == 0.625
    assert got["wins_paging"] == 1.0 and got["wins_back"] == 0.5
    assert got["win_rate_easy"] == 1.0 and got["win_rate_hard"] == pytest.approx(1 / 3)
    assert 0.0 <= got["win_low"] <= 0.5 <= got["win_high"] <= 1.0
    assert got["reward_low"] < 0.625 < got["reward_high"]


def test_an_error_is_no_loss() -> None:
    with_error, without = summary(results(EPISODES)), summary(results(EPISODES[:4]))
    changed = {"episodes": 4, "errors": 0}
    assert without == {**with_error, **changed}


def test_a_task_counts_once() -> None:
    got = summary(results([episode("a", 1.0), episode("a", 1.0), episode("a", 0.0), episode("b", 0.0)]))
    assert got["n_test"] == 2 and got["win_rate"] == pytest.approx(1 / 3)


def test_without_a_win_no_share_of_wins() -> None:
    assert math.isnan(summary(results([episode("a")]))["wins_paging"])


def test_nothing_to_rate_is_an_error() -> None:
    with pytest.raises(ValueError, match="all 2 episodes ended in an infrastructure error"):
        summary(results([episode("a", outcome="env_error"), episode("b", outcome="context_overflow")]))
    with pytest.raises(ValueError, match="no episodes"):
        summary(results([]))


def test_a_task_without_group_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 tasks have no group, the first of them 'b'"):
        summary(results(EPISODES), groups={"a": "easy"})


def test_summary_is_deterministic_and_blind_to_order() -> None:
    rows = results(EPISODES)
    assert summary(rows, seed=3) == summary(rows.sample(frac=1, random_state=1), seed=3)


def test_bootstrap_over_tasks_has_the_binomial_width() -> None:
    rows = results([episode(str(i), float(i % 2)) for i in range(400)])
    got = summary(rows)
    assert got["win_high"] - got["win_low"] == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.12)


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
    with pytest.raises(ValueError, match="seed 0, task t0 stands twice"):
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
        ValueError, match=r"not run on the same .*: 1 stand on one side only, .*seed 1, task t2 \(in a\)"
    ):
        paired(rows, rows.iloc[:-1])
    with pytest.raises(ValueError, match="stands twice"):
        paired(pd.concat([rows, rows]), rows)


def test_paired_ignores_row_order() -> None:
    rng = np.random.default_rng(3)
    a, b = table(rng.integers(0, 2, (3, 20))), table(rng.integers(0, 2, (3, 20)))
    assert paired(a, b) == paired(a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=2))


# Cost


def test_cost_by_hand() -> None:
    simulations = [
        episode("a", 1.0, ("x", "y", "z"), prefix=2, info={"tokens": 7}),
        episode("b", 0.0, ("x", "y"), outcome="env_error", info={"tokens": 5}),
        episode("c", 0.0, ("x",)),
    ]
    assert cost(simulations) == {"episodes": 3, "env_steps": 4, "tokens": 12, "errors": 1}
    assert cost([]) == {"episodes": 0, "env_steps": 0, "tokens": 0, "errors": 0}
