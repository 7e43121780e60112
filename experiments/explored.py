"""Win rates of a sweep: of its experts, of each arm per group of test subtasks, and of EEF from expert states.

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


def win_shares(outcomes: dict[str, list[bool]], name: str) -> pd.DataFrame:
    """A row per key: the number of episodes and the share won in %."""
    rows = [{name: key, "n": len(won), "won %": f"{100 * sum(won) / len(won):.0f}"} for key, won in outcomes.items()]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--root", metavar="DIR", help="folder of the runs (default experiments/runs)")
    args = parser.parse_args()
    root = Path(args.root or default_root())
    arms = by_arm(load_runs(root, read_json(root / "sweeps" / f"{args.sweep}.json")["run_ids"]))

    experts: dict[str, list[bool]] = defaultdict(list)
    for arm, group in arms.items():
        if arm.method == "sft_pos":
            for row in records(group):
                for trajectory in read_stage(row, "experts"):
                    for key in (f"{arm.experts}, all", f"{arm.experts}, {trajectory.task.rpartition('/')[0]}"):
                        experts[key].append(trajectory.won)
    print(markdown(win_shares(experts, "expert")))

    rates = {}
    for arm, group in arms.items():
        episodes = read_episodes(group)
        rates[arm_name(arm)] = 100 * episodes[~episodes["error"]].groupby("group")["won"].mean()
    print(f"\n{markdown(pd.DataFrame(rates).round(0).reset_index(names='test subtasks, won %'))}")

    states: dict[str, list[bool]] = defaultdict(list)
    best = max((arm for arm in arms if arm.method == "eef"), key=lambda arm: arm.m or 0)
    for row in records(arms[best]):
        lost = {trajectory.task for trajectory in read_stage(row, "experts") if trajectory.failed}
        for simulation in read_stage(row, "s0-0-0"):
            if simulation.task in lost and (simulation.won or simulation.failed):
                states["s0 of lost subtasks"].append(simulation.won)
        for simulation in sorted(read_stage(row, "states-0"), key=lambda simulation: simulation.prefix):
            if simulation.won or simulation.failed:
                states["all expert states"].append(simulation.won)
                states[f"s{simulation.prefix}"].append(simulation.won)
    print(f"\n{markdown(win_shares(states, f'{arm_name(best)}, first iteration: from'))}")


if __name__ == "__main__":
    main()
