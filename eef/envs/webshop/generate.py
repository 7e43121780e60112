"""A generated catalogue in WebShop's official file format: the embedded default, and data of any size for tests.

Products come in families of look-alikes: one type and two attributes in many prices, colours and sizes. The search
engine ranks a family by its words alone. How many products rank before the first one that also fits the price and the
options depends on the share of cheap products and on traps (look-alikes without the wanted option, which only their
own page shows). This rank decides whether a subtask needs Next or a step back.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

Triple = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]

# type word -> (category, attribute words that suit it)
_KINDS: dict[str, tuple[str, str]] = {
    "shirt": ("fashion", "cotton linen breathable wrinkle-free striped quilted thermal stretchy"),
    "dress": ("fashion", "pleated floral sleeveless satin washable lined wrapped belted"),
    "jacket": ("fashion", "waterproof hooded insulated fleece windproof packable reversible suede"),
    "boots": ("fashion", "leather slip-resistant insulated laced cushioned steel-toed suede vegan"),
    "sweater": ("fashion", "cashmere ribbed chunky merino cropped washable cabled oversized"),
    "backpack": ("fashion", "rolltop padded canvas lockable ventilated foldable reflective nylon"),
    "lamp": ("garden", "dimmable brass rechargeable arched ceramic adjustable rustic cordless"),
    "rug": ("garden", "woven washable jute shaggy braided non-slip tufted geometric"),
    "curtain": ("garden", "blackout sheer pleated velvet thermal grommet linen embroidered"),
    "pillow": ("garden", "memory-foam bamboo cooling down-filled quilted tasseled orthopedic velvet"),
    "blanket": ("garden", "weighted sherpa knitted heated reversible fringed flannel hypoallergenic"),
    "shelf": ("garden", "floating walnut foldable stackable iron corner lacquered modular"),
    "kettle": ("grocery", "gooseneck enameled whistling stovetop copper insulated cordless glass"),
    "mug": ("grocery", "stoneware insulated stackable hand-painted lidded porcelain speckled double-walled"),
    "skillet": ("grocery", "cast-iron nonstick ceramic lidded oven-safe copper induction hammered"),
    "bottle": ("grocery", "leakproof insulated collapsible wide-mouth glass engraved infuser dishwasher-safe"),
    "headphones": ("electronics", "wireless noise-canceling foldable over-ear sweatproof wired studio lightweight"),
    "keyboard": ("electronics", "mechanical backlit ergonomic wireless compact silent programmable foldable"),
    "charger": ("electronics", "magnetic fast portable solar braided dual-port travel foldable"),
    "speaker": ("electronics", "waterproof portable wooden bass-boosted bluetooth rugged retro mountable"),
    "tripod": ("electronics", "carbon flexible telescopic lightweight magnetic tabletop heavy-duty fluid-head"),
    "lotion": ("beauty", "fragrance-free organic hydrating vegan tinted anti-aging soothing whipped"),
    "shampoo": ("beauty", "sulfate-free herbal clarifying moisturizing vegan volumizing color-safe organic"),
    "brush": ("beauty", "boar-bristle detangling bamboo vented tapered ionic travel angled"),
}
_COLORS = "red blue green black white yellow purple pink gray brown orange beige".split()
_SIZES = "small medium large petite tall wide".split()
_EXTRAS = "classic modern everyday premium deluxe signature essential heritage urban coastal alpine vintage".split()
_TEMPLATES = (
    "i need a {a} {b} {kind} in {color}, size {size}",
    "looking for a {kind} that is {a} and {b}, color {color}, size {size}",
    "find me a {color} {kind} with {a} and {b} in size {size}",
    "i am looking for a {size} {color} {kind}, {b} and {a}",
    "show me a {b} {a} {kind}, color {color} and size {size}",
)


@dataclass(frozen=True)
class CatalogueSpec:
    """Options of the generated catalogue and its subtasks; ``CatalogueSpec()`` is the embedded default.

    ``cheap``: the shares of cheap products that a family draws from; with a smaller share the fitting product ranks
    lower. ``buried``: the share of families whose expensive products repeat their keywords and so rank before the cheap
    ones. ``dear_goals``: the share of expensive products that have a goal; all cheap ones have one. ``trap``: the
    probabilities that a look-alike lacks one of its family's colours, and one of its sizes. ``grades``: the shares of
    easy, medium and hard subtasks (perfect play needs no, up to two, more navigation moves). ``steps``: the largest
    number of steps of perfect play. ``train``, ``eval`` and ``test``: the numbers of subtasks. ``disjoint_families``:
    no family (a kind and two attributes) has goals in two of these parts.
    """

    products: int = 6000
    seed: int = 0
    cheap: tuple[float, ...] = (0.4, 0.2, 0.1)
    buried: float = 0.7
    dear_goals: float = 0.1
    trap: tuple[float, float] = (0.35, 0.0)
    grades: tuple[float, float, float] = (0.4, 0.4, 0.2)
    steps: int = 15
    train: int = 500
    eval: int = 100
    test: int = 500
    disjoint_families: bool = False


def generate(spec: CatalogueSpec | None = None) -> Triple:
    """``(products, items_ins_v2, items_human_ins)`` as in the official JSON files, at most one goal per product."""
    products: list[dict[str, Any]] = []
    attributes: dict[str, Any] = {}
    instructions: dict[str, Any] = {}
    for product, own, instruction in _rows(spec or CatalogueSpec()):
        products.append(product)
        attributes[product["asin"]] = {"attributes": own}
        if instruction is not None:
            instructions[product["asin"]] = [instruction]
    return products, attributes, instructions


def _rows(spec: CatalogueSpec) -> Iterator[tuple[dict[str, Any], list[str], dict[str, Any] | None]]:
    """The products one by one, each with its attributes and with a human instruction or None."""
    if not 1 <= spec.products < 10**9:
        raise ValueError(f"'products' must be at least 1 and less than a billion, not {spec.products}")
    rng = random.Random(f"catalogue {spec.seed}")
    names = _brands(rng, 160)
    asins = [f"B{number:09d}" for number in range(spec.products)]
    rng.shuffle(asins)  # the search engine breaks ties by asin, so the asins of a family must not be adjacent
    while asins:
        family = _family(rng, spec)
        for _ in range(min(rng.randint(12, 44), len(asins))):
            asin = asins.pop()
            cheap = rng.random() < family.cheap
            product, own = _product(rng, spec, family, asin, rng.choice(names), cheap)
            wanted = cheap or rng.random() < spec.dear_goals
            has_goal = wanted and all(word in own for word in family.pair)
            yield product, own, _instruction(rng, family, product, own) if has_goal else None


@dataclass(frozen=True)
class _Family:
    """Look-alikes: a kind, two attributes, the options to draw from, and the price range."""

    kind: str
    category: str
    pool: list[str]
    pair: list[str]
    colors: list[str]
    sizes: list[str]
    cheap: float
    floor: int
    buried: bool


def _family(rng: random.Random, spec: CatalogueSpec) -> _Family:
    kind = rng.choice(list(_KINDS))
    category, words = _KINDS[kind]
    pool = words.split()
    pair, colors, sizes = rng.sample(pool, 2), rng.sample(_COLORS, 4), rng.sample(_SIZES, 3)
    return _Family(
        kind,
        category,
        pool,
        pair,
        colors,
        sizes,
        rng.choice(spec.cheap),
        rng.randint(8, 30),
        rng.random() < spec.buried,
    )


def _product(
    rng: random.Random, spec: CatalogueSpec, family: _Family, asin: str, brand: str, cheap: bool
) -> tuple[dict[str, Any], list[str]]:
    """A row of ``items_shuffle.json``, and the product's attributes."""
    kind, own = family.kind, list(family.pair)
    if rng.random() < 0.15:  # a near miss: one attribute differs
        own[rng.randrange(2)] = rng.choice([word for word in family.pool if word not in family.pair])
    price = family.floor + (rng.randint(0, 9) if cheap else rng.randint(50, 110)) + 0.99
    extra = rng.choice(_EXTRAS)
    words = [*own, extra]
    rng.shuffle(words)
    options = {"color": _offered(rng, family.colors, spec.trap[0]), "size": _offered(rng, family.sizes, spec.trap[1])}
    loud = rng.randint(2, 5) if family.buried and not cheap else rng.randint(0, 4) * (not family.buried)
    stress = " ".join(rng.choices([*own, kind], k=loud))  # uneven word counts give uneven ranks
    product = {
        "asin": asin,
        "name": f"{brand} {' '.join(words)} {kind}".title(),
        "full_description": f"{extra} {kind} by {brand}. {stress}".strip(),
        "small_description": [f"{own[0]} and {own[1]}", f"a {extra} {kind}"],
        "pricing": f"${price:.2f}",
        "category": family.category,
        "query": kind,
        "product_category": f"{family.category.title()} › {kind.title()} › {own[0].title()}",
        "images": [f"{asin}.jpg"],
        "customization_options": {
            group: [{"is_selected": False, "url": None, "value": value, "image": None} for value in values]
            for group, values in options.items()
        },
    }
    return product, [*own, extra]


