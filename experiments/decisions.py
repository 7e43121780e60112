"""How often a run's policy decides as perfect play does, by kind of decision, in states that perfect play reaches.

python experiments/decisions.py RUN_ID [RUN_ID ...] --tasks 150

Each decision is one greedy action in the state before it, on the first test subtasks of the run; a table per run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.analysis.tables import markdown
from eef.envs import make_env
from eef.experts import demonstrations
from eef.files import read_json
from eef.tracking.runs import default_root

KINDS = {"search": "search", "click[next": "Next", "click[< prev": "Prev", "click[buy": "buy", "click[b0": "open a row"}


def kind(action: str) -> str:
    """What sort of decision an action of the generated shop is."""
    return next((name for start, name in KINDS.items() if action.lower().startswith(start)), "option")


def decisions(folder: Path, tasks: int) -> pd.DataFrame:
    """A row per decision of a finished WebShop run's policy: kind (of the right one), right."""
    config = read_json(folder / "config.json")["config"]
    env = make_env("webshop", max_steps=config["max_steps"], catalogue=config["catalogue"])
    adapter = next(path for name in ("sft-0", "bc", "ceiling") if (path := folder / name).exists())
    policy = Policy.load(config["model"], adapter.resolve())
    played = demonstrations(env, env.tasks("test")[:tasks])
    rows = []
    for index in range(max(map(len, played))):
        longer = [item for item in played if len(item) > index]
        starts = [Start(item.task, item if index else None, index) for item in longer]
        acted = simulate(policy, env, starts, temperature=0.0, max_steps=index + 1)
        for item, tried in zip(longer, acted, strict=True):
            wanted = item.actions[index]
            rows.append({"kind": kind(wanted), "right": tried.actions[index].lower() == wanted.lower()})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN_ID")
    parser.add_argument("--tasks", type=int, default=150)
    parser.add_argument("--root", metavar="DIR", help="where runs are kept (default experiments/runs)")
    given = parser.parse_args()
    for name in given.runs:
        found = decisions(Path(given.root or default_root()) / name, given.tasks)
        table = found.groupby("kind")["right"].agg(["size", "mean"]).reset_index()
        table.loc[len(table)] = ["all", len(found), found["right"].mean()]
        table["mean"] = [f"{100 * share:.1f}" for share in table["mean"]]
        table.columns = ["decision", "states", "right %"]
        print(f"\n{name}\n\n{markdown(table)}")


if __name__ == "__main__":
    main()
