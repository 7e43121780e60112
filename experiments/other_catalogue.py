"""Tests the policies of a sweep on a catalogue that they were not trained on.

    eef sweep experiments/main_comparison.yaml
    python experiments/other_catalogue.py --sweep main_comparison --out figures/other_catalogue

Each run is evaluated by the protocol webshop-embedded-v1: 500 test subtasks of the embedded catalogue (seed 0). A run
that was evaluated already is not played again. Writes the tables and the picture of win rate against budget; the budget
is that of the run. ``outcomes.csv`` has no columns of the budget.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from eef.analysis.arms import records
from eef.analysis.figures import win_rate_vs_budget
from eef.analysis.outcomes import BUDGET, outcome_table
from eef.evaluation.evaluate import evaluate
from eef.files import read_json
from eef.tracking.records import default_root, load_runs

ARMS = ("sft_pos", "rft-n6", "eef-m5", "eef_restart_only=True-m5")


def evaluated(root: Path, sweep: str, protocol: str, arms: Sequence[str]) -> pd.DataFrame:
    """The finished runs of the ``arms`` of a sweep, with the results of their evaluation in place of their own."""
    runs = load_runs(root, read_json(root / "sweeps" / f"{sweep}.json")["run_ids"])
    rows = []
    for run in records(runs[runs["label"].isin(arms)]):
        folder = evaluate(run["folder"], protocol, {}, root, wandb="disabled")
        measured = read_json(folder / "eval" / "summary.json")
        del measured["episodes"]  # of the test; the run's own number is that of its simulations
        rows.append({**run, **measured, "folder": str(folder), "hashes": {}})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", required=True, help="a sweep whose runs are finished")
    parser.add_argument("--protocol", default="webshop-embedded-v1", help="a protocol with other subtasks")
    parser.add_argument("--arms", nargs="+", default=ARMS, help="their labels in `eef runs`; default: %(default)s")
    parser.add_argument("--root", type=Path, default=default_root(), help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    runs = evaluated(args.root, args.sweep, args.protocol, args.arms)
    print(win_rate_vs_budget(runs, args.out))
    outcome_table(runs, args.out).drop(columns=BUDGET).to_csv(args.out / "outcomes.csv", index=False)


if __name__ == "__main__":
    main()
