"""Loading, prices, goals and splits. Every problem of a file is named or counted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from webshop_tiny import product, record

from eef.envs import EnvError
from eef.envs.webshop import WebShop
from eef.envs.webshop.catalogue import load_catalogue
from eef.envs.webshop.goals import Goal, make_goals, split_goals


def write(
    folder: Path, triple: Any, names: tuple[str, ...] = ("items_shuffle", "items_ins_v2", "items_human_ins")
) -> Path:
    for name, content in zip(names, triple, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_prices_and_caps_are_drawn_from_one_private_generator(triple: Any) -> None:
    random.seed(5)
    before = random.getstate()
    catalogue = load_catalogue(triple, seed=3)
    goals, skipped = make_goals(catalogue)
    assert random.getstate() == before
    rng = random.Random(3)
    prices = {p.asin: p.price for p in catalogue.products}
    assert prices["B000000002"] == rng.uniform(10.71, 18.34)
    assert (prices["B000000001"], prices["B000000004"], prices["B000000010"]) == (20.0, 100.0, 1200.5)
    assert {p.asin: p.tag for p in catalogue.products}["B000000002"] == "$10.71 to $18.34"
    cap = max(rng.sample([30.0, 40.0, 50.0, 60.0], 2))
    goal = next(goal for goal in goals if goal.instruction_text.startswith("i want"))
    assert goal.instruction_text == f"i want a soft red shirt, and price lower than {cap:.2f} dollars"
    dear = next(goal for goal in goals if goal.asin == "B000000010")
    assert dear.price_upper == 1000000 and "price lower" not in dear.instruction_text
    assert skipped == {"goal without attributes": ["B000000001"]}


def test_files_and_memory_give_the_same_shop(tmp_path: Path, triple: Any) -> None:
    stamps = [WebShop(data=data, split="ratio").stamp() for data in (write(tmp_path, triple), triple)]
    assert stamps[0] == stamps[1]


def test_half_of_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    triple = (
        [product("B000000001", "cup \ud83d")],
        {"B000000001": {"attributes": ["soft"]}},
        {"B000000001": [record("a cup \ud83d", ["soft"], ["\ud83d red"])]},
    )
    catalogue = load_catalogue(write(tmp_path, triple))
    (goal,), _ = make_goals(catalogue)
    assert (goal.name, goal.options) == ("cup \ufffd", ("\ufffd red",))
    assert goal.instruction_text.startswith("a cup \ufffd")


def test_file_names(tmp_path: Path, triple: Any) -> None:
    with pytest.raises(EnvError, match="no folder"):
        load_catalogue(tmp_path / "nowhere")
    with pytest.raises(EnvError, match=r"no items_shuffle\*.json and no products.json"):
        load_catalogue(tmp_path)
    write(tmp_path, triple, ("products", "items_ins_v2", "other"))
    with pytest.raises(EnvError, match=r"items_human_ins.json is missing"):
        load_catalogue(tmp_path)
    assert len(load_catalogue(tmp_path, human_goals=False).products) == 14
    write(tmp_path, (triple[0][:2], triple[1], triple[2]), ("items_shuffle_2", "items_ins_v2_2", "items_human_ins"))
    assert len(load_catalogue(tmp_path).products) == 14
    (tmp_path / "products.json").unlink()
    assert len(load_catalogue(tmp_path).products) == 2
    assert len(load_catalogue(tmp_path, num_products=1).products) == 1


def test_a_truncated_file_is_named(tmp_path: Path, triple: Any) -> None:
    path = write(tmp_path, triple) / "items_shuffle.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(EnvError, match=r"items_shuffle.json is truncated or not valid JSON"):
        WebShop(data=tmp_path)
    path.write_text("{}")
    with pytest.raises(EnvError, match="expected a JSON list"):
        WebShop(data=tmp_path)


def test_unusable_products_are_skipped_and_counted(triple: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows, attributes, instructions = triple
    rows = [
        *rows,
        product("B000000001", "again"),
        product("B1", "no images", images=[]),
        product("B2", "odd price", pricing="call us"),
        product("B3", "odd price", pricing="$1.2.3"),
        product("B12345678901", "too long"),
        product("nan", "nan"),
        {"asin": "B4", "name": "bare"},
        product("B5", "no bullets", small_description=None),
    ]
    env = WebShop(data=(rows, attributes, instructions | {"B6": [record("gone", ["x"], [])]}), split="ratio")
    assert len(env.shop.products) == 14
    assert env.skipped == {
        "duplicate asin": ["B000000001"],
        "no image": ["B1"],
        "unreadable price": ["B2", "B3"],
        "odd asin": ["B12345678901", "nan"],
        "without a text 'full_description'": ["B4"],
        "without a text or list 'small_description'": ["B5"],
        "goal for an absent asin": ["B6"],
        "goal without attributes": ["B000000001"],
    }
    assert "2 unreadable price (B2, B3)" in caplog.text and "1 goal for an absent asin (B6)" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[0].append({"name": "x"}), "row 14: a product needs an 'asin'"),
        (lambda t: t[0].append(product("B7", "x", customization_options={"a": [{"v": 1}]})), "product B7: a field"),
        (lambda t: t[2].update(B000000001=[{"instruction": "x"}]), "asin B000000001, record 0"),
        (lambda t: t[2].update(B000000001=[record("x", ["a"], [None])]), "asin B000000001, record 0"),  # type: ignore[list-item]
        (lambda t: t[2].clear(), "no product has a human instruction"),
        (lambda t: t[0].clear(), "contains no usable product"),
    ],
)
def test_other_problems_are_named(triple: Any, change: Any, words: str) -> None:
    change(triple)
    with pytest.raises(EnvError, match=words):
        WebShop(data=triple, split="ratio")


def test_synthetic_goals(triple: Any) -> None:
    rows, attributes, _ = triple
    attributes["B000000001"] |= {"instruction": "a shirt.", "instruction_attributes": ["soft", "cotton"]}
    attributes["B000000002"] |= {"instruction": "another", "instruction_attributes": ["soft"]}
    goals, skipped = make_goals(load_catalogue((rows, attributes, {}), human_goals=False), human=False)
    assert len(goals) == 4 and len(skipped["no synthetic instruction"]) == 12
    goal = next(goal for goal in goals if goal.asin == "B000000001" and ("color", "red") in goal.options)
    assert goal.instruction_text.startswith("a shirt. with color: red, and size: small, and price lower than ")
    assert goal.as_dict()["goal_options"] == {"color": "red", "size": "small"}
    assert goal.weight == (1 / 4 + 1 / 2) / 2
    env = WebShop(data=(rows, attributes, {}), human_goals=False, split="ratio")
    index = next(i for i, goal in enumerate(env.shop.goals) if goal.options == (("color", "red"), ("size", "small")))
    env.reset(str(index))
    for action in ("search[red cotton shirt]", f"click[{env.shop.goals[index].asin}]", "click[red]", "click[small]"):
        env.step(action)
    assert env.step("click[buy now]").info["breakdown"]["r_option"] == 1.0


def test_splits(tmp_path: Path, triple: Any) -> None:
    goals, _ = make_goals(load_catalogue(triple))
    ratio = split_goals(goals, "ratio")
    assert sorted(index for part in ratio.values() for index in part) == list(range(7))
    products = {part: {goals[index].asin for index in indices} for part, indices in ratio.items()}
    assert not products["train"] & products["test"] and split_goals(goals, "auto") == ratio
    assert split_goals(goals * 300, "auto", allow_overlap=True)["test"] == tuple(range(500))
    with pytest.raises(ValueError, match="leaves train and eval empty"):
        split_goals(goals, "official")
    with pytest.raises(ValueError, match=r"1 of 2 train indices \(such as 7\) are not among the 7 goals"):
        split_goals(goals, {"train": [0, 7]})
    with pytest.raises(ValueError, match="unknown part"):
        split_goals(goals, {"dev": [0]})
    for invalid in (["0"], [True], 3, None):
        with pytest.raises(ValueError, match="must be a list of goal indices"):
            split_goals(goals, {"train": invalid})
    with pytest.raises(ValueError, match="neither a folder"):
        split_goals(goals, "offical")
    with pytest.raises(ValueError, match=r"webshop_train_indices.json is missing"):
        split_goals(goals, tmp_path)
    (tmp_path / "webshop_train_indices.json").write_text("[0, 1, 1]")
    (tmp_path / "webshop_test_indices.json").write_text("[2, 3]")
    assert split_goals(goals, tmp_path) == {"train": (0, 1), "eval": (), "test": (2, 3)}
    (tmp_path / "webshop_test_indices.json").write_text("[2, ")
    with pytest.raises(ValueError, match="truncated"):
        split_goals(goals, str(tmp_path))


def test_goals_with_the_same_content_in_train_and_test_are_refused(triple: Any) -> None:
    triple[2]["B000000004"] *= 2  # the same record twice: another index and maybe another price cap, but the same task
    goals, _ = make_goals(load_catalogue(triple))
    one, two = (index for index, goal in enumerate(goals) if goal.asin == "B000000004")
    with pytest.raises(ValueError, match="1 of 1 test goals are also training goals"):
        WebShop(data=triple, split={"train": [one], "test": [two]})
    env = WebShop(data=triple, split={"train": [one], "test": [two]}, allow_overlap=True)
    assert (env.tasks("train"), env.tasks("eval"), env.tasks("test")) == ([str(one)], [], [str(two)])


def many_goals(count: int) -> tuple[Goal, ...]:
    """Goals that all differ in content."""
    goals = (Goal(f"B{n:09d}", "", "", "", "", f"goal {n}", ("soft",), 10.0, ()) for n in range(count))
    return tuple(goals)


def contents(goals: tuple[Goal, ...], indices: tuple[int, ...]) -> set[Any]:
    return {goals[index].content for index in indices}


@pytest.mark.parametrize(
    ("rule", "train"), [("official", 10587), ("auto", 10587), ("webshop-11k", 10587), ("webshop-3k", 3000)]
)
def test_named_splits_of_the_full_goals(rule: str, train: int) -> None:
    goals = many_goals(12087)
    split = split_goals(goals, rule)
    assert [len(split[part]) for part in ("train", "eval", "test")] == [train, 1000, 500]
    assert (split["test"][0], split["eval"][0], split["train"][0]) == (0, 500, 1500)
    assert not contents(goals, split["train"]) & contents(goals, split["test"])


def test_named_splits_need_the_full_goals() -> None:
    for rule, least in (("webshop-3k", "4,500"), ("webshop-11k", "10,500")):
        with pytest.raises(ValueError, match=f"'{rule}' needs .* at least {least} .*: this catalogue has 4,499 human"):
            split_goals(many_goals(4499), rule)


def test_train_and_test_share_no_goal_by_content(official: Path) -> None:
    for rule in ("official", "ratio"):
        env = WebShop(data=official / "data", split=rule)
        parts = {part: {env.shop.goals[int(task)].content for task in env.tasks(part)} for part in ("train", "test")}
        assert parts["train"] and parts["test"] and not parts["train"] & parts["test"]


def test_index_lists_that_overlap_are_refused(official: Path) -> None:
    folder = official.parent / "eto"
    if not folder.is_dir():
        pytest.skip(f"no index files at {folder}")
    goals = many_goals(12087)
    with pytest.raises(
        ValueError, match=r"21 of 200 test goals are also training goals .*webshop_test_500_indices.json shares none"
    ):
        split_goals(goals, folder)
    split = split_goals(goals, folder, allow_overlap=True)
    assert [len(split[part]) for part in ("train", "test")] == [1823, 200]
    files = {"train": folder / "webshop_train_indices.json", "test": str(folder / "webshop_test_500_indices.json")}
    split = split_goals(goals, files)
    assert [len(split[part]) for part in ("train", "test")] == [1823, 500]
    assert not contents(goals, split["train"]) & contents(goals, split["test"])


def test_index_files_in_a_dictionary_are_checked(tmp_path: Path, triple: Any) -> None:
    goals, _ = make_goals(load_catalogue(triple))
    with pytest.raises(ValueError, match=r"cannot read the index file .*gone.json"):
        split_goals(goals, {"train": tmp_path / "gone.json"})
    (tmp_path / "torn.json").write_text("[1, ")
    with pytest.raises(ValueError, match=r"index file .*torn.json is truncated"):
        split_goals(goals, {"train": str(tmp_path / "torn.json")})
