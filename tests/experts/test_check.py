"""Expert trajectories of files are replayed: the first difference, what cannot be replayed, what a run does with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eef.envs import EnvError
from eef.envs.webshop import WebShop
from eef.envs.webshop.shopper import play_expert
from eef.experts import expert_trajectories
from eef.experts.check import check_file, expert_counts, refuse_divergent
from eef.trajectory import Trajectory, TrajectoryError, Turn, load, save


@pytest.fixture(scope="module")
def played(shop: WebShop) -> list[Trajectory]:
    """Wins and losses of the scripted expert."""
    return expert_trajectories(shop, "strong", shop.tasks("train"), 0)


def page(item: Trajectory, index: int, text: str) -> Trajectory:
    """``item`` with another observation after the turn ``index``."""
    turns = list(item.turns)
    turns[index] = replace(turns[index], observation=text)
    return replace(item, turns=tuple(turns))


def test_recorded_trajectories_have_no_difference(shop: WebShop, played: list[Trajectory], tmp_path: Path) -> None:
    path = save(played, tmp_path / "mine.jsonl")
    before = shop.reset(shop.tasks("train")[3])
    report = check_file(str(path), shop)
    assert not report.failed and report.trajectories == played
    wins = sum(item.won for item in played)
    assert str(report).splitlines() == [
        f"{path}: 20 trajectories checked, 20 replayed without a difference, {wins} won",
        "train: 20 on 20 of 20 subtasks",
    ]
    assert shop.step("click[nothing]").observation == before
    assert check_file(str(path), shop, "test").failed and check_file(str(path), shop, "test").ignored == 20
    assert "no trajectory is on a subtask of the environment" in str(check_file(str(path), shop, "test"))


def test_a_trajectory_longer_than_max_steps_is_a_difference(
    shop: WebShop, played: list[Trajectory], tmp_path: Path
) -> None:
    path = save(played, tmp_path / "mine.jsonl")
    short = shop.fork()
    short.max_steps = min(len(item) for item in played)
    longer = sum(len(item) > short.max_steps for item in played)
    report = check_file(str(path), short)
    assert 0 < longer < len(played) and len(report.divergences) == longer
    assert f" turns, the environment has at most max_steps={short.max_steps}" in str(report)


CHANGES: list[tuple[Callable[[Trajectory], Trajectory], int | None, str, str]] = [
    (lambda t: replace(t, prompt="You see a door."), None, "You see a door.", "Instruction"),
    (lambda t: page(t, 0, "WebShop: nothing found"), 0, "nothing found", "Instruction"),
    (lambda t: page(t, 1, t.turns[1].observation + " now"), 1, " now", ""),
    (lambda t: replace(t, turns=(*t.turns, Turn("click[< prev]", "x"))), -1, "a further turn", "the episode ended"),
    (lambda t: replace(t, won=not t.won), -1, "won with reward", "won with reward"),
    (lambda t: replace(t, reward=0.123), -1, "with reward 0.123", "won with reward"),
]


@pytest.mark.parametrize(("change", "turn", "expected", "actual"), CHANGES)
def test_the_first_difference_is_named(
    shop: WebShop, played: list[Trajectory], tmp_path: Path, change, turn, expected: str, actual: str
) -> None:
    changed = change(played[2])
    path = save([*played[:2], changed, *played[3:]], tmp_path / "mine.jsonl")
    report = check_file(str(path), shop, "train")
    (difference,) = report.divergences
    at = None if turn is None else turn % len(changed.turns)
    assert (difference.place, difference.task, difference.turn) == ("line 3", played[2].task, at)
    assert difference.action == ("" if at is None else changed.turns[at].action)
    assert expected in difference.expected and actual in difference.actual
    assert len(difference.expected) < 100 and len(difference.actual) < 100
    assert report.failed and report.trajectories[2].outcome == "replay_divergence"
    assert not report.trajectories[2].won and not report.trajectories[2].failed
    assert "1 diverges from the environment:\n  line 3, task" in str(report) and "divergent_experts=drop" in str(report)
    words = r"1 of 20 expert trajectories diverge from the environment; the first: .*mine.jsonl, line 3, task "
    with pytest.raises(TrajectoryError, match=words + played[2].task) as caught:
        refuse_divergent(report.trajectories)
    assert "\n" not in str(caught.value) and "divergent_experts=drop" in str(caught.value)


def test_trajectories_and_their_subtasks_are_counted_apart(
    shop: WebShop, played: list[Trajectory], tmp_path: Path
) -> None:
    path = save([*played[:3], *played[:2], play_expert(shop, shop.tasks("test")[0])], tmp_path / "mine.jsonl")
    lines = str(check_file(str(path), shop)).splitlines()
    assert lines[1:] == ["train: 5 on 3 of 20 subtasks", "test: 1 on 1 of 20 subtasks"]


def test_a_trajectory_that_does_not_end_needs_the_outcome_max_steps(
    shop: WebShop, played: list[Trajectory], tmp_path: Path
) -> None:
    item = next(item for item in played if item.outcome == "done" and item.failed and len(item) > 2)
    cut = replace(item, turns=item.turns[:-1], reward=0.0)
    path = save([cut, replace(cut, won=True, reward=1.0), replace(cut, outcome="max_steps")], tmp_path / "mine.jsonl")
    report = check_file(str(path), shop)
    assert [each.place for each in report.divergences] == ["line 1", "line 2"]
    turn = f"turn {len(cut)}, after {cut.actions[-1]!r}"
    assert f"{turn}: the file has outcome 'done', the environment has an unfinished episode" in str(report)
    assert 'write "outcome": "max_steps"' in str(report)
    at_limit = shop.fork()
    at_limit.max_steps = len(cut)  # the step limit of the run ends it there
    assert [each.place for each in check_file(str(path), at_limit).divergences] == ["line 2"]


def test_an_empty_file_is_named(shop: WebShop, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n")
    for read in (check_file, lambda path, env: expert_trajectories(env, path, env.tasks("train"), 0)):
        with pytest.raises(TrajectoryError, match="mine.jsonl is empty: write one trajectory per line"):
            read(str(path), shop)


def test_a_file_without_the_last_observation_and_rounded_rewards(
    shop: WebShop, played: list[Trajectory], tmp_path: Path
) -> None:
    """ETO's files end with an action; rewards may be rounded; an answer without an action was not played."""
    rounded = [replace(page(item, len(item) - 1, ""), reward=round(item.reward, 2)) for item in played]
    first = rounded[0]
    rounded[0] = replace(first, turns=(Turn("", "Invalid format.", "hm"), *first.turns))
    assert not check_file(str(save(rounded, tmp_path / "mine.jsonl")), shop).divergences


