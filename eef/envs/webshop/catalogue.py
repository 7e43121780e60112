"""The product catalogue: reads, checks and normalises the official files, and draws the purchase prices.

Behaviour follows the official ``load_products`` and ``generate_product_prices``. Where those fail with a traceback,
an :class:`~eef.envs.EnvError` names file and product, or the product is left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eef.envs import EnvError
from eef.files import replace_surrogates

Triple = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]
Skipped = dict[str, list[str]]

_LARGEST = 2 * 10**9  # bytes; a file read at once takes about six times its size in memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Product:
    """A product as its pages show it. ``price`` (dollars) is what a purchase costs, ``tag`` the price on the pages.

    ``options`` maps a group (``color``) to its values, both lower-cased, in file order and with duplicates.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    tag: str
    price: float
    category: str
    query: str
    product_category: str
    attributes: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]

    def fingerprint(self) -> bytes:
        """Everything about the product, including the purchase price, for the hash of a catalogue."""
        row = [self.asin, self.title, self.description, self.bullets, self.tag, self.price, self.category, self.query]
        return json.dumps([[*row, self.product_category], self.attributes, self.options]).encode()

    def document(self) -> str:
        """The text that search indexes for the product."""
        options = ", and ".join(f"{group}: {', '.join(values)}" for group, values in self.options)
        return " ".join([self.title, self.description, self.bullets[0] if self.bullets else "", options]).lower()


@dataclass(frozen=True)
class Catalogue:
    """Products in file order, skipped products (reason -> asins), the raw goal data, and the random stream for goals.

    ``stream`` is the state of Python's generator after the prices have been drawn; the price caps are drawn from it.
    """

    products: Sequence[Product]
    skipped: Skipped
    instructions: dict[str, Any]
    ins_v2: Mapping[str, Any]
    stream: tuple[Any, ...]
    source: str

    def hash(self) -> str:
        """SHA-256 of all products, including purchase prices."""
        digest = hashlib.sha256()
        for p in self.products:
            digest.update(p.fingerprint())
        return digest.hexdigest()


