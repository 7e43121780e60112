"""Recomputes the numbers of the results pages from the committed tables, and compares them with the pages' tables.

    python experiments/recompute_results.py

Each row is printed as recomputed: means over training seeds with 95 % t-intervals, and paired differences with p-values
of t-tests, adjusted for all differences of the page. ``!=`` names a wrong cell; the exit code is then 1.
"""

import math
import re
import sys
from functools import cache
from pathlib import Path

import pandas as pd

from eef.analysis.arms import arm_name, arm_of, records
from eef.analysis.outcomes import BUDGET, read_outcomes
from eef.analysis.statistics import holm, over_seeds, t_test
from eef.analysis.tables import spread

ROOT = Path(__file__).parents[1]
PAGES = {f"docs/results/{page.name}": page.stem for page in sorted(ROOT.glob("docs/results/*.md"))}
PAGES |= {"README.md": "main_comparison", "docs/results/README.md": ""}  # the latter names the sweep in each row
MEANS = {"mean reward": "mean_reward", "mean score": "mean_max_score"}  # columns of the tables
Cells = tuple[dict[str, str], pd.Series | None]  # the cells of a row, and its difference by seed if it has one


@cache
def arms(sweep: str) -> dict[tuple[str, str], pd.DataFrame]:
    """The rows of each arm of a sweep, one per seed, by name and experts (``base 0.18, late 0.25``) or regime."""
    paths = [ROOT / "figures" / sweep.strip("`") / f"{name}.csv" for name in ("win_rate_vs_budget", "outcomes")]
    table, *more = (pd.read_csv(path).set_index("run_id") for path in paths if path.is_file())
    table = table.join([each.filter([name for name in BUDGET if name not in table]) for each in more])
    if paths[-1].is_file():
        outcomes = read_outcomes(paths[-1].parent).query("not error").astype({"won": float})
        table["win_rate"] = outcomes.groupby("run_id")["won"].mean()
        for group, part in outcomes.groupby("group") if "group" in outcomes else ():
            table[f"win_rate_{group}"] = part.groupby("run_id")["won"].mean()
    names = [name for name in ("expert_noise", "train", "model") if name in table] or ["experts"]
    table["experts"] = table[names].astype(str).agg(", ".join, axis=1).str.replace(r'[{}":]', "", regex=True)
    keys = [(arm_name(arm_of(row)).replace(" (SFT-pos)", ""), row["experts"]) for row in records(table)]
    return {key: rows.set_index("seed").sort_index() for key, rows in table.groupby(pd.Series(keys, index=table.index))}


def find(sweep: str, label: str, experts: str = "") -> pd.DataFrame:
    """The rows of an arm as pages write it: ``EEF, M = 5``, or ``EEF, M = 5 (strong+weak)`` with its experts."""
    table, (name, in_brackets) = arms(sweep), re.fullmatch(r"([^(:]+?)(?: \((.+)\))?(?::.*)?", label).groups()
    usual = "perfect" if name == "ceiling" else max({each for _, each in table} - {"perfect"}, key="strong".__eq__)
    return table[name, in_brackets or experts or usual]


def with_ends(values: pd.Series) -> str:
    mean, *ends = over_seeds(values)
    return f"{mean:+.1f} ({spread(*ends, '+.1f')})".replace("-", "−")


def of_method(row: dict[str, str], sweep: str) -> Cells:
    own = find(sweep, row["method"], row.get("experts", ""))
    rft = find(sweep, "RFT × 6") if "minus RFT × 6" in row else own
    cells = {"simulated episodes": f"{own['episodes'].mean():,.0f}", "win %": f"{(100 * own['win_rate']).mean():.1f}"}
    cells |= {"95 % interval": spread(*over_seeds(100 * own["win_rate"])[1:], ".1f")}
    cells |= {name: f"{100 * own[f'win_rate_{name}'].mean():.1f}" for name in row if f"win_rate_{name}" in own}
    cells |= {name: f"{own[column].mean():.3f}".lstrip("0") for name, column in MEANS.items() if name in row}
    cells |= {name: f"{own[name.replace(' ', '_')].mean():,.0f}" for name in row if name.replace(" ", "_") in BUDGET}
    gain = None if own.equals(rft) else 100 * (own["win_rate"] - rft["win_rate"])
    return {**cells, "minus RFT × 6": "" if gain is None else with_ends(gain)}, gain


def of_difference(row: dict[str, str], sweep: str) -> Cells:
    label, _, of = re.fullmatch("(.+?)(, (hard subtasks|score))?", row["difference"]).groups()
    column, (a, b) = {"score": "mean_max_score", None: "win_rate"}.get(of, "win_rate_hard"), label.split(" minus ")
    own, other = (find(sweep, arm, row.get("experts", ""))[column] for arm in (a, b))
    mean, ends = with_ends(gain := 100 * (own - other)).rstrip(")").split(" (")
    return {"mean": mean, "95 % interval": ends, "seeds with a gain": f"{(gain > 0).sum()} of {len(gain)}"}, gain


def compare(text: str, sweep: str) -> list[str]:
    """Print the tables of a page as recomputed; returns the cells that say otherwise. KeyError for an unknown name."""
    rows, wrong = [], []
    for block in re.findall(r"(?:^\|.*\n)+", text.replace("| regime |", "| experts |"), re.MULTILINE):
        head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        rows += [dict(zip(head, line, strict=True)) for line in body if {"method", "difference"} & {*head}]
    computed = [(of_method if "method" in row else of_difference)(row, row.get("sweep", sweep)) for row in rows]
    adjusted = holm([math.nan if gain is None else t_test(gain) for _, gain in computed])
    for row, (cells, gain), p in zip(rows, computed, adjusted, strict=True):
        cells["p (Holm)"] = "" if math.isnan(p) else "< .001" if p < 0.0005 else f"{p:.3f}".lstrip("0")
        label, *names = [name for name in row if name not in ("experts", "sweep")]
        wrong += [f"{row[label]}, {name}: {row[name]} != {cells[name]}" for name in names if row[name] != cells[name]]
        each = "" if gain is None else "; " + " ".join(f"{value:+.1f}" for value in gain)
        print("  " + "; ".join([row[label], *(f"{name} {cell}" for name, cell in cells.items() if cell)]) + each)
    print(*wrong, sep="\n")
    return wrong


if __name__ == "__main__":
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    wrong = [cell for page, text in pages.items() for cell in (print(page), compare(text, PAGES[page]))[1]]
    sys.exit(f"{len(wrong)} cells of the pages differ" if wrong else 0)
