"""The goals (instructions with their attributes, options and price cap), and their split into train, eval and test.

Behaviour follows the official ``get_human_goals``, ``get_synthetic_goals`` and the shuffle with seed 233.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eef.envs import EnvError
from eef.envs.webshop.catalogue import Catalogue, Product, Skipped, summary
from eef.envs.webshop.worker_splits import worker_split
from eef.files import replace_surrogates

NO_CAP = 1000000
SHUFFLE = 233
_PARTS = ("train", "eval", "test")
# smallest number of goals, end of the training part
_PAPER = {"webshop-3k": (4500, 4500), "webshop-11k": (10500, None)}
_CLAUSE = re.compile(r", and price lower than \d+\.\d\d dollars$")

Split = dict[str, tuple[int, ...]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a subtask asks for. ``options``: the wanted values, or ``(group, value)`` pairs in a synthetic goal."""

    asin: str
    category: str
    query: str
    name: str
    product_category: str
    instruction_text: str
    attributes: tuple[str, ...]
    price_upper: float
    options: tuple[str, ...] | tuple[tuple[str, str], ...]
    synthetic: bool = False
    weight: float = 1

    def as_dict(self) -> dict[str, Any]:
        """A new dictionary with the official keys; ``goal_options`` is a list, or a dict in a synthetic goal."""
        named = {name: getattr(self, name) for name in Goal.__slots__ if name not in ("options", "synthetic")}
        options = dict(self.options) if self.synthetic else list(self.options)  # type: ignore[arg-type]
        return {**named, "attributes": list(self.attributes), "goal_options": options}

    @property
    def content(self) -> tuple[Any, ...]:
        """What makes two goals the same task: product, text without the drawn price clause, options."""
        return self.asin, _CLAUSE.sub("", self.instruction_text), self.options


def make_goals(catalogue: Catalogue, human: bool = True) -> tuple[tuple[Goal, ...], Skipped]:
    """All goals of a catalogue in the official order, and the skipped ones (reason -> asins).

    EnvError if a record has an unexpected shape or no goal is left.
    """
    rng = random.Random()
    rng.setstate(catalogue.stream)
    skipped: Skipped = {}
    goals = _human(catalogue, rng, skipped) if human else _synthetic(catalogue, rng, skipped)
    if not goals:
        kind = "human instruction (items_human_ins)" if human else "synthetic instruction (items_ins_v2)"
        raise EnvError(f"{catalogue.source}: no product has a {kind}, so there is no goal")
    if skipped:
        log.warning("%s: skipped %s", catalogue.source, summary(skipped))
    random.Random(SHUFFLE).shuffle(goals)
    return tuple(goals), skipped


def hash_of(goals: Sequence[Goal]) -> str:
    """SHA-256 of all goals in order."""
    rows = ([g.asin, g.instruction_text, g.attributes, g.price_upper, g.options] for g in goals)
    return hashlib.sha256("\n".join(map(json.dumps, rows)).encode()).hexdigest()


def _cap(price: float, rng: random.Random) -> tuple[float, str]:
    """A drawn price cap in dollars and its clause; no cap for prices of 980 dollars and more."""
    above = [10.0 * tens for tens in range(1, 100) if 10.0 * tens > price][:4]
    if len(above) < 2:
        return NO_CAP, ""
    cap = max(rng.sample(above, 2))
    return cap, f", and price lower than {cap:.2f} dollars"


def _goal(product: Product, text: str, attributes: Sequence[str], cap: float, options: Any, synthetic: bool) -> Goal:
    return Goal(
        asin=product.asin,
        category=product.category,
        query=product.query,
        name=product.title,
        product_category=product.product_category,
        instruction_text=text,
        attributes=tuple(attributes),
        price_upper=cap,
        options=tuple(options),
        synthetic=synthetic,
    )


def _human(catalogue: Catalogue, rng: random.Random, skipped: Skipped) -> list[Goal]:
    goals = []
    known = {product.asin for product in catalogue.products}
    absent = [asin for asin in catalogue.instructions if asin not in known]
    if absent:
        skipped["goal for an absent asin"] = absent
    for product in catalogue.products:
        for number, record in enumerate(replace_surrogates(catalogue.instructions.get(product.asin) or ())):
            try:
                attributes, options = record["instruction_attributes"], record["instruction_options"]
                text = record["instruction"].strip(".")
                for words in (attributes, options):
                    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
                        raise TypeError(f"{words!r} (expected a list of texts)")
            except (KeyError, TypeError, AttributeError) as error:
                raise EnvError(
                    f"items_human_ins, asin {product.asin}, record {number}: missing or invalid: {error}"
                ) from None
            if not attributes:
                skipped.setdefault("goal without attributes", []).append(product.asin)
                continue
            cap, clause = _cap(product.price, rng)
            goals.append(_goal(product, text + clause, attributes, cap, options, False))
    return goals


def _synthetic(catalogue: Catalogue, rng: random.Random, skipped: Skipped) -> list[Goal]:
    goals: list[Goal] = []
    for product in catalogue.products:
        record = replace_surrogates(catalogue.ins_v2.get(product.asin))
        text = record.get("instruction") if isinstance(record, dict) else None
        attributes = record.get("instruction_attributes") if isinstance(record, dict) else None
        if text is None or not attributes:
            skipped.setdefault("no synthetic instruction", []).append(product.asin)
            continue
        cap, clause = _cap(product.price, rng)
        groups = sorted(product.options)
        for values in itertools.product(*(values for _, values in groups)):
            pairs = [(group, value) for (group, _), value in zip(groups, values, strict=True)]
            wanted = ", and ".join(f"{group}: {value}" for group, value in pairs)
            goals.append(
                _goal(product, text + (f" with {wanted}" if wanted else "") + clause, attributes, cap, pairs, True)
            )
    counts = Counter(attribute for goal in goals for attribute in goal.attributes)
    for i, goal in enumerate(goals):
        weight = sum(1.0 / counts[attribute] for attribute in goal.attributes) / len(goal.attributes)
        goals[i] = Goal(**{**{name: getattr(goal, name) for name in Goal.__slots__}, "weight": weight})
    return goals


