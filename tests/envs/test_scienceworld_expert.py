"""The scripted ScienceWorld expert: gold paths with teleports, and mistakes that make useful failures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eef.envs import restore
from eef.envs.scienceworld import ScienceWorld
from eef.envs.scienceworld.expert import LapseNoise, play_expert, teleported, to_valid_action, without_flower_pots
from eef.experts import demonstrations, expert_trajectories
from eef.trajectory import Trajectory

TASKS = ("find-non-living-thing", "find-plant", "lifespan-longest-lived")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScienceWorld]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EEF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")  # faster for short plays
        world = ScienceWorld(TASKS, max_steps=15)
        yield world
        world.close()


@pytest.fixture(scope="module")
def subtasks(env: ScienceWorld) -> list[str]:
    return env.tasks("train")[::30]


@pytest.fixture(scope="module")
def few(subtasks: list[str]) -> list[str]:
    """Subtasks of each task, where the number does not matter."""
    return subtasks[::5]


@pytest.fixture(scope="module")
def strong(env: ScienceWorld, subtasks: list[str]) -> list[Trajectory]:
    return expert_trajectories(env, "strong", subtasks, 0)


@pytest.fixture(scope="module")
def strong_on_few(env: ScienceWorld, few: list[str]) -> list[Trajectory]:
    return expert_trajectories(env, "strong", few, 0)


def test_walks_become_teleports() -> None:
    walk = ["open door to hallway", "go to hallway", "open door to kitchen", "go to kitchen", "look around"]
    assert teleported([*walk, "focus on cup"]) == ["teleport to kitchen", "look around", "focus on cup"]
    assert teleported(["focus on ant", "wait1"]) == ["focus on ant", "wait1"]


def test_a_plant_is_carried_by_its_name() -> None:
    gold = ["look around", "focus on adult pea plant", "pick up flower pot 7", "teleport to kitchen"]
    gold.append("move flower pot 7 containing pea plant and soil in inventory to red box")
    carried = ["pick up adult pea plant", "teleport to kitchen", "move adult pea plant to red box"]
    assert without_flower_pots(gold) == [*gold[:2], *carried]
    gold[1] = "focus on living thing in flower pot 7"  # some gold paths say so
    named = ["pick up pea plant", "teleport to kitchen", "move pea plant to red box"]
    assert without_flower_pots(gold) == ["look around", "focus on pea plant", *named]
    animal = ["focus on dove", "pick up dove", "move egg dove egg in inventory to red box"]
    assert without_flower_pots(animal) == animal and without_flower_pots([]) == []


@pytest.mark.parametrize(
    ("action", "valid", "carried", "expected"),
    [
        ("focus on ant", ["focus on ant"], "", "focus on ant"),
        (
            "move egg dove egg in inventory to red box",
            ["move orange to red box", "move dove to red box"],
            "",
            "move dove to red box",
        ),
        (
            "move living thing in inventory to red box",
            ["move egg frog to red box"],
            "egg frog",
            "move egg frog to red box",
        ),
        (
            "move flower pot 6 containing apple tree and soil in inventory to red box",
            ["move flower pot to red box", "move apple to red box", "move adult apple tree to red box"],
            "flower pot 6",
            "move flower pot to red box",
        ),
        (
            "move banana tree to red box",
            ["move banana to red box", "move adult banana tree to red box", "move red box to adult banana tree"],
            "banana tree",
            "move adult banana tree to red box",
        ),
        (
            "pour cup of paint in art studio in jug",
            ["pour cup of paint in art studio into jug"],
            "",
            "pour cup of paint in art studio into jug",
        ),
        ("focus on adult bee", ["focus on axe"], "", "focus on adult bee"),
        ("focus on ant", [], "", "focus on ant"),
    ],
)
def test_gold_actions_become_valid_actions(action: str, valid: list[str], carried: str, expected: str) -> None:
    assert to_valid_action(action, valid, carried) == expected


@pytest.mark.slow
def test_the_expert_wins_with_valid_actions_alone() -> None:
    env = ScienceWorld(("find-plant", "find-living-thing"), max_steps=15, valid_actions=True)
    try:
        for task in ("find-plant/0", "find-living-thing/0"):
            played = play_expert(env, task)
            env.reset(task)
            for action in played.actions:
                assert action in env.available_actions()["actions"]
                env.step(action)
            assert played.won
    finally:
        env.close()


def test_perfect_play_wins(env: ScienceWorld, few: list[str]) -> None:
    played = demonstrations(env, few)
    assert {task.partition("/")[0] for task in few} == set(TASKS)
    assert [item.task for item in played] == few and all(item.won for item in played)
    assert all(item.reward == item.info["max_score"] == 1.0 and item.source == "perfect" for item in played)


def test_equal_seeds_give_equal_play_on_any_simulator(
    env: ScienceWorld, strong_on_few: list[Trajectory], few: list[str]
) -> None:
    assert (
        expert_trajectories(env, "strong", few[::-1], 0)[::-1] == strong_on_few
    )  # each task runs on another simulator
    assert expert_trajectories(env, "strong", few, 1) != strong_on_few


@pytest.mark.slow
def test_failures_have_good_prefixes_and_harmful_actions(strong: list[Trajectory]) -> None:
    failures = [item for item in strong if item.failed]
    assert len(failures) > 5 and any(item.won for item in strong)
    assert any(item.info["score"] == -1 for item in failures)  # a wrong focus
    assert any(item.info["score"] > 0 and len(item) == 15 for item in failures)  # the rest of the path forgotten
    assert all(item.reward == max(0, item.info["score"]) <= item.info["max_score"] for item in strong)
    assert any(len(item) > 2 and item.info["max_score"] > 0.1 for item in failures)


def test_failures_are_restored_state_by_state(env: ScienceWorld, strong_on_few: list[Trajectory]) -> None:
    failure = next(item for item in strong_on_few if item.failed and len(item) > 4)
    pages = [failure.state(index) for index in range(5)]
    assert restore(env, failure.task, failure.actions[:4], pages) == pages[4]


@pytest.mark.slow
def test_an_unknown_late_task_is_refused(env: ScienceWorld) -> None:
    with pytest.raises(ValueError, match="no task 'find-anmial' \\(did you mean 'find-animal'"):
        play_expert(env, "find-plant/0", LapseNoise(late_tasks=("find-anmial",)))


def test_late_tasks_fail_after_most_of_the_path(env: ScienceWorld) -> None:
    noise = LapseNoise(late_tasks=("find-plant",))
    plants, others = (
        [play_expert(env, f"{name}/{variation}", noise) for variation in range(3)] for name in ("find-plant", TASKS[0])
    )
    assert sum(item.won for item in plants) <= 1 and all(item.won for item in others)
    assert all("teleport to greenhouse" in item.actions for item in plants)


@pytest.mark.slow
def test_error_rates_are_parameters(env: ScienceWorld, few: list[str]) -> None:
    assert all(
        item.won
        for item in expert_trajectories(env, "weak", few, 0, expert_noise={"fail": 0.0, "detour": 0.0, "mend": 0.0})
    )
    with pytest.raises(
        ValueError, match="unknown error rate 'base', expected one of fail, early, late_tasks, detour, mend"
    ):
        expert_trajectories(env, "weak", few, 0, expert_noise={"base": 0.1})
