"""Which conversations one forward pass reads together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eef.agents import cached_engine
from eef.agents.episode import Start
from eef.agents.passes import few_groups, similar_groups
from eef.agents.policy import Policy
from eef.agents.rollout import simulate

WIDTHS = st.lists(st.integers(1, 500), min_size=1, max_size=20)


@given(WIDTHS, st.integers(0, 2000))
def test_few_groups_pad_each_new_slot_at_most_so_much(widths: list[int], padding: int) -> None:
    slots = [10 + place for place in range(len(widths))]
    groups = few_groups(slots, widths, padding)
    assert sorted(slot for group in groups for slot in group) == slots
    for group in groups:
        read = [widths[slot - 10] for slot in group]
        assert read == sorted(read)
        assert all(count * (read[count] - read[count - 1]) <= padding for count in range(1, len(read)))
    firsts = [widths[group[0] - 10] for group in groups]
    for earlier, first in zip(groups, firsts[1:], strict=False):  # a new group began only where it had to
        assert len(earlier) * (first - widths[earlier[-1] - 10]) > padding


def test_slots_of_one_width_are_one_pass() -> None:
    assert few_groups([4, 2, 7], [9, 9, 9], padding=0) == [[4, 2, 7]]


def test_grouping_changes_no_episode(shop, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [Start(task) for task in shop.tasks("train")[:12]]
    similar = simulate(policy, shop, starts, seed=1)
    counts = []

    def few(slots: list[int], widths: list[int], lengths: list[int]) -> list[list[int]]:
        counts.append((len(few_groups(slots, widths)), len(similar_groups(slots, widths, lengths))))
        return few_groups(slots, widths)

    monkeypatch.setattr(cached_engine, "similar_groups", few)
    assert simulate(policy, shop, starts, seed=1) == similar
    assert sum(few for few, _ in counts) < sum(similar for _, similar in counts)
