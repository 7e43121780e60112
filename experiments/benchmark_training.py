"""What rows with a union of masks and sorting by length save: the same gradient, in CPU seconds.

    python experiments/benchmark_training.py --trajectories 24 --turns 8

Winning trajectories of the embedded shop as SFT could train on them: a row per step (all before the step is context),
drawn at random and padded, or one row per trajectory with the union of the masks, of similar length together. Each way
reads everything once, forward and backward, on the embedded model with its LoRA adapter, on one thread. The script
fails unless the losses and the gradients are the same.
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
from eef.training.rows import Row, collate, rows_of, united


@dataclass
class Pass:
    """One reading of everything: CPU seconds, tokens with padding, sum of the losses, gradient of it."""

    seconds: float
    tokens: int
    loss: float
    gradient: torch.Tensor


def read(policy: Policy, rows: list[Row], order: list[int], size: int) -> Pass:
    """Forward and backward over all rows, ``size`` at a time."""
    learnt = [weight for weight in policy.model.parameters() if weight.requires_grad]
    policy.model.zero_grad()
    loss, tokens, began = 0.0, 0, time.process_time()
    for at in range(0, len(order), size):
        items = [{"input_ids": rows[i].ids, "mask": rows[i].mask} for i in order[at : at + size]]
        batch = collate(items, policy.pad)
        part = policy.model(**batch, num_items_in_batch=1, use_cache=False).loss  # a sum: divided by one item
        part.backward()
        loss += float(part.detach())
        tokens += batch["input_ids"].numel()
    seconds = time.process_time() - began
    return Pass(seconds, tokens, loss, torch.cat([weight.grad.flatten() for weight in learnt]).clone())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=24)
    parser.add_argument("--turns", type=int, default=8, help="one more or less is taken, too")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    env = make_env("webshop")
    won = [t for t in demonstrations(env, env.tasks("train")) if t.won and abs(len(t) - given.turns) <= 1]
    won = won[: given.trajectories]
    if len(won) < given.trajectories:
        parser.error(f"only {len(won)} trajectories have {given.turns} turns, or one more or less: ask for fewer")
    policy = Policy.load()
    policy.new_adapter(seed=0)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:  # zeros, as an adapter begins, would leave half of the gradient zero
            torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(1))
    policy.model.train()
    steps = [Example(replace(t, turns=t.turns[: i + 1]), i) for t in won for i in range(len(t))]
    apart, _ = rows_of(policy, steps)
    whole = united(apart)
    assert len(whole) == len(won) and sum(sum(r.mask) for r in whole) == sum(sum(r.mask) for r in apart)
    torch.manual_seed(0)
    drawn = torch.randperm(len(apart)).tolist()
    mixed = torch.randperm(len(whole)).tolist()
    alike = list(LengthGroupedSampler(8, lengths=[len(row.ids) for row in whole]))
    ways = {
        "a row per step, at random, 8 at a time": (apart, drawn, 8),
        "a row per step, at random, 2 at a time": (apart, drawn, 2),
        "a row per trajectory, at random, 8 at a time": (whole, mixed, 8),
        "a row per trajectory, by length, 2 at a time (what eef does)": (whole, alike, 2),
    }
    read(policy, whole, alike[:4], 2)  # to warm up
    found: dict[str, list[Pass]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, (rows, order, size) in ways.items():
            found[name].append(read(policy, rows, order, size))
    last = found[list(ways)[-1]]
    learnt = sum(sum(row.mask) for row in whole)
    print(f"{len(won)} trajectories, {np.mean([len(t) for t in won]):.1f} turns on average, {learnt} learnt tokens")
    print(f"{'':62} {'rows':>5} {'tokens':>8} {'CPU s':>7} {'ratio':>6}")
    for name, passes in found.items():
        one, other = passes[0], last[0]
        assert abs(one.loss - other.loss) < 1e-4 * other.loss, f"another loss: {one.loss} and {other.loss}"
        off = float((one.gradient - other.gradient).norm() / other.gradient.norm())
        assert off < 1e-4, f"another gradient: {off:.1e} off ({name})"
        ratio = np.median([a.seconds / b.seconds for a, b in zip(passes, last, strict=True)])
        seconds = np.median([each.seconds for each in passes])
        print(f"{name:62} {len(ways[name][0]):>5} {one.tokens:>8,} {seconds:>7.2f} {ratio:>6.1f}")
    print(f"the same loss ({last[0].loss / learnt:.4f} a learnt token) and gradient in all; medians")


if __name__ == "__main__":
    main()
