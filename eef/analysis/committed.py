"""The committed tables of a sweep, read as pages show them: the rows of an arm, shares of wins, cells of a map."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from eef.analysis.arms import arm_name, arm_of, records
from eef.analysis.outcomes import BUDGET, read_outcomes
from eef.analysis.pages import intervals, numbers, paragraphs, wrong_intervals, wrong_numbers
from eef.analysis.statistics import over_seeds
from eef.analysis.tables import number, spread

COLUMNS = [*BUDGET, "seconds"]  # of cost
_LINK = r"[/(](\w+)\.md"
_SCORES = ("win_rate", "win_rate_hard", "mean_max_score")
ArmRows = dict[tuple[str, str], pd.DataFrame]
Differences = Callable[[str], dict[str, set[str]]]  # of a sweep


def arms_of(folder: Path) -> ArmRows:
    """The rows of each arm of a sweep, one per seed, by name and what the sweep varies: the experts
    (``base 0.18, late 0.25``), the regime, or the temperature of the simulations (``temperature 1.5``).

    Win rates are those of ``outcomes.csv`` where it is there.
    """
    paths = [folder / f"{name}.csv" for name in ("win_rate_vs_budget", "outcomes", "seconds")]
    table, *more = (pd.read_csv(path).set_index("run_id") for path in paths if path.is_file())
    table = table.join([each.filter([name for name in COLUMNS if name not in table]) for each in more])
    if paths[1].is_file():
        outcomes = read_outcomes(folder).query("not error").astype({"won": float})
        table["win_rate"] = outcomes.groupby("run_id")["won"].mean()
        for group, part in outcomes.groupby("group") if "group" in outcomes else ():
            table[f"win_rate_{group}"] = part.groupby("run_id")["won"].mean()
    if "temperature" in table:
        table["temperature"] = "temperature " + table["temperature"].astype(str)
    names = [name for name in ("expert_noise", "train", "model", "temperature") if name in table] or ["experts"]
    table["experts"] = table[names].astype(str).agg(", ".join, axis=1).str.replace(r'[{}":]', "", regex=True)
    keys = [(_name(row), row["experts"]) for row in records(table)]
    return {key: rows.set_index("seed").sort_index() for key, rows in table.groupby(pd.Series(keys, index=table.index))}


def find(arms: ArmRows, label: str, experts: str = "") -> pd.DataFrame:
    """The rows of an arm as pages write it: ``EEF, M = 5``, or ``EEF, M = 5 (strong+weak)`` with its experts.

    Without experts it is the arm on ``strong``, or the only one. KeyError if there is none, or more than one.
    """
    name, in_brackets = re.fullmatch(r"([^(:]+?)(?: \((.+)\))?(?::.*)?", label).groups()  # type: ignore[union-attr]
    each = [own for other, own in arms if other == name]
    usual = "strong" if "strong" in each else each[0] if len(each) == 1 else ""
    if (name, in_brackets or experts or usual) not in arms:
        raise KeyError(f"{label!r} with the experts {in_brackets or experts!r}; there are: {', '.join(each) or 'none'}")
    return arms[name, in_brackets or experts or usual]


def with_ends(values: Iterable[float]) -> str:
    """Mean and interval of a difference: ``+14.3 (+9.2 to +19.4)``."""
    mean, low, high = over_seeds(values)
    return f"{number(mean, '+.1f')} ({spread(low, high, '+.1f')})"


def differences(arms: ArmRows) -> dict[str, set[str]]:
    """Each difference of two arms as :func:`with_ends` writes it, with its numbers of seeds with a gain, ``8 of 10``.

    They are of the win rate, of that on hard subtasks and of the score.
    """
    tables, known = list(arms.values()), {}  # type: ignore[var-annotated]
    for name in _SCORES:
        for a, b in ((a, b) for a in tables for b in tables if a is not b and name in a and name in b):
            if len(gain := (100 * (a[name] - b[name])).dropna()):
                known.setdefault(with_ends(gain), set()).add(f"{(gain > 0).sum()} of {len(gain)}")
    return known


def wins_of(folder: Path, row: Mapping[str, str]) -> dict[str, str]:
    """The cells of a page's row of shares of wins, in %, computed from ``navigation.csv``.

    The row begins with the name of the arm, or ``the expert`` (``the weak expert``). Its next columns are of the
    environment's first skill and of all others. KeyError for an unknown name.
    """
    table = pd.read_csv(folder / "navigation.csv")
    skill = next(str(name) for name in table if f"{name}_low" in table)
    bars = [bar for bar in records(table) if not bar["bar"].endswith("failures")]
    several = sum(bar["method"] == "expert" for bar in bars) > 1
    shares = {}
    for bar in bars:
        name = _name(bar) + ", two experts" * ("+" in bar["experts"])
        if bar["method"] == "expert":
            name = f"the {bar['experts']} expert" if several else "the expert"
        shares[name] = [f"{100 * bar[each]:.1f}" for each in (skill, "other")]
    label, *heads = row
    return dict(zip(heads, shares[row[label]], strict=False))


def cell_of(folder: Path, row: Mapping[str, str]) -> dict[str, str]:
    """The cells of a page's row of the map, in %, computed from ``difference_map.csv``.

    ``late`` and ``base``, its first columns, are the values of x and y. KeyError where there is no such cell.
    """
    table = pd.read_csv(folder / "difference_map.csv")
    x, y = (float(row[name]) for name in ("late", "base"))
    (cell,) = records(table[(table["x"] == x) & (table["y"] == y)]) or [{}]
    skill = next(str(name) for name in table if str(name).startswith("expert_wins_"))
    heads = {"expert wins %": "expert_win_rate", "of its wins turn a page %": skill, "BC": "win_bc"}
    heads |= {"RFT": "win_rft", "EEF": "win_eef"}
    cells = {head: f"{100 * cell[name]:.1f}" for head, name in heads.items()} | {"base": row["base"]}
    return {
        **cells,
        "EEF minus RFT": number(100 * cell["difference"], "+.1f"),
        "episodes": f"{cell['episodes_eef']:.0f}",
    }


def wrong_sentences(text: str, sweeps: set[str], cells: Iterable[str], root: Path, known_of: Differences) -> list[str]:
    """The numbers in a page's sentences that the committed tables do not give.

    An interval must be that of two arms of one of the page's ``sweeps``, or of one that its paragraph names or links.
    Another difference must be a number in ``cells``, those of the page's tables, or on a linked page. A
    paragraph that names the log is not checked for the latter: the tables of what was tried are not committed. A row
    of a table is checked for intervals alone.
    """
    wrong, own = [], numbers(cells)
    folders = {path.parent.name for path in root.glob("figures/*/outcomes.csv")}
    for paragraph in paragraphs(text):
        named = {*re.findall(r"`(\w+)`", paragraph), *(word.lower() for word in re.findall(r"\b[A-Z]\w+", paragraph))}
        named |= {*re.findall(_LINK, paragraph)}
        near = {each for each in folders if each in sweeps or any(f"{each}_".startswith(f"{name}_") for name in named)}
        known: dict[str, set[str]] = {}
        for sweep in near:
            for difference, seeds in known_of(sweep).items():
                known.setdefault(difference, set()).update(seeds)
        wrong += wrong_intervals(paragraph, known)
        of_a_sweep = bool({*sweeps} - {""})  # such a page links few others, so any of its links counts
        links = named | ({*re.findall(_LINK, text)} if of_a_sweep else set())
        linked = [root / "docs" / "results" / f"{name}.md" for name in links]
        there = [path.read_text(encoding="utf-8") for path in linked if path.is_file()]
        if "LOG.md" not in paragraph and not paragraph.startswith("|"):
            wrong += wrong_numbers(paragraph, own | numbers([" ".join(intervals(paragraph)), *there]))
    return wrong


def _name(row: dict[str, object]) -> str:
    return arm_name(arm_of(row)).replace(" (SFT-pos)", "")
