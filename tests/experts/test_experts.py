"""Where expert trajectories come from: the stand-ins' strength, files in both formats, clear messages."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eef.envs import EnvError, TextEnv
from eef.envs.webshop import WebShop
from eef.envs.webshop.generate import CatalogueSpec, generate
from eef.envs.webshop.shopper import play_expert
from eef.experts import collect, demonstrations, groups
from eef.trajectory import Trajectory, TrajectoryError, save


def rate(trajectories: list[Trajectory]) -> float:
    return sum(item.won for item in trajectories) / len(trajectories)


@pytest.fixture(scope="module")
def default() -> WebShop:
    """The embedded default, as the main job uses it."""
    return WebShop(max_steps=15)


@pytest.fixture
def tasks(shop: WebShop) -> list[str]:
    return shop.tasks("train")


@pytest.fixture
def file(shop: WebShop, tasks: list[str], tmp_path: Path) -> Path:
    """Our JSON Lines: two training subtasks and one test subtask."""
    played = [play_expert(shop, task) for task in (*tasks[:2], shop.tasks("test")[0])]
    return save(played, tmp_path / "mine.jsonl")


def conversation(played: Trajectory) -> dict[str, Any]:
    """A trajectory as ETO publishes it."""
    messages = [
        {"from": "human", "value": "You are web shopping."},
        {"from": "gpt", "value": "OK"},
        {"from": "human", "value": played.prompt},
    ]
    for turn in played.turns:
        messages.append({"from": "gpt", "value": f"Thought: on we go.\nAction: {turn.action}"})
        messages.append({"from": "human", "value": f"Observation: {turn.observation}"})
    return {"id": f"webshop_{played.task}", "conversations": messages, "reward": played.reward}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_stand_ins_are_as_strong_as_they_say(default: WebShop, seed: int) -> None:
    subtasks = default.tasks("train")
    strong, weak = (collect(default, name, subtasks, seed) for name in ("strong", "weak"))
    assert len(strong) == len(weak) == 500
    assert 0.30 <= rate(strong) <= 0.42
    assert rate(weak) <= rate(strong) - 0.05
    assert all(item.won or item.failed for item in strong + weak)


def test_demonstrations_are_nearly_always_wins(default: WebShop) -> None:
    progress: list[tuple[int, int, int]] = []
    played = demonstrations(default, default.tasks("train")[:100], lambda *more: progress.append(more))
    assert rate(played) >= 0.9 and {item.source for item in played} == {"perfect"}
    assert progress == [(1, int(item.won), 0) for item in played]


def test_collecting_is_seeded_and_leaves_the_environment_alone(shop: WebShop, tasks: list[str]) -> None:
    before = shop.reset(tasks[3])
    first = collect(shop, "strong", tasks, 0)
    assert first == collect(shop, "strong", tasks, 0) != collect(shop, "strong", tasks, 1)
    assert [item.task for item in first] == tasks and {item.source for item in first} == {"strong"}
    assert shop.state is not None and shop.step("click[nothing]").observation == before


def test_stand_ins_and_files_are_joined_in_order(shop: WebShop, tasks: list[str], file: Path) -> None:
    episodes: list[int] = []
    found = collect(shop, f"strong+weak+{file}", tasks, 0, lambda *more: episodes.append(more[0]))
    assert Counter(item.source for item in found) == {"strong": 20, "weak": 20, "mine": 2}
    assert [item.source for item in found[::20]] == ["strong", "weak", "mine"]
    assert sum(episodes) == 40
    assert found[:20] == collect(shop, "strong", tasks, 0)


def test_a_file_keeps_its_sources_and_loses_other_subtasks(shop: WebShop, tasks: list[str], tmp_path: Path) -> None:
    ours, other = play_expert(shop, tasks[0]), play_expert(shop, shop.tasks("test")[0])
    path = save([replace(ours, source="gpt-4"), other, ours], tmp_path / "mine.jsonl")
    assert collect(shop, str(path), tasks, 0) == [replace(ours, source="gpt-4"), replace(ours, source="mine")]


@pytest.mark.parametrize("lines", [False, True], ids=["list", "lines"])
def test_a_file_in_the_format_of_eto(shop: WebShop, tasks: list[str], tmp_path: Path, lines: bool) -> None:
    played = [play_expert(shop, task) for task in tasks[:3]]
    rows = [conversation(item) for item in played]
    path = tmp_path / "eto.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    found = collect(shop, str(path), tasks, 0)
    assert [(item.task, item.prompt, item.actions, item.won) for item in found] == [
        (item.task, item.prompt, item.actions, item.won) for item in played
    ]
    assert {item.source for item in found} == {"eto"}
    assert found[0].turns[0].reply.startswith("Thought:")


def test_a_file_whose_subtasks_are_all_elsewhere(shop: WebShop, file: Path) -> None:
    with pytest.raises(ValueError, match=r"mine.jsonl: none of its 3 trajectories is on one of the 1 training"):
        collect(shop, str(file), [shop.tasks("train")[5]], 0)


def test_a_torn_file_names_its_line(shop: WebShop, tasks: list[str], file: Path) -> None:
    file.write_text(file.read_text()[:-40])
    with pytest.raises(TrajectoryError, match=r"mine.jsonl, line 3: .*torn"):
        collect(shop, str(file), tasks, 0)


@pytest.mark.parametrize("names", ["gpt-5", "strong+gpt-5", "nowhere/mine.jsonl"])
def test_an_unknown_expert_is_named_beside_the_known_ones(shop: WebShop, tasks: list[str], names: str) -> None:
    with pytest.raises(ValueError, match=r"'(gpt-5|nowhere/mine.jsonl)' is neither a stand-in \(strong, weak\) nor a"):
        collect(shop, names, tasks[:1], 0)


def test_stand_ins_play_the_environments_that_come_with_the_package() -> None:
    other = cast(TextEnv, SimpleNamespace(name="counter"))
    with pytest.raises(
        ValueError, match=r"expert 'strong' is neither a stand-in \(none for counter\) nor a trajectory"
    ):
        collect(other, "strong", ["0"], 0)
    with pytest.raises(ValueError, match="no perfect player of counter"):
        demonstrations(other, ["0"])


def test_a_subtask_on_which_the_environment_fails_is_neither_won_nor_lost(
    shop: WebShop, tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = collect(shop, "strong", tasks[:3], 0)
    reset = WebShop.reset

    def failing(self: WebShop, task: str) -> str:
        if task == tasks[1]:
            raise EnvError("the catalogue is gone")
        return reset(self, task)

    monkeypatch.setattr(WebShop, "reset", failing)
    progress: list[tuple[int, int, int]] = []
    played = collect(shop, "strong", tasks[:3], 0, lambda *more: progress.append(more))
    assert (played[0], played[2]) == (expected[0], expected[2])
    assert (played[1].task, played[1].outcome, played[1].failed) == (tasks[1], "env_error", False)
    assert len(progress) == 3


def test_groups_of_a_generated_shop_only(shop: WebShop) -> None:
    found = groups(shop, shop.tasks("test"))
    assert found is not None and list(found) == shop.tasks("test")
    assert Counter(found.values()) == {"easy": 10, "medium": 6, "hard": 4}
    given = WebShop(data=generate(CatalogueSpec(products=60)), split={"train": [0], "eval": [], "test": []})
    assert groups(given, ["0"]) is None


def test_slips_set_the_strength_and_the_rarity_of_the_skill(default: WebShop) -> None:
    subtasks = default.tasks("train")[:200]
    plain = collect(default, "strong", subtasks, 0)
    assert collect(default, "strong", subtasks, 0, expert_noise={}) == plain
    assert rate(collect(default, "strong", subtasks, 0, expert_noise={"base": 0.3})) < rate(plain) - 0.1
    shown = [
        sum(paged(item) for item in won(collect(default, "strong", subtasks, 0, expert_noise=s)))
        for s in ({"late": 0}, {})
    ]
    assert shown[0] > 3 * shown[1]


def won(trajectories: list[Trajectory]) -> list[Trajectory]:
    return [item for item in trajectories if item.won]


def paged(item: Trajectory) -> bool:
    return "click[next >]" in item.actions


@pytest.mark.parametrize(
    "names, expert_noise, message",
    [
        ("strong+strong", {}, "names one expert twice"),
        ("strong", {"bass": 0.1}, "'bass' is none of base, growth"),
        ("strong", {"late": 7}, r"'late' is a chance in \[0, 1\], not 7"),
        ("mine.jsonl", {"late": 0.7}, "expert_noise changes stand-ins"),
    ],
)
def test_a_doubled_expert_or_a_wrong_slip_is_named(
    shop: WebShop, tasks: list[str], names: str, expert_noise: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        collect(shop, names, tasks, 0, expert_noise=expert_noise)


def test_a_subtask_that_cannot_be_graded_costs_its_grade_alone(shop, monkeypatch) -> None:
    tasks = shop.tasks("test")[:3]
    expected = groups(shop, tasks)

    def fails(env, task, *given, **words):
        if task == tasks[1]:
            raise EnvError("broken")
        return play_expert(env, task, *given, **words)

    monkeypatch.setattr("eef.experts.play_expert", fails)
    assert groups(shop, tasks) == {**expected, tasks[1]: "ungraded"}
