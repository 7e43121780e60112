"""Recomputes the numbers of the results pages from the committed tables, and compares them with the pages.

    python experiments/recompute_results.py

Each row of a table is printed as recomputed: means over training seeds with 95 % t-intervals, and paired differences
with p-values of t-tests, adjusted for all differences of the page. ``!=`` names a wrong cell; the exit code is then 1.
In sentences, an interval must be that of two arms of a sweep that is named there, another difference a number of the
page's tables or of a linked page. Paragraphs on the log and on earlier runs and ``UNCHECKED`` tables are left out.
"""

import math
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd

from eef.analysis import committed, pages
from eef.analysis.committed import COLUMNS, cell_of, find, wins_of, with_ends
from eef.analysis.statistics import holm, over_seeds, t_test
from eef.analysis.tables import spread

ROOT = Path(__file__).parents[1]
PAGES = {f"docs/results/{page.name}": page.stem for page in sorted(ROOT.glob("docs/results/*.md"))}
PAGES |= {"README.md": "main_comparison", "docs/results/README.md": "", "figures/README.md": ""}  # "": in each row
UNCHECKED = (  # the heads of tables whose numbers are not committed, that have none, or that tests/ checks
    "page | question", "your own | start", "folder | made by", "the paper's claim", "arm | examples", "arm | won",
    "late | base | the expert wins", "of the expert's |", "trained by |", "shop | trained on", "`notebooks/experts",
    "arm | seconds", "arm | experts | seconds", "experts | seconds", "wins of | Next, 250", "policy | answers",
    "states and labels",
)  # fmt: skip
MEANS = {"mean reward": "mean_reward", "mean score": "mean_max_score"}  # columns of the tables
Cells = tuple[dict[str, str], pd.Series | None]  # the cells of a row, and its difference by seed if it has one


@cache
def arms(sweep: str) -> committed.ArmRows:
    return committed.arms_of(ROOT / "figures" / sweep)


differences = cache(lambda sweep: committed.differences(arms(sweep)))


def of_method(row: dict[str, str], sweep: str) -> Cells:
    own = find(arms(sweep), row["method"], row.get("experts", ""))
    rft = find(arms(sweep), "RFT × 6") if "minus RFT × 6" in row else own
    cells = {"simulated episodes": f"{own['episodes'].mean():,.0f}", "win %": f"{(100 * own['win_rate']).mean():.1f}"}
    cells |= {"95 % interval": spread(*over_seeds(100 * own["win_rate"])[1:], ".1f")}
    cells |= {name: f"{100 * own[f'win_rate_{name}'].mean():.1f}" for name in row if f"win_rate_{name}" in own}
    cells |= {name: f"{own[column].mean():.3f}".lstrip("0") for name, column in MEANS.items() if name in row}
    cells |= {name: f"{own[key].mean():,.0f}" for name in row if (key := name.replace(" ", "_")) in COLUMNS}
    gain = None if own.equals(rft) else 100 * (own["win_rate"] - rft["win_rate"])
    return {**cells, "minus RFT × 6": "" if gain is None else with_ends(gain)}, gain


def of_difference(row: dict[str, str], sweep: str) -> Cells:
    label, _, of = re.fullmatch("(.+?)(, (hard subtasks|score))?", row["difference"]).groups()
    column, (a, b) = {"score": "mean_max_score", None: "win_rate"}.get(of, "win_rate_hard"), label.split(" minus ")
    own, other = (find(arms(sweep), arm, row.get("experts", ""))[column] for arm in (a, b))
    mean, ends = with_ends(gain := 100 * (own - other)).rstrip(")").split(" (")
    return {"mean": mean, "95 % interval": ends, "seeds with a gain": f"{(gain > 0).sum()} of {len(gain)}"}, gain


def kind(row: dict[str, str]) -> Callable[[dict[str, str], str], Cells] | None:
    """How to compute a row; None if its numbers are not committed. ValueError for a table with an unknown head."""
    kinds = {"method": of_method, "difference": of_difference}
    kinds["wins of"] = lambda row, sweep: (wins_of(ROOT / "figures" / sweep, row), None)
    kinds["EEF minus RFT"] = lambda row, sweep: (cell_of(ROOT / "figures" / sweep, row), None)
    if any((head := " | ".join(row)).startswith(each) for each in UNCHECKED):
        return None
    if not (names := [name for name in kinds if name in row]):
        raise ValueError(f"| {head} |: an unknown table; compute it, or name it in UNCHECKED if nothing is committed")
    return kinds[names[0]]


def compare(text: str, sweep: str) -> list[str]:
    """Print the tables of a page as recomputed; returns what says otherwise. KeyError for an unknown name."""
    rows = [row for table in pages.tables(text.replace("| regime |", "| experts |")) for row in table if kind(row)]
    computed, wrong, said = [kind(row)(row, row.get("sweep", sweep).strip("`")) for row in rows], [], []
    adjusted = holm([math.nan if gain is None else t_test(gain) for _, gain in computed])
    for row, (cells, gain), p in zip(rows, computed, adjusted, strict=True):
        cells["p (Holm)"] = "" if math.isnan(p) else "< .001" if p < 0.0005 else f"{p:.3f}".lstrip("0")
        label, *names = [name for name in row if name not in ("experts", "sweep")]
        wrong += [f"{row[label]}, {name}: {row[name]} != {cells[name]}" for name in names if row[name] != cells[name]]
        said += [*cells.values(), each := "" if gain is None else "; " + " ".join(f"{value:+.1f}" for value in gain)]
        print("  " + "; ".join([row[label], *(f"{name} {cell}" for name, cell in cells.items() if cell)]) + each)
    sweeps = {row.get("sweep", sweep).strip("`") for row in rows} | {sweep}
    wrong += committed.wrong_sentences(text, sweeps, said, ROOT, differences)
    print(*wrong, sep="\n")
    return wrong


if __name__ == "__main__":
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    wrong = [each for page, text in texts.items() for each in (print(page), compare(text, PAGES[page]))[1]]
    sys.exit(f"{len(wrong)} numbers of the pages differ" if wrong else 0)
