"""`eef envs check`: each way to break the protocol is named in plain words, and a run names the commonest ones too."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import eef.envs
from eef import cli
from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.envs import ENVIRONMENTS, EnvError, ProtocolError, Step, make_env, replay_workers, take_step
from eef.envs.check import check_env
from eef.envs.extras import Extras, ScriptedExperts, Skill
from eef.envs.webshop import WebShop
from eef.experts import expert_trajectories
from eef.trajectory import Trajectory, Turn

GOALS = ["2", "3", "5"]


class Lift:
    """Rides to the floor that the task names: `up` and `down` move, `out` ends the episode."""

    name = "lift"
    max_steps = 6

    def tasks(self, split: str) -> list[str]:
        return {"train": GOALS, "eval": [], "test": ["4"]}[split]

    def reset(self, task: str) -> str:
        self.goal, self.floor = int(task), 1
        return self.page()

    def page(self) -> str:
        return f"Leave on floor {self.goal}. This is floor {self.floor}."

    def step(self, action: str) -> Step:
        if action not in self.available_actions()["actions"]:
            return Step(self.page(), 0.0, False, valid=False, info={"won": False})
        won = action == "out" and self.floor == self.goal
        self.floor += {"up": 1, "down": -1, "out": 0}[action]
        return Step(self.page(), float(won), action == "out", info={"won": won})

    def available_actions(self) -> dict[str, Any]:
        return {"actions": ["up", "down", "out"]}

    def fork(self) -> Any:
        return copy(self)

    def can_start_here(self, observation: str) -> bool:
        return True

    def stamp(self) -> dict[str, str]:
        return {"lift": "1"}

    def state_key(self) -> dict[str, Any]:
        return {"goals": GOALS}


@dataclass(frozen=True)
class Clumsiness:
    """Probability of pressing `down`."""

    slip: float = 0.0


def ride(env: Any, task: str, noise: Clumsiness, seed: int) -> Trajectory:
    """A scripted expert, which reads `won` of every step."""
    prompt, turns, draw = env.reset(task), [], random.Random(f"{seed} {task}")
    step = Step(prompt, 0.0, False)
    while not step.done and len(turns) < env.max_steps:
        action = "down" if draw.random() < noise.slip else "up" if env.floor < env.goal else "out"
        step = env.step(action)
        won = step.info["won"]
        turns.append(Turn(action, step.observation))
    return Trajectory(task, prompt, tuple(turns), step.reward, won, "", "done" if step.done else "max_steps")


RIDES = ScriptedExperts(ride, {"clumsy": Clumsiness(0.3)}, Clumsiness())


def lines(env: Any) -> list[str]:
    return list(check_env(env))


def changed(**members: Any) -> Any:
    """A lift of which some members are replaced; each function gets the original method as its first argument."""

    def wrapped(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, *arguments: act(getattr(super(kind, self), name, None), self, *arguments)

    kind = type("Broken", (Lift,), {})
    for name, act in members.items():
        setattr(kind, name, wrapped(name, act) if callable(act) else act)
    return kind()


def test_an_environment_that_keeps_the_protocol_passes() -> None:
    passed = lines(Lift())
    assert [line.partition(":")[0] for line in passed] == [
        "methods", "tasks", "reset", "step", "replay", "fork", "state_key, stamp", "extras",
    ]  # fmt: skip
    assert passed[1] == "tasks: 3 train, 0 eval, 1 test" and passed[3].startswith("step: 3 episodes by valid actions")
    with_expert = lines(changed(extras=Extras(skills={"up": Skill("up", "Up", "moving")}, experts=RIDES)))
    assert with_expert[-2].startswith("experts: clumsy won ") and with_expert[-2].endswith("perfect won 3 of 3")
    assert with_expert[-1] == "extras: 1 skills, experts clumsy"


def test_actions_that_cannot_be_listed_are_played_by_the_scripted_expert() -> None:
    def refuses(original: Any, self: Any) -> Any:
        raise RuntimeError("any sentence is an action")

    def steps(original: Any, self: Any, action: str) -> Step:
        won = action == "out" and self.floor == self.goal
        self.floor += {"up": 1, "down": -1}.get(action, 0)
        return Step(self.page(), float(won), action == "out", info={"won": won})

    env = changed(available_actions=refuses, step=steps, extras=Extras(experts=RIDES))
    assert any(line.startswith("step: 3 episodes by the scripted expert") for line in lines(env))
    with pytest.raises(ProtocolError, match=r"Broken.available_actions\(\) raised RuntimeError: any sentence is"):
        lines(changed(available_actions=refuses, step=steps))


def test_an_environment_with_workers_replays_on_them() -> None:
    def refuses(original: Any, self: Any) -> Any:
        raise NotImplementedError

    env = changed(fork=refuses, workers=lambda original, self, count: [Lift() for _ in range(count)])
    assert "workers: each replays the episodes, since the environment does not fork" in lines(env)
    with pytest.raises(ProtocolError, match=r"can neither fork nor has it workers\(count\): add one of them"):
        lines(changed(fork=refuses))
    assert replay_workers(env, 2)
    twice = changed(fork=refuses, workers=lambda original, self, count: [self] * count)
    with pytest.raises(ProtocolError, match=r"workers\(2\) returned the same environment twice: return independent"):
        lines(twice)


def without_won(step: Any, self: Any, action: str) -> Step:
    return replace(step(action), info={})


def shared(fork: Any, self: Any) -> Any:
    twin = copy(self)
    twin.step = lambda action: Lift.step(self, action)  # the copy acts in the original
    return twin


def grows(original: Any, self: Any) -> dict[str, Any]:
    self.calls = getattr(self, "calls", 0) + 1
    return {"calls": self.calls}


BREAKS: list[tuple[str, dict[str, Any], str]] = [
    ("no method", {"stamp": None}, r"Broken has no method stamp: add it; stamp\(\) returns hashes of the data"),
    ("max_steps", {"max_steps": 0}, "Broken.max_steps is 0: set the attribute to a positive integer"),
    ("stamp", {"stamp": lambda o, s: {"n": 3}}, r"Broken.stamp\(\) returned {'n': 3}: return a dictionary of texts"),
    ("tasks", {"tasks": lambda o, s, split: (1, 2)}, r"tasks\('train'\) returned \(1, 2\): return a list of texts"),
    ("no tasks", {"tasks": lambda o, s, split: []}, r"tasks\('train'\) returned no subtask: return at least one"),
    ("twice", {"tasks": lambda o, s, split: ["1", "1"]}, r"returned an id twice: return each id once"),
    ("reset", {"reset": lambda o, s, task: (o(task), {})}, r"Broken.reset\('2'\) returned tuple, not str: return the"),
    ("random", {"reset": lambda o, s, task: f"{o(task)} {random.random()}"}, "two different pages: return the same"),
    ("tuple", {"step": lambda o, s, a: ("", 0.0, False, {})}, r"returned a tuple of 4 values, not a Step: return eef"),
    ("page", {"step": lambda o, s, a: replace(o(a), observation=["a"])}, "the observation is list, not str: return"),
    ("info", {"step": lambda o, s, a: replace(o(a), info=None)}, "info is NoneType, not dict: return Step"),
    ("won", {"step": without_won}, r"Broken.step\('\w+'\) .*without info\['won'\]: return .*'won': "),
    (
        "won at the limit",
        {"step": lambda o, s, a: replace(o(a), done=False, info={})},
        "is the last step, without",
    ),
    ("won is 1", {"step": lambda o, s, a: replace(o(a), info={"won": 1})}, r"has info\['won'\]=1, not a bool: return"),
    ("reward", {"step": lambda o, s, a: replace(o(a), reward=70.0)}, r"'reward' must lie in \[0, 1\], not 70.0"),
    ("raises", {"step": lambda o, s, a: {}["floor"]}, r"raised KeyError: 'floor' \(test_env_check.py, line \d+\)"),
    ("no action", {"available_actions": lambda o, s: {"actions": []}}, "returned no action after 0 actions: return at"),
    ("a list", {"available_actions": lambda o, s: ["up"]}, r"available_actions\(\) returned list without 'actions': r"),
    ("drifts", {"page": lambda o, s: f"{o()} {random.random() if s.floor > 1 else ''}"}, "equal actions gave two diff"),
    ("reward drifts", {"step": lambda o, s, a: replace(o(a), reward=random.random())}, "return the same for equal act"),
    ("same", {"fork": lambda o, s: s}, r"Broken.fork\(\) returned the environment itself: return an independent copy"),
    ("shared", {"fork": shared}, r"Broken.fork\(\): .* the original shows .*: return an independent copy"),
    ("blank", {"fork": lambda o, s: type(s)()}, r"Broken.fork\(\): the copy: .* raised AttributeError"),
    ("limit of a task", {"max_steps_of": lambda o, s, task: 0}, r"max_steps_of\('2'\) returned 0: return a positive"),
    ("start", {"can_start_here": lambda o, s, page: None}, "returned None: return True or False"),
    ("key", {"state_key": grows}, "changed during an episode: return what the options and the data set"),
    ("object", {"state_key": lambda o, s: {"goals": object()}}, r"state_key\(\) raised TypeError: .* cannot be JSON"),
    (
        "extras",
        {"extras": Extras(goal=lambda page: None)},
        r"extras.goal\(observation\) returned NoneType: return a",
    ),
    (
        "groups",
        {"extras": Extras(groups=lambda env, tasks: {})},
        "lacks some of the tasks: return a group of each",
    ),
]


@pytest.mark.parametrize(("members", "message"), [row[1:] for row in BREAKS], ids=[row[0] for row in BREAKS])
def test_the_first_departure_is_named(members: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        lines(changed(**members))
    assert "\n" not in str(caught.value)


def random_ride(env: Any, task: str, noise: Clumsiness, seed: int) -> Trajectory:
    return ride(env, task, Clumsiness(0.5), random.randrange(10**9))


def boastful_ride(env: Any, task: str, noise: Clumsiness, seed: int) -> Trajectory:
    return replace(ride(env, task, Clumsiness(1.0), seed), won=True)


EXPERTS: list[tuple[Any, str]] = [
    (random_ride, "returned two different episodes: return the same one for the same seed"),
    (boastful_ride, "has won=True, its replay reward 0, done=False, won=False: return won=step.info"),
    (lambda env, task, noise, seed: None, "returned NoneType: return eef.trajectory.Trajectory"),
    (lambda env, task, noise, seed: [][0], "the scripted expert .* failed on task '2': IndexError: list index"),
]


@pytest.mark.parametrize(("play", "message"), EXPERTS)
def test_a_broken_expert_is_named(play: Any, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        lines(changed(extras=Extras(experts=ScriptedExperts(play, {"clumsy": Clumsiness(0.3)}, Clumsiness()))))


@pytest.mark.parametrize("episodes", [0, -1, 1.5, True])
def test_the_check_plays_at_least_one_episode(episodes: Any) -> None:
    with pytest.raises(ValueError, match=f"episodes={episodes!r} must be a positive integer"):
        list(check_env(Lift(), episodes=episodes))


def test_the_noise_of_experts_is_a_dataclass() -> None:
    experts = ScriptedExperts(ride, {"clumsy": 0.3}, Clumsiness())
    with pytest.raises(ProtocolError, match="extras.experts.noise is 0.3 for 'clumsy': return an instance of one data"):
        lines(changed(extras=Extras(experts=experts)))


def test_an_invalid_pattern_of_a_skill_is_refused_when_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"skill 'Next': the pattern 'click\[next' is not a valid regular expression"):
        Skill("click[next", "Next", "paging")


class Shop:
    """A shop whose step breaks the protocol, for runs."""

    def __init__(self, shop: WebShop, broken: Callable[[Step], Any]) -> None:
        self.shop, self.broken, self.max_steps, self.name = shop, broken, shop.max_steps, "shop"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shop, name)

    def fork(self) -> Shop:
        return Shop(self.shop.fork(), self.broken)

    def step(self, action: str) -> Any:
        return self.broken(self.shop.step(action))


def test_a_run_names_class_and_method(shop: WebShop, policy: Policy) -> None:
    starts = [Start(task) for task in shop.tasks("train")[:2]]
    with pytest.raises(ProtocolError, match=r"Shop.step\('.*'\) returned a tuple of 3 values, not a Step: return eef"):
        simulate(policy, Shop(shop, lambda step: (step.observation, step.reward, step.done)), starts)
    with pytest.raises(ProtocolError, match=r"Shop.step\('.*'\) ended the episode .*without info\['won'\]"):
        simulate(policy, Shop(shop, lambda step: replace(step, done=True, info={})), starts)
    one = Shop(shop.fork(), lambda step: replace(step, info={}))
    one.reset(starts[0].task)
    step = take_step(one, "search[x]")
    assert step.info == {}  # `won` is needed at the end alone


def raises(error: BaseException) -> Callable[..., Any]:
    def method(*arguments: Any) -> Any:
        raise error

    return method


@pytest.mark.parametrize(
    ("method", "call", "advice"),
    [
        ("step", r"step\('.*'\) on task '{}'", r"return Step\(..., valid=False\) for an invalid action"),
        ("reset", r"reset\('{}'\)", r"reset must start every task of tasks\(split\)"),
        ("available_actions", r"available_actions\(\) on task '{}'", r"return {{'actions': \[...\]}}, a list of texts"),
    ],
)
def test_an_error_of_the_environments_own_code_is_named_in_a_run(
    shop: WebShop, policy: Policy, method: str, call: str, advice: str
) -> None:
    """With class, task, action and place; failures of the environment itself and interruptions stay what they are."""
    env, task = Shop(shop, lambda step: step), shop.tasks("train")[0]
    env.fork = lambda: env  # type: ignore[method-assign]
    setattr(env, method, raises(KeyError("< prev")))
    said = rf"^Shop.{call} raised KeyError: '< prev' \(test_env_check.py, line \d+\): {advice}; raise EnvError if the"
    with pytest.raises(ProtocolError, match=said.format(task)) as caught:
        simulate(policy, env, [Start(task)])
    assert isinstance(caught.value.__cause__, KeyError)
    setattr(env, method, raises(EnvError("the simulator died")))
    assert simulate(policy, env, [Start(task)])[0].outcome == "env_error"
    setattr(env, method, raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        simulate(policy, env, [Start(task)])


def test_no_environment_gets_half_of_a_surrogate_pair() -> None:
    env = changed(step=lambda original, self, action: Step(action.encode().decode(), 0.0, False))
    env.reset("2")
    assert take_step(env, "up \ud83d").observation == "up \ufffd"


def test_a_scripted_expert_that_finds_no_won_is_named_in_a_run() -> None:
    env = changed(step=without_won, extras=Extras(experts=RIDES))
    with pytest.raises(ProtocolError, match=r"test_env_check.ride failed on task '2': KeyError: 'won' .*every step"):
        expert_trajectories(env, "clumsy", GOALS, 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an environment called `kiosk`, without a file."""
    place = tmp_path / "envs" / "kiosk"
    place.mkdir(parents=True)
    monkeypatch.setattr(eef.envs, "__path__", [*eef.envs.__path__, str(tmp_path / "envs")])
    monkeypatch.setitem(ENVIRONMENTS, "kiosk", "Kiosk")
    yield place
    sys.modules.pop("eef.envs.kiosk", None)


