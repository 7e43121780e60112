"""Prints the intervals that README.md and figures/README.md report, from the committed tables alone.

    python experiments/recompute_claims.py

An interval is Student t over training seeds, at 95 %: of an arm's win rates, or of the differences of two arms on the
same seeds. All arms of a sweep share their test subtasks, so a seed counts once. `+` counts the seeds with a positive
difference. The tables of regimes_webshop and map have no row per seed, so their intervals cannot be computed here.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

T = {3: 4.3027, 5: 2.7764, 8: 2.3646, 13: 2.1788}  # Student t, two-sided 5 %, by number of seeds
FIGURES = Path(__file__).parents[1] / "figures"
EEF, RFT, BC, CEILING = (
    ("eef", 5.0, "strong"),
    ("rft", 6.0, "strong"),
    ("sft_pos", 0.0, "strong"),
    ("ceiling", 0.0, "perfect"),
)
BOTH = "strong+weak"
Arm = tuple[str, float, str]  # method, M or N, experts


def rates(sweep: str, arm: Arm, column: str = "win_rate") -> pd.Series:
    """One value of ``column`` per training seed of ``arm``, times 100."""
    table = pd.read_csv(FIGURES / sweep / "win_rate_vs_budget.csv")
    number = table["m"].fillna(table["n"]).fillna(0)
    number = number.where(table["method"] != "eto", 0)
    rows = table[(table["method"] == arm[0]) & (number == arm[1]) & (table["experts"] == arm[2])]
    if rows.empty:
        raise SystemExit(f"figures/{sweep}/win_rate_vs_budget.csv has no arm {arm}")
    return 100 * rows.set_index("seed")[column].sort_index()


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean, and the ends of the 95 % t-interval over seeds."""
    half = T[len(values)] * values.std(ddof=1) / len(values) ** 0.5
    return values.mean(), values.mean() - half, values.mean() + half


def name(arm: Arm) -> str:
    symbol = {"eef": " M=", "rft": " x "}.get(arm[0].split("_")[0])
    return arm[0] + (f"{symbol}{arm[1]:g}" if symbol else "") + (f", {arm[2]}" if arm[2] != "strong" else "")


def arms(sweep: str) -> None:
    table = pd.read_csv(FIGURES / sweep / "win_rate_vs_budget.csv")
    table["number"] = table["m"].fillna(table["n"]).fillna(0).where(table["method"] != "eto", 0)
    print(f"\n{sweep}: win rates in %, with t-intervals over {table['seed'].nunique()} seeds")
    for arm, rows in table.groupby(["method", "number", "experts"]):
        mean, low, high = interval(100 * rows["win_rate"])
        print(f"  {name(arm):36} {mean:5.1f} ({low:5.1f} to {high:5.1f})   {rows['episodes'].mean():6,.0f} episodes")


def difference(sweep: str, a: Arm, b: Arm = RFT, column: str = "win_rate") -> pd.Series:
    """Prints the paired difference of ``a`` minus ``b``, and returns it per seed."""
    values = rates(sweep, a, column) - rates(sweep, b, column)
    show(
        f"{name(a)} minus {name(b)}" + (f" ({column.removeprefix('win_rate_')})" if column != "win_rate" else ""),
        values,
    )
    return values


def show(label: str, values: pd.Series) -> None:
    mean, low, high = interval(values)
    by_seed = " ".join(f"{value:+.1f}" for value in values)
    print(
        f"  {label:50} {mean:+5.1f} ({low:+5.1f} to {high:+5.1f})  + {(values > 0).sum()} of {len(values)}: {by_seed}"
    )


if __name__ == "__main__":
    both = []
    for sweep in ("figure3", "paper_webshop"):
        arms(sweep)
        print("differences in points")
        both.append(difference(sweep, EEF))
        for one in (EEF, ("eef", 1.0, "strong"), ("eef", 2.0, "strong"), ("eef", 5.0, BOTH)):
            difference(sweep, one, column="win_rate_hard")
        for one in (
            ("eef", 1.0, "strong"),
            ("eef", 2.0, "strong"),
            ("eef", 5.0, BOTH),
            BC,
            CEILING,
            ("rft", 1.0, "strong"),
        ):
            difference(sweep, one)
        difference(sweep, EEF, BC)
        difference(sweep, RFT, BC)
        difference(sweep, ("rft", 1.0, "strong"), BC)
        difference(sweep, ("eef", 5.0, BOTH), EEF)
        difference(sweep, ("eef_mask_harmful=False", 5.0, "strong"), EEF)
        difference(sweep, ("eef_mask_harmful=False", 5.0, "strong"), EEF, "win_rate_hard")
    print("\nfigure3 and paper_webshop together")
    show("eef M=5 minus rft x 6", pd.concat(both))
    arms("scienceworld")
