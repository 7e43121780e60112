"""Restoring a state by replay and by fork, on a counter whose observations can be made to drift."""

from __future__ import annotations

import copy

import pytest

from eef.envs import EnvError, ReplayDivergence, Step, TextEnv, expert_states, make_env, replay_workers, restore, walk
from eef.trajectory import Trajectory, Turn


class Counter:
    """Each ``add[k]`` adds k; the episode is won at 10. The observation of step ``drift_at`` is wrong by 500."""

    name = "counter"
    max_steps = 10

    def __init__(self, drift_at: int = -1) -> None:
        self.drift_at, self.total, self.steps, self.replayed = drift_at, 0, 0, 0

    def tasks(self, split: str) -> list[str]:
        return ["0", "1"]

    def reset(self, task: str) -> str:
        self.total, self.steps = int(task), 0
        return self._page()

    def step(self, action: str) -> Step:
        self.total += int(action[4:-1])
        self.steps += 1
        self.replayed += 1
        return Step(self._page(), float(self.total == 10), self.total >= 10, info={"won": self.total == 10})

    def _page(self) -> str:
        return f"the total is {self.total + (500 if self.steps == self.drift_at else 0)} now"

    def available_actions(self) -> dict[str, list[str]]:
        return {"actions": ["add[1]", "add[2]"]}

    def fork(self) -> Counter:
        return copy.copy(self)

    def can_start_here(self, observation: str) -> bool:
        return True

    def stamp(self) -> dict[str, str]:
        return {"counter": "1"}


def make_expert(env: TextEnv, actions: list[str], task: str = "1") -> Trajectory:
    prompt = env.reset(task)
    return Trajectory(task, prompt, tuple(Turn(action, env.step(action).observation) for action in actions))


ACTIONS = ["add[1]", "add[2]", "add[3]", "add[1]"]
EXPERT = make_expert(Counter(), ACTIONS)
PAGES = [EXPERT.state(i) for i in range(5)]


def test_restore_reaches_the_state() -> None:
    env = Counter()
    assert restore(env, "1", ACTIONS[:3], PAGES[:4]) == "the total is 7 now"
    assert env.step("add[3]").info["won"]


def test_restore_of_the_first_state() -> None:
    env = Counter()
    env.step("add[5]")  # restore starts from the beginning
    assert restore(env, "1", [], PAGES[:1]) == PAGES[0]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_restore_names_the_first_state_that_differs(at: int) -> None:
    env = Counter(drift_at=at)
    with pytest.raises(ReplayDivergence, match=f"task 1, state {at}: the replay shows '50.* was recorded") as caught:
        restore(env, "1", ACTIONS, PAGES)
    assert "character 13" in str(caught.value)
    assert env.replayed == at  # the replay stops there


def test_a_truncated_page_is_a_divergence() -> None:
    with pytest.raises(ReplayDivergence, match="state 0: the replay shows ' now' where '' was recorded"):
        restore(Counter(), "1", [], ["the total is 1"])


def test_restore_needs_one_more_observation_than_actions() -> None:
    with pytest.raises(ValueError, match="4 actions need 5 observations, not 4"):
        restore(Counter(), "1", ACTIONS, PAGES[:4])


@pytest.mark.parametrize("last", ["add[1]", ""])
def test_a_replay_that_ends_before_the_last_action_is_a_divergence(last: str) -> None:
    actions = ["add[4]", "add[5]", last]  # the second one reaches 10
    pages = ["the total is 1 now", "the total is 5 now", "the total is 10 now", "the total is 11 now"]
    env = Counter()
    with pytest.raises(ReplayDivergence, match="the replay ended with action 2, but the recording has at least 3"):
        restore(env, "1", actions, pages)
    assert env.replayed == 2  # the replay stops at the end
    assert restore(env, "1", actions[:2], pages[:3]) == pages[2]
    with pytest.raises(ReplayDivergence, match="the replay ended with action 2"):
        restore(env, "1", actions[:2], pages[:3], live=True)
    assert restore(env, "1", actions[:1], pages[:2], live=True) == pages[1]


def test_the_states_before_a_divergence_are_reached() -> None:
    states = walk(Counter(drift_at=3), EXPERT, [3, 0, 2])
    assert [(index, twin.step("add[1]").observation) for index, twin, _ in (next(states), next(states))] == [
        (0, "the total is 2 now"),
        (2, "the total is 505 now"),  # includes the drift of the third step
    ]
    with pytest.raises(ReplayDivergence, match="task 1, state 3"):
        next(states)


def test_a_failing_fork_is_not_mistaken_for_a_missing_one() -> None:
    class Failing(Counter):
        def fork(self) -> Counter:
            raise EnvError("no memory")

    assert replay_workers(Failing(), 2) == []


def test_expert_states_are_the_states_of_the_expert() -> None:
    twins = expert_states(Counter(), EXPERT, [3, 0, 2, 2])
    assert sorted(twins) == [0, 2, 3]
    for index, twin in twins.items():
        for at in range(index, len(EXPERT)):
            assert twin.step(ACTIONS[at]).observation == EXPERT.state(at + 1)


def test_forks_are_independent() -> None:
    env = Counter()
    twins = expert_states(env, EXPERT, [0, 1])
    env.step("add[7]")
    twins[0].step("add[5]")
    assert twins[1].step("add[1]").observation == "the total is 3 now"
    assert twins[0].step("add[1]").observation == "the total is 7 now"


def test_expert_states_take_one_replay() -> None:
    env = Counter()
    expert_states(env, EXPERT, [1, 2, 3])
    assert env.replayed == 3


@pytest.mark.parametrize("at", [0, 2])
def test_expert_states_name_a_divergence(at: int) -> None:
    with pytest.raises(ReplayDivergence, match=f"task 1, state {at}"):
        expert_states(Counter(drift_at=at), EXPERT, [3])


def test_a_divergence_after_the_last_index_is_harmless() -> None:
    assert list(expert_states(Counter(drift_at=4), EXPERT, [3])) == [3]


@pytest.mark.parametrize("indices", [[4], [-1], [0, 9]])
def test_indices_out_of_range_are_refused(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="an expert trajectory of 4 turns"):
        expert_states(Counter(), EXPERT, indices)


def test_the_first_state_of_an_empty_expert() -> None:
    empty = make_expert(Counter(), [])
    assert list(expert_states(Counter(), empty, [0])) == [0]
    assert expert_states(Counter(), empty, []) == {}


def test_an_unknown_environment_is_named() -> None:
    with pytest.raises(ValueError, match="unknown environment 'chess'"):
        make_env("chess")