def test_what_cannot_be_replayed_is_counted_and_used_as_it_is(
    shop: WebShop, played: list[Trajectory], tmp_path: Path
) -> None:
    won = next(item for item in played if item.won)
    invented = replace(won, prompt="a page without the look around", info={"no_replay": "the first page is shorter"})
    stopped = replace(played[1], prompt="other", won=False, outcome="env_error")
    path = save([invented, stopped], tmp_path / "mine.jsonl")
    report = check_file(str(path), shop)
    assert (report.divergences, report.not_replayed, report.errors) == ([], 1, 1)
    assert report.trajectories == [invented, stopped]
    assert "1 cannot be replayed" in str(report) and "1 ended in an error" in str(report)
    assert expert_counts(report.trajectories) == {
        "expert_divergences": 0,
        "expert_errors": 1,
        "experts_not_replayed": 1,
    }


def test_a_failing_environment_is_neither_a_difference_nor_a_loss(
    shop: WebShop, played: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(played[:3], tmp_path / "mine.jsonl")
    reset = WebShop.reset

    def failing(self: WebShop, task: str) -> str:
        if task == played[1].task:
            raise EnvError("the catalogue is gone")
        return reset(self, task)

    monkeypatch.setattr(WebShop, "reset", failing)
    report = check_file(str(path), shop)
    assert not report.failed and [item.outcome for item in report.trajectories][1] == "env_error"
    assert expert_counts(report.trajectories)["expert_errors"] == 1


def test_an_environment_that_cannot_fork_replays_on_its_workers(
    shop: WebShop, played: list[Trajectory], tmp_path: Path
) -> None:
    class Single(WebShop):
        count = 0

        def fork(self) -> Any:
            raise NotImplementedError

        def workers(self, count: int) -> list[Any]:
            type(self).count = min(count, 3)
            return [WebShop.fork(self) for _ in range(min(count, 3))]

    single = object.__new__(Single)
    single.__dict__.update(shop.__dict__)
    path = save([*played[:4], replace(played[4], prompt="x"), *played[5:]], tmp_path / "mine.jsonl")
    report = check_file(str(path), single)
    assert Single.count == 3 and [each.place for each in report.divergences] == ["line 5"]
    assert report.trajectories[:4] == played[:4] and report.trajectories[5:] == played[5:]


def test_a_run_is_given_divergent_trajectories_as_errors(
    shop: WebShop, played: list[Trajectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = next(index for index, item in enumerate(played) if not item.won)
    wrong = [*played[:lost], replace(played[lost], won=True, reward=1.0), *played[lost + 1 :]]
    path = save(wrong, tmp_path / "mine.jsonl")
    items = expert_trajectories(shop, str(path), shop.tasks("train"), 0)
    assert [item.won for item in items] == [item.won for item in played]
    assert not items[lost].failed and expert_counts(items)["expert_divergences"] == 1
    printed = capsys.readouterr().out
    assert f"1 of 20 trajectories diverge from the environment; the first: line {lost + 1}, task" in printed


def test_a_file_in_etos_format_names_its_items(shop: WebShop, tmp_path: Path) -> None:
    item = play_expert(shop, shop.tasks("train")[0])
    talk = [{"from": "human", "value": "Shop."}, {"from": "gpt", "value": "OK"}]
    talk += [{"from": "human", "value": item.prompt}]
    for turn in item.turns:
        talk += [{"from": "gpt", "value": f"Thought: next.\nAction: {turn.action}"}]
        talk += [{"from": "human", "value": f"Observation: {turn.observation}"}]
    rows = [{"id": f"webshop_{item.task}", "conversations": talk, "reward": reward} for reward in (item.reward, 0.0)]
    path = tmp_path / "eto.json"
    path.write_text(json.dumps(rows))
    assert [each.place for each in check_file(str(path), shop).divergences] == ["item 2"]
    assert len(load(path)) == 2
