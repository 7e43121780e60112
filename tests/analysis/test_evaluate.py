"""From episodes to a table and a summary, by hand."""

from __future__ import annotations

import math

import pytest

from eef.analysis.evaluate import cost, results, skill_columns, summary
from eef.envs.extras import Skill, extras_of
from eef.trajectory import Trajectory, Turn


def episode(task: str, reward: float = 0.0, actions: tuple[str, ...] = (), **rest) -> Trajectory:
    turns = tuple(Turn(action, "page") for action in actions)
    return Trajectory(task, "s0", turns, reward=reward, won=reward == 1.0, **rest)


SKILLS = extras_of("webshop").skills
EPISODES = [
    episode("a", 1.0, ("search[red shoe]", "click[Next >]", "click[b01]", "click[Buy Now]")),
    episode("b", 1.0, ("search[hat]", "click[< Prev]", "click[Back to Search]", "click[buy now]")),
    episode("c", 0.5, ("search[next >]", "click[< prev]", "click[buy now]")),
    episode("d", 0.0, ("search[cup]",), outcome="max_steps"),
    episode("e", 0.0, ("search[cup]",), outcome="env_error"),
]


# Results and summary


def test_results_by_hand() -> None:
    got = results(EPISODES, SKILLS)
    assert list(got.columns) == ["task", "won", "reward", "steps", "outcome", "next", "prev", "back", "error"]
    assert got["steps"].tolist() == [4, 4, 3, 1, 1]
    assert got["next"].tolist() == [True, False, False, False, False]  # a search for "next >" is not the skill
    assert got["prev"].tolist() == [False, True, True, False, False]
    assert got["back"].tolist() == [False, True, False, False, False]
    assert got["error"].tolist() == [False, False, False, False, True]


def test_results_look_at_acted_turns() -> None:
    row = results([episode("a", 1.0, ("click[next >]", "click[buy now]"), prefix=1)], SKILLS).iloc[0]
    assert row["steps"] == 1 and not row["next"]


def test_answers_without_a_readable_action_are_counted_where_they_are_known() -> None:
    counts = {"invalid": 4, "no_action": 1, "ambiguous": 0, "cut": 2}
    played = [episode("a", 1.0, info=counts), episode("b", 0.0, outcome="env_error", info=counts), episode("c", 0.0)]
    table = results(played, SKILLS)
    assert table["invalid"].tolist() == [4, 4, 0] and table["cut"].tolist() == [2, 2, 0]
    got = summary(table, SKILLS)
    assert {name: got[name] for name in counts} == {"invalid": 8, "no_action": 2, "ambiguous": 0, "cut": 4}
    assert "invalid" not in summary(results([episode("c", 0.0)], SKILLS), SKILLS)


def test_results_of_nothing_keep_their_columns() -> None:
    assert list(results([], SKILLS).columns) == list(results(EPISODES, SKILLS).columns)


def test_summary_by_hand() -> None:
    got = summary(results(EPISODES, SKILLS), SKILLS, groups={"a": "easy", "b": "hard", "c": "hard", "d": "hard"})
    assert (got["n_test"], got["episodes"], got["errors"]) == (4, 5, 1)
    assert got["win_rate"] == 0.5 and got["mean_reward"] == 0.625
    assert got["wins_paging"] == 1.0 and got["wins_back"] == 0.5
    assert got["win_rate_easy"] == 1.0 and got["win_rate_hard"] == pytest.approx(1 / 3)
    assert 0.0 <= got["win_low"] <= 0.5 <= got["win_high"] <= 1.0
    assert got["reward_low"] < 0.625 < got["reward_high"]


def test_an_error_is_not_a_loss() -> None:
    with_error, without = summary(results(EPISODES, SKILLS), SKILLS), summary(results(EPISODES[:4], SKILLS), SKILLS)
    changed = {"episodes": 4, "errors": 0}
    assert without == {**with_error, **changed}


def test_an_episode_without_an_action_has_the_score_0() -> None:
    acted = episode("a", 0.0, ("look around",), info={"max_score": 0.5})
    silent = [episode(f"b{len(none)}", 0.0, none, outcome="max_steps") for none in ((), ("",), ("", ""))]
    assert summary(results([acted, *silent], {}), {})["mean_max_score"] == pytest.approx(0.125)


def test_a_task_counts_once() -> None:
    got = summary(results([episode("a", 1.0), episode("a", 1.0), episode("a", 0.0), episode("b", 0.0)], SKILLS), SKILLS)
    assert got["n_test"] == 2 and got["win_rate"] == pytest.approx(1 / 3)


def test_an_environment_brings_its_own_skills() -> None:
    skills = {"open": Skill(r"open \w+", "Open", "opening"), "look": Skill("look", "Look", "looking")}
    played = [episode("a", 1.0, ("Open door", "go")), episode("b", 1.0, ("go",)), episode("c", 0.0, ("look around",))]
    rows = results(played, skills)
    assert skill_columns(rows) == ["open", "look"]
    assert rows["open"].tolist() == [True, False, False] and rows["look"].tolist() == [False, False, True]
    got = summary(rows, skills)
    assert (got["wins_opening"], got["wins_looking"]) == (0.5, 0.0) and "wins_paging" not in got
    without = results(played, {})
    assert list(without) == ["task", "won", "reward", "steps", "outcome", "error"] and skill_columns(without) == []
    assert not any(name.startswith("wins_") for name in summary(without, {}))


def test_without_a_win_the_share_of_wins_is_nan() -> None:
    assert math.isnan(summary(results([episode("a")], SKILLS), SKILLS)["wins_paging"])


def test_nothing_to_rate_is_an_error() -> None:
    with pytest.raises(ValueError, match="all 2 episodes ended in env_error; context_overflow: there is"):
        summary(results([episode("a", outcome="env_error"), episode("b", outcome="context_overflow")], SKILLS), SKILLS)
    with pytest.raises(ValueError, match="context_overflow: .*no room for a first turn: raise it"):
        summary(results([episode("b", outcome="context_overflow")], SKILLS), SKILLS)
    with pytest.raises(ValueError, match="no episodes"):
        summary(results([], SKILLS), SKILLS)


def test_a_task_without_group_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 tasks have no group, such as 'b'"):
        summary(results(EPISODES, SKILLS), SKILLS, groups={"a": "easy"})


def test_summary_is_deterministic_and_blind_to_order() -> None:
    rows = results(EPISODES, SKILLS)
    assert summary(rows, SKILLS, seed=3) == summary(rows.sample(frac=1, random_state=1), SKILLS, seed=3)


def test_bootstrap_over_tasks_has_the_binomial_width() -> None:
    rows = results([episode(str(i), float(i % 2)) for i in range(400)], SKILLS)
    got = summary(rows, SKILLS)
    assert got["win_high"] - got["win_low"] == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.12)


# Cost


def test_cost_by_hand() -> None:
    simulations = [
        episode("a", 1.0, ("x", "y", "z"), prefix=2, info={"tokens": 7}),
        episode("b", 0.0, ("x", "y"), outcome="env_error", info={"tokens": 5}),
        episode("c", 0.0, ("x",)),
    ]
    assert cost(simulations) == {"episodes": 3, "env_steps": 4, "tokens": 12, "errors": 1}
    assert cost([]) == {"episodes": 0, "env_steps": 0, "tokens": 0, "errors": 0}
