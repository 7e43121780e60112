"""Expert trajectories: the strength of scripted experts, files in both formats, clear messages."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eef import experts
from eef.agents.journal import Journal
from eef.envs import EnvError, TextEnv
from eef.envs.extras import extras_of, play_scripted
from eef.envs.webshop import WebShop
from eef.envs.webshop.generate import CatalogueSpec, generate
from eef.envs.webshop.shopper import play_expert
from eef.experts import demonstrations, expert_trajectories
from eef.settings import ExpertSettings
from eef.tracking.stages import key_of
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
        messages.append({"from": "gpt", "value": f"Thought: next.\nAction: {turn.action}"})
        messages.append({"from": "human", "value": f"Observation: {turn.observation}"})
    return {"id": f"webshop_{played.task}", "conversations": messages, "reward": played.reward}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scripted_experts_are_as_strong_as_documented(default: WebShop, seed: int) -> None:
    subtasks = default.tasks("train")
    strong, weak = (expert_trajectories(default, name, subtasks, seed) for name in ("strong", "weak"))
    assert len(strong) == len(weak) == 500
    assert 0.30 <= rate(strong) <= 0.42
    assert rate(weak) <= rate(strong) - 0.05
    assert all(item.won or item.failed for item in strong + weak)


def test_demonstrations_are_nearly_always_wins(default: WebShop) -> None:
    progress: list[tuple[int, int, int]] = []
    played = demonstrations(default, default.tasks("train")[:100], lambda *more: progress.append(more))
    assert rate(played) >= 0.9 and {item.source for item in played} == {"perfect"}
    assert progress == [(1, int(item.won), 0) for item in played]


def test_expert_trajectories_are_seeded_and_leave_the_environment_alone(shop: WebShop, tasks: list[str]) -> None:
    before = shop.reset(tasks[3])
    first = expert_trajectories(shop, "strong", tasks, 0)
    assert first == expert_trajectories(shop, "strong", tasks, 0) != expert_trajectories(shop, "strong", tasks, 1)
    assert [item.task for item in first] == tasks and {item.source for item in first} == {"strong"}
    assert shop.state is not None and shop.step("click[nothing]").observation == before


def test_scripted_experts_and_files_are_joined_in_order(shop: WebShop, tasks: list[str], file: Path) -> None:
    episodes: list[int] = []
    trajectories = expert_trajectories(shop, f"strong+weak+{file}", tasks, 0, lambda *more: episodes.append(more[0]))
    assert Counter(item.source for item in trajectories) == {"strong": 20, "weak": 20, "mine": 2}
    assert [item.source for item in trajectories[::20]] == ["strong", "weak", "mine"]
    assert sum(episodes) == 40
    assert trajectories[:20] == expert_trajectories(shop, "strong", tasks, 0)


def test_saved_episodes_of_joined_experts_are_not_played_again(
    shop: WebShop, tasks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = expert_trajectories(shop, "strong+weak", tasks, 0)
    journal = Journal.open(tmp_path / "episodes.jsonl")
    for number in (0, 3, 19, 20, 39):  # the subtasks of the second expert follow those of the first
        journal.append(number, whole[number])
    played, episodes = list[str](), list[int]()
    monkeypatch.setattr(experts, "play_scripted", lambda *args: played.append(args[2]) or play_scripted(*args))
    again = expert_trajectories(
        shop, "strong+weak", tasks, 0, lambda *more: episodes.append(more[0]), journal=Journal.open(journal.path)
    )
    assert again == whole and sum(episodes) == 40
    assert played == [task for place, task in enumerate(tasks * 2) if place not in (0, 3, 19, 20, 39)]
    assert len(Journal.open(journal.path).episodes) == 40


def test_a_file_keeps_its_sources_and_skips_other_subtasks(shop: WebShop, tasks: list[str], tmp_path: Path) -> None:
    ours, other = play_expert(shop, tasks[0]), play_expert(shop, shop.tasks("test")[0])
    path = save([replace(ours, source="gpt-4"), other, ours], tmp_path / "mine.jsonl")
    assert expert_trajectories(shop, str(path), tasks, 0) == [
        replace(ours, source="gpt-4"),
        replace(ours, source="mine"),
    ]


@pytest.mark.parametrize("lines", [False, True], ids=["list", "lines"])
def test_a_file_in_the_format_of_eto(shop: WebShop, tasks: list[str], tmp_path: Path, lines: bool) -> None:
    played = [play_expert(shop, task) for task in tasks[:3]]
    rows = [conversation(item) for item in played]
    path = tmp_path / "eto.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    trajectories = expert_trajectories(shop, str(path), tasks, 0)
    assert [(item.task, item.prompt, item.actions, item.won) for item in trajectories] == [
        (item.task, item.prompt, item.actions, item.won) for item in played
    ]
    assert {item.source for item in trajectories} == {"eto"}
    assert trajectories[0].turns[0].reply.startswith("Thought:")


def test_a_file_without_any_of_the_subtasks_is_refused(shop: WebShop, file: Path) -> None:
    with pytest.raises(ValueError, match=r"mine.jsonl: none of its 3 trajectories is on one of the 1 training"):
        expert_trajectories(shop, str(file), [shop.tasks("train")[5]], 0)


def test_the_error_for_a_truncated_file_names_the_line(shop: WebShop, tasks: list[str], file: Path) -> None:
    file.write_text(file.read_text()[:-40])
    with pytest.raises(TrajectoryError, match=r"mine.jsonl, line 3: truncated or invalid JSON"):
        expert_trajectories(shop, str(file), tasks, 0)


@pytest.mark.parametrize("names", ["gpt-5", "strong+gpt-5", "nowhere/mine.jsonl"])
def test_the_error_for_an_unknown_expert_lists_the_known_ones(shop: WebShop, tasks: list[str], names: str) -> None:
    with pytest.raises(ValueError, match=r"'(gpt-5|nowhere/mine.jsonl)' is neither a scripted expert \(strong, weak\)"):
        expert_trajectories(shop, names, tasks[:1], 0)


def test_a_file_without_a_suffix_needs_a_path(
    shop: WebShop, tasks: list[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    for name in ("strong", "other"):
        file.with_name(name).write_bytes(file.read_bytes())
    assert {item.source for item in expert_trajectories(shop, "strong", tasks[:2], 0)} == {"strong"}
    assert key_of(ExpertSettings(experts="strong"))["experts"] == ["strong"]
    assert len(expert_trajectories(shop, "./other", tasks, 0)) == 2
    assert key_of(ExpertSettings(experts="./other"))["experts"][0][0] == "other"
    with pytest.raises(ValueError, match="'other' is neither .*; for the file of this name write ./other"):
        expert_trajectories(shop, "other", tasks, 0)


def test_an_environment_without_scripted_experts() -> None:
    other = cast(TextEnv, SimpleNamespace(name="counter"))
    with pytest.raises(
        ValueError, match=r"expert 'strong' is neither a scripted expert \(none for counter\) nor a trajectory"
    ):
        expert_trajectories(other, "strong", ["0"], 0)
    with pytest.raises(ValueError, match="counter has no scripted expert"):
        demonstrations(other, ["0"])


def test_an_environment_error_is_neither_a_win_nor_a_loss(
    shop: WebShop, tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = expert_trajectories(shop, "strong", tasks[:3], 0)
    reset = WebShop.reset

    def failing(self: WebShop, task: str) -> str:
        if task == tasks[1]:
            raise EnvError("the catalogue is gone")
        return reset(self, task)

    monkeypatch.setattr(WebShop, "reset", failing)
    progress: list[tuple[int, int, int]] = []
    played = expert_trajectories(shop, "strong", tasks[:3], 0, lambda *more: progress.append(more))
    assert (played[0], played[2]) == (expected[0], expected[2])
    assert (played[1].task, played[1].outcome, played[1].failed) == (tasks[1], "env_error", False)
    assert len(progress) == 3


def test_groups_of_a_generated_shop_only(shop: WebShop) -> None:
    grades = extras_of(shop).groups(shop, shop.tasks("test"))
    assert grades is not None and list(grades) == shop.tasks("test")
    assert Counter(grades.values()) == {"easy": 10, "medium": 6, "hard": 4}
    official = WebShop(data=generate(CatalogueSpec(products=60)), split={"train": [0], "eval": [], "test": []})
    assert extras_of(official).groups(official, ["0"]) is None


def test_expert_noise_sets_the_strength_and_the_rarity_of_the_skill(default: WebShop) -> None:
    subtasks = default.tasks("train")[:200]
    plain = expert_trajectories(default, "strong", subtasks, 0)
    assert expert_trajectories(default, "strong", subtasks, 0, expert_noise={}) == plain
    assert rate(expert_trajectories(default, "strong", subtasks, 0, expert_noise={"base": 0.3})) < rate(plain) - 0.1
    shown = [
        sum(paged(item) for item in won(expert_trajectories(default, "strong", subtasks, 0, expert_noise=s)))
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
        ("strong", {"bass": 0.1}, "unknown error rate 'bass', expected one of base, growth"),
        ("strong", {"late": 7}, r"'late' must be a probability in \[0, 1\], not 7"),
        ("mine.jsonl", {"late": 0.7}, "expert_noise applies to scripted experts"),
    ],
)
def test_the_error_for_a_duplicated_expert_or_a_wrong_error_rate_names_it(
    shop: WebShop, tasks: list[str], names: str, expert_noise: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        expert_trajectories(shop, names, tasks, 0, expert_noise=expert_noise)


def test_a_subtask_that_cannot_be_graded_does_not_affect_the_others(shop, monkeypatch) -> None:
    tasks = shop.tasks("test")[:3]
    expected = extras_of(shop).groups(shop, tasks)

    def fails(env, task, *args, **kwargs):
        if task == tasks[1]:
            raise EnvError("broken")
        return play_expert(env, task, *args, **kwargs)

    monkeypatch.setattr("eef.envs.webshop.extras.play_expert", fails)
    assert extras_of(shop).groups(shop, tasks) == {**expected, tasks[1]: "ungraded"}
