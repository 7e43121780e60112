"""The scripted shopper: perfect play, and errors that make failures worth exploring."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from webshop_tiny import product

from eef.envs import expert_states, restore
from eef.envs.webshop import WebShop
from eef.envs.webshop.generate import CatalogueSpec, generate
from eef.envs.webshop.shopper import STRONG, WEAK, ShopperNoise, listed_products, play_expert
from eef.trajectory import Trajectory


@pytest.fixture(scope="module")
def wide() -> WebShop:
    """All goals of a small catalogue, 15 steps each."""
    triple = generate(CatalogueSpec(products=700))
    count = sum(len(records) for records in triple[2].values())
    return WebShop(data=triple, split={"train": list(range(count)), "eval": [], "test": []}, max_steps=15)


@pytest.fixture(scope="module")
def strong(wide: WebShop) -> list[Trajectory]:
    return [play_expert(wide, task, STRONG, seed=0, insight=False) for task in wide.tasks("train")]


@pytest.mark.parametrize("noise", [ShopperNoise(), STRONG, WEAK], ids=["perfect", "strong", "weak"])
def test_all_actions_are_valid_and_recorded_correctly(shop: WebShop, noise: ShopperNoise) -> None:
    for task in shop.tasks("train"):
        played = play_expert(shop, task, noise, seed=1)
        page = shop.reset(task)
        assert page == played.prompt
        for index, turn in enumerate(played.turns):
            step = shop.step(turn.action)
            assert step.valid and step.observation == turn.observation
            assert step.done == (index == len(played) - 1 and played.outcome == "done")
        assert played.won == bool(step.info["won"]) and played.reward == step.reward


@pytest.mark.parametrize("insight", [True, False])
def test_options_of_synthetic_goals_are_chosen_by_value(insight: bool) -> None:
    colour = {"Color": [{"value": "Red"}, {"value": "Blue"}], "Size": [{"value": "XL"}]}
    shirt = product("B000000001", "soft cotton shirt", customization_options=colour, query="shirt")
    attributes = {"B000000001": {"attributes": ["soft", "cotton"], "instruction": "find me a soft cotton shirt",
                                 "instruction_attributes": ["soft", "cotton"]}}  # fmt: skip
    shop = WebShop(([shirt], attributes, {}), human_goals=False, split={"train": [0, 1], "eval": [], "test": []})
    for task in shop.tasks("train"):
        played = play_expert(shop, task, insight=insight)
        assert played.won and played.actions[2] in ("click[red]", "click[blue]") and "click[xl]" in played.actions


def test_equal_arguments_give_equal_play_and_seeds_other_errors(shop: WebShop) -> None:
    tasks = shop.tasks("train")

    def actions(noise: ShopperNoise, seed: int) -> list[list[str]]:
        return [play_expert(shop, task, noise, seed).actions for task in tasks]

    assert actions(ShopperNoise(), 0) == actions(ShopperNoise(), 1)  # perfect play does not depend on the seed
    assert actions(STRONG, 0) == actions(STRONG, 0)
    assert actions(STRONG, 0) != actions(STRONG, 1)


def test_errors_do_not_depend_on_other_tasks(shop: WebShop) -> None:
    first, second = shop.tasks("train")[:2]
    alone = play_expert(shop, second, STRONG, 3)
    play_expert(shop, first, STRONG, 3)
    assert play_expert(shop, second, STRONG, 3) == alone


def test_play_stops_at_max_steps(wide: WebShop) -> None:
    short = wide.fork()
    short.max_steps = 3  # a search, an item, one option
    for task in wide.tasks("train")[:20]:
        played = play_expert(short, task, insight=False)
        assert (len(played), played.outcome, played.reward, played.won) == (3, "max_steps", 0.0, False)
        assert played.failed


def test_listed_products_are_those_of_the_page(shop: WebShop) -> None:
    task = shop.tasks("train")[0]
    shop.reset(task)
    assert listed_products(shop) == []
    shop.step(f"search[{shop.goal()['query']}]")
    shown = listed_products(shop)
    assert [asin for asin, _, _ in shown] == shop.results() and len(shown) == 10
    for asin, title, price in shown:
        product = shop.product(asin)
        assert title == product["title"] and price == product["price"]


@pytest.mark.parametrize("noise", [ShopperNoise(), STRONG], ids=["perfect", "strong"])
@pytest.mark.parametrize("insight", [True, False])
def test_the_form_of_pages_changes_no_action(shop: WebShop, noise: ShopperNoise, insight: bool) -> None:
    rich = shop.fork()
    rich.observation = "text_rich"
    for task in shop.tasks("train"):
        plain, other = (play_expert(env, task, noise, insight=insight) for env in (shop, rich))
        assert (other.actions, other.won) == (plain.actions, plain.won) and other.prompt != plain.prompt


def test_insight_wins_too(shop: WebShop) -> None:
    played = [play_expert(shop, task, insight=True) for task in shop.tasks("train")]
    assert sum(item.won for item in played) >= 0.75 * len(played)


def continued(env: WebShop, expert: Trajectory, index: int, page: str) -> bool:
    """Whether perfect play from an expert state wins within the remaining steps."""
    twin = expert_states(env, expert, [index])[index]
    assert isinstance(twin, WebShop)
    twin.max_steps = env.max_steps - index
    twin.reset = lambda task: page  # type: ignore[method-assign]
    return play_expert(twin, expert.task, insight=False).won


def test_failures_have_good_prefixes_and_harmful_moves(wide: WebShop, strong: Sequence[Trajectory]) -> None:
    """Most failures pass through states from which perfect play still wins, and lose later."""
    failures = [item for item in strong if item.failed][:40]
    good = harmful = 0
    for failure in failures:
        wins = [continued(wide, failure, index, failure.state(index)) for index in range(len(failure))]
        good += any(wins[2:])  # after the search and one more decision
        ends_badly = failure.outcome == "done" and wins[-1]  # the purchase itself was the mistake
        harmful += ends_badly or any(a and not b for a, b in pairwise(wins))
    assert good > 0.8 * len(failures)
    assert harmful > 0.8 * len(failures)


def test_failures_have_recoveries_and_wrong_purchases(wide: WebShop, strong: Sequence[Trajectory]) -> None:
    """Steps back from an item, purchases without the wanted options, and turned pages."""
    failures = [item for item in strong if item.failed]
    stepped_back = wrong = turned = 0
    for failure in failures:
        restore(wide, failure.task, failure.actions, [failure.prompt, *(turn.observation for turn in failure.turns)])
        goal = wide.goal()
        on_item = [" [SEP] Buy Now" in failure.state(index) for index in range(len(failure))]
        stepped_back += any(at and a == "click[< prev]" for at, a in zip(on_item, failure.actions, strict=True))
        clicked = {action[6:-1] for action in failure.actions}
        wrong += failure.outcome == "done" and not {value.lower() for value in goal["goal_options"]} <= clicked
        turned += "click[next >]" in failure.actions
    assert stepped_back > 0.2 * len(failures)
    assert wrong > 0.5 * len(failures)
    assert turned > 0.1 * len(failures)


def test_wins_rarely_turn_a_page_and_failures_often_do(strong: Sequence[Trajectory]) -> None:
    def share(items: list[Trajectory]) -> float:
        return sum("click[next >]" in item.actions for item in items) / len(items)

    wins, failures = [item for item in strong if item.won], [item for item in strong if item.failed]
    assert len(wins) > 40 and len(failures) > 40
    assert share(wins) < 0.1 and share(failures) > share(wins) + 0.3


def test_a_shopper_that_notices_nothing_never_steps_back_from_a_wrong_row(wide: WebShop) -> None:
    noise = ShopperNoise(base=0.3, notice=0.0)
    for task in wide.tasks("train")[:60]:
        played = play_expert(wide, task, noise, insight=False)
        items = [action for index, action in enumerate(played.actions) if " [SEP] Buy Now" in played.state(index)]
        assert "click[< prev]" not in items


def test_a_shopper_that_errs_after_a_step_back_loses_what_it_finds_there(wide: WebShop) -> None:
    def went_back(noise: ShopperNoise) -> dict[str, bool]:
        played = [play_expert(wide, task, noise, insight=False) for task in wide.tasks("train")[:200]]
        return {item.task: item.won for item in played if "click[< prev]" in item.actions}

    perfect, spoiled = went_back(ShopperNoise()), went_back(ShopperNoise(back=1.0))
    assert len(perfect) > 20 and all(perfect.values())
    assert spoiled.keys() == perfect.keys() and not any(spoiled.values())