def official_files(folder: str | Path, human_goals: bool = True) -> dict[str, Path]:
    """The paths of ``products``, ``ins_v2`` and (with human goals) ``human_ins`` in a folder of official files.

    ``items_shuffle.json`` takes precedence over ``products.json`` and over a part such as
    ``items_shuffle_1000.json``, whose attribute file must have the same ending. EnvError for a missing file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EnvError(f"no folder {folder}: 'data' must be a folder with the official WebShop files")
    candidates = sorted(folder.glob("items_shuffle*.json"), key=lambda path: (len(path.name), path.name))
    if (folder / "products.json").is_file() and not (folder / "items_shuffle.json").is_file():
        candidates.insert(0, folder / "products.json")
    if not candidates:
        raise EnvError(
            f"{folder} contains no items_shuffle*.json and no products.json: download WebShop's product file"
        )
    ending = candidates[0].stem.removeprefix("items_shuffle").removeprefix("products")
    attributes = [
        folder / f"items_ins_v2{ending}.json",
        folder / "items_ins_v2.json",
        *folder.glob("items_ins_v2*.json"),
    ]
    paths = {"products": candidates[0], "ins_v2": next((path for path in attributes if path.is_file()), attributes[1])}
    if human_goals:
        paths["human_ins"] = folder / "items_human_ins.json"
    for path in paths.values():
        if not path.is_file():
            hint = ", or pass human_goals=False" if path.name == "items_human_ins.json" else ""
            raise EnvError(f"{path} is missing: download that WebShop file{hint}")
    return paths


def load_catalogue(
    data: str | Path | Triple, *, human_goals: bool = True, seed: int = 0, num_products: int | None = None
) -> Catalogue:
    """The catalogue of a folder, or of ``(products, ins_v2, human_ins)`` in memory, with prices drawn with ``seed``.

    With ``num_products`` only that many rows of the product file are used, as in the official code. EnvError for a
    missing, truncated or unexpected file, or a catalogue without any product.
    """
    if isinstance(data, (str, Path)):
        paths = official_files(data, human_goals)
        source = str(paths["products"])
        names = [str(paths.get(part, "")) for part in ("products", "ins_v2", "human_ins")]
        kinds = (list, dict, dict)
        rows, ins_v2, human = (read_json(name, kind) if name else {} for name, kind in zip(names, kinds, strict=True))
    else:
        source = "products"
        rows, ins_v2, human = (
            _checked(content, name, kind)
            for name, content, kind in zip(("products", "ins_v2", "human_ins"), data, (list, dict, dict), strict=True)
        )
    rng = random.Random(seed)
    skipped: Skipped = {}
    usable = list(drafts(rows[:num_products], ins_v2, source, skipped))
    if not usable:
        raise EnvError(f"{source} contains no usable product ({summary(skipped) or 'it is empty'})")
    products = tuple(Product(price=purchase_price(prices, rng), **fields) for fields, prices in usable)
    if skipped:
        log.warning("%s: skipped %s", source, summary(skipped))
    return Catalogue(products, skipped, human, ins_v2, rng.getstate(), source)


def summary(skipped: Skipped) -> str:
    """``2 no image (B01, B02); 1 duplicate asin (B03)``: at most three asins per reason."""
    return "; ".join(
        f"{len(asins)} {reason} ({', '.join(asins[:3])}{', ...' if len(asins) > 3 else ''})"
        for reason, asins in skipped.items()
    )


def read_json(path: str | Path, kind: type) -> Any:
    """A JSON file that contains a ``kind`` (list or dict). EnvError if it is missing, truncated, too large or other."""
    try:
        size = Path(path).stat().st_size
        if size > _LARGEST:
            raise EnvError(
                f"{path} is too large to be read at once ({size / 1e9:.1f} GB): run "
                f"`eef webshop build {Path(path).parent}` once, and leave 'num_products' out"
            )
        with open(path, encoding="utf-8") as file:
            return _checked(json.load(file), str(path), kind)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EnvError(f"{path} is truncated or not valid JSON ({error}): download it again") from None
    except OSError as error:
        raise EnvError(f"{path} cannot be read ({error.strerror})") from None


def _checked(content: Any, name: str, kind: type) -> Any:
    if not isinstance(content, kind):
        raise EnvError(f"{name}: expected a JSON {'list' if kind is list else 'object'}")
    return content


def drafts(
    rows: Iterable[Any], ins_v2: Mapping[str, Any], source: str, skipped: Skipped
) -> Iterable[tuple[dict[str, Any], list[float]]]:
    """Each usable row as (fields of a Product without its price, one or two prices in dollars).

    Skipped rows are added to ``skipped`` (reason -> asins). EnvError for a row or a field of an unexpected shape.
    """
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("asin"), str):
            raise EnvError(f"{source}, row {number}: a product needs an 'asin' (a string)")
        asin = row["asin"]
        reason = "odd asin" if asin == "nan" or len(asin) > 10 else "duplicate asin" if asin in seen else ""
        if not reason:
            seen.add(asin)
            reason = _problem(row)
        prices: list[float] = []
        if not reason:
            try:
                prices = _prices(row.get("pricing"))
            except ValueError:
                reason = "unreadable price"
        if reason:
            skipped.setdefault(reason, []).append(asin)
            continue
        try:
            yield replace_surrogates(_fields(row, ins_v2.get(asin), prices)), prices[:2]
        except (KeyError, TypeError, AttributeError) as error:
            raise EnvError(f"{source}, product {asin}: a field has an unexpected shape ({error})") from None


_TEXTS = ("name", "full_description", "category", "query", "product_category")


def _problem(row: dict[str, Any]) -> str:
    for name in _TEXTS:
        if not isinstance(row.get(name), str):
            return f"without a text '{name}'"
    bullets = row.get("small_description")
    if not isinstance(bullets, (str, list)) or (
        isinstance(bullets, list) and not all(isinstance(bullet, str) for bullet in bullets)
    ):
        return "without a text or list 'small_description'"
    return "" if row.get("images") and isinstance(row["images"], list) else "no image"


def _fields(row: dict[str, Any], record: Any, prices: list[float]) -> dict[str, Any]:
    bullets = row["small_description"]
    options: dict[str, tuple[str, ...]] = {}
    for group, values in (row.get("customization_options") or {}).items():
        if values is not None:
            options[group.lower()] = tuple(value["value"].strip().replace("/", " | ").lower() for value in values)
    has_attributes = isinstance(record, dict) and "attributes" in record
    return {
        "asin": row["asin"],
        "title": row["name"],
        "description": row["full_description"],
        "bullets": tuple(bullets) if isinstance(bullets, list) else (bullets,),
        "tag": f"${prices[0]}" if len(prices) == 1 else f"${prices[0]} to ${prices[1]}",
        "category": row["category"],
        "query": row["query"].lower().strip(),
        "product_category": row["product_category"],
        "attributes": tuple(record["attributes"]) if has_attributes else ("DUMMY_ATTR",),
        "options": tuple(options.items()),
    }


def _prices(pricing: Any) -> list[float]:
    """The prices in a text such as ``$10.71$18.34``, in dollars; 100 without a text. ValueError if it is invalid."""
    if not pricing:
        return [100.0]
    if not isinstance(pricing, str):
        raise ValueError(pricing)
    prices = [float(re.sub(r"[^\d.]", "", part)) for part in pricing.split("$")[1:]]
    if not prices:
        raise ValueError(pricing)
    return prices


def purchase_price(prices: list[float], rng: random.Random) -> float:
    """What a purchase costs: the only price, or a uniform draw between the two."""
    return prices[0] if len(prices) == 1 else rng.uniform(*prices)
