"""The reward of a purchase: compares type, attributes, options and price with the goal, as ``get_reward`` does.

``get_reward`` is a function of the official code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from rapidfuzz.fuzz import token_set_ratio

from eef.envs.webshop.catalogue import Product
from eef.envs.webshop.goals import Goal
from eef.envs.webshop.nouns import Nouns

# The official colour words. The first one that occurs anywhere in a value replaces it ("rectangular" becomes "tan").
_COLOR_WORDS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel "
    "camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry "
    "cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green "
    "grey heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot "
    "midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple "
    "rainbow red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan "
    "taupe teal tiger turquoise violet walnut wheat white wine yellow"
)
COLORS = tuple(_COLOR_WORDS.split())


@lru_cache(maxsize=1 << 16)
def _plain(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", " ", text.encode("ascii", "ignore").decode()).lower().strip()


@lru_cache(maxsize=1 << 16)
def alike(one: str, other: str) -> bool:
    """Whether the token-set ratio of two texts (ASCII letters and digits) rounds to more than 85 of 100."""
    one, other = _plain(one), _plain(other)
    return bool(one and other) and round(token_set_ratio(one, other)) > 85


def normalize_color(value: str) -> str:
    """The first colour word that ``value`` contains, or else ``value``."""
    return next((color for color in COLORS if color in value), value)


def _normalize_wanted(option: str | tuple[str, str]) -> str:
    """An option of the goal as it is compared: a colour if a synthetic pair is one, else the printed pair."""
    if isinstance(option, str):
        return normalize_color(option)
    return next((color for color in COLORS if color in option), str(option))


def attributes_met(product: Product, goal: Goal) -> list[bool]:
    """For each attribute of the goal, whether the product has it or mentions it."""
    texts = product.title.lower(), " ".join(product.bullets).lower(), product.description.lower()
    return [
        any(alike(own, attribute) for own in product.attributes) or any(attribute in text for text in texts)
        for attribute in goal.attributes
    ]


def options_met(goal: Goal, options: Iterable[str]) -> list[bool]:
    """For each option of the goal, whether one of the selected values ``options`` is similar to it."""
    chosen = [normalize_color(value) for value in options]
    return [any(alike(value, want) for value in chosen) for want in map(_normalize_wanted, goal.options)]


def score(product: Product, goal: Goal, options: Iterable[str], nouns: Nouns) -> tuple[float, dict[str, Any]]:
    """``(reward in [0, 1], breakdown)`` of buying ``product`` with the selected option values ``options``.

    The breakdown has the official keys: r_type, r_att, w_att, query_match, category_match, title_score, r_option and
    w_option (both only for a goal with options), r_price, w_price.
    """
    kind = _type(product, goal, nouns)
    attributes, met = sum(attributes_met(product, goal)), sum(options_met(goal, options))
    price = product.price <= goal.price_upper
    parts = len(goal.attributes) + len(goal.options) + 1
    total = (attributes + met + price) / parts * kind["r_type"]
    info = {
        "r_type": kind["r_type"],
        "r_att": attributes / len(goal.attributes),
        "w_att": len(goal.attributes) / parts,
        "query_match": kind["query_match"],
        "category_match": kind["category_match"],
        "title_score": kind["title_score"],
    }
    if goal.options:
        info |= {"r_option": met / len(goal.options), "w_option": len(goal.options) / parts}
    return total, info | {"r_price": price, "w_price": 1 / parts}


def _type(product: Product, goal: Goal, nouns: Nouns) -> dict[str, Any]:
    query_match = product.query == goal.query
    common = _pieces(product.product_category) & _pieces(goal.product_category)
    category_match = len(common) >= 2
    # as in the official code, a repeated noun counts once in the numerator and twice in the denominator
    wanted, number = nouns(goal.name)
    title_score = len(nouns(product.title)[0] & wanted) / number if wanted else 0.2
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    if title_score < 0.1:  # as in the official code, these rules override the category
        r_type = 0.1
    if title_score == 0.0:
        r_type = 0.0
    return {
        "r_type": r_type,
        "query_match": query_match,
        "category_match": category_match,
        "title_score": title_score,
    }


@lru_cache(maxsize=1 << 15)
def _pieces(product_category: str) -> frozenset[str]:
    return frozenset(piece.strip() for piece in product_category.split("\u203a"))
