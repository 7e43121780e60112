"""What the runs of a sweep trained on, and what their policies do on hard test subtasks: means over runs, per arm.

python experiments/learnt.py methods [--root DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from eef.agents.actions import uses
from eef.analysis.arms import arm_name, by_arm, read_episodes
from eef.analysis.tables import markdown
from eef.envs.extras import extras_of
from eef.files import read_json
from eef.tracking.runs import default_root, load_runs
from eef.trajectory import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--root", metavar="DIR", help="folder of the runs (default experiments/runs)")
    args = parser.parse_args()
    root = Path(args.root or default_root())
    runs = load_runs(root, read_json(root / "sweeps" / f"{args.sweep}.json")["run_ids"])
    runs["train"] = [config["train"] for config in runs["config"]]
    runs["policy"] = [Path(config["model"]).name for config in runs["config"]]
    regimes = [name for name in ("train", "policy") if runs[name].nunique() > 1]
    rows = []
    for regime, part in runs.groupby(regimes) if regimes else [((), runs)]:
        rows += [dict(zip(regimes, regime, strict=True)) | row for row in learnt(part)]
    print(markdown(pd.DataFrame(rows)))


def learnt(runs: pd.DataFrame) -> list[dict[str, str]]:
    """A row per arm; the skill is the first one of the environment."""
    name, skill = next(iter(extras_of(runs["env"].iloc[0]).skills.items()))
    rows = []
    for arm, group in by_arm(runs).items():
        counts = {"examples": 0, f"use {skill.label}": 0, "expert turns": 0, f"of them {skill.label}": 0}
        for folder in map(Path, group["folder"]):
            last = sorted(folder.glob("sft-[0-9]"))[-1:]  # the last SFT: what ETO's DPO sees is not counted
            stage = [
                *last,
                *(folder / name for name in ("ceiling", "sft-all", "nat", "bc") if (folder / name).exists()),
            ][0]
            begins = read_json(stage / "learn_from.json")["learn_from"]
            for example, begin in zip(load(stage / "examples.jsonl"), begins, strict=True):
                used = [uses(action, skill) for action in example.actions]
                expert = used[begin : example.prefix]  # the expert's turns that carry loss
                counts["examples"] += 1
                counts[f"use {skill.label}"] += any(used[begin:])
                counts["expert turns"] += len(expert)
                counts[f"of them {skill.label}"] += sum(expert)
        hard = read_episodes(group).query("group == 'hard'")
        row = {"arm": arm_name(arm, True), **{key: f"{count / len(group):.0f}" for key, count in counts.items()}}
        row |= {f"hard: use {skill.label} %": f"{100 * hard[name].mean():.0f}"}
        rows.append({**row, "out of steps %": f"{100 * (hard['outcome'] == 'max_steps').mean():.0f}"})
    return rows


if __name__ == "__main__":
    main()
