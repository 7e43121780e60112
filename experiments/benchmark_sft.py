"""SFT of a real model beside transformers' Trainer and TRL's SFTTrainer: CPU seconds and peak memory on the same rows.

    python experiments/benchmark_sft.py --out figures/sft_cost

Each variant trains in a process of its own: one epoch on the same winning trajectories of the generated shop, with the
same new adapter (all linear layers), order, batch size, learning rate and number type, on one thread. CPU seconds are
those of the training alone; the peak is that of the whole process. The script fails unless the first losses are equal,
in half precision up to half a percent.
TRL's variants need ``pip install trl datasets``.

The limit is the arithmetic of the model on these rows, divided by the speed of matrix products of its size and number
type on one thread: two products per weight for each token (forward, and the gradient of the inputs), three per weight
of the adapter, causal attention forward and backward (3.5 times forward), and the logits of the tokens that carry loss.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import Trainer, TrainingArguments

from eef.agents.policy import Policy
from eef.analysis.tables import markdown, write_table
from eef.envs import make_env
from eef.experts import expert_trajectories
from eef.methods import wins
from eef.training.rows import IGNORE, Row, collate, rows_of
from eef.training.sft import fit

SHARED = {
    "num_train_epochs": 1, "learning_rate": 1e-4, "warmup_steps": 0, "lr_scheduler_type": "constant", "seed": 0,
    "data_seed": 0, "train_sampling_strategy": "group_by_length", "length_column_name": "length", "logging_steps": 1,
    "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False,
    "dataloader_pin_memory": False,
}  # fmt: skip
VARIANTS = {
    "eef, one row at a time": ("eef", 1, False),
    "eef, two rows at a time": ("eef", 2, False),
    "eef, one row, gradient checkpointing": ("eef", 1, True),
    "Trainer, one row at a time": ("transformers", 1, False),
    "Trainer, two rows at a time": ("transformers", 2, False),
    "TRL, one row at a time": ("trl", 1, False),
    "TRL, two rows at a time": ("trl", 2, False),
    "TRL, one row, gradient checkpointing": ("trl", 1, True),
}


def labels_of(row: Row) -> list[int]:
    return [token if learnt else IGNORE for token, learnt in zip(row.ids, row.mask, strict=True)]


def train(library: str, policy: Policy, rows: list[Row], rows_at_once: int, checkpointing: bool, batch: int) -> Any:
    """Train for one epoch; returns the losses of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        if library == "eef":
            logged = fit(
                policy.model, rows, pad=policy.pad, folder=folder, seed=0, epochs=1, lr=1e-4,
                lr_schedule="constant_with_warmup", warmup_ratio=0.0, batch_size=batch, packing="padded",
                micro_batch_size=rows_at_once, gradient_checkpointing=checkpointing,
            )  # fmt: skip
            return [row["loss"] for row in logged]
        shared: dict[str, Any] = {
            **SHARED, "output_dir": folder, "per_device_train_batch_size": rows_at_once,
            "gradient_accumulation_steps": batch // rows_at_once, "gradient_checkpointing": checkpointing,
        }  # fmt: skip
        if checkpointing:
            shared["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
        if library == "transformers":
            items = [{"input_ids": row.ids, "mask": row.mask, "length": len(row.ids)} for row in rows]
            trainer = Trainer(
                model=policy.model,
                args=TrainingArguments(**shared),
                train_dataset=items,  # type: ignore[arg-type]
                data_collator=lambda items: collate(items, policy.pad),
            )
        else:
            from datasets import Dataset
            from trl import SFTConfig, SFTTrainer

            unprepared = {"skip_prepare_dataset": True}
            columns = {"input_ids": [list(row.ids) for row in rows], "labels": [labels_of(row) for row in rows]}
            columns["length"] = [len(row.ids) for row in rows]  # type: ignore[misc]
            trainer = SFTTrainer(
                model=policy.model,
                args=SFTConfig(**shared, max_length=None, bf16=False, dataset_kwargs=unprepared),
                train_dataset=Dataset.from_dict(columns),
                processing_class=policy.tokenizer,
            )
        trainer.train()
        return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def one(name: str, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a variant in this process."""
    torch.set_num_threads(1)
    library, rows_at_once, checkpointing = VARIANTS[name]
    rows = [Row(tuple(ids), tuple(mask)) for ids, mask in json.loads(file.read_text())]
    policy = Policy.load(options.model, dtype=options.dtype)
    policy.new_adapter(seed=0)
    began = time.process_time()
    losses = train(library, policy, rows, rows_at_once, checkpointing, options.batch_size)
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"variant": name, "CPU s": seconds, "peak memory, GB": peak, "losses": losses}


def limit(policy: Policy, rows: list[Row]) -> tuple[float, float]:
    """The least CPU seconds for the arithmetic of one epoch, and the measured rate in FLOP/s."""
    config = policy.model.config
    length, size, inner = round(np.mean([len(row.ids) for row in rows])), config.hidden_size, config.intermediate_size
    a, b = (torch.randn(shape, dtype=policy.model.dtype) for shape in ((length, size), (size, inner)))
    times = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(50):
            a @ b
        times.append(time.process_time() - began)
    rate = 50 * 2 * length * size * inner / min(times)
    weights = {name: weight.numel() for name, weight in policy.model.named_parameters() if "embed_tokens" not in name}
    adapter = sum(count for name, count in weights.items() if "lora_" in name)
    tokens, learnt = sum(len(row.ids) for row in rows), sum(sum(row.mask) for row in rows)
    linear = 2 * tokens * (2 * (sum(weights.values()) - adapter) + 3 * adapter)
    head = config.num_attention_heads * getattr(config, "head_dim", size // config.num_attention_heads)
    attention = 3.5 * config.num_hidden_layers * sum(2 * len(row.ids) ** 2 * head for row in rows)  # half: causal
    logits = 2 * 2 * learnt * size * config.vocab_size
    return (linear + attention + logits) / rate, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--trajectories", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--out", type=Path, help="folder for the table")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(one(options.variant, options.rows, options)))
        return
    chosen = [name for name in VARIANTS if options.only in name]
    if not chosen:
        parser.error(f"no variant contains {options.only!r}: {'; '.join(VARIANTS)}")
    torch.set_num_threads(1)
    env = make_env("webshop")
    won = wins(expert_trajectories(env, "strong", env.tasks("train"), 0))[: options.trajectories]
    policy = Policy.load(options.model, dtype=options.dtype)
    rows, _ = rows_of(policy, won)
    policy.new_adapter(seed=0)
    seconds, rate = limit(policy, rows)
    tokens, learnt = sum(len(row.ids) for row in rows), sum(sum(row.mask) for row in rows)
    print(f"{len(rows)} rows, {tokens:,} tokens, of which {learnt} carry loss; matrix product {rate / 1e9:.1f} GFLOP/s")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_text(json.dumps([[row.ids, row.mask] for row in rows]))
        for name in chosen:
            command = [sys.executable, __file__, "--variant", name, "--rows", str(file), "--model", options.model]
            command += ["--dtype", options.dtype, "--batch-size", str(options.batch_size)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            cost = f"{results[-1]['CPU s']:.1f} CPU s, {results[-1]['peak memory, GB']:.2f} GB"
            print(f"{name}: {cost}, losses {results[-1]['losses']}", flush=True)
    first = [result["losses"][0] for result in results]
    tolerance = 1e-3 if options.dtype == "float32" else 5e-3
    assert max(first) - min(first) < tolerance * max(first), f"the first losses differ: {first}"
    table = pd.DataFrame(results)
    table["last loss"] = [f"{losses[-1]:.4f}" for losses in table.pop("losses")]
    table["tokens per CPU s"] = tokens / table["CPU s"]
    table["share of the limit"] = seconds / table["CPU s"]
    table = table.round({"CPU s": 1, "peak memory, GB": 2, "tokens per CPU s": 0, "share of the limit": 2})
    print(f"the limit: {seconds:.1f} CPU s\n{markdown(table)}")
    if options.out:
        write_table(table, options.out, "sft_cost")


if __name__ == "__main__":
    main()
