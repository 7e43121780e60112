"""What the runs of a sweep trained on, and what their policies do on test subtasks: means over runs, per arm.

python experiments/learnt.py methods [--root DIR]

The test subtasks are the hard ones, or each of the environment's own groups (at most four), else all.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pandas as pd

from eef.agents.actions import uses
from eef.analysis.arms import arm_name, by_arm, read_episodes
from eef.analysis.statistics import without_errors
from eef.analysis.tables import compared_groups, markdown
from eef.envs.extras import extras_of
from eef.exchange.source import choose_stage
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
    """A row per arm. The skill is the first one of the environment; without skills its columns are left out."""
    skills = extras_of(runs["env"].iloc[0]).skills
    name, skill = next(iter(skills.items()), ("", None))
    rows = []
    for arm, group in by_arm(runs).items():
        counts: Counter[str] = Counter({"examples": 0})
        for folder in map(Path, group["folder"]):
            # the last SFT: what ETO's DPO sees is not counted
            stage = folder / choose_stage(folder, "learn_from.json", None, "SFT")
            begins = read_json(stage / "learn_from.json")["learn_from"]
            for example, begin in zip(load(stage / "examples.jsonl"), begins, strict=True):
                used = [bool(skill) and uses(action, skill) for action in example.actions]
                expert = used[begin : example.prefix]  # the expert's turns that carry loss
                counts["examples"] += 1
                if skill:
                    counts[f"use {skill.label}"] += any(used[begin:])
                counts["expert turns"] += len(expert)
                if skill:
                    counts[f"of them {skill.label}"] += sum(expert)
        row = {"arm": arm_name(arm, True), **{key: f"{count / len(group):.0f}" for key, count in counts.items()}}
        episodes = without_errors(read_episodes(group))
        groups = compared_groups([episodes]) if "group" in episodes else []
        parts = {f"{part}: ": own for part in groups if len(own := episodes[episodes["group"] == part])}
        for start, own in (parts or {"": episodes}).items():  # all test subtasks where there are no such groups
            row |= {f"{start}use {skill.label} %": f"{100 * own[name].mean():.0f}"} if skill else {}
            row |= {f"{start}out of steps %": f"{100 * (own['outcome'] == 'max_steps').mean():.0f}"}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
