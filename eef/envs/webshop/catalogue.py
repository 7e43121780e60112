"""The product catalogue: the official files read, checked and normalised, and the purchase prices drawn.

Behaviour follows the official ``load_products`` and ``generate_product_prices``; where those fail with a traceback,
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

Triple = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]
Skipped = dict[str, list[str]]

_LARGEST = 2 * 10**9  # bytes; read at once a file takes about six times its size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Product:
    """A product as its pages show it; ``price`` (dollars) is what a purchase costs, ``tag`` what the pages say.

    ``options`` maps a group (``color``) to its values, both lower-cased, in file order with duplicates kept.
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
        """Everything about the product, the purchase price included, for the hash of a catalogue."""
        row = [self.asin, self.title, self.description, self.bullets, self.tag, self.price, self.category, self.query]
        return json.dumps([[*row, self.product_category], self.attributes, self.options]).encode()

    def document(self) -> str:
        """The text under which search finds the product."""
        options = ", and ".join(f"{group}: {', '.join(values)}" for group, values in self.options)
        return " ".join([self.title, self.description, self.bullets[0] if self.bullets else "", options]).lower()


@dataclass(frozen=True)
class Catalogue:
    """Products in file order, what was left out (reason -> asins), the raw goal data, and the stream for goals.

    ``stream`` is the state of Python's generator after the price draws, where the price caps of the goals go on.
    """

    products: Sequence[Product]
    skipped: Skipped
    instructions: dict[str, Any]
    ins_v2: Mapping[str, Any]
    stream: tuple[Any, ...]
    source: str

    def hash(self) -> str:
        """sha256 over every product as shopped, purchase prices included."""
        digest = hashlib.sha256()
        for p in self.products:
            digest.update(p.fingerprint())
        return digest.hexdigest()


