"""Draws a failed expert trajectory that shows what EEF learns from (the paper's Figure 1).

    python experiments/draw_failure.py        # the picture of README.md; some minutes on one core

    python experiments/draw_failure.py --env scienceworld --max-steps 16 --env-options "{valid_actions: true}" \\
        --settings "{model: embedded-scienceworld, tune: full, lr: 0.001}" --tasks 100 --out figures/failure_sw

The policy is the behaviour clone. Each state of each failure is simulated once, and the failures are sorted by how
clearly these outcomes explain the method (clearest_first). One after another is then simulated 40 fresh times from each
state. The first is drawn that has a beneficial and a harmful segment and whose labels are all reliable: each state is
won clearly more or clearly less than half of the time (is_reliable in eef/analysis/failed_trajectory.py). Without
options it is the embedded expert and the behaviour clone of the demo.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from measure_states import simulate

from eef.agents.policy import load_chat
from eef.analysis.failed_trajectory import clearest_first, draw_failure, is_reliable
from eef.envs import env_from_parameters
from eef.envs.extras import extras_of
from eef.files import joined_names, names_file
from eef.lab import Lab
from eef.selection import segments
from eef.settings import Settings
from eef.sweeps.strict_yaml import load_yaml
from eef.tracking.runs import Run, default_root, stamp

MOST_FAILURES = 30


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="webshop", help="webshop or scienceworld")
    parser.add_argument("--max-steps", type=int, default=15, help="steps per episode")
    parser.add_argument("--env-options", default="{}", metavar="YAML", help="options of the environment, as in a sweep")
    parser.add_argument("--settings", default="{epochs: 10.0}", metavar="YAML", help="as in a sweep")
    parser.add_argument("--tasks", type=int, default=250, help="how many training subtasks")
    parser.add_argument("--seed", type=int, default=0, help="of the expert and the training")
    parser.add_argument("--simulations", type=int, default=40, help="how many from each state")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "figures" / "failure", metavar="DIR")
    parser.add_argument("--root", metavar="DIR", help="folder of the runs (default experiments/runs/failure)")
    args = parser.parse_args(words)

    torch.set_num_threads(1)
    options = {
        name: load_yaml(getattr(args, name), f"--{name.replace('_', '-')}", command_line=True)
        for name in ("env_options", "settings")
    }
    env = env_from_parameters({**vars(args), **options})
    extras = extras_of(env)
    settings = Settings(**options["settings"])
    chat = load_chat(settings.model)
    root = Path(args.root) if args.root else default_root() / "failure"
    run = Run.open(root, env.name, "failure", args.seed, {}, stamp(env.stamp(), chat.hash))
    lab = Lab(run, env, settings, args.seed, env.tasks("train")[: args.tasks], [], chat)

    failures = [expert for expert in lab.experts() if expert.failed]
    once = simulate(lab, failures, 1, "states-once", 7)
    explored = [
        (expert, {i: one if one.won else None for i, (one,) in enumerate(states) if one.won or one.failed})
        for expert, states in zip(failures, once, strict=True)
    ]
    for number, (expert, _) in enumerate(clearest_first(explored, extras.skills)[:MOST_FAILURES]):
        (states,) = simulate(lab, [expert], args.simulations, f"states-{number}", 8)
        valid = [[one for one in samples if one.won or one.failed] for samples in states]  # without errors
        won = [[one for one in samples if one.won] for samples in valid]
        counts = {i: (len(wins), len(valid[i])) for i, wins in enumerate(won)}
        outcomes = {i: wins[0] if 2 * len(wins) > len(valid[i]) else None for i, wins in enumerate(won)}
        kinds = {part.kind for part in segments(expert, outcomes)}
        each = ", ".join(f"{wins}/{simulations}" for wins, simulations in counts.values())
        print(f"task {expert.task}: wins/simulations at each state: {each}", flush=True)
        if all(is_reliable(*count) for count in counts.values()) and {"beneficial", "harmful"} <= kinds:
            whose = "an expert's" if any(map(names_file, joined_names(settings.experts))) else "a scripted expert's"
            about = f"{env.name} · {whose} failure · {args.simulations} simulations per state, by the behaviour clone"
            print(draw_failure(expert, outcomes, args.out, about, extras, counts=counts))
            break
    else:
        raise SystemExit(
            f"none of {min(MOST_FAILURES, len(failures))} failures has a beneficial and a harmful segment and reliable "
            "labels: raise --tasks or --simulations"
        )


if __name__ == "__main__":
    main()
