"""The environment protocol on a tiny catalogue: moves, forks, and arbitrary actions."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eef.envs import ReplayDivergence, make_env, restore
from eef.envs.webshop import WebShop
from eef.envs.webshop.build import build_store
from eef.envs.webshop.session import clickables, parse

SPLIT = {"train": [0, 1, 2, 3], "eval": [4], "test": [5, 6]}
LIGHT = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def env(triple: Any) -> WebShop:
    shop = WebShop(data=triple, split=SPLIT)
    shop.reset("0")
    return shop


def task_of(env: WebShop, asin: str, options: int) -> str:
    goals = enumerate(env.shop.goals)
    return next(str(i) for i, goal in goals if goal.asin == asin and len(goal.options) == options)


def test_a_perfect_episode(env: WebShop) -> None:
    page = env.reset(task_of(env, "B000000001", 1))
    assert page.startswith("WebShop [SEP] Instruction: [SEP] i want a soft red shirt, and price lower than ")
    assert env.available_actions() == {"has_search_bar": True, "clickables": ["search"]}
    assert env.step("search[Red Cotton shirt]").valid
    assert env.results()[0] == "B000000001"
    item = env.step("click[b000000001]").observation
    assert "[SEP] color [SEP] red [SEP] navy | white [SEP] size [SEP] small [SEP]" in item
    assert env.step("click[red]").observation == item  # mode text does not show the selection
    bought = env.step("click[Buy Now]")
    assert bought.done and bought.reward == 1.0 and bought.info["won"] is True
    assert bought.info["options"] == {"color": "red"} and bought.info["asin"] == "B000000001"
    assert bought.info["breakdown"]["r_option"] == 1.0
    assert not env.step("click[buy now]").valid
    assert env.step("search[lamp]").valid  # as in the official code, a search starts over


def test_a_wrong_purchase_does_not_win(env: WebShop) -> None:
    env.reset(task_of(env, "B000000001", 1))
    env.step("search[garden lamp]")
    env.step(f"click[{env.results()[0]}]")
    step = env.step("click[buy now]")
    assert step.done and step.reward < 1 and step.info["won"] is False


def test_all_available_clicks_are_valid_though_the_page_shows_others(triple: Any) -> None:
    """The grammar of actions reads no brackets inside a click; the official list has such texts."""
    products, *others = triple
    values = [{"value": text} for text in ("Large [tall]", "Small]", "Two [pack", "Plain")]
    changed = [{**row, "customization_options": {"Size": values}} for row in products]
    env = WebShop(data=(changed, *others), split=SPLIT)
    env.reset("0")
    env.step("search[cotton shirt]")
    page = env.step(f"click[{env.results()[0]}]").observation
    assert env.state is not None
    assert "large [tall]" in page and "large [tall]" in clickables(env.shop, env.state)
    assert not env.step("click[large [tall]]").valid
    names = env.available_actions()["clickables"]
    assert names[-2:] == ["small]", "plain"] and all(env.fork().step(f"click[{name}]").valid for name in names)


def test_pages_back_and_forth(env: WebShop) -> None:
    first = env.step("search[shirt sock]").observation
    assert "Page 1 (Total results: 13)" in first and "< Prev" not in first
    second = env.step("click[next >]").observation
    assert "Page 2" in second and len(env.results()) == 3
    assert env.step("click[next >]").observation.endswith("Page 3 (Total results: 13) [SEP] < Prev [SEP] Next >")
    assert env.step("click[< Prev]").observation == second
    asin = env.results()[0]
    item = env.step(f"click[{asin}]").observation
    assert env.step("click[features]").observation.endswith("< Prev [SEP] soft [SEP] machine wash")
    assert env.step("click[reviews]").valid is False
    assert env.step("click[< prev]").observation == item
    assert env.step("click[< prev]").observation == second
    assert env.step("click[back to search]").observation.startswith("WebShop")
    assert env.state is not None and env.state.visited == frozenset()


def test_rich_pages_show_what_was_clicked(triple: Any) -> None:
    env = WebShop(data=triple, split=SPLIT, observation="text_rich", show_attrs=True)
    env.reset("0")
    env.step("search[odd linen shirt]")
    env.step("click[b000000003]")
    page = env.step("click[both]").observation  # a value of two groups selects the last group
    assert env.state is not None and env.state.options == (("fit", "both"),)
    assert page.startswith("You have clicked both.\nYou have clicked both.\nInstruction:\n")
    assert "  [clicked button] both [clicked button_]\n" in page and "  [button] a [button_]\n" in page
    page = env.step("click[it's <b>]").observation
    assert page.startswith("You have clicked it's <b>.\nInstruction:")
    assert env.step("click[attributes]").observation.endswith(
        "\n soft\n cotton\nfashion\nshirts\nClothing › Men › Shirts\n"
    )
    env.step("click[< prev]")
    assert env.step("click[features]").observation.endswith("[button] < Prev [button_]\n \n")
    env.step("click[< prev]")
    assert 'options\n{"fit": "it\\u0027s \\u003cb\\u003e"}\n' in env.step("click[buy now]").observation
    env.step("search[odd linen shirt]")
    assert "\n\n[clicked button] B000000003 [clicked button_]\n" in env.step("search[odd linen shirt]").observation


@pytest.mark.parametrize(
    ("action", "parsed"),
    [
        ("search[a b]", ("search", "a b")),
        ("click[Buy Now] and more", ("click", "buy now")),
        ("search[x]y]", ("search", "x]y")),
        ("search[a[b]c]", None),
        ("search[]", None),
        ("click[[back]", None),
        ("Search[x]", None),
        (" search[x]", None),
        ("Action: search[x]", None),
        ("search[x\ny]", None),
        ("search[x]\n", ("search", "x")),
        ("\nsearch[x]", None),
        ("[x]", None),
        ("]", None),
        ("", None),
        (None, None),
    ],
)
def test_grammar(action: Any, parsed: Any) -> None:
    assert parse(action) == parsed


@pytest.mark.parametrize("action", ["", "buy", "click[search]", "click[nothing]", "click[", "search[]", "\n", None, 7])
def test_invalid_actions_change_nothing(env: WebShop, action: Any) -> None:
    page, state = env.step("search[shirt]").observation, env.state
    step = env.step(action)
    assert (step.observation, step.reward, step.done, step.valid, step.info) == (
        page,
        0.0,
        False,
        False,
        {"won": False},
    )
    assert env.state == state


WORDS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["<r>", "<c>", "<q>", "<a>", "<c> fashion", "<q> socks", "buy now", "< prev", "next >", "both", "red"]
    ),
)
ACTIONS = st.one_of(
    st.text(max_size=40),
    st.builds("{}[{}]".format, st.sampled_from(["search", "click", "Click", ""]), WORDS),
    st.integers(min_value=0, max_value=40),  # index of a valid action
)


def act(env: WebShop, action: str | int) -> Any:
    if isinstance(action, int):
        possible = [f"click[{text}]" for text in env.available_actions()["clickables"]] or ["search[shirt]"]
        action = possible[action % len(possible)]
    return env.step(action)


@LIGHT
@given(st.lists(ACTIONS, max_size=25), st.sampled_from(["text", "text_rich"]))
def test_no_action_raises(triple: Any, actions: list[str | int], mode: str) -> None:
    env = WebShop(data=triple, split=SPLIT, observation=mode)
    env.reset("2")
    seen = [act(env, action) for action in actions]
    assert all(0 <= step.reward <= 1 and isinstance(step.observation, str) and "won" in step.info for step in seen)
    env.reset("2")
    assert [act(env, action) for action in actions] == seen


def test_the_cache_is_bounded(env: WebShop) -> None:
    rng = random.Random(0)
    for _ in range(10_000):
        env.step(rng.choice(["search[", "click[", ""]) + "".join(rng.choices("[]< >abcrshirt\n", k=rng.randint(0, 12))))
        act(env, rng.randrange(40))
    assert len(env.shop._cached) <= 4096
    env.step("search[" + "[" * 200_000)
    assert env.step("search[" + "_" * 200_000 + "]").valid


def random_action(rng: random.Random, env: WebShop) -> str | int:
    """A malformed action, a search (some long, special or new), or the index of a valid click."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(["search[", "click[", ""]) + "".join(rng.choices("[]< >abcr\n", k=rng.randint(0, 12)))
    if kind < 0.25:
        return rng.choice(["search[", "click[", "x"]) + "[shirt " * rng.randint(1, 300)
    if kind < 0.4:
        words = rng.choices(
            ["<r>", "<c>", "<q>", "<a>", "soft", "shirt", "sock", "fashion", "the"], k=rng.randint(1, 6)
        )
        return f"search[{' '.join(words)} {rng.randrange(20_000)}]"
    return rng.randrange(40)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [False, True], ids=["memory", "store"])
def test_a_hundred_thousand_actions_take_no_memory(triple: Any, tmp_path: Path, stored: bool) -> None:
    env = WebShop(data=in_store(triple, tmp_path) if stored else triple, split=SPLIT)
    rng = random.Random(0)
    process, sizes = psutil.Process(), []
    for number in range(100_000):
        if number % 20 == 0:
            env.reset(str(rng.randrange(7)))
        step = act(env, random_action(rng, env))
        assert 0 <= step.reward <= 1
        if number % 10_000 == 9_999:
            gc.collect()
            sizes.append(process.memory_info().rss)
    assert max(sizes[5:]) - sizes[4] < 2 * 2**20  # bytes; the caches are full by then


def in_store(triple: Any, folder: Path) -> Path:
    for name, content in zip(("items_shuffle", "items_ins_v2", "items_human_ins"), triple, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return build_store(folder, folder / "store")


def test_forks_are_independent(triple: Any) -> None:
    forks(WebShop(data=triple, split=SPLIT), 500)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [False, True], ids=["memory", "store"])
def test_ten_thousand_forks_are_independent(triple: Any, tmp_path: Path, stored: bool) -> None:
    forks(WebShop(data=in_store(triple, tmp_path) if stored else triple, split=SPLIT), 10_000)


def forks(env: WebShop, count: int) -> None:
    """Episodes played one by one and by interleaved forks give the same pages."""
    rng = random.Random(1)
    alone: list[tuple[WebShop, list[int], str]] = []
    for number in range(count):
        moves = [rng.randrange(40) for _ in range(6)]
        env.reset(str(number % 7))
        page = ""
        for move in moves:
            page = act(env, move).observation
        alone.append((env, moves, page))
    twins = []
    for number in range(count):
        env.reset(str(number % 7))
        twins.append(env.fork())
    pages = [""] * count
    for place in range(6):
        for number in rng.sample(range(count), count):
            pages[number] = act(twins[number], alone[number][1][place]).observation
    assert pages == [page for _, _, page in alone]
    assert env.state is not None and env.state.kind == "search"


def test_replay_restores_a_state_or_names_the_divergence(env: WebShop) -> None:
    actions = ["search[shirt]", "click[b000000001]", "click[red]"]
    pages = [env.reset("1"), *(env.step(action).observation for action in actions)]
    assert restore(env, "1", actions, pages) == pages[-1]
    with pytest.raises(ReplayDivergence, match="task 1, state 2"):
        restore(env, "1", actions, [*pages[:2], "another", pages[3]])


def test_environments_share_a_shop(triple: Any) -> None:
    one = make_env("webshop", data=triple, split=SPLIT)
    two = make_env("webshop", data=triple, split=SPLIT, observation="text_rich")
    assert isinstance(one, WebShop) and isinstance(two, WebShop) and one.shop is two.shop
    differ = {name for name, value in one.stamp().items() if value != two.stamp()[name]}
    assert differ == {"pages"} and set(one.stamp()) == {"catalogue", "goals", "split", "tagger", "pages"}


def test_errors_are_clear(env: WebShop, triple: Any) -> None:
    for task in ("7", "-1", "x", "²", ""):
        with pytest.raises(ValueError, match="tasks are '0' to '6'"):
            env.reset(task)
    with pytest.raises(ValueError, match="use train, eval or test"):
        env.tasks("dev")
    with pytest.raises(ValueError, match="no product 'B9'"):
        env.product("B9")
    with pytest.raises(RuntimeError, match="reset"):
        WebShop(data=triple, split=SPLIT).step("search[x]")
    with pytest.raises(ValueError, match="'text', 'text_rich'"):
        WebShop(data=triple, observation="html")
    with pytest.raises(ValueError, match="leave it out"):
        WebShop(data=triple, catalogue={"products": 10})


def test_goals_and_products_are_copies(env: WebShop) -> None:
    env.goal()["attributes"].append("x")
    env.product("b000000001")["options"]["color"].append("x")
    assert "x" not in env.goal()["attributes"] and "x" not in env.product("B000000001")["options"]["color"]
    assert env.product("B000000001")["options"] == {"color": ["red", "navy | white"], "size": ["small"]}
