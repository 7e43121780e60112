"""Joins the tables of a sweep that ran in parts, on several machines or with other seeds, and draws its picture.

    eef sweep experiments/main_comparison.yaml -p "seeds=[317, 318, 319, 320]" --out part
    python experiments/join_parts.py figures/main_comparison part --out figures/main_comparison

Rows of ``win_rate_vs_budget.csv``, ``outcomes.csv`` and ``seconds.csv`` are joined, sorted as one sweep sorts them. The
parts must have the same test subtasks, and no arm with the same seed in two of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from redraw_figures import redraw

from eef.analysis.arms import ARM_COLUMNS

KEYS = [*ARM_COLUMNS, "seed", "run_id"]


def join(parts: list[Path], out: Path) -> Path:
    """Join ``parts`` into ``out``; returns the picture. ValueError if they are not parts of one sweep."""
    subtasks = {(part / "subtasks.csv").read_bytes() for part in parts}
    if len(subtasks) > 1:
        raise ValueError(f"{parts[0]} and {parts[1]}: subtasks.csv differs, so these are not parts of one sweep")
    tables = {}
    for name in ("win_rate_vs_budget", "outcomes", "seconds"):
        frames = [pd.read_csv(part / f"{name}.csv", dtype=str, keep_default_na=False) for part in parts]
        if len({tuple(frame) for frame in frames}) > 1:
            raise ValueError(f"{name}.csv has other columns in some parts: run them with the same code and parameters")
        table = pd.concat(frames)
        if len(twice := table[table.duplicated("run_id")]):
            raise ValueError(f"{name}.csv: the run {twice['run_id'].iloc[0]} is in two parts: leave one of them out")
        table = table.reset_index(drop=True)
        numbers = {key: pd.to_numeric(table[key]).fillna(-1) for key in ("n", "m", "k", "seed") if key in table}
        place = table.assign(**numbers).sort_values([key for key in KEYS if key in table]).index
        tables[name] = table.loc[place]
    rates = tables["win_rate_vs_budget"]
    arm = [name for name in (*ARM_COLUMNS, "seed") if name in rates]
    if len(twice := rates[rates.duplicated(arm)]):
        raise ValueError(f"two parts have a run of {twice[arm].iloc[0].to_dict()}: leave one of them out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "subtasks.csv").write_bytes(subtasks.pop())
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
    return redraw(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", type=Path, nargs="+", metavar="FOLDER", help="figures of each part")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    print(join(args.parts, args.out))


if __name__ == "__main__":
    main()
