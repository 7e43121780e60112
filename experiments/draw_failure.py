"""Draws the picture at the top of README.md: a failure of the embedded expert that shows what EEF learns from.

    python experiments/draw_failure.py        # some minutes on one core; writes figures/failure

The policy is the behaviour clone of the demo (seed 0). Each state of each failure is simulated once, and the failures
are sorted by how clearly these outcomes explain the method (clearest_first). One after another is then simulated 40
fresh times from each state. The first is drawn that has a beneficial and a harmful segment and whose labels are all
reliable: each state is won clearly more or clearly less than half of the time (is_reliable in
eef/analysis/failed_trajectory.py).
"""

from __future__ import annotations

from pathlib import Path

import torch
from measure_states import simulate

from eef.agents.policy import load_chat
from eef.analysis.failed_trajectory import clearest_first, draw_failure, is_reliable
from eef.envs import make_env
from eef.envs.extras import extras_of
from eef.lab import Lab
from eef.selection import segments
from eef.settings import Settings
from eef.tracking.runs import Run, default_root, stamp

SIMULATIONS, MOST_FAILURES = 40, 30
OUT = Path(__file__).parents[1] / "figures" / "failure"


if __name__ == "__main__":
    torch.set_num_threads(1)
    env = make_env("webshop", max_steps=15)
    extras = extras_of(env)
    settings = Settings(epochs=10.0)
    chat = load_chat(settings.model)
    run = Run.open(default_root() / "failure", env.name, "failure", 0, {}, stamp(env.stamp(), chat.hash))
    lab = Lab(run, env, settings, 0, env.tasks("train")[:250], [], chat)

    failures = [expert for expert in lab.experts() if expert.failed]
    once = simulate(lab, failures, 1, "states-once", 7)
    explored = [
        (expert, {i: one if one.won else None for i, (one,) in enumerate(states)})
        for expert, states in zip(failures, once, strict=True)
    ]
    for number, (expert, _) in enumerate(clearest_first(explored, extras.skills)[:MOST_FAILURES]):
        (states,) = simulate(lab, [expert], SIMULATIONS, f"states-{number}", 8)
        won = [[one for one in samples if one.won] for samples in states]
        counts = {i: (len(wins), SIMULATIONS) for i, wins in enumerate(won)}
        outcomes = {i: wins[0] if 2 * len(wins) > SIMULATIONS else None for i, wins in enumerate(won)}
        kinds = {part.kind for part in segments(expert, outcomes)}
        print(
            f"task {expert.task}: wins of {SIMULATIONS} at each state: {[wins for wins, _ in counts.values()]}",
            flush=True,
        )
        if all(is_reliable(*count) for count in counts.values()) and {"beneficial", "harmful"} <= kinds:
            about = (
                f"webshop · a scripted expert's failure · {SIMULATIONS} simulations per state, by the behaviour clone"
            )
            print(draw_failure(expert, outcomes, OUT, about, extras, counts=counts))
            break
    else:
        raise SystemExit(f"none of {MOST_FAILURES} failures has reliable labels: raise SIMULATIONS or MOST_FAILURES")
