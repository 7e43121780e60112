"""Rollouts against the plain way: the same episodes and the same greedy actions, as a ratio of CPU seconds in one run.

    python experiments/benchmark_rollouts.py

The plain way reads each conversation anew at every turn: one ``generate`` for the batch of all live episodes, padded on
the left. Ours keeps the KV cache across turns. Then the simulations from M states of each expert failure: with their
common beginnings read once, and with every conversation read whole when it begins (its cache still kept across turns).
The model is a Llama with random weights whose tokenizer has read some pages: it never buys, so that every episode takes
all its turns. Both parts are played without instructions and with those of ``eef/prompts`` before the first page.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eef.agents import react, rollout
from eef.agents.actions import Answer
from eef.agents.chat import Chat
from eef.agents.engine import Actor
from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.envs import Step
from eef.envs.webshop import WebShop
from eef.experts import expert_trajectories
from eef.selection import cut_points
from eef.trajectory import Trajectory

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Short(WebShop):
    """A shop that closes ``further`` turns after a state was taken up."""

    further, left = 1000, 1000

    def fork(self) -> Self:
        twin = super().fork()
        twin.left = self.further
        return twin

    def step(self, action: str) -> Step:
        step, self.left = super().step(action), self.left - 1
        return replace(step, done=step.done or self.left == 0)


class Apart(Actor):
    """Reads every conversation whole."""

    def open(self, prompts: dict[int, list[int]]) -> None:
        for slot, ids in prompts.items():
            self.held[slot], self.waiting[slot] = [], list(ids)


def taken(reply: str, react: bool = False, cut: bool = False) -> Answer:
    """A random policy's answers are cut at the token limit: they are taken for actions all the same."""
    return Answer(reply.strip() or "nothing", None, len(reply))


def made(pages: Sequence[str], width: int, layers: int, words: int) -> Policy:
    """A policy with random weights."""
    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator(pages, 2000, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=4, max_position_embeddings=8192, initializer_range=0.05,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    return Policy(model.eval(), tokenizer, Chat.of(tokenizer), "random", 8192, False, words)


@torch.inference_mode()
def plain(policy: Policy, env: WebShop, tasks: Sequence[str]) -> list[list[str]]:
    """Every turn, all live conversations are read from their beginning; the actions of each episode."""
    end, stops = list(policy.chat.end), sorted(policy.stops)
    twins, talks = [env.fork() for _ in tasks], [policy.chat.begin() for _ in tasks]
    ids = [talk.encode_observation(twin.reset(task)) for talk, twin, task in zip(talks, twins, tasks, strict=True)]
    actions: list[list[str]] = [[] for _ in tasks]
    live = list(range(len(tasks)))
    while live:
        longest = max(len(ids[one]) for one in live)
        rows = torch.tensor([[policy.pad] * (longest - len(ids[one])) + ids[one] for one in live])
        mask = torch.tensor([[0] * (longest - len(ids[one])) + [1] * len(ids[one]) for one in live])
        found = policy.model.generate(
            input_ids=rows, attention_mask=mask, do_sample=False, max_new_tokens=policy.max_new_tokens,
            eos_token_id=stops,
        )[:, longest:]  # fmt: skip
        for one, row in zip(list(live), found.tolist(), strict=True):
            said = row[: next((place for place, token in enumerate(row) if token in policy.stops), len(row))] + end
            actions[one].append(taken(talks[one].decode_action(said)).action)
            step = twins[one].step(actions[one][-1])
            ids[one] += said + talks[one].encode_observation(step.observation)
            if step.done or len(actions[one]) == env.max_steps:
                live.remove(one)
    return actions


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and what was made."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def states(experts: Sequence[Trajectory], m: int) -> list[Start]:
    """The simulations of an iteration of EEF: M states of each failure."""
    return [Start(one.task, one, index) for one in experts if one.failed for index in cut_points(len(one), m)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--failures", type=int, default=6, help="expert failures of the second part")
    parser.add_argument("--m", type=int, default=5)
    parser.add_argument("--further", type=int, default=6, help="turns that a simulation takes from its state on")
    parser.add_argument("--words", type=int, default=16, help="tokens of an answer at most")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shop = Short(max_steps=15)
    experts = expert_trajectories(shop, "strong", shop.tasks("train"), 0)
    failed = [one for one in experts if one.failed][: given.failures]
    bare = made([one.state(i) for one in experts[:60] for i in range(len(one))], given.width, given.layers, given.words)
    size = sum(weights.numel() for weights in bare.model.parameters()) / 1e6
    print(f"{size:.1f} million parameters, answers of at most {given.words} tokens, one thread; CPU seconds")
    rollout.read_action = taken
    told = replace(bare, chat=replace(bare.chat, instructions=react.opening("webshop")[0]["content"]))
    simulate(bare, shop, [Start(shop.tasks("train")[0])], temperature=0.0, max_steps=2)  # warm

    for name, policy in (("pages alone", bare), ("with instructions", told)):
        tasks, shop.max_steps, Short.further = shop.tasks("train")[: given.episodes], given.turns, 1000
        opened = [Start(task) for task in tasks]
        slow, theirs = cpu(lambda policy=policy, tasks=tasks: plain(policy, shop, tasks))
        fast, ours = cpu(lambda policy=policy, opened=opened: simulate(policy, shop, opened, temperature=0.0))
        same = sum(a.actions == b for a, b in zip(ours, theirs, strict=True))
        assert same == len(ours), f"the two ways played other actions in {len(ours) - same} episodes"
        opening = len(policy.chat.begin().encode_observation(ours[0].prompt))
        print(f"{name}: {len(ours)} episodes, {sum(map(len, theirs))} turns, the first page read as {opening} tokens")
        print(f"  histories read anew each turn {slow:.1f}, cache kept {fast:.1f}: {slow / fast:.1f} times")

        shop.max_steps, Short.further, starts = 30, given.further, states(failed, given.m)
        rollout.Actor = Apart
        apart, theirs = cpu(lambda policy=policy, starts=starts: simulate(policy, shop, starts, temperature=0.0))
        rollout.Actor = Actor
        shared, ours = cpu(lambda policy=policy, starts=starts: simulate(policy, shop, starts, temperature=0.0))
        assert ours == theirs, "the two ways played other actions"
        print(
            f"  {len(starts)} simulations of {given.further} turns from {given.m} states of {len(failed)} failures: "
            f"begun apart {apart:.1f}, common beginnings once {shared:.1f}: {apart / shared:.1f} times"
        )


if __name__ == "__main__":
    main()
