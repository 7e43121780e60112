"""WebShop as a text environment: the official behaviour without Java, HTML or a web server.

It differs from the official code where that crashes or corrupts its state:

| official behaviour                                               | here                                              |
|------------------------------------------------------------------|---------------------------------------------------|
| ``search[<a> x]`` raises TypeError                               | all products with attribute x                     |
| ``search[<c>]`` raises IndexError                                | no results                                        |
| ``search[<r>]`` draws from the global generator on each page     | 50 products fixed by seed, task and page number   |
| a keyword that contains a page's name (``search_results``,       | ``< Prev`` always leads back to the previous page |
| ``item_page``) sends ``< Prev`` to the wrong page or to page 0   | of the episode                                    |
| prices and price caps differ between processes                   | drawn from a private generator seeded by ``seed`` |
| a session past the last goal raises IndexError, a negative one   | ``reset`` raises ValueError and names the range   |
| or True counts as an index, others draw a goal                   |                                                   |
| clicking an asin with lower-case letters crashes                 | opens the product                                 |
| no images, an invalid price or a missing text: a traceback       | the product is left out, counted and logged       |
| synthetic goals: a product without an instruction is a KeyError  | the product is counted and has no goal            |
| sessions are kept for ever                                       | an episode is a value; nothing is kept            |
| an action that is not a string raises TypeError                  | invalid: nothing happens                          |
| clickable texts include those that no action can name, such as   | ``available_actions`` leaves them out             |
| ``large [tall]``                                                 |                                                   |

As in the official code, an episode may continue after Buy Now: a search starts over.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from eef.envs import Step
from eef.envs.webshop import catalogue as catalogues
from eef.envs.webshop import goals as goal_makers
from eef.envs.webshop.catalogue import Skipped, Triple
from eef.envs.webshop.nouns import Nouns, Tagger
from eef.envs.webshop.pages import MODES, render_page
from eef.envs.webshop.reward import score
from eef.envs.webshop.session import Shop, State, advance, clickables, parse

__all__ = ["WebShop"]


@dataclass(frozen=True)
class _Built:
    """A shop with its hashes and, for the embedded catalogue, its own split."""

    shop: Shop
    catalogue: str
    goals: str
    skipped: Skipped
    own_split: dict[str, list[int]] | None
    data: Any  # a catalogue in memory is cached by its id, which must not be reused


_CACHED_SHOPS = 4
_LARGE = 100_000  # products; a search takes long enough for threads, and NumPy runs in several at once
_shops: dict[tuple[Any, ...], _Built] = {}
_taggers: dict[int | str, tuple[Tagger | None, Nouns]] = {}


class WebShop:
    """The shop as a :class:`~eef.envs.TextEnv`. It plays one episode at a time; ``state`` is a small value.

    ``data``: a folder with the official files or with the store that ``eef webshop build`` makes of them, the triple
    ``(products, items_ins_v2, items_human_ins)`` in memory (do not change it afterwards), or None for the embedded
    generated catalogue, whose options are ``catalogue`` (:class:`~eef.envs.webshop.generate.CatalogueSpec`).
    ``human_goals``: human instructions, or else the synthetic ones. ``observation``: ``text`` or ``text_rich``.
    ``seed``: seed of the drawn prices and price caps. ``show_attrs``: show an Attributes page per product. ``nouns``:
    the tagger of nouns in titles: ``letters``, the package of a spaCy pipeline, a callable or a mapping (default:
    ``en_core_web_sm`` if installed, else ``letters``, see :class:`~eef.envs.webshop.nouns.Nouns`).
    ``num_products``: use only the first products of the file. ``split``: ``auto``, ``official``, ``webshop-11k``,
    ``webshop-3k``, ``verl-agent``, ``ratio``, a folder of index files or a dictionary, see
    :func:`eef.envs.webshop.goals.split_goals`; with the embedded catalogue ``auto`` is the catalogue's own split.
    ``allow_overlap``: accept goals that train and test share. ``max_steps``: the step limit, which rollouts enforce.

    An episode is won if its reward is 1. Each process builds a shop once per set of options. ValueError for an option
    out of range, :class:`~eef.envs.EnvError` for unusable files.
    """

    name = "webshop"

    def __init__(
        self,
        data: str | Path | Triple | None = None,
        human_goals: bool = True,
        observation: str = "text",
        seed: int = 0,
        show_attrs: bool = False,
        nouns: Tagger | None = None,
        num_products: int | None = None,
        split: str | Path | dict[str, Any] = "auto",
        max_steps: int = 10,
        catalogue: dict[str, Any] | None = None,
        allow_overlap: bool = False,
    ) -> None:
        if observation not in MODES:
            raise ValueError(f"observation {observation!r} is not one of {', '.join(map(repr, MODES))}")
        if num_products is not None and num_products < 1:
            raise ValueError(f"num_products must be at least 1, not {num_products}")
        if catalogue is not None and data is not None:
            raise ValueError("'catalogue' sets options of the generated catalogue: leave it out if 'data' is given")
        self.nouns = _tagger(nouns)
        built = _build(data, human_goals, seed, num_products, catalogue)
        rule = built.own_split if split == "auto" and built.own_split is not None else split
        self.shop, self.skipped = built.shop, built.skipped
        self.generated = data is None
        self.observation, self.show_attrs, self.max_steps = observation, show_attrs, max_steps
        self._split = goal_makers.split_goals(self.shop.goals, rule, allow_overlap)
        digest = hashlib.sha256(json.dumps(self._split, sort_keys=True).encode()).hexdigest()
        self._stamp = {
            "catalogue": built.catalogue,
            "goals": built.goals,
            "split": digest,
            "tagger": self.nouns.name,
            "pages": observation + (" with attributes" if show_attrs else ""),
        }
        # the hashes of catalogue and goals cover the drawn prices and price caps; the seed also draws random results
        self._state_key = {
            "catalogue": built.catalogue,
            "goals": built.goals,
            "tagger": self.nouns.name,
            "observation": observation,
            "show_attrs": show_attrs,
            "seed": seed,
        }
        self.step_threads = (os.cpu_count() or 1) if len(self.shop.products) >= _LARGE else 1
        self.state: State | None = None
        self._page = ""

    def tasks(self, split: str) -> list[str]:
        """The task ids (goal indices as text) of ``train``, ``eval`` or ``test``. ValueError for another split."""
        if split not in self._split:
            raise ValueError(f"unknown split {split!r}: use train, eval or test")
        return [str(index) for index in self._split[split]]

    def reset(self, task: str) -> str:
        """Start an episode of the goal with index ``task``. Returns the search page. ValueError for an unknown task."""
        self.state = State(self._goal_index(task))
        self._page = self._render(self.state)
        return self._page

    def step(self, action: str) -> Step:
        """Take one action. An invalid action returns the same page, reward 0 and ``valid=False``.

        ``info``: ``won``; on a purchase also ``breakdown`` (see :func:`eef.envs.webshop.reward.score`), ``asin`` and
        ``options``.
        """
        state = self._current()
        after = advance(self.shop, state, action, self.show_attrs)
        if after is None:
            return Step(self._page, 0.0, False, False, {"won": False})
        reward = 0.0
        info: dict[str, Any] = {"won": False}
        if after.kind == "done":
            product, options = self.shop.product(after), dict(after.options)
            reward, breakdown = score(product, self.shop.goals[after.goal], options.values(), self.nouns)
            after = after._replace(reward=reward)
            info = {"won": reward == 1.0, "breakdown": breakdown, "asin": product.asin, "options": options}
        self.state, self._page = after, self._render(after)
        return Step(self._page, reward, after.kind == "done", True, info)

    def available_actions(self) -> dict[str, Any]:
        """``{"has_search_bar": bool, "clickables": [lower-cased texts in page order]}``.

        Texts that no action can name, such as ``large [tall]``, are left out.
        """
        state = self._current()
        texts = clickables(self.shop, state, self.show_attrs)
        names = [text for text in texts if parse(f"click[{text}]") == ("click", text)]
        return {"has_search_bar": state.kind == "search", "clickables": names}

    def fork(self) -> Self:
        """An independent copy in the same state. Both share the shop, which never changes."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def can_start_here(self, observation: str) -> bool:
        """Always True, since the state of an episode is a value."""
        return True

    def stamp(self) -> dict[str, str]:
        """Hashes of the catalogue (with drawn prices), goals and split, the tagger's name, and the form of pages."""
        return dict(self._stamp)

    def state_key(self) -> dict[str, Any]:
        """Everything that changes a page, a reward or a clickable."""
        return dict(self._state_key)

    def goal(self, task: str | None = None) -> dict[str, Any]:
        """The goal of ``task`` (default: of the current episode), as a new dictionary with the official keys."""
        index = self._current().goal if task is None else self._goal_index(task)
        return self.shop.goals[index].as_dict()

    def product(self, asin: str) -> dict[str, Any]:
        """A product as a new dictionary (title, tag, price in dollars, options, ...). ValueError if unknown."""
        product = self.shop.by_asin.get(asin) or self.shop.by_asin.get(asin.upper())
        if product is None:
            raise ValueError(f"no product {asin!r} in this catalogue")
        fields = {name: getattr(product, name) for name in type(product).__slots__}
        options = {group: list(values) for group, values in product.options}
        return {**fields, "bullets": list(product.bullets), "attributes": list(product.attributes), "options": options}

    def results(self) -> list[str]:
        """The asins on the current results page, in order; empty on any other page."""
        return [product.asin for product in self.shop.results(self._current())[0]]

    def _render(self, state: State) -> str:
        return render_page(self.shop, state, self.observation, self.show_attrs)

    def _current(self) -> State:
        if self.state is None:
            raise RuntimeError("no episode has been started: call reset(task) first")
        return self.state

    def _goal_index(self, task: str) -> int:
        index = int(task) if str(task).isascii() and str(task).isdigit() else -1
        if not 0 <= index < len(self.shop.goals):
            raise ValueError(f"no task {task!r}: tasks are '0' to '{len(self.shop.goals) - 1}'")
        return index


