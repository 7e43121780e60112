"""Win rates of a sweep: of its experts, of each arm per group of test subtasks, and of EEF from expert states; and how
the test episodes of each arm end.

    python experiments/explored.py experiments/runs/sweeps/scienceworld.json

The file is the index of the sweep in its folder of runs. The runs of several files are joined: a sweep that ran in
parts has one for each part.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import pandas as pd

from eef.analysis.arms import arm_name, by_arm, read_episodes, read_stage, records
from eef.analysis.tables import markdown
from eef.files import read_json
from eef.tracking.runs import load_runs


def win_shares(outcomes: dict[str, list[bool]], name: str) -> pd.DataFrame:
    """A row per key: the number of episodes and the share won in %."""
    rows = [{name: key, "n": len(won), "won %": f"{100 * sum(won) / len(won):.0f}"} for key, won in outcomes.items()]
    return pd.DataFrame(rows)


def ends(episodes: pd.DataFrame, limit: int) -> dict[str, float]:
    """How episodes of ScienceWorld end, in %. An episode that is lost before ``limit`` steps has focused on a wrong
    thing, or has outgrown the context. One that is lost at the limit with a best score of at least .5 has focused on a
    right one.
    """
    rated = episodes[~episodes["error"]]
    at_limit, overflow = ~rated["won"] & (rated["steps"] >= limit), rated["outcome"] == "context_overflow"
    kinds = {
        "won": rated["won"],
        "wrong focus": ~rated["won"] & ~at_limit & ~overflow,
        "out of context": overflow & ~at_limit,
        "right focus, then out of steps": at_limit & (rated["max_score"] >= 0.5),
        "out of steps before": at_limit & (rated["max_score"] < 0.5),
    }
    return {name: 100 * float(kind.mean()) for name, kind in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, nargs="+", metavar="FILE", help="index of a sweep, in its folder of runs")
    args = parser.parse_args()
    runs = [load_runs(file.resolve().parents[1], read_json(file)["run_ids"]) for file in args.index]
    arms = by_arm(pd.concat(runs, ignore_index=True))

    experts: dict[str, list[bool]] = defaultdict(list)
    for arm, group in arms.items():
        if arm.method == "sft_pos":
            for row in records(group):
                for trajectory in read_stage(row, "experts"):
                    for key in (f"{arm.experts}, all", f"{arm.experts}, {trajectory.task.rpartition('/')[0]}"):
                        experts[key].append(trajectory.won)
    print(markdown(win_shares(experts, "expert")))

    rates, ended = {}, []
    for arm, group in arms.items():
        episodes = read_episodes(group)
        rates[arm_name(arm)] = 100 * episodes[~episodes["error"]].groupby("group")["won"].mean()
        if "max_score" in episodes:
            limit = int(group["config"].iloc[0]["max_steps"])
            for name, part in episodes.groupby("group"):
                ended.append({"arm": arm_name(arm), "test subtasks": name, **ends(part, limit)})
    print(f"\n{markdown(pd.DataFrame(rates).round(0).reset_index(names='test subtasks, won %'))}")
    if ended:
        print(f"\n{markdown(pd.DataFrame(ended).round(1))}")

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