def _instruction(rng: random.Random, family: _Family, product: dict[str, Any], own: list[str]) -> dict[str, Any]:
    """A record of ``items_human_ins.json`` that asks for the product with one value of each option."""
    a, b = family.pair
    chosen = {group: rng.choice(values)["value"] for group, values in product["customization_options"].items()}
    return {
        "asin": product["asin"],
        "instruction": rng.choice(_TEMPLATES).format(a=a, b=b, kind=family.kind, **chosen),
        "attributes": own,
        "options": [f"{group}: {value}" for group, value in chosen.items()],
        "instruction_attributes": [a, b],
        "instruction_options": list(chosen.values()),
        "worker_id": "generated",
        "assignment_id": f"{product['asin']}-0",
    }


def _offered(rng: random.Random, values: list[str], trap: float) -> list[str]:
    lacking = rng.choice(values) if rng.random() < trap else None
    return [value for value in values if value != lacking]


def _brands(rng: random.Random, count: int) -> list[str]:
    heads, tails = (
        "nor bel tam ver kol san mar lin dor fen hal wes".split(),
        "wick ora den ley mont via sted aro".split(),
    )
    every = [head + middle + tail for head in heads for middle in ("", "a", "i") for tail in tails]
    return rng.sample(every, count)


def write(spec: CatalogueSpec, folder: str | Path, goals: int | None = None, progress: bool = False) -> Path:
    """Write the generated catalogue to ``folder`` as official files; ``shop.json`` contains its options.

    Products are written one by one, so that memory holds only the asins and the instructions. ``goals``: the largest
    number of instructions, a uniform sample; None for all of :func:`generate`. ``progress``: show a progress bar.
    """
    if goals is not None and goals < 1:
        raise ValueError(f"'goals' must be at least 1, not {goals}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    instructions: list[tuple[str, Any]] = []
    rng, count = random.Random(f"goals {spec.seed}"), 0  # a separate stream, so that the products do not depend on it
    names = ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json")
    parts = [folder / f"{name}.part" for name in names]
    with open(parts[0], "w", encoding="utf-8") as products, open(parts[1], "w", encoding="utf-8") as attributes:
        comma = ""
        for product, own, instruction in tqdm(_rows(spec), total=spec.products, unit=" products", disable=not progress):
            products.write((comma or "[") + json.dumps(product))
            attributes.write((comma or "{") + f"{json.dumps(product['asin'])}: {json.dumps({'attributes': own})}")
            comma = ", "
            if instruction is None:
                continue
            count += 1
            if goals is None or len(instructions) < goals:
                instructions.append((product["asin"], [instruction]))
            elif (place := rng.randrange(count)) < goals:
                instructions[place] = (product["asin"], [instruction])
        products.write("]")
        attributes.write("}")
    parts[2].write_text(json.dumps(dict(instructions)), encoding="utf-8")
    for part in parts:
        part.replace(part.with_suffix(""))
    (folder / "shop.json").write_text(json.dumps(asdict(spec), indent=1), encoding="utf-8")
    return folder
