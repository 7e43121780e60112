"""Draws win rate against budget again from a sweep's committed table, for sweeps whose run folders no longer exist.

    python experiments/redraw_figures.py                    # all folders with such a table
    python experiments/redraw_figures.py figures/methods    # this one

The table is the same before and after: only the pictures are written anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from eef.analysis.figures import win_rate_vs_budget

FIGURES = Path(__file__).parents[1] / "figures"


def redraw(folder: Path) -> Path:
    """Draw the picture of ``folder/win_rate_vs_budget.csv``; returns the PNG. ValueError if the table changes."""
    file = folder / "win_rate_vs_budget.csv"
    before = file.read_bytes()
    rows = pd.read_csv(file, keep_default_na=False, na_values=[""])
    rows["env"] = [run.partition("__")[0] for run in rows["run_id"]]
    rows["hashes"] = [{} for _ in range(len(rows))]  # the runs of one sweep were compared when they were drawn first
    picture = win_rate_vs_budget(rows, folder)
    if file.read_bytes() != before:
        file.write_bytes(before)
        raise ValueError(f"{file}: drawing it again changes the table; it was written back. Run the sweep again")
    return picture


if __name__ == "__main__":
    named = [Path(name) for name in sys.argv[1:]]
    for folder in named or sorted(path.parent for path in FIGURES.glob("*/win_rate_vs_budget.csv")):
        print(redraw(folder))
