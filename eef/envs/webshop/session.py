"""An episode as a small immutable value, and the moves between the pages of the shop.

:func:`advance` returns the next :class:`State` and never changes its argument, so a fork is another reference to the
same value. Transitions follow the official simulator; the package's docstring lists the differences.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eef.envs.webshop.catalogue import Product
from eef.envs.webshop.goals import Goal
from eef.envs.webshop.search import RETURNED, Index

PER_PAGE = 10
SUB_PAGES = ("Description", "Features", "Reviews", "Attributes")
_SUB_NAMES = {name.lower(): name for name in SUB_PAGES}
_CACHED_QUERIES, _CACHED_LENGTH = 4096, 500


class State(NamedTuple):
    """The state of an episode.

    ``kind``: the page, one of ``search``, ``results``, ``item``, ``sub``, ``done``. ``page``: number of the results
    page, from 1. ``options``: the selected (group, value) pairs. ``visited``: asins opened since the last reset or
    Back to Search. ``sub``: name of the sub page. ``reward``: reward of the purchase, in [0, 1].
    """

    goal: int
    kind: str = "search"
    keywords: tuple[str, ...] | None = None
    page: int | None = None
    asin: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    visited: frozenset[str] = frozenset()
    sub: str = ""
    reward: float = 0.0


class Shop:
    """What all episodes share and never change: products, goals and the search index."""

    def __init__(self, products: Sequence[Product], goals: Sequence[Goal], seed: int = 0) -> None:
        self.products: Sequence[Product] = tuple(products)
        self.cards: Sequence[Any] = self.products  # asin, title and tag, for results pages
        self.by_asin: Mapping[str, Product] = {product.asin: product for product in self.products}
        self.goals = tuple(goals)
        self.seed = seed
        self._index = Index([p.asin for p in self.products], [p.document() for p in self.products])
        self._cached: dict[str, Sequence[int]] = {}

    def find(self, keywords: tuple[str, ...], goal: int = 0, page: int = 1) -> Sequence[int]:
        """Indices of the products that a search finds, best first.

        Special first keywords: ``<r>`` finds random products, the same ones for equal goals and pages.
        ``<a> attribute``, ``<c> category`` and ``<q> query`` find all products with that value, in file order.
        """
        if keywords[0] == "<r>":
            rng = random.Random(f"{self.seed} {goal} {page}")
            return tuple(rng.sample(range(len(self.products)), min(RETURNED, len(self.products))))
        query = " ".join(keywords)
        hits = self._cached.get(query)
        if hits is None:
            special = keywords[0] in ("<a>", "<c>", "<q>")
            hits = self._special(keywords) if special else tuple(self._index.search(query))
            if len(query) <= _CACHED_LENGTH:
                if len(self._cached) >= _CACHED_QUERIES:
                    self._cached.clear()
                self._cached[query] = hits
        return hits

    def _special(self, keywords: tuple[str, ...]) -> Sequence[int]:
        kind = keywords[0]
        wanted = (keywords[1] if kind == "<c>" and len(keywords) > 1 else " ".join(keywords[1:])).strip()
        return self._all_of(kind, wanted) if wanted else ()

    def _all_of(self, kind: str, wanted: str) -> Sequence[int]:
        numbered = enumerate(self.products)
        if kind == "<c>":
            return tuple(number for number, product in numbered if product.category == wanted)
        if kind == "<q>":
            return tuple(number for number, product in numbered if product.query == wanted)
        return tuple(number for number, product in numbered if wanted in product.attributes)

    def results(self, state: State) -> tuple[list[Any], int]:
        """The products (asin, title, tag) of the current results page, at most 10, and the number of hits.

        Empty on other pages.
        """
        if state.kind != "results" or state.keywords is None or state.page is None:
            return [], 0
        hits = self.find(state.keywords, state.goal, state.page)
        return [self.cards[i] for i in hits[(state.page - 1) * PER_PAGE : state.page * PER_PAGE]], len(hits)

    def product(self, state: State) -> Product:
        """The product of an item or sub page."""
        assert state.asin is not None
        return self.by_asin[state.asin]


def parse(action: object) -> tuple[str, str] | None:
    """``("search" | "click", lower-cased argument)``, or None: the official grammar ``name[argument]``.

    Only the first line counts. The name ends at the last ``[`` that is followed by an argument; everything after the
    last ``]`` is ignored. Takes linear time for any input.
    """
    if not isinstance(action, str):
        return None
    line = action.split("\n", 1)[0]
    end = line.rfind("]")
    start = line.rfind("[", 0, end - 1) if end > 1 else -1
    name = line[:start] if start > 0 else ""
    return (name, line[start + 1 : end].lower()) if name in ("search", "click") else None


def clickables(shop: Shop, state: State, show_attrs: bool = False) -> dict[str, str]:
    """The clickable texts, lower-cased and in the official order, each with its target.

    The target is an asin on a results page, the group of an option value, or else empty. A text that occurs twice has
    its first position and its last target.
    """
    if state.kind == "search":
        return {"search": ""}
    if state.kind == "results":
        names = {"back to search": "", "next >": ""}
        if state.page is not None and state.page > 1:
            names = {"back to search": "", "< prev": "", "next >": ""}
        return names | {product.asin.lower(): product.asin for product in shop.results(state)[0]}
    if state.kind == "sub":
        return {"back to search": "", "< prev": ""}
    if state.kind == "item":
        names = {"back to search": "", "< prev": "", "description": "", "features": "", "reviews": ""}
        if show_attrs:
            names["attributes"] = ""
        names["buy now"] = ""
        for group, values in shop.product(state).options:
            for value in values:
                names[value] = group
        return names
    return {}


def advance(shop: Shop, state: State, action: object, show_attrs: bool = False) -> State | None:
    """The state after ``action``; None if the action is invalid here.

    After Buy Now the kind is ``done``, and the caller adds the reward.
    """
    parsed = parse(action)
    if parsed is None:
        return None
    name, argument = parsed
    if name == "search":
        return _results(state, tuple(argument.split(" ")), 1)
    targets = clickables(shop, state, show_attrs)
    if argument == "search" or argument not in targets:
        return None
    if argument == "buy now":
        return state._replace(kind="done")
    if argument == "back to search":
        return State(state.goal)
    if state.kind == "results":
        return _from_results(state, argument, targets[argument])
    if argument == "< prev":
        if state.kind == "sub":
            return state._replace(kind="item", sub="")
        return _results(state, state.keywords or ("",), state.page or 1)
    if argument in _SUB_NAMES:
        return state._replace(kind="sub", sub=_SUB_NAMES[argument])
    return state._replace(options=tuple((dict(state.options) | {targets[argument]: argument}).items()))


def _results(state: State, keywords: tuple[str, ...], page: int) -> State:
    return State(state.goal, "results", keywords, page, visited=state.visited)


def _from_results(state: State, argument: str, asin: str) -> State:
    page = state.page or 1
    if argument in ("next >", "< prev"):
        return state._replace(page=page + 1 if argument == "next >" else page - 1)
    return state._replace(kind="item", asin=asin, visited=state.visited | {asin})