def _build(
    data: str | Path | Triple | None,
    human_goals: bool,
    seed: int,
    num_products: int | None,
    options: dict[str, Any] | None,
) -> _Built:
    rest = (human_goals, seed, num_products)
    place = _store(data, num_products)
    if data is None:
        key: tuple[Any, ...] = ("embedded", json.dumps(options or {}, sort_keys=True), *rest)
    elif place is not None:
        key = ("store", str(place.resolve()), (place / "store.json").stat().st_mtime_ns, *rest)
    elif isinstance(data, (str, Path)):
        stats = [(str(path.resolve()), path.stat()) for path in catalogues.official_files(data, human_goals).values()]
        key = ("folder", *((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats), *rest)
    else:
        key = ("memory", id(data), *rest)
    built = _shops.pop(key, None) or _build_new(data, human_goals, seed, num_products, options)
    _shops[key] = built  # the least recently used shop comes first
    while len(_shops) > _CACHED_SHOPS:
        _shops.pop(next(iter(_shops)))
    return built


def _build_new(
    data: str | Path | Triple | None,
    human_goals: bool,
    seed: int,
    num_products: int | None,
    options: dict[str, Any] | None,
) -> _Built:
    own_split: dict[str, list[int]] | None = None
    if data is None:
        from eef.envs.webshop.embedded import embedded

        data, own_split = embedded(WebShop, **(options or {}))
        graded = _shops.pop(("memory", id(data), human_goals, seed, num_products), None)
        if graded is not None and human_goals and num_products is None:  # built in order to grade its subtasks
            return replace(graded, own_split=own_split)
    place = _store(data, num_products)
    if place is not None:
        from eef.envs.webshop.store import Store, StoreShop

        store = Store(place, seed)
        goals, skipped = goal_makers.make_goals(store.catalogue(human_goals), human_goals)
        return _Built(
            StoreShop(store, goals), store.hash(), goal_makers.hash_of(goals), store.skipped | skipped, None, None
        )
    loaded = catalogues.load_catalogue(data, human_goals=human_goals, seed=seed, num_products=num_products)
    goals, skipped = goal_makers.make_goals(loaded, human_goals)
    if not human_goals or num_products is not None:
        own_split = None  # its indices refer to the human goals of all products
    shop = Shop(loaded.products, goals, seed)
    in_memory = None if isinstance(data, (str, Path)) else data
    return _Built(shop, loaded.hash(), goal_makers.hash_of(goals), loaded.skipped | skipped, own_split, in_memory)


def _store(data: str | Path | Triple | None, num_products: int | None) -> Path | None:
    """The store of ``data``, if it has one. With ``num_products`` only the files give the right ranking: None."""
    if not isinstance(data, (str, Path)) or num_products is not None:
        return None
    from eef.envs.webshop.store import find_store

    return find_store(data)


def _tagger(tagger: Tagger | None) -> Nouns:
    """One :class:`Nouns` per tagger and process, so that each title is tagged once."""
    key = tagger if isinstance(tagger, str) else id(tagger)
    if key not in _taggers:
        if len(_taggers) >= 8:
            _taggers.clear()
        _taggers[key] = (tagger, Nouns(tagger))  # the reference to the tagger keeps its id from being reused
    return _taggers[key][1]
