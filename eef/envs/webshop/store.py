"""A catalogue of any size as a folder of memory-mapped files, built once from the official JSON and opened in seconds.

Products, prices, goals and rankings are those of the same files read into memory. A store contains price ranges, not
prices: opening it draws the prices in file order with ``seed``, as the official code does.
:mod:`eef.envs.webshop.build` writes stores.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eef.envs import EnvError
from eef.envs.webshop.catalogue import Catalogue, Product, Skipped
from eef.envs.webshop.goals import Goal
from eef.envs.webshop.mapped import MappedIndex, Texts, load_array
from eef.envs.webshop.session import Shop, State

NAME = "store"
VERSION = 2
HEAD = "store.json"
_CACHED_PRODUCTS, _CACHED_PAGES = 2048, 256
INSTRUCTION = ("instruction", "instruction_attributes")  # the fields of items_ins_v2.json in a row
FIELDS = tuple(name for name in Product.__slots__ if name != "price")


class Card(NamedTuple):
    """The fields of a product that a results page shows."""

    asin: str
    title: str
    tag: str


def find_store(folder: str | Path) -> Path | None:
    """The store at ``folder`` or at ``folder/store``, or None.

    EnvError if an official file in ``folder`` has changed since the store was built.
    """
    folder = Path(folder)
    place = next((at for at in (folder, folder / NAME) if (at / HEAD).is_file()), None)
    if place is None or place == folder:
        return place
    built = (place / HEAD).stat().st_mtime_ns
    for name, size in _head(place)["sources"].items():
        path = folder / name
        if path.is_file() and (path.stat().st_size != size or path.stat().st_mtime_ns > built):
            raise EnvError(
                f"{path} has changed since {place} was built: run `eef webshop build {folder}`, or delete {place}"
            )
    return place


def _head(place: Path) -> dict[str, Any]:
    try:
        head = json.loads((place / HEAD).read_text("utf-8"))
        version = head["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise EnvError(f"{place / HEAD} is damaged ({error}): run `eef webshop build` again") from None
    if version != VERSION:
        raise EnvError(f"{place} has format {version}, but this code reads {VERSION}: run `eef webshop build` again")
    return head


class Products(Sequence[Product]):
    """The products of a store in file order; each one is read when it is needed."""

    def __init__(self, place: Path, prices: np.ndarray) -> None:
        self._rows, self._prices = Texts(place, "products"), prices

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        row = json.loads(self._rows[number])
        fields = dict(zip(FIELDS, row, strict=False))
        fields["bullets"], fields["attributes"] = tuple(fields["bullets"]), tuple(fields["attributes"])
        fields["options"] = tuple((group, tuple(values)) for group, values in fields["options"])
        return Product(price=float(self._prices[number]), **fields)

    def wanted(self, number: int) -> dict[str, Any]:
        """The synthetic instruction of a product, as in ``items_ins_v2.json``."""
        return dict(zip(INSTRUCTION, json.loads(self._rows[number])[len(FIELDS) :], strict=True))


class Cards(Sequence[Card]):
    """The :class:`Card` of each product of a store."""

    def __init__(self, place: Path) -> None:
        self._rows = Texts(place, "cards")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        asin, tag, title = self._rows[number].decode("utf-8", "surrogatepass").split("\0", 2)
        return Card(asin, title, tag)


class ByAsin(Mapping[str, Any]):
    """The products of a store by asin, or with ``wanted`` their synthetic instructions."""

    def __init__(self, place: Path, products: Products, wanted: bool = False) -> None:
        self._asins, self._order = load_array(place, "asins"), load_array(place, "order")
        self._products, self._wanted = products, wanted

    def number(self, asin: str) -> int:
        """The index of the product in file order. KeyError for an unknown asin."""
        key = asin.encode("utf-8", "surrogatepass")
        place = len(self)
        if len(key) <= self._asins.dtype.itemsize:  # NumPy would copy all asins for a longer key
            place = int(np.searchsorted(self._asins, np.array(key, dtype=self._asins.dtype)))
        if place == len(self) or self._asins[place] != key:
            raise KeyError(asin)
        return int(self._order[place])

    def __getitem__(self, asin: str) -> Any:
        number = self.number(asin)
        return self._products.wanted(number) if self._wanted else self._products[number]

    def __contains__(self, asin: object) -> bool:
        try:
            return isinstance(asin, str) and self.number(asin) >= 0
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        return (asin.decode("utf-8", "surrogatepass") for asin in self._asins.tolist())

    def __len__(self) -> int:
        return len(self._asins)


class Store:
    """An open store, with the prices of ``seed``. EnvError if its files are damaged."""

    def __init__(self, place: Path, seed: int = 0) -> None:
        self.place, self.seed, self._head = place, seed, _head(place)
        try:
            prices = np.load(place / "prices.npy", mmap_mode="c").view(np.ndarray)  # copy on write
            ranged, ranges = load_array(place, "ranged"), load_array(place, "ranges")
            self.cards, self.index = Cards(place), MappedIndex(place)
            self.products = Products(place, prices)
            self.by_asin = ByAsin(place, self.products)
            self.skipped: Skipped = json.loads((place / "skipped.json").read_text("utf-8"))
            self._human = json.loads((place / "instructions.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise EnvError(f"the store {place} is damaged ({error}): run `eef webshop build` again") from None
        rng = random.Random(seed)
        prices[ranged] = [rng.uniform(low, high) for low, high in ranges.tolist()]
        self._stream = rng.getstate()

    def catalogue(self, human_goals: bool = True) -> Catalogue:
        """The data that goals are made from; with human goals, only the products that have an instruction."""
        source = str(self._head["source"])
        if not human_goals:
            wanted = ByAsin(self.place, self.products, wanted=True)
            return Catalogue(self.products, self.skipped, {}, wanted, self._stream, source)
        if self._human is None:
            raise EnvError(
                f"the store {self.place} was built without items_human_ins.json: put that file beside the products and "
                "run `eef webshop build` again, or pass human_goals=False"
            )
        numbers = sorted(self.by_asin.number(asin) for asin in self._human if asin in self.by_asin)
        products = [self.products[number] for number in numbers]
        return Catalogue(products, self.skipped, self._human, {}, self._stream, source)

    def hash(self) -> str:
        """SHA-256 of the catalogue; for seed 0 equal to that of the files in memory, else with the seed added."""
        return self._head["catalogue"] if self.seed == 0 else f"{self._head['catalogue']}-seed{self.seed}"


class StoreShop(Shop):
    """The shop of a store. Products are read when a page shows them."""

    def __init__(self, store: Store, goals: Sequence[Goal]) -> None:
        self.products, self.by_asin, self.cards = store.products, store.by_asin, store.cards
        self.goals, self.seed = tuple(goals), store.seed
        self._index: Any = store.index
        self._cached = {}
        self._page = lru_cache(maxsize=_CACHED_PAGES)(self._read_page)
        self._product = lru_cache(maxsize=_CACHED_PRODUCTS)(store.by_asin.__getitem__)

    def results(self, state: State) -> tuple[list[Any], int]:
        """As :meth:`Shop.results`, with a cache of recent pages, since each step reads a page twice."""
        if state.kind != "results" or state.keywords is None or state.page is None:
            return [], 0
        return self._page(state.keywords, state.goal if state.keywords[0] == "<r>" else 0, state.page)

    def _read_page(self, keywords: tuple[str, ...], goal: int, page: int) -> tuple[list[Any], int]:
        return super().results(State(goal, "results", keywords, page))

    def product(self, state: State) -> Product:
        """The product of an item or sub page."""
        return self._product(state.asin)

    def _all_of(self, kind: str, wanted: str) -> Sequence[int]:
        return self._index.documents(f"{kind} {wanted}")
