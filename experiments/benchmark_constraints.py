"""The cost of constrained decoding: CPU time per decoding step, compared with a forward pass of a small model.

    python experiments/benchmark_constraints.py FOLDER_OF_TOKENIZER ...

With the tokenizer of each folder, answers of random allowed tokens are decoded on a search page, a results page, an
item page with many options, and a list of hundreds of actions. A turn is the work once per answer. A step computes the
allowed tokens and chooses one of them, from logits of the whole vocabulary. The forward pass is for one token, with a
Llama of SmolLM2-135M's size with random weights, on one thread. The script fails if a step costs more than a tenth of
it on average (``--share``).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from eef.agents.chat import Chat
from eef.agents.constraints import Constraints
from eef.agents.sampling import choose
from eef.agents.token_bytes import token_bytes_of
from eef.envs import make_env

# the end token separates all contents, so any tokenizer can be used
TEMPLATE = (
    "{% for m in messages %}{{ eos_token if m.role == 'user' else '' }}{{ m.content }}{{ eos_token }}{% endfor %}"
)
_COLOURS = "black blue brown coral cream gold green grey ivory lilac navy olive pink plum red rose sand teal".split()
_THINGS = (
    "apple, bathtub, bee hive, blue box, chair, cup containing nothing, door to the kitchen, drain, fern, flower pot, "
    "freezer, glass jar, inventory, metal pot, oven, paint can, red wire, sink, stopwatch, thermometer, wooden table"
).split(", ")


def pages() -> dict[str, tuple[dict[str, Any], str]]:
    """The available actions on each kind of page, and the subtask's first page."""
    env = make_env("webshop")
    first = env.reset(env.tasks("test")[0])
    search = env.available_actions()
    env.step("search[red shirt]")
    results = env.available_actions()
    env.step(f"click[{results['clickables'][2]}]")
    item = env.available_actions()["clickables"]
    item += [f"{a} and {b} (pack of {n})" for n, (a, b) in enumerate(product(_COLOURS[:10], _COLOURS[10:]))]
    actions = [f"{verb} {one}" for verb in ("focus on", "look at", "open", "pick up") for one in _THINGS]
    actions += [f"move {one} to {other}" for one, other in product(_THINGS, _THINGS) if one != other]
    return {
        "search page": (search, first),
        "results page": (results, first),
        "item page": ({"has_search_bar": False, "clickables": item}, first),
        "action list": ({"actions": actions}, first),
    }


def forward_pass(rounds: int, layers: int) -> float:
    """CPU seconds for the next token after 256 tokens."""
    config = AutoConfig.for_model(
        "llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    model, cache = AutoModelForCausalLM.from_config(config).eval(), DynamicCache()
    seconds = []
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 256, dtype=torch.long), past_key_values=cache, logits_to_keep=1)
        for _ in range(rounds):
            began = time.process_time()
            model(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, logits_to_keep=1)
            seconds.append(time.process_time() - began)
    return sorted(seconds)[rounds // 2]


def decode(chat: Chat, available: dict[str, Any], first: str, answers: int) -> tuple[float, float, float]:
    """CPU seconds per turn, per step on average, and of the longest step."""
    rng, logits = random.Random(0), torch.randn(1, len(chat.tokenizer))
    turns, steps = 0.0, []
    for _ in range(answers):
        began = time.process_time()
        constraints = Constraints.of(chat.begin(), available, first)
        turns += time.process_time() - began
        ids: list[int] = []
        while True:
            began = time.process_time()
            while len(allowed := constraints.allowed(ids)) == 1:
                ids.append(allowed[0])
            if allowed:
                choose(logits, [allowed], [rng.random], 1.0)
                steps.append(time.process_time() - began)
                ids.append(rng.choice(allowed))
            else:
                break
        constraints.action(ids)
    return turns / answers, sum(steps) / len(steps), max(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.1, help="maximum cost of a step, as a share of a forward pass")
    args = parser.parse_args()
    torch.set_num_threads(1)
    forward = forward_pass(args.rounds, args.layers)
    print(f"one forward pass: {1000 * forward:.1f} ms")
    print(f"{'tokenizer':14}{'tokens':>8} {'':13}{'turn ms':>9}{'step ms':>9}{'longest':>9}{'share':>8}")
    worst = 0.0
    for folder in args.folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TEMPLATE
        began = time.process_time()
        token_bytes_of(tokenizer)
        print(f"{folder.name:14}{len(tokenizer):8} read in {time.process_time() - began:.2f} s, once")
        chat = Chat.of(tokenizer)
        for name, (available, first) in pages().items():
            turn, step, longest = decode(chat, available, first, args.answers)
            worst = max(worst, step / forward)
            cells = f"{1000 * turn:9.2f}{1000 * step:9.3f}{1000 * longest:9.2f}{100 * step / forward:6.1f} %"
            print(f"{'':23}{name:13}{cells}", flush=True)
    if worst > args.share:
        sys.exit(f"a step costs {100 * worst:.0f} % of a forward pass: more than {100 * args.share:.0f} %")


if __name__ == "__main__":
    main()
