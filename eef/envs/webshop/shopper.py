"""A scripted shopper, perfect or with errors, as an expert where no language model is available.

The perfect shopper uses only what a page shows. It searches for the goal's attributes and kind, opens the first new
row whose title and price fit, picks the wanted options and buys. It steps back from an item that lacks an option, and
turns the page if no row fits. With ``insight`` it also knows which rows would win; this is for official data, whose
titles rarely show the attributes.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from eef.envs import TextEnv
from eef.trajectory import Trajectory, Turn


class ShopEnv(TextEnv, Protocol):
    """What the shopper needs of :class:`eef.envs.webshop.WebShop`, which must not be imported here."""

    generated: bool
    shop: Any  # its ``results(state)`` begins with the products of the results page
    state: Any

    def goal(self, task: str | None = None) -> dict[str, Any]:
        """The goal of ``task`` (default: of the current episode)."""
        ...

    def fork(self) -> ShopEnv: ...


@dataclass(frozen=True)
class ShopperNoise:
    """Error rates of the shopper: probabilities per decision, in [0, 1].

    ``base`` + ``growth`` * (turn number): probability of an error. ``late``: added on an item page once the shopper
    has turned a page, so that it finds the hard item and then makes a wrong purchase: wins rarely show paging, failures
    often do. ``back``: the same once it has stepped back from an item. ``notice``: probability of noticing that an
    opened item is wrong and stepping back (a recovery).
    """

    base: float = 0.0
    growth: float = 0.0
    late: float = 0.0
    back: float = 0.0
    notice: float = 1.0


@dataclass
class _Memory:
    """What the shopper remembers of its episode."""

    seen: set[str] = field(default_factory=set)
    chosen: set[str] = field(default_factory=set)
    paged: bool = False
    stepped_back: bool = False
    wrong: bool = False


# Strong wins 38 % of the training subtasks of the embedded default (GPT-4 in the paper's Table 1: 35.6 %), weak 29 %
# (2,000 episodes each). They turn a page in 1 % of their wins, and in 77 % and 67 % of their failures.
STRONG = ShopperNoise(base=0.06, growth=0.02, late=0.75, notice=0.6)
WEAK = ShopperNoise(base=0.1, growth=0.04, late=0.85, notice=0.4)


def play_expert(
    env: ShopEnv, task: str, noise: ShopperNoise | None = None, seed: int = 0, insight: bool | None = None
) -> Trajectory:
    """Play one episode of ``task`` on a fork of ``env``. Equal arguments give an equal trajectory.

    ``noise`` None is perfect play. ``insight`` None means insight on official data and none on a generated catalogue.
    """
    env = env.fork()
    insight = not env.generated if insight is None else insight
    rng = random.Random(f"{seed} {task}")
    noise = noise or ShopperNoise()
    prompt = env.reset(task)
    goal = env.goal()
    memory = _Memory()
    turns: list[Turn] = []
    reward, won, done = 0.0, False, False
    while not done and len(turns) < env.max_steps:
        risk = noise.base + noise.growth * len(turns)
        action = _decide(env, goal, memory, rng, noise, risk, insight)
        memory.paged |= action == "click[next >]"
        step = env.step(action)
        turns.append(Turn(action, step.observation))
        done, reward, won = step.done, step.reward, bool(step.info.get("won"))
    outcome = "done" if done else "max_steps"
    return Trajectory(task, prompt, tuple(turns), reward if done else 0.0, won and done, "", outcome)


def _decide(
    env: ShopEnv,
    goal: dict,
    memory: _Memory,
    rng: random.Random,
    noise: ShopperNoise,
    risk: float,
    insight: bool,
) -> str:
    available = env.available_actions()
    clickables: list[str] = available["clickables"]
    if available["has_search_bar"]:
        return f"search[{_query(goal, insight)}]"
    if "next >" in clickables:
        return _on_results(env, goal, memory, rng, risk, insight)
    if "buy now" in clickables:
        risk += noise.late * memory.paged + noise.back * memory.stepped_back
        return _on_item(goal, clickables, memory, rng, noise, risk)
    return "click[< prev]"


def _query(goal: dict, insight: bool) -> str:
    if insight:
        return re.sub(r",? and price lower than .*$", "", goal["instruction_text"].lower())
    return " ".join([*goal["attributes"], goal["query"]])


def listed_products(env: ShopEnv) -> list[tuple[str, str, float]]:
    """``(asin, title, lowest price in dollars)`` of each product on the current results page, whatever its form."""
    return [
        (product.asin, product.title, float(re.findall(r"[\d.]+", product.tag)[0]))
        for product in env.shop.results(env.state)[0]
        if re.fullmatch(r"[A-Z0-9]{10}", product.asin) and product.tag.startswith("$")
    ]


def _on_results(env: ShopEnv, goal: dict, memory: _Memory, rng: random.Random, risk: float, insight: bool) -> str:
    memory.chosen.clear()
    memory.wrong = False
    listed = listed_products(env)
    fitting = [row[0] for row in listed if row[0] not in memory.seen and _fits(env, row, goal, insight)]
    others = [row[0] for row in listed if row[0] not in fitting]
    if rng.random() < risk:
        error = rng.choice(["wrong row", "wrong row", "overlook"])
        if error == "wrong row" and others:
            memory.wrong = True
            return _open(rng.choice(others), memory)
        return "click[next >]"
    if fitting:
        return _open(fitting[0], memory)
    return "click[next >]" if listed else "click[back to search]"


def _open(asin: str, memory: _Memory) -> str:
    memory.seen.add(asin)
    return f"click[{asin.lower()}]"


def _fits(env: ShopEnv, row: tuple[str, str, float], goal: dict, insight: bool) -> bool:
    asin, title, price = row
    if insight:
        twin = env.fork()
        twin.step(f"click[{asin.lower()}]")
        for value in _wanted(goal):
            twin.step(f"click[{value}]")
        return bool(twin.step("click[buy now]").info["won"])
    words = title.lower().split()
    return price <= goal["price_upper"] and all(word in words for word in [*goal["attributes"], goal["query"]])


def _wanted(goal: dict) -> list[str]:
    """The wanted options as the page shows them. A synthetic goal gives the group of each, a human goal does not."""
    options = goal["goal_options"]
    return [value.lower() for value in (options.values() if isinstance(options, dict) else options)]


def _on_item(
    goal: dict, clickables: list[str], memory: _Memory, rng: random.Random, noise: ShopperNoise, risk: float
) -> str:
    wanted = _wanted(goal)
    left = [value for value in wanted if value not in memory.chosen]
    lacking = [value for value in left if value not in clickables]
    if (memory.wrong or lacking) and rng.random() < noise.notice:
        memory.stepped_back = True
        return "click[< prev]"
    values = clickables[clickables.index("buy now") + 1 :]
    if rng.random() < risk:
        error = rng.choice(["hasty", "wrong option", "look"])
        unwanted = [value for value in values if value not in wanted]
        if error == "wrong option" and left and unwanted:
            memory.chosen.add(left[0])  # the shopper believes that it chose this option
            return f"click[{rng.choice(unwanted)}]"
        if error == "look":
            return "click[features]"
        return "click[buy now]"
    if left and left[0] in clickables:
        memory.chosen.add(left[0])
        return f"click[{left[0]}]"
    memory.chosen.update(left[:1])
    rest = [value for value in left[1:] if value in clickables]
    if rest:
        memory.chosen.add(rest[0])
        return f"click[{rest[0]}]"
    return "click[buy now]"
