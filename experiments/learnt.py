"""What the runs of a sweep trained on, and what their policies do on hard test subtasks: means over runs, per arm.

python experiments/learnt.py figure3 [--root DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from decisions import kind

from eef.analysis.arms import arm_name, by_arm, read_episodes
from eef.analysis.tables import markdown
from eef.files import read_json
from eef.tracking.runs import default_root, load_runs
from eef.trajectory import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--root", metavar="DIR", help="where runs are kept (default experiments/runs)")
    given = parser.parse_args()
    root = Path(given.root or default_root())
    runs = load_runs(root, read_json(root / "sweeps" / f"{given.sweep}.json")["run_ids"])
    runs["train"] = [config["train"] for config in runs["config"]]
    runs["policy"] = [Path(config["model"]).name for config in runs["config"]]
    regimes = [name for name in ("train", "policy") if runs[name].nunique() > 1]
    rows = []
    for regime, part in runs.groupby(regimes) if regimes else [((), runs)]:
        rows += [dict(zip(regimes, regime, strict=True)) | row for row in learnt(part)]
    print(markdown(pd.DataFrame(rows)))


def learnt(runs: pd.DataFrame) -> list[dict[str, str]]:
    """A row per arm."""
    rows = []
    for arm, group in by_arm(runs).items():
        counted = {"examples": 0, "turn a page": 0, "expert turns": 0, "of them Next": 0}
        for folder in map(Path, group["folder"]):
            last = sorted(folder.glob("sft-[0-9]"))[-1:]  # ETO's DPO comes after its SFT: what that one saw is counted
            stage = [
                *last,
                *(folder / name for name in ("ceiling", "sft-all", "nat", "bc") if (folder / name).exists()),
            ][0]
            begins = read_json(stage / "learn_from.json")["learn_from"]
            for example, begin in zip(load(stage / "examples.jsonl"), begins, strict=True):
                kinds = [kind(action) for action in example.actions]
                expert = kinds[begin : example.prefix]  # the expert's turns that carry loss
                counted["examples"] += 1
                counted["turn a page"] += "Next" in kinds[begin:]
                counted["expert turns"] += len(expert)
                counted["of them Next"] += expert.count("Next")
        hard = read_episodes(group).query("group == 'hard'")
        row = {"arm": arm_name(arm, True), **{name: f"{number / len(group):.0f}" for name, number in counted.items()}}
        row |= {"hard: use Next %": f"{100 * hard['next'].mean():.0f}"}
        rows.append({**row, "out of steps %": f"{100 * (hard['outcome'] == 'max_steps').mean():.0f}"})
    return rows


if __name__ == "__main__":
    main()
