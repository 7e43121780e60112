"""Draws the picture at the top of README.md: a failure of the embedded expert that shows what EEF learns from.

    python experiments/draw_failure.py        # about three minutes on one core; writes figures/failure

The policy is the behaviour clone of the demo (seed 0). It is simulated 40 times from each state of one failure, and a
state counts as won if more than half of its simulations won. A method simulates each state once. The failure is
chosen because it tells the story clearly: the expert turns a page, opens the right product, and buys the wrong colour.
"""

from __future__ import annotations

from pathlib import Path

import torch

from eef.agents.policy import load_chat
from eef.agents.rollout import Start
from eef.analysis.failed_trajectory import draw_failure
from eef.envs import make_env
from eef.envs.extras import extras_of
from eef.lab import Lab
from eef.methods import sft_pos
from eef.settings import Settings
from eef.tracking.runs import Run, default_root, stamp

TASK, SIMULATIONS = "1258", 40
NOTES = {
    0: "learnt",
    1: "learnt: it turns the page",
    2: "the right product",
    3: "not learnt: the colour is wrong",
}
OUT = Path(__file__).parents[1] / "figures" / "failure"

if __name__ == "__main__":
    torch.set_num_threads(1)
    env = make_env("webshop", max_steps=15)
    settings = Settings(epochs=10.0)
    chat = load_chat(settings.model)
    run = Run.open(default_root() / "failure", env.name, "failure", 0, {}, stamp(env.stamp(), chat.hash))
    lab = Lab(run, env, settings, 0, env.tasks("train")[:250], [], chat)
    expert = next(expert for expert in lab.experts() if expert.task == TASK)
    starts = [Start(TASK, expert if i else None, i, sample=n) for i in range(len(expert)) for n in range(SIMULATIONS)]
    simulated = lab.simulate("states", sft_pos(lab), starts, 7)

    wins = {
        i: [one for one, start in zip(simulated, starts, strict=True) if start.index == i and one.won]
        for i in range(len(expert))
    }
    outcomes = {i: won[0] if len(won) > SIMULATIONS / 2 else None for i, won in wins.items()}
    counts = {i: (len(won), SIMULATIONS) for i, won in wins.items()}
    about = "webshop · a scripted expert's failure · simulations by the behaviour clone"
    print(draw_failure(expert, outcomes, OUT, about, extras_of(env), counts=counts, notes=NOTES))
