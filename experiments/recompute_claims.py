"""Prints the numbers that README.md and figures/README.md report, from the committed tables alone.

    python experiments/recompute_claims.py

An interval is Student t over training seeds, at 95 %: of an arm's win rates, or of the differences of two arms on the
same seeds. All arms of a sweep share their test subtasks, so a seed counts once. The tables of regimes_webshop and map
have no row per seed, so intervals over seeds cannot be computed for them.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

FIGURES = Path(__file__).parents[1] / "figures"
T = {3: 4.3027, 5: 2.7764, 8: 2.3646, 13: 2.1788}  # Student t, two-sided 5 %, by number of seeds
Arm = tuple[str, float, str]  # method, M or N (0: neither), experts
BC, RFT, EEF, CEILING = ("sft_pos", 0, "strong"), ("rft", 6, "strong"), ("eef", 5, "strong"), ("ceiling", 0, "perfect")
RFT_1, RFT_2 = ("rft", 1, "strong"), ("rft", 2, "strong")
EEF_1, EEF_2 = ("eef", 1, "strong"), ("eef", 2, "strong")
RFT_BOTH, EEF_BOTH, EEF_WEAK = ("rft", 6, "strong+weak"), ("eef", 5, "strong+weak"), ("eef", 5, "weak")
PARTS = [(f"eef_{part}=False", 5, "strong") for part in ("mask_harmful", "recovery", "one_per_state")]
OTHERS = [("sft_all", 0, "strong"), ("nat", 0, "strong"), ("eto", 1, "strong")]
PAIRS = [
    *[(arm, RFT) for arm in (EEF, EEF_1, EEF_2, EEF_BOTH, EEF_WEAK, BC, RFT_1, RFT_2, CEILING, *OTHERS)],
    *[(arm, BC) for arm in (EEF, RFT_1, RFT, OTHERS[-1], CEILING)],
    *[(arm, EEF) for arm in (EEF_1, EEF_2, EEF_BOTH, EEF_WEAK, *PARTS)],
    (EEF_BOTH, RFT_BOTH),
]


def arms(sweep: str) -> dict[Arm, pd.DataFrame]:
    """The rows of each arm of a sweep, one per training seed."""
    table = pd.read_csv(FIGURES / sweep / "win_rate_vs_budget.csv").set_index("seed").sort_index()
    number = table["m"].fillna(table["n"]).fillna(0).astype(int)
    return dict(iter(table.groupby([table["method"], number, table["experts"]])))


def interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean, and the ends of the 95 % t-interval over seeds."""
    half = T[len(values)] * values.std(ddof=1) / len(values) ** 0.5
    return values.mean(), values.mean() - half, values.mean() + half


def line(label: str, values: pd.Series, text: str = "") -> None:
    print(f"  {label:52}" + "{:+6.1f} ({:+6.1f} to {:+6.1f})".format(*interval(values)), text)


def name(arm: Arm) -> str:
    number = f" M={arm[1]}" if arm[0].startswith("eef") else f" x {arm[1]}" if arm[1] else ""
    return arm[0] + number + ("" if arm[2] == "strong" else f" {arm[2]}")


def differences(sweep: str, column: str) -> dict[tuple[Arm, Arm], pd.Series]:
    """The paired differences in points of all ``PAIRS`` that the sweep has, per seed."""
    table = arms(sweep)
    return {(a, b): 100 * (table[a][column] - table[b][column]) for a, b in PAIRS if a in table and b in table}


if __name__ == "__main__":
    for sweep in ("figure3", "paper_webshop", "scienceworld"):
        print(f"\n{sweep}: win %")
        for arm, rows in arms(sweep).items():
            line(name(arm), 100 * rows["win_rate"], f"{rows['episodes'].mean():,.0f} episodes")
        for column in ("win_rate", "win_rate_hard"):
            print(f"{sweep}: differences of {column} in points; how many seeds are above 0; by seed")
            for (a, b), values in differences(sweep, column).items():
                if not values.isna().any():
                    text = f"{(values > 0).sum()} of {len(values)}: " + " ".join(f"{value:+.1f}" for value in values)
                    line(f"{name(a)} minus {name(b)}", values, text)
    both = pd.concat([differences(sweep, "win_rate")[EEF, RFT] for sweep in ("figure3", "paper_webshop")])
    print("\nfigure3 and paper_webshop together")
    line(f"{name(EEF)} minus {name(RFT)}", both, f"{(both > 0).sum()} of {len(both)}")
    for sweep in ("figure3", "paper_webshop"):
        print(f"\n{sweep}: % of episodes that use Next and Back (policies: of their wins)")
        for row in pd.read_csv(FIGURES / sweep / "navigation.csv").itertuples():
            print(f"  {row.bar:52}{100 * row.next:6.1f}{100 * row.back:6.1f}")
