"""The planner of simulations: properties for all counts, and synthetic win curves with known flips."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from eef.planning import VALUES, WON, Estimate, Line, Model, _likelihood, _lookahead, estimate, fit, plan
from eef.selection import Segment

counts = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=8)


def line_of(states: list[tuple[int, int, bool]]) -> Line:
    """A line from wins, losses and whether a state may be simulated."""
    return Line(
        tuple(wins for wins, _, _ in states),
        tuple(wins + losses for wins, losses, _ in states),
        tuple(allowed for *_, allowed in states),
    )


lines = st.lists(counts.map(line_of), min_size=1, max_size=4)


@given(lines, st.integers(0, 20))
@examples(max_examples=60)
def test_a_plan_is_deterministic_within_its_budget_and_of_allowed_states(group: list[Line], budget: int) -> None:
    batch = plan(group, budget)
    assert batch == plan(group, budget) == sorted(batch) and len(batch) <= budget
    for number, state in batch:
        assert 0 <= state < len(group[number].wins) and group[number].can_simulate[state]
    smaller = plan(group, budget // 2)
    assert len(smaller) <= len(batch)


@given(lines)
@examples(max_examples=60)
def test_an_estimate_is_a_probability_and_an_outcome_has_its_evidence(group: list[Line]) -> None:
    model = fit(group)
    assert math.isclose(sum(model.weights), 1) and 0 < model.change < 1 and min(model.weights) > 0
    for line in group:
        estimated = estimate(line, model)
        for mean, won, outcome, wins, count in zip(
            estimated.means, estimated.won, estimated.outcomes, line.wins, line.simulations, strict=True
        ):
            assert VALUES[0] - 1e-9 <= mean <= VALUES[-1] + 1e-9 and -1e-9 <= won <= 1 + 1e-9
            assert (outcome is None) == (count == 0 or (mean >= 0.5 and wins == 0))
            assert outcome is None or outcome == (mean >= 0.5)
        assert all(part.kind != "neutral" or part.start < part.stop for part in estimated.segments())


@given(lines)
@examples(max_examples=40)
def test_the_order_of_the_trajectories_changes_no_estimate(group: list[Line]) -> None:
    forth, back = fit(group), fit(group[::-1])
    assert np.allclose(forth.weights, back.weights) and math.isclose(forth.change, back.change)


def enumerated(line: Line, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """All paths of win probabilities to the end of a line, (paths, states + 1), and the posterior of each."""
    size = len(VALUES)
    paths = np.array(list(product(range(size), repeat=len(line.wins) + 1)))
    weights, stays = np.array(model.weights), (paths[:, 1:] == paths[:, :-1])
    prior = weights[paths[:, 0]] * np.prod((1 - model.change) * stays + model.change * weights[paths[:, 1:]], axis=1)
    likelihood = _likelihood(line)
    posterior = prior * np.prod([likelihood[state, paths[:, state]] for state in range(len(likelihood))], axis=0)
    return paths, posterior / posterior.sum()


@pytest.mark.parametrize("line", [Line((0, 1, 0), (1, 1, 0)), Line((2, 0, 0), (3, 0, 2)), Line((0, 0, 1), (0, 2, 1))])
@pytest.mark.parametrize("ends_lost", [True, False])
def test_estimates_and_gains_are_those_of_all_paths(line: Line, ends_lost: bool) -> None:
    line = replace(line, ends_lost=ends_lost)
    model = Model(tuple(np.arange(1, 11) / 55), 0.3)
    paths, posterior = enumerated(line, model)
    means, won = posterior @ VALUES[paths], posterior @ WON[paths]
    estimated = estimate(line, model)
    assert np.allclose(estimated.means, means[:3]) and np.allclose(estimated.won, won[:3])
    wins, both_won, less_variance = _lookahead(_likelihood(line)[None], model)
    assert np.allclose(wins[0], means)
    for state in range(3):
        value, has_won = VALUES[paths[:, state]], WON[paths[:, state]]
        assert np.allclose(both_won[0, state], (posterior * value * has_won) @ WON[paths])
        expected = (won * (1 - won)).sum()
        for probability in (value, 1 - value):
            share = posterior @ probability
            after = posterior * probability / share @ WON[paths]
            expected -= share * (after * (1 - after)).sum()
        assert less_variance[0, state] == pytest.approx(expected) and expected > 0


def test_simulations_bisect_a_step_and_repeat_in_doubt_where_labels_count() -> None:
    after = Line((0,) * 10 + (3,), (3, *[0] * 9, 3))
    model = Model(change=0.1)
    ((_, first),) = plan([after], 1, model, certainty=10)
    assert 3 <= first <= 7, "the middle between a state that lost and one that won"
    step = Line((0, 0, 0, 0, 3, 3), (3, 3, 3, 1, 3, 3))
    assert plan([step], 1, model, certainty=10) == [(0, 3)], "the state before the flip has one simulation"
    contradicts = Line((0, 0, 2, 0, 0), (2, 2, 2, 2, 2))
    assert Counter(plan([contradicts], 3, model, certainty=10)) == {(0, 2): 3}, "repeats in one batch"
    assert (0, 2) not in plan([contradicts], 3, model), "an example of it is at hand, so its label does not count"


def test_the_lost_end_makes_middle_states_most_promising() -> None:
    lost_at_s0 = Line((0,) * 9, (2, *[0] * 8))
    ((_, state),) = plan([lost_at_s0], 1)
    assert 3 <= state <= 6
    assert plan([replace(lost_at_s0, ends_lost=False)], 1) == [(0, 8)], "without it the state farthest from the loss"


def test_a_win_that_may_be_luck_leaves_its_line_open() -> None:
    """One win of five simulations is probably of a lost state, nine of nine are of a won one: that line is solved."""
    lucky, sure = Line((0, 1, 0, 0, 0, 0), (0, 5, 0, 0, 0, 0)), Line((0, 9, 0, 0, 0, 0), (0, 9, 0, 0, 0, 0))
    model = Model((0.1,) * 10, 0.3)
    assert {number for number, _ in plan([sure, lucky], 2, model)} == {1}


def test_lines_where_everything_loses_or_wins_are_dropped() -> None:
    lost, won = Line((0,) * 8, (2,) * 8), Line((4,) * 8, (4,) * 8)
    open_line = Line((0,) * 7 + (2,), (2, *[0] * 6, 2))
    batch = plan([lost] * 5 + [won] * 5 + [open_line] * 5, 15)
    assert {number for number, _ in batch} == set(range(10, 15)) and len(batch) == 15
    settled = Line((0,) * 8, (60,) * 8)
    assert plan([settled] * 3, 10) == [], "nothing is left to learn"


def test_a_line_without_a_win_comes_before_one_that_has_one() -> None:
    """Equal counts of simulations, and the state of the win is as probable to win again."""
    group = [Line((1, 0, 0), (1, 0, 0)), Line((0, 0, 0), (0, 0, 0))]
    assert {number for number, _ in plan(group, 1)} == {1}
    assert plan(group[:1], 3, Model(change=1e-6)) == [], "all states of the line give the same example"


def test_the_prior_is_learnt_from_all_lines() -> None:
    """If nearly nothing wins, one lost simulation settles a state more than if half of the states win."""
    rarely = [Line((0,) * 6, (4,) * 6) for _ in range(20)]
    one = Line((0,) * 6, (0, 1, 0, 0, 0, 0))
    doubt = [estimate(one, fit([*group, one])).won[1] for group in (rarely, [])]
    assert doubt[0] < 0.03 < doubt[1]
    alike = [Line(tuple(4 * (i >= s) for i in range(8)), (4,) * 8, ends_lost=False) for s in range(9)] * 3
    mixed = [Line(tuple(4 * ((i + s) % 2) for i in range(8)), (4,) * 8, ends_lost=False) for s in range(9)] * 3
    assert fit(alike).change < 0.3 < 0.9 < fit(mixed).change, "whether neighbours are alike is learnt too"
    assert fit([]) == fit([Line((0,), (0,))]) == Model()


CURVES = {
    "step": ([0.02] * 6 + [0.98] * 4, [("beneficial", 5)]),
    "noisy step": ([0.065] * 6 + [0.73] * 4, [("beneficial", 5)]),
    "two flips": ([0.065] * 3 + [0.9] * 4 + [0.065] * 3, [("beneficial", 2), ("harmful", 6)]),
    "falls": ([0.9] * 4 + [0.02] * 6, [("harmful", 3)]),
    "all lost": ([0.03] * 10, []),
    "all won": ([0.97] * 10, []),
}


@pytest.mark.parametrize("name", CURVES)
def test_known_flips_are_located(name: str) -> None:
    """30 failures of one curve, 24 simulations each in 6 batches: nearly all flips between the right two states."""
    curve, flips = CURVES[name]
    draw = np.random.default_rng(0)
    wins, sizes = np.zeros((30, 10), int), np.zeros((30, 10), int)

    def now() -> list[Line]:
        return [Line(tuple(w), tuple(s)) for w, s in zip(wins.tolist(), sizes.tolist(), strict=True)]

    for _ in range(6):
        for number, state in plan(now(), 30 * 4, certainty=1):
            sizes[number, state] += 1
            wins[number, state] += draw.random() < curve[state]
    model = fit(now())
    claims = [part for line in now() for part in estimate(line, model).segments() if part.kind != "neutral"]
    exact = sum((part.kind, part.start) in flips and part.stop == part.start + 1 for part in claims)
    assert exact >= 0.7 * 30 * len(flips) and len(claims) - exact <= 0.35 * 30
    assert sizes.sum() <= 30 * 24


def test_segments_and_gains_of_an_estimate() -> None:
    estimated = Estimate((0.1, 0.5, 0.7, 0.2, 0.3), (0.0,) * 5, (False, None, True, False, False))
    assert estimated.segments() == [
        Segment(0, 2, "beneficial"), Segment(2, 3, "harmful"), Segment(3, 4, "neutral"),
    ]  # fmt: skip
    assert estimated.gain(0, 2) == pytest.approx(0.6) and estimated.gain(2, 3) == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Line((1,), (0,)), "state 0 has 1 wins of 0 simulations: count again"),
        (lambda: Line((0, 0), (0,)), "wins, simulations and can_simulate have 2, 1 and 0 entries"),
        (lambda: Line((0, 0), (0, 0), (True,)), "have 2, 2 and 1 entries: give one for each state"),
        (lambda: plan([], -1), "budget=-1 must be at least 0 simulations"),
    ],
)
def test_wrong_counts_are_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_no_line_and_no_allowed_state_give_an_empty_plan() -> None:
    assert plan([], 5) == [] == plan([Line((0, 0), (0, 0), (False, False))], 5)
