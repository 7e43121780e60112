"""A catalogue of any size as a folder of mapped files: built once from the official JSON, opened in seconds.

Products, prices, goals and rankings equal those of the same files read into memory. Prices are no part of the store:
the ranges are, and opening draws from them in file order with the seed that is asked for, as the official code does.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import ijson
import numpy as np
from tqdm import tqdm

from eef.envs import EnvError
from eef.envs.webshop import catalogue as catalogues
from eef.envs.webshop.catalogue import Catalogue, Product, Skipped
from eef.envs.webshop.goals import Goal
from eef.envs.webshop.mapped import IndexWriter, MappedIndex, Texts, TextWriter, load
from eef.envs.webshop.session import Shop, State

NAME = "store"
_VERSION = 1
_HEAD = "store.json"
_SOURCES = ("products", "ins_v2", "human_ins")
_KEPT_PRODUCTS, _KEPT_PAGES = 2048, 256
_CUT = 32
_INS = ("attributes", "instruction", "instruction_attributes")


class Card(NamedTuple):
    """What a results page shows of a product."""

    asin: str
    title: str
    tag: str


def find(folder: str | Path) -> Path | None:
    """The store in ``folder`` (itself one, or with one beside the official files); None where there is none.

    EnvError where an official file beside it has changed since.
    """
    folder = Path(folder)
    place = next((at for at in (folder, folder / NAME) if (at / _HEAD).is_file()), None)
    if place is None or place == folder:
        return place
    built = (place / _HEAD).stat().st_mtime_ns
    for name, size in _head(place)["sources"].items():
        path = folder / name
        if path.is_file() and (path.stat().st_size != size or path.stat().st_mtime_ns > built):
            raise EnvError(
                f"{path} changed after {place} was made: run `eef webshop build {folder}`, or delete {place}"
            )
    return place


def _head(place: Path) -> dict[str, Any]:
    try:
        head = json.loads((place / _HEAD).read_text("utf-8"))
        version = head["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise EnvError(f"{place / _HEAD} is torn ({error}): run `eef webshop build` again") from None
    if version != _VERSION:
        raise EnvError(f"{place} has format {version}, this code reads {_VERSION}: run `eef webshop build` again")
    return head


def build(folder: str | Path, out: str | Path | None = None, progress: bool = False) -> Path:
    """Turn the official files of ``folder`` into a store at ``out`` (default ``folder/store``), which it returns.

    Streams: memory holds the index terms, the raw attributes and some numbers per product. The store is written beside
    and renamed when whole. Human instructions are optional. EnvError for a missing or torn file or one of another
    shape; what else is wrong with a product leaves it out, counted in ``skipped.json``.
    """
    folder = Path(folder)
    human = (folder / "items_human_ins.json").is_file()
    paths = catalogues.files(folder, human_goals=human)
    place = Path(out) if out else folder / NAME
    if place.exists() and not (place / _HEAD).is_file():
        raise EnvError(f"{place} is there and no store: move it away, or choose another place with --out")
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        _write(paths, part, progress)
        part.chmod(0o755)
        if place.exists():
            place.rename(old := part.with_name(f"{part.name}-old"))
            part.rename(place)
            shutil.rmtree(old)
        else:
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def _write(paths: dict[str, Path], part: Path, progress: bool) -> None:
    ins_v2 = _Attributes(paths["ins_v2"])
    human = catalogues.read(paths["human_ins"], dict) if "human_ins" in paths else None
    (part / "instructions.json").write_text(json.dumps(human), encoding="utf-8")
    index = IndexWriter(part)
    products, cards = TextWriter(part, "products"), TextWriter(part, "cards")
    asins: list[str] = []
    low, ranged, ranges = array("d"), array("I"), array("d")
    skipped: Skipped = {}
    digest, rng = hashlib.sha256(), random.Random(0)
    with _reading(paths["products"], b"[") as file:
        rows = _counted(ijson.items(file, "item", use_float=True), file, progress)
        for fields, prices in catalogues.drafts(rows, ins_v2, str(paths["products"]), skipped):
            product = Product(price=catalogues.purchase_price(prices, rng), **fields)
            digest.update(product.fingerprint())
            if len(prices) == 2:
                ranged.append(len(asins))
                ranges.extend(prices)
            low.append(prices[0])
            asins.append(product.asin)
            wanted = ins_v2.get(product.asin) or {}
            row = [fields[name] for name in _FIELDS] + [wanted.get(name) for name in _INS[1:]]
            products.add(json.dumps(row).encode())
            cards.add("\0".join((product.asin, product.tag, product.title)).encode("utf-8", "surrogatepass"))
            keys = [f"<c> {product.category}", f"<q> {product.query}", *(f"<a> {a}" for a in product.attributes)]
            index.add(product.document(), keys)
    if not asins:
        reasons = catalogues.summary(skipped) or "it is empty"
        raise EnvError(f"{paths['products']} holds no product that can be shown ({reasons})")
    products.close()
    cards.close()
    order = np.array(sorted(range(len(asins)), key=asins.__getitem__), dtype=np.uint32)
    rank = np.empty(len(asins), dtype=np.uint32)
    rank[order] = np.arange(len(asins), dtype=np.uint32)
    np.save(part / "order.npy", order)
    np.save(part / "asins.npy", np.array([asins[number].encode("utf-8", "surrogatepass") for number in order]))
    np.save(part / "prices.npy", np.array(low))
    np.save(part / "ranged.npy", np.array(ranged, dtype=np.uint32))
    np.save(part / "ranges.npy", np.array(ranges).reshape(-1, 2))
    index.finish(rank)
    (part / "skipped.json").write_text(json.dumps(skipped), encoding="utf-8")
    head = {
        "version": _VERSION,
        "source": str(paths["products"]),
        "products": len(asins),
        "catalogue": digest.hexdigest(),  # with the prices of seed 0
        "sources": {path.name: path.stat().st_size for path in paths.values()},
    }
    (part / _HEAD).write_text(json.dumps(head, indent=1), encoding="utf-8")


_FIELDS = tuple(name for name in Product.__slots__ if name != "price")


@contextmanager
def _reading(path: Path, opens: bytes) -> Iterator[IO[bytes]]:
    """The file for a streaming parser; what is wrong with it as an EnvError. ``tell`` is where it has been read to."""
    with open(path, "rb") as file:
        if file.read(4096).lstrip()[:1] not in (opens, b""):
            raise EnvError(f"{path}: a JSON {'list' if opens == b'[' else 'object'} was expected")
        file.seek(0)
        try:
            yield _Plain(file)  # type: ignore[misc]
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EnvError(f"{path} is torn or no JSON ({reason}): fetch it again") from None


class _Plain:
    """A binary file in which NaN and Infinity as values, which Python writes and JSON forbids, read as a number.

    In memory they are numbers that no field allows, and so is this one: a product with one is judged alike.
    """

    _odd = re.compile(rb'(?:(?<=[^\\]": )|(?<=[^\\]":))(?:NaN|-?Infinity)(?=\s*[,}])')  # in a text the quote is escaped

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, b""
        self.fileno, self.tell = file.fileno, file.tell

    def read(self, size: int = -1) -> bytes:
        read, data = b" ", self._left
        while read and len(data) <= _CUT:  # nothing given back would be the end of the file
            read = self._file.read(size)
            data += read
        if b"NaN" in data or b"Infinity" in data:
            data = self._odd.sub(b"0.5", data)
        end = max(len(data) - _CUT, 1) if read else len(data)  # what is held back may be the head of one
        self._left = data[end:]
        return data[:end]


def _counted(rows: Iterator[Any], file: IO[bytes], progress: bool) -> Iterator[Any]:
    """The rows, with a bar over the bytes of the file that are read."""
    size = os.fstat(file.fileno()).st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc="store", mininterval=1, disable=not progress) as bar:
        for number, row in enumerate(rows):
            if number % 500 == 0:
                bar.update(file.tell() - bar.n)
            yield row
        bar.update(size - bar.n)


class _Attributes(Mapping[str, Any]):
    """``items_ins_v2.json`` by asin, each record kept as bytes: what the catalogue reads of it, no more."""

    def __init__(self, path: Path) -> None:
        self._records: dict[str, bytes] = {}
        with _reading(path, b"{") as file:
            for asin, record in ijson.kvitems(file, "", use_float=True):
                if isinstance(record, dict):
                    self._records[asin] = json.dumps({name: record[name] for name in _INS if name in record}).encode()

    def __getitem__(self, asin: str) -> Any:
        return json.loads(self._records[asin])

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


class Products(Sequence[Product]):
    """The products of a store in file order, each read when asked for."""

    def __init__(self, place: Path, prices: np.ndarray) -> None:
        self._rows, self._prices = Texts(place, "products"), prices

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        row = json.loads(self._rows[number])
        fields = dict(zip(_FIELDS, row, strict=False))
        fields["bullets"], fields["attributes"] = tuple(fields["bullets"]), tuple(fields["attributes"])
        fields["options"] = tuple((group, tuple(values)) for group, values in fields["options"])
        return Product(price=float(self._prices[number]), **fields)

    def wanted(self, number: int) -> dict[str, Any]:
        """The synthetic instruction of a product, as ``items_ins_v2.json`` has it."""
        return dict(zip(_INS[1:], json.loads(self._rows[number])[len(_FIELDS) :], strict=True))


class Cards(Sequence[Card]):
    """What results pages show of the products of a store."""

    def __init__(self, place: Path) -> None:
        self._rows = Texts(place, "cards")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        asin, tag, title = self._rows[number].decode("utf-8", "surrogatepass").split("\0", 2)
        return Card(asin, title, tag)


class ByAsin(Mapping[str, Any]):
    """The products of a store by asin; with ``wanted`` their synthetic instructions."""

    def __init__(self, place: Path, products: Products, wanted: bool = False) -> None:
        self._asins, self._order = load(place, "asins"), load(place, "order")
        self._products, self._wanted = products, wanted

    def number(self, asin: str) -> int:
        """The number of the product in file order; KeyError where there is none."""
        key = asin.encode("utf-8", "surrogatepass")
        place = len(self)
        if len(key) <= self._asins.dtype.itemsize:  # a longer key would have all asins copied
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
    """An opened store: its catalogue with the prices of ``seed``. EnvError where it is torn."""

    def __init__(self, place: Path, seed: int = 0) -> None:
        self.place, self.seed, self._head = place, seed, _head(place)
        try:
            prices = np.load(place / "prices.npy", mmap_mode="c").view(np.ndarray)  # a page that is changed is copied
            ranged, ranges = load(place, "ranged"), load(place, "ranges")
            self.cards, self.index = Cards(place), MappedIndex(place)
            self.products = Products(place, prices)
            self.by_asin = ByAsin(place, self.products)
            self.skipped: Skipped = json.loads((place / "skipped.json").read_text("utf-8"))
            self._human = json.loads((place / "instructions.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise EnvError(f"the store {place} is torn ({error}): run `eef webshop build` again") from None
        rng = random.Random(seed)
        prices[ranged] = [rng.uniform(low, high) for low, high in ranges.tolist()]
        self._stream = rng.getstate()

    def catalogue(self, human_goals: bool = True) -> Catalogue:
        """What goals are made from: with human goals, only the products that have an instruction are read."""
        source = str(self._head["source"])
        if not human_goals:
            wanted = ByAsin(self.place, self.products, wanted=True)
            return Catalogue(self.products, self.skipped, {}, wanted, self._stream, source)
        if self._human is None:
            raise EnvError(
                f"the store {self.place} was made without items_human_ins.json: put that file beside the products and "
                "run `eef webshop build` again, or pass human_goals=False"
            )
        numbers = sorted(self.by_asin.number(asin) for asin in self._human if asin in self.by_asin)
        products = [self.products[number] for number in numbers]
        return Catalogue(products, self.skipped, self._human, {}, self._stream, source)

    def hash(self) -> str:
        """The catalogue's sha256; of seed 0 the one of the files in memory, of others one that holds the seed."""
        return self._head["catalogue"] if self.seed == 0 else f"{self._head['catalogue']}-seed{self.seed}"


class StoreShop(Shop):
    """The shop over a store: nothing is read before a page shows it."""

    def __init__(self, store: Store, goals: Sequence[Goal]) -> None:
        self.products, self.by_asin, self.cards = store.products, store.by_asin, store.cards
        self.goals, self.seed = tuple(goals), store.seed
        self._index: Any = store.index
        self._found = {}
        self._page = lru_cache(maxsize=_KEPT_PAGES)(self._read_page)
        self._product = lru_cache(maxsize=_KEPT_PRODUCTS)(store.by_asin.__getitem__)

    def results(self, state: State) -> tuple[list[Any], int]:
        """As :meth:`Shop.results`; the last pages are kept, each is asked for twice a step."""
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
