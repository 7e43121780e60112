"""CPU time saved by merging the steps of a trajectory into one row, by sorting rows by length, and by fewer logits.

    python experiments/benchmark_training.py --trajectories 24 --turns 8
    python experiments/benchmark_training.py --trajectories 2 --turns 5 --rounds 1 --model smollm2

SFT could train on winning trajectories with one row per step (all before the step is context), in random order, or with
one row per trajectory and the union of the masks, grouped by length. Its logits could be those of all tokens, or of the
tokens that carry loss. Each variant reads everything once, forward and backward, with a LoRA adapter in float32, on one
thread. The script fails unless the losses and the gradients are the same.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from eef.agents.policy import Policy
from eef.envs import make_env
from eef.experts import demonstrations
from eef.selection import Example
from eef.training.likelihoods import learnt_log_probabilities
from eef.training.rows import Row, collate, merge_prefix_rows, rows_of


@dataclass
class Pass:
    """One pass over everything: CPU seconds, tokens with padding, sum of the losses, its gradient."""

    seconds: float
    tokens: int
    loss: float
    gradient: torch.Tensor


def read(policy: Policy, rows: list[Row], order: list[int], size: int, all_logits: bool = True) -> Pass:
    """Forward and backward over all rows, ``size`` at a time."""
    learnt = [weight for weight in policy.model.parameters() if weight.requires_grad]
    policy.model.zero_grad()
    loss, tokens, began = 0.0, 0, time.process_time()
    for at in range(0, len(order), size):
        items = [{"input_ids": rows[i].ids, "mask": rows[i].mask} for i in order[at : at + size]]
        batch = collate(items, policy.pad)
        if all_logits:
            part = policy.model(**batch, num_items_in_batch=1, use_cache=False).loss  # a sum: divided by one item
        else:
            part = -learnt_log_probabilities(policy.model, batch).sum()
        part.backward()
        loss += float(part.detach())
        tokens += batch["input_ids"].numel()
    seconds = time.process_time() - began
    return Pass(seconds, tokens, loss, torch.cat([weight.grad.flatten() for weight in learnt]).clone())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=24)
    parser.add_argument("--turns", type=int, default=8, help="within one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="embedded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    env = make_env("webshop")
    won = [t for t in demonstrations(env, env.tasks("train")) if t.won and abs(len(t) - options.turns) <= 1]
    won = won[: options.trajectories]
    if len(won) < options.trajectories:
        parser.error(f"only {len(won)} trajectories have {options.turns} turns within one: reduce --trajectories")
    policy = Policy.load(options.model, dtype="float32")
    policy.new_adapter(seed=0)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:  # with the initial zeros, half of the gradient would be zero
            torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(1))
    policy.model.train()
    steps = [Example(replace(t, turns=t.turns[: i + 1]), i) for t in won for i in range(len(t))]
    step_rows, _ = rows_of(policy, steps)
    merged = merge_prefix_rows(step_rows)
    assert len(merged) == len(won) and sum(sum(r.mask) for r in merged) == sum(sum(r.mask) for r in step_rows)
    torch.manual_seed(0)
    step_order = torch.randperm(len(step_rows)).tolist()
    random_order = torch.randperm(len(merged)).tolist()
    length_order = list(LengthGroupedSampler(8, lengths=[len(row.ids) for row in merged]))
    variants = {
        "a row per step, at random, 8 at a time": (step_rows, step_order, 8, True),
        "a row per step, at random, 2 at a time": (step_rows, step_order, 2, True),
        "a row per trajectory, at random, 8 at a time": (merged, random_order, 8, True),
        "a row per trajectory, by length, 2 at a time": (merged, length_order, 2, True),
        "the same, logits of tokens with loss (what eef does)": (merged, length_order, 2, False),
    }
    read(policy, merged, length_order[:4], 2)  # warm-up
    passes: dict[str, list[Pass]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, variant in variants.items():
            passes[name].append(read(policy, *variant))
    last = passes[list(variants)[-1]]
    learnt = sum(sum(row.mask) for row in merged)
    print(f"{len(won)} trajectories, {np.mean([len(t) for t in won]):.1f} turns on average, {learnt} learnt tokens")
    print(f"{'':62} {'rows':>5} {'tokens':>8} {'CPU s':>7} {'ratio':>6}")
    for name, runs in passes.items():
        one, other = runs[0], last[0]
        assert abs(one.loss - other.loss) < 1e-4 * other.loss, f"the losses differ: {one.loss} and {other.loss}"
        off = float((one.gradient - other.gradient).norm() / other.gradient.norm())
        assert off < 1e-4, f"the gradients differ by {off:.1e} ({name})"
        ratio = np.median([a.seconds / b.seconds for a, b in zip(runs, last, strict=True)])
        seconds = np.median([each.seconds for each in runs])
        print(f"{name:62} {len(variants[name][0]):>5} {one.tokens:>8,} {seconds:>7.2f} {ratio:>6.1f}")
    print(f"all have the same loss ({last[0].loss / learnt:.4f} per learnt token) and gradient; times are medians")


if __name__ == "__main__":
    main()
