"""QLoRA on one GPU: memory and speed of SFT and of rollouts, compared with the limits of the card.

    python experiments/benchmark_gpu.py --out figures/gpu

The model has the architecture of Llama-3-8B and random weights in NF4: its answers are noise, its costs are not. SFT
reads rows of 2,048 and 4,096 tokens (paged 8-bit AdamW, gradient checkpointing, eight rows per update). Rollouts
generate an answer in 1 to 256 conversations at once. Two limits are measured on the same card: a large matrix product
in bfloat16, and a copy of memory. A forward pass of decoding reads all weights and the cache once. The share of the
bandwidth is those bytes divided by the time, relative to the copy.

``--small`` runs the same code with a tiny model, also on a CPU. It tests the script and measures nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eef.agents.cached_engine import CachedEngine
from eef.agents.policy import Policy
from eef.analysis.tables import markdown, write_table
from eef.training.rows import Row
from eef.training.sft import fit

LLAMA_3_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip
SMALL = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def random_policy(folder: Path, shape: dict[str, Any], device: str) -> Policy:
    """A policy with random weights, saved in bfloat16 and loaded in NF4, with a new adapter."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    torch.set_default_dtype(before)
    model.save_pretrained(folder)
    del model
    letters = {symbol: place for place, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    policy = Policy.load(str(folder), quantize="nf4", dtype="bfloat16" if device == "cuda" else "float32")
    policy.new_adapter(0)
    return policy


def timed(work: Callable[[], Any], rounds: int = 5) -> float:
    """Seconds of the fastest round; the first one (warm-up) does not count."""
    times = []
    for _ in range(rounds + 1):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak() -> float:
    """Peak memory since the last call, in GB (nan on a CPU)."""
    if not torch.cuda.is_available():
        return float("nan")
    most = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return most


def ceilings(device: str, size: int) -> tuple[float, float]:
    """Floating-point operations and bytes per second of the card, from a matrix product and a copy."""
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    b = torch.empty_like(a)
    blocks = torch.empty(16, size, size, dtype=torch.bfloat16, device=device)
    into = torch.empty_like(blocks)
    product = 2 * size**3 / timed(lambda: torch.matmul(a, a, out=b))
    return product, 2 * blocks.numel() * 2 / timed(lambda: into.copy_(blocks))  # read and written


def size_of(policy: Policy) -> tuple[int, int]:
    """Number of weights that every pass multiplies with (all but the embedding), and their bytes in memory."""
    count = size = 0
    for name, weight in policy.model.named_parameters():
        if "embed_tokens" in name:
            continue
        four_bit = type(weight).__name__ == "Params4bit"
        count += 2 * weight.numel() if four_bit else weight.numel()
        size += weight.numel() * weight.element_size()
    return count, size


def training(policy: Policy, length: int, steps: int, optimizer: str, folder: Path) -> dict[str, float]:
    """QLoRA SFT on rows of ``length`` tokens, half of which carry loss: tokens per second after the first step."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(8 * steps):
        ids = tuple(int(token) for token in rng.integers(0, 256, length))
        rows.append(Row(ids, tuple(place % 64 >= 32 for place in range(length))))
    ends: list[float] = []

    def on_step(*_: Any) -> None:
        wait()
        ends.append(time.perf_counter())

    peak()
    fit(
        policy.model, rows, pad=policy.pad, folder=folder, epochs=1, lr=1e-4, batch_size=8, seed=0, micro_batch_size=1,
        optimizer=optimizer, gradient_checkpointing=True, on_step=on_step,
    )  # fmt: skip
    return {"tokens_per_s": 8 * length * (len(ends) - 1) / (ends[-1] - ends[0]), "memory_GB": peak()}


def rollouts(
    policy: Policy, slots: int, prompt: int, words: int, bandwidth: float, weight_bytes: int
) -> dict[str, float]:
    """One answer of ``words`` tokens in each of ``slots`` conversations with different prompts; decoding is timed."""
    rng = np.random.default_rng(0)
    engine = CachedEngine(policy, slots)
    peak()
    wait()
    began = time.perf_counter()
    engine.start({slot: [int(token) for token in rng.integers(0, 256, prompt)] for slot in range(slots)})
    engine.next_logits(list(range(slots)))
    wait()
    reading = time.perf_counter() - began
    for slot in range(slots):
        engine.append(slot, [1])
    policy.max_new_tokens = words
    draws = {slot: rng.random for slot in range(slots)}
    began = time.perf_counter()
    answers = engine.generate(list(range(slots)), draws, 1.0)
    wait()
    seconds = time.perf_counter() - began
    tokens = sum(map(len, answers.values()))
    passes = max(map(len, answers.values()))
    config = policy.model.config
    cache = (
        2 * config.num_hidden_layers * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    )
    cache *= slots * (prompt + words // 2) * policy.model.dtype.itemsize
    return {
        "prompt_tokens_per_s": slots * prompt / reading,
        "tokens_per_s": tokens / seconds,
        "ms_per_pass": 1e3 * seconds / passes,
        "share_of_bandwidth": (weight_bytes + cache) * passes / seconds / bandwidth,
        "memory_GB": peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the table, as CSV and Markdown")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--episodes", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--words", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        parser.error("no GPU found: --small runs the same code with a tiny model")
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU (no measurement)"
    product, bandwidth = ceilings(device, 512 if options.small else 8192)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        policy = random_policy(Path(name), SMALL if options.small else LLAMA_3_8B, device)
        count, size = size_of(policy)
        print(f"{card}: {product / 1e12:.3g} TFLOP/s (bfloat16 product), {bandwidth / 1e9:.4g} GB/s (copy)")
        print(f"{count / 1e9:.3g} billion weights in {size / 1e9:.3g} GB; {peak():.1f} GB peak while loading")
        for length in (64, 128) if options.small else (2048, 4096):
            optimizer = "paged_adamw_8bit" if device == "cuda" else "adamw_8bit"
            result = training(policy, length, options.steps, optimizer, Path(name) / "adapter")
            # forward, forward again for the checkpoints, backward to the inputs (the base weights have no gradient)
            result["share_of_product"] = result["tokens_per_s"] * 6 * count / product
            rows.append({"what": "SFT", "size": length, **result})
        with torch.inference_mode():
            for slots in options.episodes:
                try:
                    result = rollouts(policy, slots, options.prompt, options.words, bandwidth, size)
                except torch.OutOfMemoryError:
                    print(f"{slots} conversations of {options.prompt} tokens do not fit")
                    break
                rows.append({"what": "rollouts", "size": slots, **result})
    table = pd.DataFrame(rows).assign(card=card)
    print(markdown(table.round(4)))
    if options.out:
        write_table(table, options.out, "gpu")
        (options.out / "gpu.md").write_text(markdown(table.round(4)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
