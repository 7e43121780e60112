"""What a sweep's experts won, what each arm wins per group of test subtasks, and from which expert states EEF wins.

python experiments/explored.py scienceworld [--root DIR]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import pandas as pd

from eef.analysis.arms import arm_name, by_arm, read_episodes, read_stage, records
from eef.analysis.tables import markdown
from eef.files import read_json
from eef.tracking.runs import default_root, load_runs


def shares(found: dict[str, list[bool]], name: str) -> pd.DataFrame:
    """A row per key: how many there are and the share won in %."""
    rows = [{name: key, "n": len(won), "won %": f"{100 * sum(won) / len(won):.0f}"} for key, won in found.items()]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--root", metavar="DIR", help="where runs are kept (default experiments/runs)")
    given = parser.parse_args()
    root = Path(given.root or default_root())
    arms = by_arm(load_runs(root, read_json(root / "sweeps" / f"{given.sweep}.json")["run_ids"]))

    experts: dict[str, list[bool]] = defaultdict(list)
    for arm, group in arms.items():
        if arm.method == "sft_pos":
            for row in records(group):
                for played in read_stage(row, "experts"):
                    for key in (f"{arm.experts}, all", f"{arm.experts}, {played.task.rpartition('/')[0]}"):
                        experts[key].append(played.won)
    print(markdown(shares(experts, "expert")))

    rates = {}
    for arm, group in arms.items():
        episodes = read_episodes(group)
        rates[arm_name(arm)] = 100 * episodes[~episodes["error"]].groupby("group")["won"].mean()
    print(f"\n{markdown(pd.DataFrame(rates).round(0).reset_index(names='test subtasks, won %'))}")

    states: dict[str, list[bool]] = defaultdict(list)
    best = max((arm for arm in arms if arm.method == "eef"), key=lambda arm: arm.m or 0)
    for row in records(arms[best]):
        lost = {played.task for played in read_stage(row, "experts") if played.failed}
        for played in read_stage(row, "s0-0-0"):
            if played.task in lost and (played.won or played.failed):
                states["s0 of lost subtasks"].append(played.won)
        for played in sorted(read_stage(row, "states-0"), key=lambda played: played.prefix):
            if played.won or played.failed:
                states["all expert states"].append(played.won)
                states[f"s{played.prefix}"].append(played.won)
    print(f"\n{markdown(shares(states, f'{arm_name(best)}, first iteration: from'))}")


if __name__ == "__main__":
    main()