def split_goals(goals: Sequence[Goal], rule: str | Path | dict[str, Any], allow_overlap: bool = False) -> Split:
    """The goal indices of ``train``, ``eval`` and ``test``.

    ``rule``: ``official`` (test 0-499, eval 500-1499, train the rest), ``webshop-11k`` (the same, for the full human
    goals), ``verl-agent`` (:mod:`eef.envs.webshop.worker_splits`), ``webshop-3k`` (with
    the first 3,000 of its training goals, which are in shuffled order; the paper does not say which), ``ratio`` (by a
    hash of the asin: 25 % test, 10 % eval, no product in two parts), ``auto`` (official with 2,000 human goals or more,
    else ratio), a folder with ETO's index files (``webshop_train_indices.json``, ``webshop_test_indices.json``), or a
    dictionary of index lists or index files. ValueError for an index out of
    range, too few goals for a named split, or goals with the same content in train and test.
    """
    if rule == "auto":
        rule = "official" if len(goals) >= 2000 and not goals[0].synthetic else "ratio"
    if isinstance(rule, str) and rule in _PAPER:
        split = _paper(goals, rule)
    elif rule == "official":
        split = _official(len(goals))
    elif rule == "verl-agent":
        split = worker_split(len(goals), SHUFFLE)
    elif rule == "ratio":
        parts: dict[str, list[int]] = {part: [] for part in _PARTS}
        for index, goal in enumerate(goals):
            place = int.from_bytes(hashlib.sha256(goal.asin.encode()).digest()[:8], "big") / 2**64
            parts["test" if place < 0.25 else "eval" if place < 0.35 else "train"].append(index)
        split = {part: tuple(indices) for part, indices in parts.items()}
    elif isinstance(rule, dict):
        split = _checked(rule, len(goals), "split")
    else:
        split = _checked(_index_files(Path(rule)), len(goals), str(rule))
    if not allow_overlap:
        _refuse_overlap(goals, split)
    return split


def _paper(goals: Sequence[Goal], rule: str) -> Split:
    least, end = _PAPER[rule]
    if len(goals) < least or goals[0].synthetic:
        raise ValueError(
            f"split {rule!r} needs WebShop's full human goals (12,087, at least {least:,} of them): this catalogue has "
            f"{len(goals):,} {'synthetic' if goals[0].synthetic else 'human'} goals; use 'auto' or the full files"
        )
    return _official(len(goals)) | {"train": tuple(range(1500, end or len(goals)))}


def _official(count: int) -> Split:
    ends = (("test", 0, 500), ("eval", 500, 1500), ("train", 1500, count))
    split = {part: tuple(range(start, min(end, count))) for part, start, end in ends}
    empty = [part for part in _PARTS if not split[part]]
    if empty:
        raise ValueError(
            f"the official split (test 0-499, eval 500-1499, train from 1500) leaves {' and '.join(empty)} empty: this "
            f"catalogue has {count} goals; use split='ratio' or a dictionary of indices"
        )
    return {part: split[part] for part in _PARTS}


def _index_files(folder: Path) -> dict[str, Any]:
    paths = {part: folder / f"webshop_{part}_indices.json" for part in _PARTS}
    if not folder.is_dir():
        raise ValueError(
            f"split {str(folder)!r} is neither a folder with index files nor one of 'official', "
            "'webshop-11k', 'webshop-3k', 'verl-agent', 'ratio', 'auto'"
        )
    for part in ("train", "test"):
        if not paths[part].is_file():
            raise ValueError(f"{paths[part]} is missing: the folder of a split must contain it")
    return {part: path for part, path in paths.items() if path.is_file()}


def _indices(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the index file {path} ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"the index file {path} is truncated or not valid JSON ({error})") from None


def _checked(parts: dict[str, Any], count: int, source: str) -> Split:
    unknown = set(parts) - set(_PARTS)
    if unknown:
        raise ValueError(f"{source}: unknown part {sorted(map(str, unknown))}; use train, eval and test")
    split: Split = {}
    for part in _PARTS:
        value = parts.get(part, ())
        value = _indices(Path(value)) if isinstance(value, (str, Path)) else value
        indices: list[Any] = list(value) if isinstance(value, (list, tuple, range)) else [None]
        if not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
            raise ValueError(f"{source}: {part} must be a list of goal indices (integers)")
        outside = [index for index in indices if not 0 <= index < count]
        if outside:
            raise ValueError(
                f"{source}: {len(outside)} of {len(indices)} {part} indices (such as {outside[0]}) are not among the "
                f"{count} goals of this catalogue"
            )
        split[part] = tuple(dict.fromkeys(indices))
    return split


def _refuse_overlap(goals: Sequence[Goal], split: Split) -> None:
    trained = {goals[index].content for index in split["train"]}
    shared = [index for index in split["test"] if goals[index].content in trained]
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(split['test'])} test goals are also training goals (same product, instruction and "
            f"options), such as {shared[:5]}: remove them, choose another test part (ETO's "
            "webshop_test_500_indices.json shares none with its training list), or pass allow_overlap=True"
        )
