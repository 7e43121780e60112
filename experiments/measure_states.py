"""Measures how often a policy wins from each state of expert failures: the curves for plan_flips.py.

    python experiments/measure_states.py           # some ten minutes on one core
    python experiments/plan_flips.py --curves figures/plan_flips/states-100.csv

The policy is the behaviour clone of the embedded policy. The failures are the first of the strong expert, in the order
of the training subtasks. The file has a row for each state s_0 ... s_(n-1): task, state, wins, simulations. Simulations
that ended in an infrastructure error are not counted. Use seeds and catalogues of development here (100 to 199), since
the planner is chosen on these curves. Training and simulations are stages in the folder of runs: a second call resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from eef.agents.policy import load_chat
from eef.agents.rollout import Start
from eef.envs import make_env
from eef.lab import Lab
from eef.methods import sft_pos
from eef.settings import Settings
from eef.sweeps.strict_yaml import load_yaml
from eef.tracking.runs import Run, default_root, stamp
from eef.trajectory import Trajectory


def simulate(
    lab: Lab, experts: Sequence[Trajectory], times: int, stage: str, seed: int
) -> list[list[list[Trajectory]]]:
    """``times`` simulations of the behaviour clone from each state of each expert trajectory:
    [trajectory][state][sample].
    """
    starts = [
        Start(expert.task, expert if i else None, i, sample=sample)
        for expert in experts
        for i in range(len(expert))
        for sample in range(times)
    ]
    played = iter(lab.simulate(stage, sft_pos(lab), starts, seed))
    return [[[next(played) for _ in range(times)] for _ in range(len(expert))] for expert in experts]


def counts(simulations: Sequence[Sequence[Sequence[Trajectory]]]) -> pd.DataFrame:
    """A row for each state of what :func:`simulate` returned: task, state, wins, simulations that won or lost."""
    rows = [
        {
            "task": samples[0].task,
            "state": index,
            "wins": sum(each.won for each in samples),
            "simulations": sum(each.won or each.failed for each in samples),
        }
        for states in simulations
        for index, samples in enumerate(states)
    ]
    return pd.DataFrame(rows, columns=["task", "state", "wins", "simulations"])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--catalogue", default="{seed: 100}", metavar="YAML", help="options of the catalogue")
    parser.add_argument("--seed", type=int, default=100, help="of the expert, the training and the simulations")
    parser.add_argument("--tasks", type=int, default=250, help="how many training subtasks the policy is cloned on")
    parser.add_argument("--failures", type=int, default=40, help="how many expert failures are simulated")
    parser.add_argument("--simulations", type=int, default=20, help="how many from each state")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default figures/plan_flips/states-SEED.csv")
    parser.add_argument("--root", metavar="DIR", help="folder of the runs (default experiments/runs)")
    args = parser.parse_args(words)
    if args.simulations < 20:
        parser.error(f"--simulations={args.simulations} must be at least 20, since the win rates count as the truth")
    out = args.out or Path(__file__).parents[1] / "figures" / "plan_flips" / f"states-{args.seed}.csv"

    torch.set_num_threads(1)
    env = make_env("webshop", max_steps=15, catalogue=load_yaml(args.catalogue, "--catalogue", command_line=True))
    settings = Settings(epochs=10.0)
    chat = load_chat(settings.model)
    root = Path(args.root) if args.root else default_root()
    run = Run.open(root, env.name, "measure-states", args.seed, {}, stamp(env.stamp(), chat.hash))
    lab = Lab(run, env, settings, args.seed, env.tasks("train")[: args.tasks], [], chat)
    failures = [expert for expert in lab.experts() if expert.failed]
    if not 0 < args.failures <= len(failures):
        raise ValueError(
            f"--failures={args.failures} must be from 1 to {len(failures)}, the failures of the expert on "
            f"{len(lab.tasks)} subtasks: lower it, or raise --tasks"
        )
    stage = "state-curves"
    table = counts(simulate(lab, failures[: args.failures], args.simulations, stage, lab.sampling_seed(0)))
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False)
    print(f"{len(table)} states of {args.failures} failures, {table['simulations'].sum()} simulations; wrote {out}")


if __name__ == "__main__":
    main()
