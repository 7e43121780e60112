"""The drop-in environment behaves as the recorded official one, with the same interface."""

from __future__ import annotations

import importlib
import itertools
import json
import types
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eef.envs import EnvError
from eef.envs.webshop import WebShop
from eef.envs.webshop.official import SimServer, WebAgentTextEnv, register
from eef.files import PACKAGE

NAMES = ("items_shuffle", "items_ins_v2", "items_human_ins")


@pytest.fixture
def folder(tmp_path: Path, triple: Any) -> Path:
    """Official files of the tiny catalogue."""
    for name, content in zip(NAMES, triple, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


class PageOf(HTMLParser):
    """The texts of a page, and its clickables as the official code collects them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.found: dict[str, list[str]] = {"btn": [], "product-link": [], "radio": []}
        self.kind = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        self.kind = fields.get("class") or ""
        if fields.get("type") == "radio":
            self.found["radio"].append(fields["value"] or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.kind:
            self.found[self.kind].append(data.lower())


def differences(env: WebAgentTextEnv, rows: list[dict[str, Any]]) -> list[tuple[int, int, str]]:
    """(episode, step, field) of every difference between the replay and the recorded ``rows``."""
    mismatches = []
    for row in rows:
        reward, done, info = 0.0, False, None
        if row["step"] == 0:
            env.server.show_attrs = row["show_attrs"]
            page, info = env.reset(session=row["session"])
        else:
            page, reward, done, info = env.step(row["action"])
        session = env.server.user_sessions[env.session]
        state = {name: session[name] for name in ("asin", "options", "page", "keywords")}
        state |= {"asins": sorted(session["asins"]), "actions": dict(session["actions"])}
        pairs = {
            "page": (page, row["observation" if env.observation_mode == "text" else "observation_rich"]),
            "observation": (env.observation, page),
            "reward": (reward, row["reward"]),
            "done": (done, row["done"]),
            "info": (info, None),
            "actions": (env.get_available_actions(), row["available_actions"]),
            "url": (env.browser.current_url, row["url"]),
            "session": (state, row["state"]),
        }
        if "instruction_text" in row:
            pairs["instruction"] = (env.instruction_text, row["instruction_text"])
        if "reward_info" in row:
            pairs["breakdown"] = (session["verbose_info"], row["reward_info"])
            pairs["goal"] = (session["goal"], row["goal"])
        mismatches += [(row["episode"], row["step"], name) for name, (ours, theirs) in pairs.items() if ours != theirs]
    return mismatches


@pytest.mark.parametrize("mode", ["text", "text_rich"])
def test_the_recorded_episodes_are_equal(official: Path, golden: Callable[[str], Any], mode: str) -> None:
    file = official / "data" / "products.json"
    env = WebAgentTextEnv(mode, file_path=file, human_goals=True, nouns=golden("title_nouns.json"))
    assert env.server.goals == golden("goals_human.json")
    rows = golden("transcripts.jsonl")
    assert len(rows) > 1000 and differences(env, rows) == []


def test_two_apis_and_all_attributes(folder: Path) -> None:
    env = WebAgentTextEnv(observation_mode="text", file_path=folder / "items_shuffle.json", human_goals=True)
    plain = WebShop(data=folder, split="ratio", allow_overlap=True)
    assert env.server.goals == [goal.as_dict() for goal in plain.shop.goals]
    page, info = env.reset(session=2)
    assert page == plain.reset("2") == env.observation == env.prev_obs[0] and info is None
    assert (env.session, env.browser.session_id, env.browser.server) == ("2", "2", env.server)
    assert env.instruction_text == env.get_instruction_text() == f"Instruction: {plain.goal()['instruction_text']}"
    assert env.state == {
        "url": "http://127.0.0.1:3000/2",
        "html": env.browser.page_source,
        "instruction_text": env.instruction_text,
    }
    five = WebAgentTextEnv("text", server=env.server, step_api="gymnasium", session_prefix="five-")
    assert five.reset(options={"session": 2}) == (page, {}) and five.session == "five-2"
    for action in ("search[shirt]", "click[b000000001]", "click[zzz]", "click[description]", "click[< prev]"):
        step = plain.step(action)
        assert env.step(action) == (step.observation, 0.0, False, None)
        assert five.step(action) == (step.observation, 0.0, False, False, {"valid": step.valid})
        assert env.get_available_actions() == plain.available_actions()
        assert list(env.text_to_clickable) == plain.available_actions()["clickables"]
    step = plain.step("click[buy now]")
    assert env.step("click[buy now]") == (step.observation, step.reward, True, None)
    details = {"valid": True, "verbose_info": step.info["breakdown"]}
    assert five.step("click[buy now]") == (step.observation, step.reward, True, False, details)
    session = env.server.user_sessions["2"]
    assert session["done"] and session["reward"] == step.reward and session["goal"] is env.server.goals[2]
    assert env.server.product_prices["B000000001"] == env.server.product_item_dict["B000000001"].price
    env.render(mode="human")
    env.close()


def test_html_has_the_texts_and_the_clickables(folder: Path) -> None:
    env = WebAgentTextEnv(file_path=folder, human_goals=True, show_attrs=True)
    text = WebAgentTextEnv("text", server=env.server)
    actions = ["search[odd shirt]", "click[b000000003]", "click[it's <b>]", "click[attributes]", "click[< prev]"]
    for action in [None, *actions, "click[buy now]"]:
        html, page = (e.step(action)[0] if action else e.reset(session=1)[0] for e in (env, text))
        shown = PageOf(html)
        assert " [SEP] ".join(text.strip() for text in shown.texts) == page
        available = env.get_available_actions()
        assert ('id="search_input"' in html) == available["has_search_bar"]
        assert list(dict.fromkeys(itertools.chain(*shown.found.values()))) == available["clickables"]
    assert WebAgentTextEnv("url", server=env.server).observation.startswith("http://127.0.0.1:3000/")


def test_sessions_keep_their_goal_and_draws_are_the_official_ones(folder: Path) -> None:
    env = WebAgentTextEnv("text", file_path=folder, human_goals=True)
    env.reset(session="mine")
    goal = env.server.user_sessions["mine"]["goal"]
    for number in range(6):
        env.reset(session=number)
        env.reset()
        assert env.session.isalpha() and len(env.session) == 10
    env.reset(session="mine")
    assert env.server.user_sessions["mine"]["goal"] is goal
    assert set(env.server.user_sessions) == {"mine", *"012345"}  # drawn names are not kept
    env.reset(session=-1)
    assert env.server.user_sessions["-1"]["goal"] is env.server.goals[-1]
    with pytest.raises(IndexError):
        env.reset(session=10_000)
    drawn = [env.server.draw_goal() for _ in range(3000)]
    counts = [drawn.count(number) for number in range(len(env.server.goals))]
    assert counts[0] == 0 and counts[-1] > 1.6 * max(counts[:-1]) and min(counts[1:]) > 0
    other = WebAgentTextEnv("text", file_path=folder, human_goals=True)
    again = WebAgentTextEnv("text", file_path=folder, human_goals=True)
    assert [other.reset()[0] for _ in range(5)] == [again.reset()[0] for _ in range(5)]


def test_goals_are_filtered_limited_and_replaced(folder: Path) -> None:
    def soft(number: int, goal: dict[str, Any]) -> bool:
        return "soft" in goal["attributes"]

    server = SimServer(file_path=folder, human_goals=True, filter_goals=soft)
    assert 2 <= len(server.goals) < len(server.shop.goals) and all("soft" in g["attributes"] for g in server.goals)
    few_goals = SimServer(file_path=folder, human_goals=True, limit_goals=3)
    assert len(few_goals.goals) == len({g["instruction_text"] for g in few_goals.goals}) == 3
    assert few_goals.weights == [1, 1, 1] and few_goals.cum_weights == [0, 1, 2, 3]
    env = WebAgentTextEnv("text", server=server)
    own = {**server.goals[0], "instruction_text": "find my lamp", "asin": "B000000004", "goal_options": ["red"]}
    env.initialize([own])
    assert "find my lamp" in env.reset(session=0)[0] and env.server.goals == [own]
    server.assigned_instruction_text = "another text"
    assert "another text" in env.reset(session=0)[0]


def test_synthetic_goals(folder: Path, triple: Any) -> None:
    triple[1]["B000000002"] |= {"instruction": "find a shirt", "instruction_attributes": ["soft"]}
    (folder / "items_ins_v2.json").write_text(json.dumps(triple[1]))
    env = WebAgentTextEnv("text", file_path=folder)
    plain = WebShop(data=folder, human_goals=False, split="ratio", allow_overlap=True)
    assert isinstance(env.server.goals[0]["goal_options"], dict)
    for number in range(len(env.server.goals)):
        plain.reset(str(number))
        env.reset(session=number)
        assert env.server.user_sessions[str(number)]["goal"] == plain.goal()
        group, value = next(iter(plain.goal()["goal_options"].items()))
        assert f"{group}: {value}" in env.instruction_text
        for action in ("search[blue cotton shirt]", "click[b000000002]", f"click[{value}]", "click[buy now]"):
            step = plain.step(action)
            assert env.step(action)[:3] == (step.observation, step.reward, step.done)
        assert step.done and step.reward > 0


def test_earlier_pages_and_actions_are_added(folder: Path) -> None:
    env = WebAgentTextEnv("text", file_path=folder, human_goals=True, num_prev_obs=1, num_prev_actions=2)
    first = env.reset(session=0)[0]
    second = env.step("search[sock]")[0]
    page = env.observation
    assert second == " [SEP] ".join([first, "search[sock]", page])
    third = env.step("click[next >]")[0]
    assert third == " [SEP] ".join(["search[sock]", page, "click[next >]", env.observation])


def test_named_files_are_used(folder: Path, triple: Any) -> None:
    (folder / "items_shuffle_1000.json").write_text(json.dumps(triple[0][:3]))
    (folder / "items_ins_v2_1000.json").write_text(json.dumps({"B000000001": {"attributes": ["only this"]}}))
    part = WebAgentTextEnv("text", file_path=folder / "items_shuffle_1000.json", human_goals=True)
    assert len(part.server.shop.products) == 3 and part.server.shop.products[0].attributes == ("only this",)
    mixed = WebAgentTextEnv(
        "text", file_path=folder / "items_shuffle_1000.json", attr_path=folder / "items_ins_v2.json", human_goals=True
    )
    assert len(mixed.server.shop.products) == 3 and mixed.server.shop.products[0].attributes == ("soft", "cotton")
    assert (
        len(WebAgentTextEnv("text", file_path=folder / "items_shuffle.json", human_goals=True).server.shop.products)
        == 14
    )
    with pytest.raises(EnvError, match="items_shuffle_7.json cannot be read"):
        WebAgentTextEnv("text", file_path=folder / "items_shuffle_7.json", human_goals=True)


def test_options_that_cannot_be_used_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="Observation mode pixels not supported"):
        WebAgentTextEnv("pixels")
    with pytest.raises(ValueError, match="step_api must be 'gym' or 'gymnasium', not 'five'"):
        WebAgentTextEnv(step_api="five")
    with pytest.raises(ValueError, match="get_image needs the image features"):
        WebAgentTextEnv(get_image=True)
    with pytest.raises(ValueError, match="the embedded catalogue has human goals only: set human_goals=True"):
        WebAgentTextEnv("text")
    with pytest.raises(ValueError, match="no goal is left: choose another filter_goals or limit_goals"):
        WebAgentTextEnv("text", file_path=folder, human_goals=True, filter_goals=lambda number, goal: False)
    env = WebAgentTextEnv("text", file_path=folder, human_goals=True)
    count = len(env.server.goals)
    with pytest.raises(IndexError, match=f"session {count}: there is no such goal; the server has {count} goals"):
        env.reset(session=count)
    with pytest.raises(ValueError, match=r"reset\(seed=...\) has no effect here: pass session"):
        env.reset(seed=1)
    with pytest.raises(TypeError, match="unexpected argument 'mode'"):
        env.reset(mode="train")


@pytest.mark.parametrize("name", ["gym", "gymnasium"])
def test_registration(name: str, folder: Path) -> None:
    module = types.ModuleType(name)
    known: dict[str, Any] = {}
    module.__dict__.update(Env=type("Env", (), {}), register=lambda **options: known.update(options))
    env_class = register(module, file_path=folder)
    assert (
        issubclass(env_class, module.Env) and known["id"] == "WebAgentTextEnv-v0" and known["entry_point"] is env_class
    )
    env = env_class(observation_mode="text", human_goals=True, **known["kwargs"])
    assert isinstance(env, WebAgentTextEnv) and len(env.step("search[x]")) == (5 if name == "gymnasium" else 4)


class Wrapper:
    """A wrapper as ``experiments/play_wrappers.py`` drives it, which shows the page ``spoilt`` with a change."""

    def __init__(self, server: SimServer, mode: str, spoilt: int) -> None:
        self.env, self.pages, self.spoilt = WebAgentTextEnv(mode, server=server), 0, spoilt

    def show(self, page: str) -> str:
        self.pages += 1
        return page + "." * (self.pages == self.spoilt)

    def reset(self, session: int) -> str:
        return self.show(self.env.reset(session=session)[0])

    def step(self, action: str) -> tuple[str, float, bool]:
        page, reward, done, _ = self.env.step(action)
        return self.show(page), reward, done

    def actions(self) -> Any:
        return self.env.get_available_actions()


@pytest.mark.parametrize("mode", ["text", "text_rich"])
def test_the_script_that_plays_public_wrappers_reports_a_difference(folder: Path, mode: str, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE.parent / "experiments"))
    script = importlib.import_module("play_wrappers")
    server = SimServer(file_path=folder, human_goals=True, nouns="letters")
    rows = list(script.random_episodes(server, count=5))
    assert script.differences(Wrapper(server, mode, 0), rows, mode, server) == (len(rows), [])
    where = [(row["session"], row["step"]) for row in rows]
    assert script.differences(Wrapper(server, mode, 8), rows, mode, server) == (len(rows), [where[7]])
