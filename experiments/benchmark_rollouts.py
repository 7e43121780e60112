"""Rollouts with the KV cache compared with a plain baseline: the ratio of CPU seconds for the same greedy actions.

    python experiments/benchmark_rollouts.py
    python experiments/benchmark_rollouts.py --model smollm2 --dtype bfloat16 --episodes 4 --turns 15 --constrained

The baseline reads each conversation again at every turn: one ``generate`` for the batch of all live episodes, padded on
the left. Our engine keeps the KV cache across turns. The second part simulates from M states of each expert failure,
once with common prefixes read once, and once with every conversation read whole when it starts. The model is a Llama
with random weights and a tokenizer trained on some pages. It never buys, so every episode takes all its turns. Both
parts are played without instructions and with the environment's instructions before the first page.

``--model`` plays a real model in its place, and prints the limit: the arithmetic of its weights on each token that the
engine reads once, divided by the speed of matrix products of its size. With ``--constrained`` both sides decode only
the available actions, ``generate`` through its ``prefix_allowed_tokens_fn``; without it a model that was not trained
answers with sentences that are no actions. ``--engine`` plays the same episodes on a vLLM server as well, which serves
the same model in the same number type on this machine (docs/serving.md); ``--server`` is its process, whose CPU seconds
count together with ours.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eef.agents import episode, react
from eef.agents.actions import Answer
from eef.agents.cached_engine import CachedEngine
from eef.agents.chat import Chat
from eef.agents.constraints import Constraints
from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.agents.vllm import served
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
    """A shop whose episodes end ``further`` turns after the environment was forked."""

    further, left = 1000, 1000

    def fork(self) -> Self:
        twin = super().fork()
        twin.left = self.further
        return twin

    def step(self, action: str) -> Step:
        step, self.left = super().step(action), self.left - 1
        return replace(step, done=step.done or self.left == 0)


class NoSharing(CachedEngine):
    """Reads every conversation whole."""

    def start(self, prompts: dict[int, list[int]]) -> None:
        for slot, ids in prompts.items():
            self.cached[slot], self.pending[slot] = [], list(ids)


@dataclass
class NoSharingPolicy(Policy):
    def engine(self, slots: int) -> NoSharing:
        return NoSharing(self, slots)


def whole_reply(reply: str, react: bool = False, cut: bool = False) -> Answer:
    """Use the whole answer as the action: a random policy's answers are cut, and would otherwise be invalid."""
    return Answer(reply.strip() or "nothing", None, len(reply))


def random_policy(pages: Sequence[str], width: int, layers: int, words: int) -> Policy:
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
    """The baseline, which reads all live conversations from their start at every turn; the actions of each episode."""
    end, stops = list(policy.chat.end), sorted(policy.stops)
    twins, dialogues = [env.fork() for _ in tasks], [policy.chat.begin() for _ in tasks]
    pages = [twin.reset(task) for twin, task in zip(twins, tasks, strict=True)]
    ids = [dialogue.encode_observation(page) for dialogue, page in zip(dialogues, pages, strict=True)]
    actions: list[list[str]] = [[] for _ in tasks]
    live = list(range(len(tasks)))
    while live:
        longest = max(len(ids[one]) for one in live)
        rows = torch.tensor([[policy.pad] * (longest - len(ids[one])) + ids[one] for one in live])
        mask = torch.tensor([[0] * (longest - len(ids[one])) + [1] * len(ids[one]) for one in live])
        allowed = [
            Constraints.of(dialogues[one], twins[one].available_actions(), pages[one], policy.max_new_tokens)
            for one in live
            if policy.constrained_decoding
        ]
        more: dict[str, Any] = {"max_new_tokens": policy.max_new_tokens}
        if allowed:
            more["max_new_tokens"] = max(one.max_tokens for one in allowed) + len(end)
            more["prefix_allowed_tokens_fn"] = partial(allowed_ids, allowed, longest, policy)
        generated = policy.model.generate(
            input_ids=rows, attention_mask=mask, do_sample=False, eos_token_id=stops, **more
        )[:, longest:]
        for place, (one, row) in enumerate(zip(list(live), generated.tolist(), strict=True)):
            answer = row[: next((at for at, token in enumerate(row) if token in policy.stops), len(row))] + end
            if allowed:
                actions[one].append(allowed[place].action(answer))
            else:
                actions[one].append(whole_reply(dialogues[one].decode_action(answer)).action)
            step = twins[one].step(actions[one][-1])
            ids[one] += answer + dialogues[one].encode_observation(step.observation)
            if step.done or len(actions[one]) == env.max_steps:
                live.remove(one)
    return actions