def files(folder: str | Path, human_goals: bool = True) -> dict[str, Path]:
    """The paths of ``products``, ``ins_v2`` and (with human goals) ``human_ins`` in a folder of official files.

    ``items_shuffle.json`` comes before ``products.json`` and before a cut one such as ``items_shuffle_1000.json``,
    whose attribute file must carry the same ending. EnvError names what is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EnvError(f"no folder {folder}: 'data' must name a folder with the official WebShop files")
    found = sorted(folder.glob("items_shuffle*.json"), key=lambda path: (len(path.name), path.name))
    if (folder / "products.json").is_file() and not (folder / "items_shuffle.json").is_file():
        found.insert(0, folder / "products.json")
    if not found:
        raise EnvError(f"{folder} holds no items_shuffle*.json and no products.json: fetch WebShop's product file")
    ending = found[0].stem.removeprefix("items_shuffle").removeprefix("products")
    attributes = [
        folder / f"items_ins_v2{ending}.json",
        folder / "items_ins_v2.json",
        *folder.glob("items_ins_v2*.json"),
    ]
    paths = {"products": found[0], "ins_v2": next((path for path in attributes if path.is_file()), attributes[1])}
    if human_goals:
        paths["human_ins"] = folder / "items_human_ins.json"
    for path in paths.values():
        if not path.is_file():
            hint = ", or pass human_goals=False" if path.name == "items_human_ins.json" else ""
            raise EnvError(f"{path} is missing: fetch that WebShop file{hint}")
    return paths


def load(
    data: str | Path | Triple, *, human_goals: bool = True, seed: int = 0, num_products: int | None = None
) -> Catalogue:
    """The catalogue of a folder or of ``(products, ins_v2, human_ins)`` in memory, prices drawn with ``seed``.

    With ``num_products`` only that many rows of the product file are read, as in the official code. EnvError for a
    missing or torn file, a file of another shape, or a catalogue without any product.
    """
    if isinstance(data, (str, Path)):
        paths = files(data, human_goals)
        source = str(paths["products"])
        names = [str(paths.get(part, "")) for part in ("products", "ins_v2", "human_ins")]
        kinds = (list, dict, dict)
        rows, ins_v2, human = (read(name, kind) if name else {} for name, kind in zip(names, kinds, strict=True))
    else:
        source = "products"
        rows, ins_v2, human = (
            _checked(content, name, kind)
            for name, content, kind in zip(("products", "ins_v2", "human_ins"), data, (list, dict, dict), strict=True)
        )
    rng = random.Random(seed)
    skipped: Skipped = {}
    found = list(drafts(rows[:num_products], ins_v2, source, skipped))
    if not found:
        raise EnvError(f"{source} holds no product that can be shown ({summary(skipped) or 'it is empty'})")
    products = tuple(Product(price=purchase_price(prices, rng), **fields) for fields, prices in found)
    if skipped:
        log.warning("%s: left out %s", source, summary(skipped))
    return Catalogue(products, skipped, human, ins_v2, rng.getstate(), source)


def summary(skipped: Skipped) -> str:
    """``2 no image (B01, B02); 1 duplicate asin (B03)``: at most three asins a reason."""
    return "; ".join(
        f"{len(asins)} {reason} ({', '.join(asins[:3])}{', ...' if len(asins) > 3 else ''})"
        for reason, asins in skipped.items()
    )


def read(path: str | Path, kind: type) -> Any:
    """A JSON file whose top is of ``kind`` (list or dict); EnvError where it is missing, torn, too large or other."""
    try:
        size = Path(path).stat().st_size
        if size > _LARGEST:
            raise EnvError(
                f"{path} is {size / 1e9:.1f} GB, too large to be read at once: run "
                f"`eef webshop build {Path(path).parent}` once, then leave 'num_products' out"
            )
        with open(path, encoding="utf-8") as file:
            return _checked(json.load(file), str(path), kind)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EnvError(f"{path} is torn or no JSON ({error}): fetch it again") from None
    except OSError as error:
        raise EnvError(f"{path} cannot be read ({error.strerror})") from None


def _checked(content: Any, name: str, kind: type) -> Any:
    if not isinstance(content, kind):
        raise EnvError(f"{name}: a JSON {'list' if kind is list else 'object'} was expected")
    return content


def drafts(
    rows: Iterable[Any], ins_v2: Mapping[str, Any], source: str, skipped: Skipped
) -> Iterable[tuple[dict[str, Any], list[float]]]:
    """Each usable row as (fields of a Product without its price, one or two prices in dollars).

    ``skipped`` gains what is left out, reason -> asins. EnvError for a row or a field of another shape.
    """
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("asin"), str):
            raise EnvError(f"{source}, row {number}: a product needs an 'asin' (a string)")
        asin = row["asin"]
        reason = "odd asin" if asin == "nan" or len(asin) > 10 else "duplicate asin" if asin in seen else ""
        if not reason:
            seen.add(asin)
            reason = _flaw(row)
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
            yield _fields(row, ins_v2.get(asin), prices), prices[:2]
        except (KeyError, TypeError, AttributeError) as error:
            raise EnvError(f"{source}, product {asin}: a field of another shape ({error})") from None


_TEXTS = ("name", "full_description", "category", "query", "product_category")


def _flaw(row: dict[str, Any]) -> str:
    for name in _TEXTS:
        if not isinstance(row.get(name), str):
            return f"without a text '{name}'"
    bullets = row.get("small_description")
    if not isinstance(bullets, (str, list)) or (
        isinstance(bullets, list) and not all(isinstance(bullet, str) for bullet in bullets)
    ):
        return "without a text or list 'small_description'"
    return "" if row.get("images") and isinstance(row["images"], list) else "no image"


def _fields(row: dict[str, Any], extra: Any, prices: list[float]) -> dict[str, Any]:
    bullets = row["small_description"]
    options: dict[str, tuple[str, ...]] = {}
    for group, values in (row.get("customization_options") or {}).items():
        if values is not None:
            options[group.lower()] = tuple(value["value"].strip().replace("/", " | ").lower() for value in values)
    has_own = isinstance(extra, dict) and "attributes" in extra
    return {
        "asin": row["asin"],
        "title": row["name"],
        "description": row["full_description"],
        "bullets": tuple(bullets) if isinstance(bullets, list) else (bullets,),
        "tag": f"${prices[0]}" if len(prices) == 1 else f"${prices[0]} to ${prices[1]}",
        "category": row["category"],
        "query": row["query"].lower().strip(),
        "product_category": row["product_category"],
        "attributes": tuple(extra["attributes"]) if has_own else ("DUMMY_ATTR",),
        "options": tuple(options.items()),
    }


def _prices(pricing: Any) -> list[float]:
    """Dollars named by a price text such as ``$10.71$18.34``; none at all is 100. ValueError if it cannot be read."""
    if not pricing:
        return [100.0]
    if not isinstance(pricing, str):
        raise ValueError(pricing)
    prices = [float(re.sub(r"[^\d.]", "", part)) for part in pricing.split("$")[1:]]
    if not prices:
        raise ValueError(pricing)
    return prices


def purchase_price(prices: list[float], rng: random.Random) -> float:
    """What a purchase costs: the one price, or a draw between the two."""
    return prices[0] if len(prices) == 1 else rng.uniform(*prices)
