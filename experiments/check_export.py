"""Check that TRL's SFTTrainer computes the same losses as our SFT on the rows that `eef export --format trl` writes.

    pip install trl datasets pyarrow
    python experiments/check_export.py [RUN [--root DIR] [--steps N]]

It takes the rows of a run's last SFT stage, or without RUN those of a small set of demonstrations of the embedded shop.
Both trainers start from the same base model with the same new adapter, take the same batches, and log the loss of each
step; the losses after the first step also compare the gradients. It prints them side by side and the largest
difference, and ends with an error if that exceeds 1e-5 of the loss.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eef.agents.policy import Policy
from eef.analysis.compare import find
from eef.exchange.formats import trl_rows, write_rows
from eef.exchange.source import Selected, selected_by_run
from eef.files import read_json
from eef.methods import wins
from eef.settings import TrainingSettings
from eef.tracking.records import default_root
from eef.training.rows import IGNORE, Row
from eef.training.sft import fit

TOLERANCE = 1e-5  # of the loss: both sum the same float32 numbers, in another order


def demonstrated() -> tuple[str, Selected]:
    """The embedded model, and examples of which half carry loss on their later turns only."""
    from eef.envs import make_env
    from eef.experts import demonstrations

    shop = make_env("webshop", catalogue={"products": 700, "train": 20, "eval": 0, "test": 20}, max_steps=15)
    examples = wins(demonstrations(shop, shop.tasks("train")[:12]))
    examples = [replace(each, learn_from=place % 2 * len(each.trajectory) // 2) for place, each in enumerate(examples)]
    policy = Policy.load("embedded")
    return "embedded", Selected("demonstrations", examples, policy.chat, policy.context)


def with_adapter(model: str) -> Policy:
    policy = Policy.load(model, trainable=True)
    policy.new_adapter(seed=0)
    return policy


def our_losses(model: str, rows: list[dict[str, Any]], training: TrainingSettings, folder: str) -> list[float]:
    policy = with_adapter(model)
    ours = [Row(tuple(row["input_ids"]), tuple(label != IGNORE for label in row["labels"])) for row in rows]
    return [row["loss"] for row in fit(policy.model, ours, training, pad=policy.pad, folder=folder, seed=0)]


def losses_of_trl(model: str, file: Path, training: TrainingSettings, folder: str) -> list[float]:
    """The losses of TRL's trainer, with the arguments that our trainer sets."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    policy = with_adapter(model)
    policy.tokenizer.pad_token_id = policy.pad
    data = load_dataset(file.suffix[1:].replace("jsonl", "json"), data_files=str(file), cache_dir=f"{folder}/cache")
    steps = -(-len(data["train"]) // training.batch_size) * training.epochs
    arguments = SFTConfig(
        output_dir=folder, max_length=None, num_train_epochs=training.epochs, learning_rate=training.lr,
        lr_scheduler_type=training.lr_schedule, warmup_steps=int(training.warmup_ratio * steps),
        weight_decay=training.weight_decay, optim=training.optimizer, gradient_checkpointing=False, bf16=False,
        per_device_train_batch_size=2, gradient_accumulation_steps=training.batch_size // 2,
        train_sampling_strategy="group_by_length", logging_steps=1, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=not torch.cuda.is_available(), seed=0, data_seed=0,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=policy.model, args=arguments, train_dataset=data["train"], processing_class=policy.tokenizer
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--root", type=Path, default=default_root())
    parser.add_argument("--steps", type=int, default=6, help="training steps to compare")
    parser.add_argument("--parquet", action="store_true", help="write the rows as parquet instead of JSON Lines")
    words = parser.parse_args()
    torch.set_num_threads(1)
    if words.run:
        folder = find(words.root, words.run)
        model, selected = read_json(folder / "config.json")["config"]["model"], selected_by_run(folder)
    else:
        model, selected = demonstrated()
    rows, counts = trl_rows(selected)
    print(f"{selected.name}: {counts}")
    batch_size = 4
    epochs = max(1.0, words.steps / -(-len(rows) // batch_size))
    training = TrainingSettings(epochs=epochs, batch_size=batch_size, micro_batch_size=2, packing="padded")
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / ("rows.parquet" if words.parquet else "rows.jsonl")
        write_rows(file, rows)
        ours = our_losses(model, rows, training, f"{work}/ours")
        theirs = losses_of_trl(model, file, training, f"{work}/trl")
    print("step        ours         TRL")
    for step, pair in enumerate(zip(ours, theirs, strict=True), start=1):
        print(f"{step:4d}  {pair[0]:.8f}  {pair[1]:.8f}")
    largest = max(abs(a - b) / abs(a) for a, b in zip(ours, theirs, strict=True))
    print(f"largest difference: {largest:.2g} of the loss, over {len(ours)} steps")
    if largest > TOLERANCE:
        sys.exit("the losses differ")


if __name__ == "__main__":
    main()
