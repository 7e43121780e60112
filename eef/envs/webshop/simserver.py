"""The server of :mod:`eef.envs.webshop.official`: products, goals and named sessions, without a web server."""

from __future__ import annotations

import bisect
import itertools
import random
import string
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from eef.envs.webshop import WebShop
from eef.envs.webshop import catalogue as catalogues
from eef.envs.webshop.catalogue import Triple
from eef.envs.webshop.goals import SHUFFLE
from eef.envs.webshop.nouns import Tagger

BASE_URL = "http://127.0.0.1:3000"
Session = dict[str, Any]


class SimServer:
    """Products, goals and sessions, as in the official class. Several environments may share one.

    ``goals`` is a list of dictionaries with the official keys, in the official order; it may be replaced.
    ``user_sessions`` has the session of each name: ``goal``, ``keywords``, ``page``, ``asin``, ``asins``, ``options``,
    ``actions`` (counts), ``done``, and after a purchase ``reward`` and ``verbose_info``. Goals and names that the
    official code draws at random come from a generator of the server, which continues after the shuffle of the goals.

    ``file_path``: the product file or its folder, or None for the embedded catalogue. ``attr_path``: the file
    ``items_ins_v2`` (default: the one beside the products). ``seed``: seed of the drawn prices and price caps.
    ``nouns``: see :class:`~eef.envs.webshop.WebShop`.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        file_path: str | Path | None = None,
        filter_goals: Callable[[int, dict[str, Any]], bool] | None = None,
        limit_goals: int = -1,
        num_products: int | None = None,
        human_goals: bool | None = None,
        show_attrs: bool = False,
        attr_path: str | Path | None = None,
        seed: int = 0,
        nouns: Tagger | None = None,
    ) -> None:
        if file_path is None and not human_goals:
            raise ValueError("the embedded catalogue has human goals only: set human_goals=True, or name a file_path")
        data = None if file_path is None else _data(Path(file_path), attr_path, bool(human_goals))
        shop = WebShop(
            data, bool(human_goals), seed=seed, nouns=nouns, num_products=num_products, split="ratio",
            allow_overlap=True,
        )  # fmt: skip
        self.shop, self.nouns = shop.shop, shop.nouns
        self.base_url, self.show_attrs = base_url, show_attrs
        self.assigned_instruction_text: str | None = None
        self.user_sessions: dict[str, Session] = {}
        self.random = random.Random(SHUFFLE)
        self.random.shuffle(list(range(len(self.shop.goals))))
        goals = [goal.as_dict() for goal in self.shop.goals]
        if filter_goals is not None:
            goals = [goal for number, goal in enumerate(goals) if filter_goals(number, goal)]
        self.goals = goals
        if limit_goals != -1 and limit_goals < len(goals):
            drawn: dict[int, None] = {}
            while len(drawn) < limit_goals:
                drawn[self.draw_goal()] = None
            self.goals = [goals[number] for number in drawn]
        if not self.goals:
            raise ValueError("no goal is left: choose another filter_goals or limit_goals")

    @property
    def weights(self) -> list[float]:
        return [goal["weight"] for goal in self.goals]

    @property
    def cum_weights(self) -> list[float]:
        return [0, *itertools.accumulate(self.weights)]

    @property
    def product_item_dict(self) -> Any:
        """The products by asin, as :class:`~eef.envs.webshop.catalogue.Product`."""
        return self.shop.by_asin

    @property
    def product_prices(self) -> dict[str, float]:
        """The price of each product by asin, in dollars. Reads the whole catalogue."""
        return {product.asin: product.price for product in self.shop.products}

    def draw_goal(self) -> int:
        """The index of a goal drawn by weight, as in the official code: never 0, and the last one twice as often."""
        sums = self.cum_weights
        return min(bisect.bisect(sums, self.random.uniform(0, sums[-1])), len(self.goals) - 1)

    def draw_name(self) -> str:
        """A random name for a session, of ten letters."""
        return "".join(self.random.choices(string.ascii_lowercase, k=10))

    def open_session(self, name: str, number: int | None) -> Session:
        """The session with this name at its first page. An existing one keeps its goal. IndexError if out of range."""
        session = self.user_sessions.get(name)
        if session is None:
            number = self.draw_goal() if number is None else number
            if not -len(self.goals) <= number < len(self.goals):
                raise IndexError(f"session {number}: there is no such goal; the server has {len(self.goals)} goals")
            session = {"goal": self.goals[number], "done": False, "number": range(len(self.goals))[number]}
            self.user_sessions[name] = session
        if self.assigned_instruction_text is not None:
            session["goal"]["instruction_text"] = self.assigned_instruction_text
        session.update(keywords=None, page=None, asin=None, asins=set(), options={}, actions=defaultdict(int))
        return session

    def close(self) -> None:
        """Forget all sessions."""
        self.user_sessions.clear()


def _data(products: Path, attributes: str | Path | None, human: bool) -> str | Path | Triple:
    """The data of :class:`~eef.envs.webshop.WebShop` for these files: their folder, or else their contents."""
    if products.is_dir():
        return products
    paths = catalogues.official_files(products.parent, human)
    chosen = {"products": products, **({"ins_v2": Path(attributes)} if attributes else {})}
    if all(path.resolve() == paths[part].resolve() for part, path in chosen.items()):
        return products.parent
    paths |= chosen
    if not attributes:
        ending = products.stem.removeprefix("items_shuffle")
        own = products.with_name(f"items_ins_v2{ending}.json")
        paths["ins_v2"] = own if own.is_file() else paths["ins_v2"]
    names = tuple(str(paths.get(part, "")) for part in ("products", "ins_v2", "human_ins"))
    return _contents(names, tuple(Path(name).stat().st_mtime_ns for name in names if Path(name).is_file()))


@lru_cache(maxsize=2)
def _contents(names: tuple[str, ...], changed: tuple[int, ...]) -> Triple:
    kinds = (list, dict, dict)
    return tuple(catalogues.read_json(n, k) if n else {} for n, k in zip(names, kinds, strict=True))  # type: ignore[return-value]
