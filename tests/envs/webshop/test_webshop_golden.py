"""Comparison with the record of the official code: pages, actions, goals, prices, rewards and search results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eef.envs import make_env
from eef.envs.webshop import WebShop
from eef.envs.webshop.nouns import Nouns
from eef.envs.webshop.reward import score
from eef.envs.webshop.search import Index, analyze

Golden = Callable[[str], Any]


@pytest.fixture(scope="module", params=["text", "text_rich"])
def env(request: pytest.FixtureRequest, official: Path, golden: Golden) -> WebShop:
    shop = make_env("webshop", data=official / "data", observation=request.param, nouns=golden("title_nouns.json"))
    assert isinstance(shop, WebShop)
    return shop


def differences(env: WebShop, rows: list[dict[str, Any]]) -> list[tuple[int, int, str]]:
    """(episode, step, field) of every difference between the replay and the recorded ``rows``."""
    mismatches = []
    field = "observation" if env.observation == "text" else "observation_rich"
    for row in rows:
        reward, done, info = 0.0, False, {}
        if row["step"] == 0:
            page = env.reset(str(row["session"]))
        else:
            step = env.step(row["action"])
            page, reward, done, info = step.observation, step.reward, step.done, step.info
        state = env.state
        assert state is not None
        pairs = {
            "page": (page, row[field]),
            "reward": (reward, row["reward"]),
            "done": (done, row["done"]),
            "actions": (env.available_actions(), row["available_actions"]),
            "options": (dict(state.options), row["state"]["options"]),
            "asin": (state.asin, row["state"]["asin"]),
            "number": (state.page, row["state"]["page"]),
            "keywords": (state.keywords, row["state"]["keywords"] and tuple(row["state"]["keywords"])),
            "visited": (sorted(state.visited), row["state"]["asins"]),
        }
        if "reward_info" in row:
            pairs["breakdown"] = (info.get("breakdown"), row["reward_info"])
            pairs["goal"] = (env.goal(), row["goal"])
        mismatches += [(row["episode"], row["step"], name) for name, (ours, theirs) in pairs.items() if ours != theirs]
    return mismatches


def test_transcripts_are_equal(env: WebShop, golden: Golden) -> None:
    rows = golden("transcripts.jsonl")
    assert len(rows) > 1000
    assert differences(env, rows) == []


# Differences that the package's docstring lists: quirk -> first step that may differ.
DIFFERENCES = {
    "special <r>": 1,
    "keyword search_results then Prev from item page": 3,
    "keyword item_page then Prev from sub page": 4,
    "str session": 0,
    "session -1": 0,
    "session True": 0,
}


def test_quirks_are_equal_except_for_the_listed_differences(env: WebShop, golden: Golden) -> None:
    rows = [row for row in golden("quirks.jsonl") if "exception" not in row]
    rows = [row for row in rows if row["step"] < DIFFERENCES.get(row["quirk"], 1000)]
    assert len(rows) > 100
    assert differences(env, rows) == []


def test_prev_is_right_where_the_official_code_is_not(env: WebShop) -> None:
    env.reset("3")
    results = env.step("search[search_results shoes]").observation
    first = env.results()[0]
    env.step(f"click[{first}]")
    page = env.step("click[< prev]").observation
    assert page.replace("clicked button", "button") == results
    item = env.step(f"click[{first}]").observation
    env.step("click[description]")
    assert env.step("click[< prev]").observation == item


def test_crashing_searches_give_a_page(env: WebShop) -> None:
    env.reset("3")
    assert "(Total results: 0)" in env.step("search[<c>]").observation
    assert "(Total results: 0)" in env.step("search[<a> tea tree]").observation
    assert env.step("search[<a> machine wash]").valid and env.results()
    random_page = env.step("search[<r>]").observation
    assert "(Total results: 50)" in random_page and len(env.results()) == 10
    assert env.step("search[<r>]").observation == random_page


def test_goals_and_prices_are_equal(env: WebShop, golden: Golden) -> None:
    goals, prices = golden("goals_human.json"), golden("prices_human.json")
    assert [goal.as_dict() for goal in env.shop.goals] == goals
    assert {product.asin: product.price for product in env.shop.products} == prices


def test_rewards_are_equal(env: WebShop, golden: Golden) -> None:
    nouns = Nouns(golden("title_nouns.json"))
    wrong = []
    for row in golden("rewards_human.jsonl"):
        bought = replace(env.shop.by_asin[row["asin"]], price=row["price"])
        ours = score(bought, env.shop.goals[row["goal_index"]], row["options"].values(), nouns)
        if ours != (row["reward"], row["info"]):
            wrong.append((row, ours))
    assert wrong == []


def test_terms_equal_lucenes(golden: Golden) -> None:
    assert [row["text"] for row in golden("analyzer.jsonl") if analyze(row["text"]) != row["tokens"]] == []


def test_search_ranks_as_lucene(official: Path, golden: Golden) -> None:
    env = WebShop(data=official / "data")
    names = [product.asin for product in env.shop.products]
    index = Index(names, [product.document() for product in env.shop.products])
    rows = golden("search.jsonl")
    ours = [index.scored(row["query"]) for row in rows]
    theirs = [[name for name, _ in row["hits"]] for row in rows]
    ranked = [[names[number] for number, _ in hits] for hits in ours]
    assert [row["query"] for row, a, b in zip(rows, ranked, theirs, strict=True) if a[:10] != b[:10]] == []
    assert sum(a == b for a, b in zip(ranked, theirs, strict=True)) >= 0.99 * len(rows)
    for row, hits in zip(rows, ours, strict=True):
        scores = dict(row["hits"])
        assert all(abs(scores[names[n]] - value) < 1e-4 for n, value in hits if names[n] in scores)


def test_another_seed_draws_other_prices_and_the_same_goals(official: Path, env: WebShop) -> None:
    other = WebShop(data=official / "data", seed=1)
    same = sum(a.price == b.price for a, b in zip(env.shop.products, other.shop.products, strict=True))
    assert 700 < same < 800
    assert [goal.asin for goal in env.shop.goals] == [goal.asin for goal in other.shop.goals]
    assert env.stamp()["catalogue"] != other.stamp()["catalogue"]


def test_the_official_split(official: Path) -> None:
    env = WebShop(data=official / "data", split="official")
    assert [len(env.tasks(part)) for part in ("test", "eval", "train")] == [500, 1000, 299]
    assert env.tasks("test")[:2] == ["0", "1"] and env.tasks("train")[0] == "1500"
    ratio = WebShop(data=official / "data")
    assert sum(len(ratio.tasks(part)) for part in ("test", "eval", "train")) == 1799
    assert 0.2 < len(ratio.tasks("test")) / 1799 < 0.35


def test_synthetic_goals(official: Path) -> None:
    with pytest.raises(
        ValueError, match="26 of 500 test goals are also training goals"
    ):  # doubled option values double goals
        WebShop(data=official / "data", human_goals=False, split="official")
    env = WebShop(data=official / "data", human_goals=False)
    goal = env.goal("0")
    assert isinstance(goal["goal_options"], dict) and goal["weight"] > 0
    assert all(f"{group}: {value}" in goal["instruction_text"] for group, value in goal["goal_options"].items())