def test_names_of_environments_are_listed_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["envs"]) == 0
    listed = capsys.readouterr().out
    assert all(line.startswith(name) for name, line in zip(ENVIRONMENTS, listed.splitlines(), strict=False))
    assert cli.main(["envs", "check", "webshop", "-p", "catalogue={products: 300, train: 10, eval: 0, test: 10}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in printed) and "10 train, 0 eval, 10 test" in printed[1]
    assert cli.main(["envs", "check", "webshp"]) == 2
    assert "unknown environment 'webshp' (did you mean 'webshop'?)" in capsys.readouterr().err


def test_a_misspelt_class_module_or_option_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "__init__.py").write_text("class Kiosc:\n    def __init__(self, size):\n        1 / size\n")
    assert cli.main(["envs", "check", "kiosk"]) == 2
    assert "names the class 'Kiosk', but eef/envs/kiosk/__init__.py has none (did you mean 'Kiosc'?)" in (
        capsys.readouterr().err
    )
    monkeypatch.setitem(ENVIRONMENTS, "kiosk", "Kiosc")
    assert cli.main(["envs", "check", "kiosk"]) == 2
    assert "kiosk has no default of its option 'size': set it" in capsys.readouterr().err
    assert cli.main(["envs", "check", "kiosk", "-p", "size=0"]) == 1
    printed = capsys.readouterr().out
    assert printed == "failed  kiosk cannot be made: ZeroDivisionError: division by zero (__init__.py, line 3)\n"
    assert cli.main(["envs", "check", "kiosk", "-p", "size=1"]) == 1
    assert capsys.readouterr().out.startswith("failed  Kiosc has no method tasks: add it; ")
    monkeypatch.setitem(ENVIRONMENTS, "kiosc", "Kiosc")
    with pytest.raises(ValueError, match="ENVIRONMENTS names 'kiosc', but there is no folder eef/envs/kiosc"):
        make_env("kiosc")