def allowed_ids(
    constraints: Sequence[Constraints], start: int, policy: Policy, place: int, ids: torch.Tensor
) -> list[int]:
    """What ``generate`` may decode next in row ``place``, whose answer begins at ``start``."""
    answer = ids[start:].tolist()
    if policy.stops & set(answer):  # the row is finished, and the others are not
        return [policy.pad]
    return constraints[place].allowed(answer)


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def server_seconds(process: int) -> float:
    """CPU seconds so far of a process and of all that it started (Linux)."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a process that ended meanwhile
            state = path.read_text().rpartition(")")[2].split()  # from the third field on
            stats[int(path.parent.name)] = (int(state[1]), int(state[11]) + int(state[12]))
    family = {process}
    while more := {child for child, (parent, _) in stats.items() if parent in family} - family:
        family |= more
    return sum(stats[each][1] for each in family) / os.sysconf("SC_CLK_TCK")


def reading_limit(policy: Policy, tokens: int) -> float:
    """The least CPU seconds for ``tokens`` in one thread: two operations per weight, at the speed of a product."""
    config = policy.model.config
    shapes, dtype = ((1024, config.hidden_size), (config.hidden_size, config.intermediate_size)), policy.model.dtype
    a, b = (torch.randn(shape, dtype=dtype) for shape in shapes)
    times = [cpu(lambda: [a @ b for _ in range(50)])[0] / 50 for _ in range(5)]
    rate = 2 * a.numel() * b.shape[1] / min(times)
    weights = sum(each.numel() for name, each in policy.model.named_parameters() if "embed_tokens" not in name)
    return 2 * weights * tokens / rate


def starts_of(experts: Sequence[Trajectory], m: int) -> list[Start]:
    """The simulations of an iteration of EEF: M states of each failure."""
    return [Start(one.task, one, index) for one in experts if one.failed for index in cut_points(len(one), m)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--failures", type=int, default=6, help="expert failures of the second part")
    parser.add_argument("--m", type=int, default=5)
    parser.add_argument("--further", type=int, default=6, help="turns of a simulation after its state")
    parser.add_argument("--words", type=int, default=16, help="most tokens of an answer")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--model", help="a real model in place of the random one")
    parser.add_argument("--dtype", default="float32", help="number type of --model")
    parser.add_argument("--constrained", action="store_true", help="decode only available actions; needs --model")
    parser.add_argument("--engine", help="address of a vLLM server of --model on this machine")
    parser.add_argument("--server", type=int, help="process number of that server")
    options = parser.parse_args()
    if options.engine and not (options.model and options.server):
        parser.error("--engine needs --model and --server")
    torch.set_num_threads(1)
    shop = Short(max_steps=15)
    experts = expert_trajectories(shop, "strong", shop.tasks("train"), 0)
    failed = [one for one in experts if one.failed][: options.failures]
    pages = [one.state(i) for one in experts[:60] for i in range(len(one))]
    if options.model:
        bare = Policy.load(
            options.model, dtype=options.dtype, max_new_tokens=options.words, constrained_decoding=options.constrained
        )
        if not options.engine:  # as a policy in training; a new adapter changes no answer
            bare.new_adapter(0)
    else:
        bare = random_policy(pages, options.width, options.layers, options.words)
    size = sum(weights.numel() for weights in bare.model.parameters()) / 1e6
    print(f"{size:.1f} million parameters, answers of at most {options.words} tokens, one thread; CPU seconds")
    inexact = options.dtype != "float32"  # sums in half precision depend on their order, and so do some actions
    if not options.constrained:
        episode.read_action = whole_reply
    policies = {"with the model's instructions" if bare.chat.instructions else "pages alone": bare}
    if not options.model:
        chat = replace(bare.chat, instructions=react.opening("webshop")[0]["content"])
        policies["with instructions"] = replace(bare, chat=chat)
    simulate(bare, shop, [Start(shop.tasks("train")[0])], temperature=0.0, max_steps=2)  # warm

    for name, policy in policies.items():
        tasks, shop.max_steps, Short.further = shop.tasks("train")[: options.episodes], options.turns, 1000
        initial = [Start(task) for task in tasks]
        slow, theirs = cpu(lambda policy=policy, tasks=tasks: plain(policy, shop, tasks))
        fast, ours = cpu(lambda policy=policy, initial=initial: simulate(policy, shop, initial, temperature=0.0))
        same = sum(a.actions == b for a, b in zip(ours, theirs, strict=True))
        assert same == len(ours) or inexact, f"the actions differ in {len(ours) - same} episodes"
        prompt = len(policy.chat.begin().encode_observation(ours[0].prompt))
        print(f"{name}: {len(ours)} episodes, {sum(map(len, theirs))} turns, {prompt} tokens before the first answer")
        print(f"  histories read again each turn {slow:.1f}, with the cache {fast:.1f}: {slow / fast:.1f} times")
        if inexact:
            print(f"  {same} of {len(ours)} episodes have the same actions")
        if options.engine:
            about = {"constrained_decoding": options.constrained, "max_new_tokens": options.words, "context": 8192}
            with served(options.engine, options.model, chat=policy.chat, **about) as there:
                simulate(there, shop, [Start(shop.tasks("train")[-1])], temperature=0.0, max_steps=2)  # warm
                before = server_seconds(options.server)
                own, theirs = cpu(lambda there=there, initial=initial: simulate(there, shop, initial, temperature=0.0))
                server = server_seconds(options.server) - before
            same = sum(a.actions == b.actions for a, b in zip(ours, theirs, strict=True))
            times = (server + own) / fast
            print(f"  vLLM: server {server:.1f}, our side of it {own:.1f}, together {times:.1f} times the cache")
            print(f"  {same} of {len(ours)} episodes have the same actions as with the cache")
        if options.model:
            tokens = sum(len(policy.chat.render(each, [False] * len(each))[0]) for each in ours)
            print(f"  limit for the {tokens:,} tokens of these conversations: {reading_limit(policy, tokens):.1f}")

        shop.max_steps, Short.further, starts = 30, options.further, starts_of(failed, options.m)
        apart = NoSharingPolicy(**{each.name: getattr(policy, each.name) for each in fields(policy)})
        alone, theirs = cpu(lambda policy=apart, starts=starts: simulate(policy, shop, starts, temperature=0.0))
        shared, ours = cpu(lambda policy=policy, starts=starts: simulate(policy, shop, starts, temperature=0.0))
        assert ours == theirs or inexact, "the actions differ"
        print(
            f"  {len(starts)} simulations of {options.further} turns ({options.m} states of {len(failed)} failures): "
            f"read whole {alone:.1f}, common prefixes once {shared:.1f}: {alone / shared:.1f} times"
        )


if __name__ == "__main__":
    main()
