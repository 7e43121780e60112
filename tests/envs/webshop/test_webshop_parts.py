"""Search and reward."""

from __future__ import annotations

import random
from typing import Any

import pytest

from eef.envs import EnvError
from eef.envs.webshop.catalogue import load_catalogue
from eef.envs.webshop.goals import make_goals
from eef.envs.webshop.nouns import Nouns, words
from eef.envs.webshop.reward import COLORS, alike, normalize_color, score
from eef.envs.webshop.search import Index, analyze, stem, stored_length


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The women's Dresses, a pair of 5'2\" 1,000.5 shoes.", ["women", "dress", "pair", "5'2", "1,000.5", "shoe"]),
        ("don't foo_bar_ __ x-y a.b.c 3.x", ["don't", "foo_bar_", "x", "y", "a.b.c", "3", "x"]),
        ("❤️ 🌸🌸 ★ ™ ◆ → ✿", ["❤️", "🌸", "🌸", "★", "™"]),
        ("日本 ひら カタカナ 일품", ["日", "本", "ひ", "ら", "カタカナ", "일품"]),
        ("👨‍💼 🇩🇪", ["👨‍💼", "🇩🇪"]),
        ("x" * 300, ["x" * 255, "x" * 45]),
        ("the of !!! '", []),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert analyze(text) == terms


@pytest.mark.parametrize(
    ("word", "root"),
    [
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("agreed", "agre"),
        ("plastered", "plaster"),
        ("motoring", "motor"),
        ("hopping", "hop"),
        ("falling", "fall"),
        ("filing", "file"),
        ("happy", "happi"),
        ("sky", "sky"),
        ("relational", "relat"),
        ("possibly", "possibl"),
        ("archaeology", "archaeolog"),
        ("hopefulness", "hope"),
        ("electrical", "electr"),
        ("adoption", "adopt"),
        ("controlling", "control"),
        ("rate", "rate"),
        ("as", "as"),
        ("ies", "i"),
    ],
)
def test_stems(word: str, root: str) -> None:
    assert stem(word) == root


def test_lengths_are_exact_up_to_forty() -> None:
    assert [stored_length(n) for n in range(41)] == list(range(41))
    assert [stored_length(n) for n in (41, 42, 56, 59, 1000)] == [40, 42, 56, 56, 984]


def test_index_ranks_by_score_then_name() -> None:
    index = Index(["b", "a", "c", "d"], ["red shirt", "red shirt", "red red shirt", "lamp"])
    assert index.search("red") == [2, 1, 0]
    assert index.search("red", limit=2) == [2, 1]
    assert index.search("lamp lamp")[0] == 3
    assert index.search("the") == index.search("") == index.search("zzz") == []
    assert index.scored("red red")[0][1] == pytest.approx(2 * index.scored("red")[0][1], rel=1e-6)


def test_a_limited_list_is_the_head_of_the_full_one() -> None:
    rng = random.Random(0)
    documents = [
        " ".join(rng.choices(["red", "blue", "soft", "shirt", "lamp"], k=rng.randint(1, 9))) for _ in range(300)
    ]
    index = Index([f"B{n:03d}" for n in range(300)], documents)
    for query in ("red", "soft blue", "shirt shirt lamp red"):
        full = index.scored(query, limit=1000)
        assert index.scored(query) == full[:50]
        assert full == sorted(full, key=lambda hit: (-hit[1], hit[0]))


def test_colors() -> None:
    assert len(COLORS) == 102 and list(COLORS) == sorted(COLORS)
    assert [normalize_color(v) for v in ("dark blue", "rectangular", "dash", "xl")] == ["blue", "tan", "ash", "xl"]


def test_alike_is_rounded_and_needs_letters_in_both_texts() -> None:
    assert alike("long sleeve shirt", "Long-Sleeve") and alike("a b", "b a")
    assert not alike("é", "é") and not alike("red", "blue")


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Men's Shirt, (Red) 40mm USB-C", ["men", "shirt", "red", "mm", "usb", "c"]),
        ("Table/2 Chairs/One x2.5 oz.", ["chairs", "one", "oz"]),
        ("Skin(pink) 44mm,Adjustable", ["adjustable"]),
    ],
)
def test_words_of_a_title(title: str, expected: list[str]) -> None:
    assert sorted(words(title)) == sorted(expected)


def test_nouns_repeated_in_a_title_count_each_time() -> None:
    assert Nouns({"bag of bags, bag": ["bag", "bags"]})("bag of bags, bag") == ({"bag", "bags"}, 3)
    assert Nouns(lambda title: ["bag", "bag"])("bag bag bag") == ({"bag"}, 2)
    assert Nouns()("The bag of bags") == ({"bag", "bags"}, 2)
    assert Nouns(set)("") == (frozenset(), 0)
    with pytest.raises(EnvError, match="lacks the title 'x'"):
        Nouns({})("x")
    assert Nouns({"a": ["b"]}).name == Nouns({"a": {"b"}}).name != Nouns({"a": ["c"]}).name


def test_reward_parts(triple: Any) -> None:
    catalogue = load_catalogue(triple)
    goals, _ = make_goals(catalogue)
    shop = {product.asin: product for product in catalogue.products}
    goal = next(goal for goal in goals if goal.asin == "B000000002")  # two attributes, one option
    total, info = score(shop["B000000002"], goal, ["old navy"], Nouns())
    assert total == 1.0 and info["r_option"] == info["r_att"] == 1.0 and info["w_att"] == 0.5
    total, info = score(shop["B000000002"], goal, ["red"], Nouns())
    assert total == 0.75 and info["r_option"] == 0.0
    total, info = score(shop["B000000010"], goal, [], Nouns())  # without a common noun the reward is 0
    assert total == 0.0 and info["r_type"] == 0.0 and info["category_match"] and not info["query_match"]
    plain = next(goal for goal in goals if goal.asin == "B000000004")
    total, info = score(shop["B000000004"], plain, ["red"], Nouns())
    assert total == 1.0 and "r_option" not in info and info["w_price"] == 0.5
    dear = catalogue.products[-1]
    assert score(dear, goal, [], Nouns(lambda title: ["same"]))[1] == {
        "r_type": 1.0, "r_att": 0.5, "w_att": 0.5, "query_match": False, "category_match": True, "title_score": 1.0,
        "r_option": 0.0, "w_option": 0.25, "r_price": False, "w_price": 0.25,
    }  # fmt: skip
    empty = score(dear, goal, [], Nouns(lambda title: []))[1]
    assert (empty["title_score"], empty["r_type"]) == (0.2, 1.0)
