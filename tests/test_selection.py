"""The selection step against Figure 1 and its rules, by hand and by property."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eef.selection import (
    Example,
    Segment,
    count,
    cut_points,
    important_states,
    segments,
    select,
    solution,
    with_random_segment,
)
from eef.trajectory import Trajectory, Turn

settings.register_profile("busy", deadline=None)  # a busy machine is no failure
settings.load_profile("busy")


def make_expert(n: int, won: bool = False, barred: tuple[int, ...] = ()) -> Trajectory:
    turns = tuple(Turn(f"expert {i}", f"page {i + 1}", learn=i not in barred) for i in range(n))
    return Trajectory("task", "s0", turns, reward=float(won), won=won, source="expert")


def make_win(expert: Trajectory, at: int, n: int = 2) -> Trajectory:
    acted = tuple(Turn(f"policy {at}.{i}", f"seen {at}.{i}") for i in range(n))
    return Trajectory("task", "s0", expert.turns[:at] + acted, reward=1.0, won=True, source="policy", prefix=at)


def make_outcomes(expert: Trajectory, won: dict[int, bool]) -> dict[int, Trajectory | None]:
    return {at: make_win(expert, at) if yes else None for at, yes in won.items()}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Trajectory, dict[int, Trajectory | None]]:
    n = draw(st.integers(0, 14))
    barred = tuple(draw(st.sets(st.integers(0, 13), max_size=4)))
    expert = make_expert(n, won=draw(st.booleans()), barred=barred)
    states = [0, *cut_points(n, draw(st.integers(1, 8)))]
    simulated = draw(st.sets(st.sampled_from(states)))  # the others met an infrastructure error
    wins = {at: make_win(expert, at, draw(st.integers(1, 4))) if draw(st.booleans()) else None for at in simulated}
    return expert, wins


FLAGS = st.fixed_dictionaries({"recovery": st.booleans(), "one_per_state": st.booleans()})


# Cut points


@pytest.mark.parametrize(
    ("n", "m", "points"),
    [
        (12, 5, [2, 4, 6, 8, 10]),
        (8, 3, [2, 4, 6]),
        (11, 2, [3, 6]),
        (10, 1, [5]),
        (6, 5, [1, 2, 3, 4, 5]),
        (3, 5, [1, 2]),
        (2, 5, [1]),
        (1, 5, []),
        (0, 5, []),
    ],
)
def test_cut_points_by_hand(n: int, m: int, points: list[int]) -> None:
    assert cut_points(n, m) == points


@given(st.integers(0, 200), st.integers(1, 50))
def test_cut_points_are_inner_states_at_equal_distance(n: int, m: int) -> None:
    points = cut_points(n, m)
    assert all(0 < point < n for point in points)
    assert len({b - a for a, b in zip([0, *points], points, strict=False)}) <= 1
    assert len(points) == (m if n > m else max(n - 1, 0))


@pytest.mark.parametrize("m", [0, -1])
def test_cut_points_need_one(m: int) -> None:
    with pytest.raises(ValueError, match="M must be at least 1"):
        cut_points(10, m)


# Figure 1


def figure_1() -> tuple[Trajectory, dict[int, Trajectory | None]]:
    expert = make_expert(8)
    return expert, make_outcomes(expert, {0: False, 2: True, 4: False, 6: True})


def test_figure_1_segments() -> None:
    assert segments(*figure_1()) == [
        Segment(0, 2, "beneficial"),
        Segment(2, 4, "harmful"),
        Segment(4, 6, "beneficial"),
        Segment(6, 8, "harmful"),
    ]


def test_figure_1_examples() -> None:
    expert, outcomes = figure_1()
    assert important_states(expert, outcomes) == [0, 4]
    assert select(expert, outcomes) == [Example(make_win(expert, 2), 0), Example(make_win(expert, 6), 4)]
    first, second = select(expert, outcomes)
    assert first.mask == (True, True, True, True)
    assert second.mask == (False, False, False, False, True, True, True, True)
    learnt = {
        turn.action for e in (first, second) for turn, loss in zip(e.trajectory.turns, e.mask, strict=True) if loss
    }
    assert {action for action in learnt if action.startswith("expert")} == {f"expert {i}" for i in (0, 1, 4, 5)}


def test_figure_1_ablations() -> None:
    expert, outcomes = figure_1()
    unmasked = select(expert, outcomes, mask_harmful=False)
    assert [(e.trajectory.prefix, e.learn_from) for e in unmasked] == [(2, 0), (6, 0)]
    assert all(unmasked[1].mask)
    assert [(e.trajectory.prefix, e.learn_from) for e in select(expert, outcomes, recovery=False)] == [(2, 0)]
    every = select(expert, outcomes, recovery=False, one_per_state=False)
    assert [(e.trajectory.prefix, e.learn_from) for e in every] == [(2, 0), (6, 6)]


def test_figure_1_counts() -> None:
    assert count(select(*figure_1())) == {
        "examples": 2,
        "later_examples": 1,
        "turns": 12,
        "loss_turns": 8,
        "expert_loss_turns": 4,
    }
    assert count([])["examples"] == 0


# Named cases


@pytest.mark.parametrize(
    ("won", "selected"),
    [
        ({0: True, 2: True, 4: True}, [(0, 0)]),  # all won: the easy subtask counts once
        ({0: False, 2: False, 4: False}, []),  # all lost
        ({0: True, 2: False, 4: False}, [(0, 0)]),  # s_2 needs recovery, and nothing later solves it
        ({0: True, 2: False, 4: True}, [(0, 0), (4, 2)]),
        ({0: False, 2: False, 4: True}, [(4, 0)]),
        ({2: True, 4: False, 5: True}, [(5, 4)]),  # s0 met an error: it is not important, the harm after it is
        ({2: False, 4: True}, []),  # lost, but nothing shows that it was ever won: not important
        ({0: True}, [(0, 0)]),
        ({}, []),
    ],
)
def test_select_by_hand(won: dict[int, bool], selected: list[tuple[int, int]]) -> None:
    expert = make_expert(6)
    examples = select(expert, make_outcomes(expert, won))
    assert [(e.trajectory.prefix, e.learn_from) for e in examples] == selected


@given(cases(), FLAGS)
def test_restart_only_selects_the_same_trajectories_without_loss_on_expert_actions(case, flags: dict) -> None:
    expert, outcomes = case
    examples, restarts = (select(expert, outcomes, **flags, restart_only=only) for only in (False, True))
    assert [e.trajectory for e in restarts] == [e.trajectory for e in examples]
    for example, restart in zip(examples, restarts, strict=True):
        start = restart.trajectory.prefix
        assert not any(restart.mask[:start]) and restart.mask[start:] == example.mask[start:]


@given(cases(), FLAGS, st.integers(0, 3))
def test_a_random_segment_carries_as_much_loss_as_the_beneficial_one(case, flags: dict, seed: int) -> None:
    expert, outcomes = case
    for example in select(expert, outcomes, **flags):
        drawn = with_random_segment(example, expert, (seed,))
        assert drawn == with_random_segment(example, expert, (seed,))
        totals = [count(examples) for examples in ([example], drawn)]
        assert totals[0]["expert_loss_turns"] == totals[1]["expert_loss_turns"]
        assert totals[0]["loss_turns"] == totals[1]["loss_turns"]
        assert drawn[0] == replace(example, learn_from=max(example.learn_from, example.trajectory.prefix))
        for segment in drawn[1:]:
            size = example.trajectory.prefix - example.learn_from
            assert len(segment.trajectory) == segment.learn_from + size == segment.trajectory.prefix
            assert segment.trajectory.turns == expert.turns[: len(segment.trajectory)]
            assert not segment.trajectory.won, "it ends before the win of an expert that won"


def test_random_segments_begin_anywhere() -> None:
    expert, outcomes = figure_1()
    (example, _) = select(expert, outcomes)
    starts = {with_random_segment(example, expert, (0, number))[1].learn_from for number in range(200)}
    assert starts == set(range(7))


def test_restart_only_needs_the_mask() -> None:
    with pytest.raises(ValueError, match="restart_only=True needs mask_harmful=True"):
        select(*figure_1(), mask_harmful=False, restart_only=True)


def test_every_win_counts_without_one_per_state() -> None:
    expert = make_expert(6)
    outcomes = make_outcomes(expert, {0: True, 1: True, 2: False, 3: False, 4: True, 5: True})
    examples = select(expert, outcomes, one_per_state=False)
    assert [(e.trajectory.prefix, e.learn_from) for e in examples] == [(0, 0), (1, 1), (4, 2), (5, 5)]


def test_empty_expert_trajectory() -> None:
    expert = make_expert(0)
    win = make_win(expert, 0)
    assert select(expert, {0: win}) == [Example(win, 0)]
    assert select(expert, {0: None}) == [] == select(expert, {})
    assert segments(expert, {0: win}) == []


def test_more_states_than_turns() -> None:
    expert = make_expert(3)
    outcomes = make_outcomes(expert, {0: True, **dict.fromkeys(cut_points(3, 50), False)})
    assert [(e.trajectory.prefix, e.learn_from) for e in select(expert, outcomes)] == [(0, 0)]


def test_tail_of_a_won_expert() -> None:
    expert = make_expert(4, won=True)
    assert segments(expert, {0: None, 2: None})[-1] == Segment(2, 4, "beneficial")
    assert segments(expert, {0: None, 2: make_win(expert, 2)})[-1] == Segment(2, 4, "neutral")


def test_segments_begin_at_the_first_simulated_state() -> None:
    assert segments(make_expert(4), {}) == []
    assert segments(make_expert(4), {1: None}) == [Segment(1, 4, "neutral")]


# Properties


@given(cases())
def test_one_example_per_solvable_important_state(case: tuple[Trajectory, dict[int, Trajectory | None]]) -> None:
    expert, outcomes = case
    solvable = [at for at in important_states(expert, outcomes) if solution(outcomes, at) is not None]
    examples = select(expert, outcomes)
    assert [example.learn_from for example in examples] == solvable
    for example in examples:
        at = solution(outcomes, example.learn_from)
        assert at is not None and example.trajectory is outcomes[at]
    assert len({id(example.trajectory) for example in examples}) == len(examples)


@given(cases(), FLAGS)
def test_no_harmful_action_carries_loss(
    case: tuple[Trajectory, dict[int, Trajectory | None]], flags: dict[str, bool]
) -> None:
    expert, outcomes = case
    harmful = {i for part in segments(expert, outcomes) if part.kind == "harmful" for i in range(part.start, part.stop)}
    for example in select(expert, outcomes, **flags):
        given_turns = example.mask[: example.trajectory.prefix]
        assert not harmful & {i for i, loss in enumerate(given_turns) if loss}


@given(cases(), FLAGS)
def test_expert_actions_with_loss_were_lost_to_won(
    case: tuple[Trajectory, dict[int, Trajectory | None]], flags: dict[str, bool]
) -> None:
    expert, outcomes = case
    for example in select(expert, outcomes, **flags):
        prefix = example.trajectory.prefix
        if example.learn_from < prefix:
            assert all(outcomes[at] is None for at in outcomes if example.learn_from <= at < prefix)
        assert all(loss == turn.learn for turn, loss in _tail(example))


def _tail(example: Example) -> list[tuple[Turn, bool]]:
    return list(zip(example.trajectory.turns, example.mask, strict=True))[example.learn_from :]


@given(cases(), FLAGS, st.booleans(), st.randoms())
def test_order_of_outcomes_does_not_matter(
    case: tuple[Trajectory, dict[int, Trajectory | None]], flags: dict[str, bool], mask_harmful: bool, random
) -> None:
    expert, outcomes = case
    shuffled = list(outcomes.items())
    random.shuffle(shuffled)
    examples = select(expert, outcomes, mask_harmful=mask_harmful, **flags)
    assert select(expert, dict(shuffled), mask_harmful=mask_harmful, **flags) == examples
    assert segments(expert, dict(shuffled)) == segments(expert, outcomes)
    assert [e.learn_from for e in examples] == sorted(e.learn_from for e in examples)


@given(cases(), FLAGS, st.booleans())
def test_barred_turns_never_carry_loss(
    case: tuple[Trajectory, dict[int, Trajectory | None]], flags: dict[str, bool], mask_harmful: bool
) -> None:
    expert, outcomes = case
    for example in select(expert, outcomes, mask_harmful=mask_harmful, **flags):
        assert not any(
            loss and not turn.learn for turn, loss in zip(example.trajectory.turns, example.mask, strict=True)
        )


@given(cases(), st.booleans())
def test_each_ablation_changes_one_rule(case: tuple[Trajectory, dict[int, Trajectory | None]], recovery: bool) -> None:
    expert, outcomes = case
    examples = select(expert, outcomes, recovery=recovery)
    unmasked = select(expert, outcomes, recovery=recovery, mask_harmful=False)
    assert [e.trajectory for e in unmasked] == [e.trajectory for e in examples]
    assert all(e.learn_from == 0 for e in unmasked)
    every = select(expert, outcomes, recovery=recovery, one_per_state=False)
    assert [e.trajectory for e in every] == [outcomes[at] for at in sorted(outcomes) if outcomes[at] is not None]
    assert [e for e in every if e in examples] == examples
    if not recovery:
        assert len(examples) <= 1 and all(e.learn_from == 0 for e in examples)


@given(cases())
def test_segments_tile_the_trajectory(case: tuple[Trajectory, dict[int, Trajectory | None]]) -> None:
    expert, outcomes = case
    assume(outcomes and len(expert))
    covered = [i for part in segments(expert, outcomes) for i in range(part.start, part.stop)]
    assert covered == list(range(min(outcomes), len(expert)))


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"won": False}, "not won"),
        ({"prefix": 1}, "prefix is 1"),
        ({"task": "other"}, "another task"),
        ({"turns": make_expert(1).turns}, "turn 1 differs"),
        ({"turns": (Turn("expert 0", "page 1"), Turn("stray", "page 2"), Turn("buy", "done"))}, "turn 1 differs"),
    ],
)
def test_a_wrong_win_is_refused(change: dict, message: str) -> None:
    expert = make_expert(4)
    with pytest.raises(ValueError, match=message):
        select(expert, {2: replace(make_win(expert, 2), **change)})


@pytest.mark.parametrize(("n", "index"), [(4, 4), (4, -1), (0, 1)])
def test_a_state_outside_is_refused(n: int, index: int) -> None:
    with pytest.raises(ValueError, match=f"outcome at s_{index}"):
        select(make_expert(n), {index: None})
