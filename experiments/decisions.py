"""How often a WebShop run's policy chooses the perfect action, by kind of action, in states that perfect play reaches.

python experiments/decisions.py RUN_ID [RUN_ID ...] --tasks 150

Each decision is one greedy action of the policy that the run tested, in the states of perfect play on the run's first
test subtasks. A table per run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.analysis.tables import markdown
from eef.evaluation.subject import tested_adapter
from eef.exchange.source import env_of_run
from eef.experts import demonstrations
from eef.files import read_json
from eef.tracking.runs import default_root

KINDS = {"search": "search", "click[next": "Next", "click[< prev": "Prev", "click[buy": "buy", "click[b0": "open a row"}


def kind(action: str) -> str:
    """The kind of decision that an action is."""
    return next((name for start, name in KINDS.items() if action.lower().startswith(start)), "option")


def decisions(folder: Path, tasks: int) -> pd.DataFrame:
    """A row per decision of a finished run's policy: kind (of the perfect action), right."""
    env = env_of_run(folder)
    policy = Policy.load(read_json(folder / "config.json")["config"]["model"], tested_adapter(folder))
    perfect = demonstrations(env, env.tasks("test")[:tasks])
    rows = []
    for index in range(max(map(len, perfect))):
        longer = [item for item in perfect if len(item) > index]
        starts = [Start(item.task, item if index else None, index) for item in longer]
        simulations = simulate(policy, env, starts, temperature=0.0, max_steps=index + 1)
        for item, simulation in zip(longer, simulations, strict=True):
            action = item.actions[index]
            rows.append({"kind": kind(action), "right": simulation.actions[index].lower() == action.lower()})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN_ID")
    parser.add_argument("--tasks", type=int, default=150)
    parser.add_argument("--root", metavar="DIR", help="folder of the runs (default experiments/runs)")
    args = parser.parse_args()
    for name in args.runs:
        rows = decisions(Path(args.root or default_root()) / name, args.tasks)
        table = rows.groupby("kind")["right"].agg(["size", "mean"]).reset_index()
        table.loc[len(table)] = ["all", len(rows), rows["right"].mean()]
        table["mean"] = [f"{100 * share:.1f}" for share in table["mean"]]
        table.columns = ["decision", "states", "right %"]
        print(f"\n{name}\n\n{markdown(table)}")


if __name__ == "__main__":
    main()
