"""Two evaluations by the same protocol, paired by subtask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from eef.analysis.compare import find
from eef.analysis.statistics import paired, read_by_task
from eef.evaluation.evaluate import CARD, TABLE, evaluations
from eef.files import RunError, read_json

_COVERS = "over subtasks, for these two policies; it says nothing about other training seeds"


def find_evaluation(root: Path, word: str) -> Path:
    """The folder of an evaluation: ``word`` is the folder or its card, or an id or a unique part of one in ``root``."""
    path = Path(word)
    path = path.parent if path.name == CARD else path
    folder = path if any((path / name).is_file() for name in (CARD, "config.json")) else find(evaluations(root), word)
    if (folder / CARD).is_file() and not (folder / TABLE).is_file():
        raise RunError(f"{folder} has {CARD}, but not {TABLE}, which pairs the subtasks: copy both files")
    if not (folder / CARD).is_file():
        raise RunError(
            f"{folder} has no {CARD}: it is not a finished evaluation; run eef evaluate WHAT --protocol NAME"
        )
    return folder


def compare(a: Path, b: Path) -> Iterator[str]:
    """The difference of two evaluations, line by line.

    Both must have the same protocol and the same data. The subtasks that both played are paired. RunError if the two
    cannot be compared.
    """
    cards = [read_json(folder / CARD) for folder in (a, b)]
    names = [f"{card['subject']['kind']} {card['subject']['name']}" for card in cards]
    protocols = [(card["protocol"]["name"], card["protocol"]["hash"]) for card in cards]
    if protocols[0] != protocols[1]:
        one, two = (f"{name} ({value})" for name, value in protocols)
        raise RunError(f"{a.name} was evaluated by {one}, {b.name} by {two}: evaluate both by one protocol")
    data = [{k: v for k, v in card["hashes"].items() if k not in ("chat", "subtasks")} for card in cards]
    if differing := [name for name in {**data[0], **data[1]} if data[0].get(name) != data[1].get(name)]:
        raise RunError(f"{a.name} and {b.name} were played on different data: {', '.join(differing)} differ")
    tables = [read_by_task(folder / TABLE).assign(seed=0) for folder in (a, b)]
    common = set(tables[0]["task"]) & set(tables[1]["task"])
    if not common:
        raise RunError(f"{a.name} and {b.name} have no subtask in common")
    tables = [table[table["task"].isin(common)] for table in tables]
    yield f"protocol: {protocols[0][0]} ({protocols[0][1]})\na: {names[0]}\nb: {names[1]}"
    if len(common) < cards[0]["protocol"]["subtasks"]:
        yield f"partial: both played {len(common)} of the protocol's {cards[0]['protocol']['subtasks']} subtasks"
    for letter, card in zip("ab", cards, strict=True):
        for name, (wanted, used) in card["departures"].items():
            yield f"{letter} departs from the protocol: {name} is {used!r}, not {wanted!r}"
    pairs = tables[0].merge(tables[1], on="task", suffixes=("_a", "_b"))
    pairs = pairs[~(pairs["error_a"].astype(bool) | pairs["error_b"].astype(bool))]
    for value, what, unit, scale in (("won", "win rate", " points", 100), ("reward", "mean reward", "", 1)):
        try:
            result = paired(tables[0], tables[1], value=value, over="task")
        except ValueError as error:
            raise RunError(f"{a.name} and {b.name} cannot be paired: {error}") from None
        means = [scale * pairs[f"{value}_{side}"].mean() for side in "ab"]
        digits = 1 if scale == 100 else 3
        change, low, high = (f"{scale * number:+.{digits}f}" for number in result[:3])
        ends = "no interval, since all differences are equal"
        if not math.isnan(result.low):
            ends = f"95 % interval {low} to {high} ({_COVERS})"
        yield (
            f"{what}: a {means[0]:.{digits}f}, b {means[1]:.{digits}f}; a minus b: {change}{unit}, {ends}, "
            f"{result.pairs} pairs" + (f", {result.errors} excluded for errors" if result.errors else "")
        )
    counts = [((pairs["won_a"] == x) & (pairs["won_b"] == y)).sum() for x, y in ((1, 1), (1, 0), (0, 1), (0, 0))]
    yield "won by both {}, only by a {}, only by b {}, by neither {}".format(*counts)
