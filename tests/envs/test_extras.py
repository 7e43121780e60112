"""The optional parts of environments, and how an environment gets a name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import eef.envs
from eef import cli
from eef.agents.react import opening
from eef.envs import ENVIRONMENTS, EnvError, make_env
from eef.envs.extras import Extras, Skill, extras_of, next_step
from eef.envs.webshop import WebShop
from eef.envs.webshop.generate import CatalogueSpec, generate
from eef.envs.webshop.shopper import play_expert


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_instructions_end_with_an_action_and_noise_makes_experts_err(name: str) -> None:
    extras = extras_of(name)
    assert not extras.instructions or extras.instructions.splitlines()[-1].startswith("Action: ")
    if extras.experts is None:
        return
    assert all(type(noise) is type(extras.experts.perfect) for noise in extras.experts.noise.values())
    assert all(noise != extras.experts.perfect for noise in extras.experts.noise.values())


def test_an_attribute_takes_precedence_and_nothing_is_required() -> None:
    own = Extras(skills={"jump": Skill("jump", "Jump", "moving")})
    assert extras_of(SimpleNamespace(name="webshop", extras=own)) is own  # type: ignore[arg-type]
    nothing = extras_of(SimpleNamespace(name="chess"))  # type: ignore[arg-type]
    assert nothing == extras_of("chess") == Extras()
    assert nothing.groups(None, ["0"]) is None and nothing.parts("a b") == ["a b"]
    assert nothing.thought("jump") == "The next step towards what the task asks for is to jump."


def test_skills_match_actions_of_webshop() -> None:
    matches = {
        name: [a for a in ("click[next >]", "click[< prev]", "click[back to search]") if re.fullmatch(skill.pattern, a)]
        for name, skill in extras_of("webshop").skills.items()
    }
    assert matches == {"next": ["click[next >]"], "prev": ["click[< prev]"], "back": ["click[back to search]"]}


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        ("search[red mug]", "I look for what the instruction names."),
        ("click[buy now]", "This is the product, and all that was asked for is chosen, so I buy it."),
        ("click[b01]", "The instruction leads to b01 here, so I click it."),
        ("wait", next_step("wait")),
    ],
)
def test_thoughts_of_the_shopper(action: str, sentence: str) -> None:
    assert extras_of("webshop").thought(action) == sentence


def test_only_a_generated_catalogue_is_graded(shop: WebShop) -> None:
    grades = extras_of(shop).groups(shop, shop.tasks("test"))
    assert grades is not None and list(grades) == shop.tasks("test")
    assert sorted(grades.values()) == ["easy"] * 10 + ["hard"] * 4 + ["medium"] * 6
    official = WebShop(data=generate(CatalogueSpec(products=60)), split={"train": [0], "eval": [], "test": []})
    assert extras_of(official).groups(official, ["0"]) is None


def test_a_task_that_cannot_be_played_is_ungraded(shop: WebShop, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = shop.tasks("test")[:3]
    grades = extras_of(shop).groups(shop, tasks)
    assert grades is not None

    def fails(env: WebShop, task: str, *arguments: Any) -> Any:
        if task == tasks[1]:
            raise EnvError("broken")
        return play_expert(env, task, *arguments)

    monkeypatch.setattr("eef.envs.webshop.extras.play_expert", fails)
    assert extras_of(shop).groups(shop, tasks) == {**grades, tasks[1]: "ungraded"}


@pytest.mark.parametrize(("name", "value"), [("observation", "text_rich"), ("max_steps", 3)])
def test_grades_depend_on_the_moves_of_perfect_play_alone(shop: WebShop, name: str, value: Any) -> None:
    tasks, changed = shop.tasks("test"), shop.fork()
    setattr(changed, name, value)
    assert extras_of(changed).groups(changed, tasks) == extras_of(shop).groups(shop, tasks)


def test_a_task_that_perfect_play_does_not_win_is_ungraded(shop: WebShop, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = shop.tasks("test")
    monkeypatch.setattr(
        "eef.envs.webshop.extras.play_expert", lambda *arguments: replace(play_expert(*arguments), won=False)
    )
    assert extras_of(shop).groups(shop, tasks) == dict.fromkeys(tasks, "ungraded")


def test_instructions_and_parts_of_webshop_are_those_of_its_pages(shop: WebShop) -> None:
    task = shop.tasks("train")[0]
    for mode in ("text", "text_rich"):
        env = shop.fork()
        env.observation = mode
        env.reset(task)
        page = env.step("search[lamp]").observation
        parts = extras_of(env).parts(page)
        assert len(parts) > 30 and not any("[SEP]" in part or "\n" in part for part in parts)
        words = opening(env)[0]["content"]
        assert ("[SEP]" in words) == ("[SEP]" in page) == (mode == "text")
        assert ("[button]" in words) == ("[button]" in page) == (mode == "text_rich")
        assert ("does not show which options" in words) == (mode == "text")
        env.step(f"click[{env.results()[0]}]")
        option = env.available_actions()["clickables"][-1]
        chosen = env.step(f"click[{option}]").observation
        assert (f"[clicked button] {option} [clicked button_]" in chosen) == ("[clicked button]" in words)
        assert (opening(env) == opening("webshop")) == (mode == "text")


def test_scienceworld_groups_tasks_by_name() -> None:
    groups = extras_of("scienceworld").groups(None, ["find-plant/3", "find-animal/0"])
    assert groups == {"find-plant/3": "find-plant", "find-animal/0": "find-animal"}


def test_the_expert_does_not_change_the_state_of_the_environment(shop: WebShop) -> None:
    first, second = shop.tasks("test")[:2]
    shop.reset(first)
    state = shop.step("search[lamp]") and shop.state
    play_expert(shop, second)
    assert shop.state == state


KIOSK = {
    "__init__.py": "class Kiosk:\n    name = 'kiosk'\n    def __init__(self, size=3):\n        self.size = size\n",
    "extras.py": "from eef.envs.extras import Extras, Skill\n"
    "EXTRAS = Extras(skills={'next': Skill('next', 'Next', 'paging')})\n",
    "cli.py": '"""Clean the kiosk."""\n'
    "from typing import Annotated\n"
    "from typer import Option, Typer\n"
    "COLLECT_OPTIONS = {'size': Annotated[int | None, Option(help='Number of screens.')]}\n"
    "def collect_defaults(concurrency):\n    return {'size': concurrency}\n"
    "app = Typer()\n"
    "@app.command()\ndef all():\n    print('clean')\n",
}


@pytest.fixture
def kiosk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An environment with a name: a folder and a line."""
    folder = tmp_path / "envs" / "kiosk"
    folder.mkdir(parents=True)
    for name, text in KIOSK.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(eef.envs, "__path__", [*eef.envs.__path__, str(tmp_path / "envs")])
    monkeypatch.setattr(cli, "PACKAGE", tmp_path)
    monkeypatch.setitem(ENVIRONMENTS, "kiosk", "Kiosk")
    yield folder
    for name in ("eef.envs.kiosk", "eef.envs.kiosk.extras"):
        sys.modules.pop(name, None)


