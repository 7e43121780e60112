"""Counts what test episodes do after a step back from an item, for the medium subtasks of docs/results/smollm2.md.

    eef sweep experiments/smollm2.yaml
    python experiments/steps_back.py --root experiments/runs

A row per method, over all seeds in ``--root``: episodes; those that go back from an item page; those that then open a
row that they had not opened before; wins; and of the losses those that bought without going back, those that went back
and opened a row a second time, and those that ran out of turns.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pandas as pd

from eef.analysis.arms import arm_name, arm_of, records
from eef.analysis.tables import markdown
from eef.envs.extras import extras_of
from eef.envs.webshop import WebShop
from eef.tracking.runs import load_runs
from eef.trajectory import Trajectory, load


def counts(episode: Trajectory) -> Counter[str]:
    """The columns of one episode."""
    actions = episode.actions
    backs = [at for at, action in enumerate(actions) if action == "click[< prev]" and "Buy Now" in episode.state(at)]
    opened: set[str] = set()
    again = other = False
    for at, action in enumerate(actions):
        if action.startswith("click[b0"):
            again |= action in opened
            other |= bool(backs) and at > backs[0] and action not in opened
            opened.add(action)
    late, lost = episode.outcome == "max_steps", not episode.won
    return Counter(
        episodes=1, goes_back=bool(backs), opens_another_row=other, won=episode.won,
        lost_without_going_back=lost and not backs and not late, lost_same_row_again=lost and bool(backs) and again,
        lost_out_of_turns=lost and late,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the runs")
    runs = load_runs(parser.parse_args().root)
    rows: dict[str, Counter[str]] = {}
    for run in records(runs):
        shop = WebShop(catalogue=run["config"]["catalogue"], max_steps=run["config"]["max_steps"])
        groups = extras_of(shop).groups(shop, shop.tasks("test"))
        for episode in load(Path(run["folder"]) / "test" / "trajectories.jsonl"):
            if groups.get(episode.task) == "medium":
                rows.setdefault(arm_name(arm_of(run)), Counter()).update(counts(episode))
    print(markdown(pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").reset_index()))


if __name__ == "__main__":
    main()
