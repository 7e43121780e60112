"""The generated catalogue: repeatable, in the official format, and split by what perfect play needs."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from eef.envs.webshop import WebShop
from eef.envs.webshop.embedded import embedded, grade
from eef.envs.webshop.generate import CatalogueSpec, Triple, generate, write
from eef.envs.webshop.shopper import play_expert

SMALL = CatalogueSpec(products=700)
OPTIONS: dict[str, Any] = {
    "products": 700,
    "seed": 0,
    "train": 12,
    "eval": 4,
    "test": 8,
    "grades": [0.5, 0.25, 0.25],
}


@pytest.fixture(scope="module")
def generated() -> tuple[Triple, dict[str, list[int]]]:
    return embedded(WebShop, **OPTIONS)


@pytest.fixture(scope="module")
def default() -> WebShop:
    return WebShop(max_steps=40)


def digest(triple: Triple) -> str:
    return hashlib.sha256(json.dumps(triple).encode()).hexdigest()


def everything(triple: Triple) -> WebShop:
    """A shop whose training tasks are all goals."""
    count = sum(len(records) for records in triple[2].values())
    return WebShop(data=triple, split={"train": list(range(count)), "eval": [], "test": []}, max_steps=40)


def test_a_catalogue_depends_on_its_options_and_seed_alone() -> None:
    assert digest(generate(SMALL)) == digest(generate(SMALL))
    assert digest(generate(SMALL)) != digest(generate(replace(SMALL, seed=4)))


def test_the_split_is_repeatable(generated: tuple[Triple, dict[str, list[int]]]) -> None:
    again = embedded(WebShop, **OPTIONS)
    assert digest(again[0]) == digest(generated[0]) and again[1] == generated[1]


def test_written_files_equal_the_catalogue_in_memory(tmp_path: Path) -> None:
    folder = write(SMALL, tmp_path / "shop")
    written, in_memory = (everything_stamp(data) for data in (folder, generate(SMALL)))
    assert written == in_memory
    assert {path.name for path in folder.iterdir()} == {
        "items_shuffle.json",
        "items_ins_v2.json",
        "items_human_ins.json",
        "shop.json",
    }
    assert json.loads((folder / "shop.json").read_text()) == json.loads(json.dumps(asdict(SMALL)))


def everything_stamp(data: Path | Triple) -> dict[str, str]:
    shop = WebShop(data=data, split={"train": [0], "eval": [], "test": []})
    assert shop.skipped == {}
    return shop.stamp()


def test_options_reach_the_catalogue(generated: tuple[Triple, dict[str, list[int]]]) -> None:
    shop = WebShop(catalogue=OPTIONS)
    triple, split = generated
    assert len(shop.shop.products) == len(triple[0]) == 700
    assert {part: shop.tasks(part) for part in split} == {part: list(map(str, split[part])) for part in split}
    assert shop.stamp()["catalogue"] == everything(triple).stamp()["catalogue"]


def test_sizes_and_grades_follow_the_options(generated: tuple[Triple, dict[str, list[int]]]) -> None:
    triple, split = generated
    shop = everything(triple)
    assert {part: len(indices) for part, indices in split.items()} == {"train": 12, "eval": 4, "test": 8}
    for indices in split.values():
        grades = Counter(grade(play_expert(shop, str(index), insight=False).actions) for index in indices)
        assert grades == {
            "easy": len(indices) // 2,
            "medium": len(indices) // 4,
            "hard": len(indices) // 4,
        }


def test_rounded_grades_add_up() -> None:
    split = embedded(WebShop, products=500, train=3, eval=1, test=7, grades=[0.5, 0.3, 0.2])[1]
    assert {part: len(indices) for part, indices in split.items()} == {"train": 3, "eval": 1, "test": 7}


def test_no_family_is_in_two_parts_of_a_disjoint_split() -> None:
    options = {"products": 2000, "train": 60, "eval": 20, "test": 60, "grades": [0.5, 0.25, 0.25]}

    def shared(**more: Any) -> int:
        triple, split = embedded(WebShop, **options, **more)
        shop = everything(triple)
        assert {part: len(set(indices)) for part, indices in split.items()} == {"train": 60, "eval": 20, "test": 60}
        for indices in split.values():
            grades = Counter(grade(play_expert(shop, str(index), insight=False).actions) for index in indices)
            assert grades["easy"] == len(indices) // 2 and grades["hard"] == len(indices) // 4
        goals = {part: [shop.goal(str(index)) for index in indices] for part, indices in split.items()}
        families = {part: {(goal["query"], *sorted(goal["attributes"])) for goal in goals[part]} for part in goals}
        return sum(len(families[a] & families[b]) for a, b in combinations(families, 2))

    assert shared() > 0 and shared(disjoint_families=True) == 0


def test_perfect_play_wins_every_subtask(generated: tuple[Triple, dict[str, list[int]]]) -> None:
    triple, split = generated
    shop = everything(triple)
    won = {int(task) for task in shop.tasks("train") if play_expert(shop, task, insight=False).won}
    assert set().union(*split.values()) <= won
    assert len(won) > 0.8 * len(shop.shop.goals)


def test_splits_share_neither_content_nor_product(default: WebShop) -> None:
    for field in ("content", "asin"):
        parts = [
            {getattr(default.shop.goals[int(task)], field) for task in default.tasks(part)}
            for part in ("train", "eval", "test")
        ]
        assert len(set().union(*parts)) == sum(map(len, parts)) == 1100


def test_perfect_play_wins_the_embedded_default(default: WebShop) -> None:
    grades = {}
    for part in ("train", "test"):
        played = [play_expert(default, task) for task in default.tasks(part)]
        assert all(item.won for item in played)
        grades[part] = Counter(grade(item.actions) for item in played)
    assert grades == {part: {"easy": 200, "medium": 200, "hard": 100} for part in ("train", "test")}


def test_no_family_has_adjacent_asins() -> None:
    """Neighbours by asin (how the search engine breaks ties) are no more similar than any two products."""
    products, attributes, _ = generate(SMALL)

    def alike(rows: list[dict[str, Any]]) -> float:
        kinds = [(row["query"], frozenset(attributes[row["asin"]]["attributes"][:2])) for row in rows]
        return sum(a == b for a, b in pairwise(kinds)) / len(kinds)

    assert alike(products) > 0.5  # families are generated one after the other
    assert alike(sorted(products, key=lambda row: row["asin"])) < 0.1


def test_every_goal_fits_its_own_product() -> None:
    products, attributes, instructions = generate(SMALL)
    by_asin = {product["asin"]: product for product in products}
    for asin, (record,) in instructions.items():
        options = by_asin[asin]["customization_options"]
        offered = {row["value"] for values in options.values() for row in values}
        assert set(record["instruction_options"]) <= offered
        assert set(record["instruction_attributes"]) <= set(attributes[asin]["attributes"])
        wanted = [*record["instruction_attributes"], *record["instruction_options"], by_asin[asin]["query"]]
        assert all(word in record["instruction"] for word in wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"products": 60, "train": 40}, r"has \d+ easy subtasks, but \d+ are needed: raise 'products'"),
        (
            {"products": 300, "train": 60, "eval": 0, "test": 0, "grades": [0.0, 0.0, 1.0]},
            r"has \d+ hard subtasks, but 60",
        ),
        (
            {"products": 300, "train": 40, "eval": 0, "test": 40, "disjoint_families": True},
            r"with 'disjoint_families' the generated catalogue lacks \d+ medium subtasks of .*: raise 'products'",
        ),
        ({"products": 60, "grades": [0.5, 0.5]}, "three shares .* that sum to 1"),
        ({"products": 60, "grades": [0.5, 0.5, 0.5]}, "three shares .* that sum to 1"),
        ({"products": 60, "grades": [1.2, -0.2, 0.0]}, "three shares .* that sum to 1"),
    ],
)
def test_impossible_options_are_a_value_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embedded(WebShop, **options)


def test_an_unknown_option_is_a_type_error() -> None:
    options = "products, seed, cheap, .*trap, grades, .*train, eval, test"
    with pytest.raises(TypeError, match=f"'prodcuts'.*the options are {options}"):
        WebShop(catalogue={"prodcuts": 10})


@pytest.mark.parametrize(
    ("actions", "name"),
    [
        (["search[a]", "click[b000000001]", "click[buy now]"], "easy"),
        (["search[a]", "click[Next >]", "click[b000000001]", "click[buy now]"], "medium"),
        (["search[a]", "click[next >]", "click[b000000001]", "click[< Prev]", "click[buy now]"], "medium"),
        (["search[a]", *["click[next >]"] * 5], "hard"),
    ],
)
def test_grades_count_next_and_prev(actions: list[str], name: str) -> None:
    assert grade(actions) == name


def test_the_documentation_lists_each_option_of_the_catalogue_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "environments.md").read_text(encoding="utf-8")
    table = page.partition("| option of `catalogue`")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\S.*?) \| ", table, re.MULTILINE)
    defaults = json.loads(json.dumps(asdict(CatalogueSpec())))  # tuples as lists
    assert {name: yaml.safe_load(value) for name, value in rows} == defaults