def test_a_folder_and_a_line_give_an_environment_a_name(
    kiosk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env: Any = make_env("kiosk", size=4)
    assert env.size == 4 and env.make_env_arguments == ("kiosk", {"size": 4})
    assert extras_of(env).skills == extras_of("kiosk").skills == {"next": Skill("next", "Next", "paging")}
    assert cli.main(["kiosk", "all"]) == 0 and capsys.readouterr().out == "clean\n"
    assert cli.main(["--help"]) == 0
    assert "Clean the kiosk" in capsys.readouterr().out
    created: list[Any] = []
    monkeypatch.setattr("eef.experts.collection.collect", lambda file, env, *arguments: created.append(env) or 0)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    words = ["collect", "out.jsonl", "--model", "m", "--base-url", "http://localhost:1/v1", "--env", "kiosk"]
    for more in ([], ["--size", "7"], ["-p", "size=5"]):
        assert cli.main([*words, *more]) == 0
    assert [shop.size for shop in created] == [4, 7, 5]
    (kiosk / "extras.py").unlink()
    (kiosk / "cli.py").unlink()
    assert cli._environment_modules() == {}


def test_an_option_of_another_environment_is_refused(
    kiosk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["collect", "out.jsonl", "--model", "m", "--base-url", "http://localhost:1/v1", "--env", "kiosk"]
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert cli.main([*words, "-p", "data=x"]) == 2
    assert "kiosk has no option 'data'; its options are size" in capsys.readouterr().err
