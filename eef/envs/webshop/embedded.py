"""The embedded default: the generated catalogue with graded subtasks, and its split into train, eval and test."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from eef.envs.webshop.generate import CatalogueSpec, Triple, generate

if TYPE_CHECKING:
    from eef.envs.webshop.shopper import ShopEnv

Family = tuple[str, frozenset[str]]  # a kind of product and two attributes


def embedded(open_shop: Callable[..., ShopEnv], **options: Any) -> tuple[Triple, dict[str, list[int]]]:
    """The embedded catalogue and its split, ``{"train" | "eval" | "test": goal indices}``.

    ``open_shop`` is the class WebShop; ``options`` are fields of :class:`CatalogueSpec`. Perfect play decides the grade
    of a subtask, never an expert with errors. ValueError if the catalogue has too few subtasks of a grade, TypeError
    for an unknown option.
    """
    # not an import statement: the shopper decides which subtasks are played, but it changes no state of the environment
    shopper = import_module("eef.envs.webshop.shopper")
    try:
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        spec = CatalogueSpec(**values)
    except TypeError as error:
        raise TypeError(
            f"catalogue: {error}; the options are {', '.join(CatalogueSpec.__dataclass_fields__)}"
        ) from None
    triple = generate(spec)
    count = sum(len(records) for records in triple[2].values())
    env = open_shop(data=triple, split={"train": list(range(count)), "eval": [], "test": []}, max_steps=spec.steps)
    graded: dict[str, list[int]] = {"easy": [], "medium": [], "hard": []}
    for task in env.tasks("train"):
        played = shopper.play_expert(env, task, insight=False)
        if played.won:
            graded[grade(played.actions)].append(int(task))
    if not spec.disjoint_families:
        return triple, _split(spec, graded)
    goals = {index: env.goal(str(index)) for pool in graded.values() for index in pool}
    families = {index: (goal["query"], frozenset(goal["attributes"])) for index, goal in goals.items()}
    return triple, _disjoint_split(spec, graded, families)


def _split(spec: CatalogueSpec, graded: dict[str, list[int]]) -> dict[str, list[int]]:
    """``spec``'s numbers of subtasks for each part, drawn from the subtasks of each grade."""
    rng = random.Random(f"split {spec.seed}")
    split: dict[str, list[int]] = {"train": [], "eval": [], "test": []}
    sizes = {part: _sizes(getattr(spec, part), spec.grades) for part in split}
    for place, (name, pool) in enumerate(graded.items()):
        rng.shuffle(pool)
        needed = sum(size[place] for size in sizes.values())
        if needed > len(pool):
            raise ValueError(
                f"the generated catalogue has {len(pool)} {name} subtasks, but {needed} are needed: raise 'products', "
                "or lower 'train', 'eval', 'test' or that share of 'grades'"
            )
        for part, size in sizes.items():
            split[part] += [pool.pop() for _ in range(size[place])]
    for indices in split.values():
        rng.shuffle(indices)
    return split


def _disjoint_split(
    spec: CatalogueSpec, graded: dict[str, list[int]], families: dict[int, Family]
) -> dict[str, list[int]]:
    """The same numbers, with all subtasks of a family in one part; ``families`` has the family of each subtask.

    Each family, in random order, goes to the part that it brings closest to its numbers.
    """
    rng = random.Random(f"disjoint split {spec.seed}")
    split: dict[str, list[int]] = {"train": [], "eval": [], "test": []}
    unmet = {part: dict(zip(graded, _sizes(getattr(spec, part), spec.grades), strict=True)) for part in split}
    members: dict[Family, dict[str, list[int]]] = {}
    for name, pool in graded.items():
        for index in pool:
            members.setdefault(families[index], {g: [] for g in graded})[name].append(index)
    order = list(members.values())
    rng.shuffle(order)
    for family in order:
        usable = {part: {g: family[g][: unmet[part][g]] for g in graded} for part in split}
        gains = {part: sum(map(len, usable[part].values())) / max(1, getattr(spec, part)) for part in split}
        chosen = max(split, key=lambda part: gains[part])
        for name, indices in usable[chosen].items():
            split[chosen] += indices
            unmet[chosen][name] -= len(indices)
    lacking = [f"{count} {name} subtasks of {part}" for part in split for name, count in unmet[part].items() if count]
    if lacking:
        raise ValueError(
            f"with 'disjoint_families' the generated catalogue lacks {', '.join(lacking)}: raise 'products', or lower "
            "'train', 'eval', 'test' or that share of 'grades'"
        )
    for indices in split.values():
        rng.shuffle(indices)
    return split


def _sizes(count: int, shares: tuple[float, ...]) -> list[int]:
    """The number of subtasks of each grade; the grade with the largest share absorbs the rounding."""
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"'grades' must be three shares (easy, medium, hard) that sum to 1, not {list(shares)}")
    sizes = [round(share * count) for share in shares]
    sizes[shares.index(max(shares))] += count - sum(sizes)
    return sizes


def grade(actions: list[str]) -> str:
    """``easy``, ``medium`` or ``hard``: perfect play needs 0, 1 to 2, or at least 3 moves with Next or Prev."""
    moves = sum(action.lower() in ("click[next >]", "click[< prev]") for action in actions)
    return "easy" if moves == 0 else "medium" if moves <= 2 else "hard"
