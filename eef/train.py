"""Supervised fine-tuning on selected turns, -sum m_l log pi(t_l | t_<l) (paper, section 3), and DPO for ETO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

if TYPE_CHECKING:
    from eef.policy import Policy
    from eef.selection import Example
    from eef.trajectory import Trajectory

IGNORE = -100  # the label that transformers leaves out of the loss


@dataclass(frozen=True)
class Row:
    """One conversation: token ids and, for each, whether it carries loss."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]


class _Rows(Dataset):
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {"input_ids": row.ids, "mask": row.mask, "length": len(row.ids)}


def collate(items: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right: ``input_ids``, ``attention_mask``, ``labels``, each (rows, longest)."""
    longest = max(len(item["input_ids"]) for item in items)
    ids = torch.full((len(items), longest), pad)
    labels = torch.full((len(items), longest), IGNORE)
    attention = torch.zeros((len(items), longest), dtype=torch.long)
    for place, item in enumerate(items):
        row, size = torch.tensor(item["input_ids"]), len(item["input_ids"])
        ids[place, :size] = row
        attention[place, :size] = 1
        labels[place, :size] = torch.where(torch.tensor(item["mask"]), row, IGNORE)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


class _Watch(TrainerCallback):
    def __init__(self, told: Callable[[int, int, dict[str, float]], None] | None) -> None:
        self.told = told
        self.losses: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append({"step": state.global_step, "epoch": state.epoch, "loss": logs["loss"]})
            if not math.isfinite(logs["loss"]):
                raise FloatingPointError(
                    f"the loss is {logs['loss']} at step {state.global_step}: lower the learning rate"
                )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.told:
            self.told(state.global_step, state.max_steps, self.losses[-1] if self.losses else {})


def fit(
    model: Any,
    rows: Sequence[Row],
    *,
    pad: int,
    folder: str | Path,
    epochs: float,
    lr: float,
    batch_size: int,
    seed: int,
    micro: int | None = None,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    optimizer: str = "adamw_torch",
    told: Callable[[int, int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place on ``rows`` and return the logged losses (step, epoch, mean loss per learnt token).

    An update takes ``batch_size`` rows of similar length, ``micro`` at a time (default: 2 on CPU, where small pieces
    stay in the cache and are over twice as fast, else all); the gradient is the same. Equal arguments give equal
    weights on CPU at an equal number of threads.
    ``told(step, steps, last loss)`` is called after each step. ValueError where no token carries loss.
    """
    if not any(any(row.mask[1:]) for row in rows):
        raise ValueError(f"no token carries loss in {len(rows)} training examples: check the selection and the masks")
    return _run(
        Trainer, model, _Rows(rows), lambda items: collate(items, pad), folder, epochs, lr, batch_size, seed, micro,
        warmup, weight_decay, optimizer, told,
    )  # fmt: skip


def _run(
    kind: Any,
    model: Any,
    data: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    folder: str | Path,
    epochs: float,
    lr: float,
    batch_size: int,
    seed: int,
    micro: int | None,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    optimizer: str = "adamw_torch",
    told: Callable[[int, int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train in place by the Trainer that ``kind`` makes; the logged losses."""
    on_gpu = torch.cuda.is_available()
    micro = min(batch_size, micro or (batch_size if on_gpu else 2))
    if batch_size % micro:
        raise ValueError(f"batch_size {batch_size} is no multiple of micro {micro}")
    steps = max(1, math.ceil(len(data) / batch_size)) * epochs  # type: ignore[arg-type]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch_size // micro,
        num_train_epochs=epochs,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=int(warmup * steps),
        weight_decay=weight_decay,
        optim=optimizer,
        logging_steps=max(1, int(steps // 50)),
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not on_gpu,
        seed=seed,
        data_seed=seed,
    )
    watch = _Watch(told)
    trainer = kind(model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()
    return watch.losses


def rows_of(policy: Policy, examples: Sequence[Example]) -> tuple[list[Row], int]:
    """Examples as training rows, and how many were dropped because they exceed the policy's context."""
    rows, dropped = [], 0
    for example in examples:
        ids, mask = policy.chat.render(example.trajectory, example.mask)
        if len(ids) > policy.context:
            dropped += 1
        elif any(mask):
            rows.append(Row(tuple(ids), tuple(mask)))
    return rows, dropped


def sft(policy: Policy, examples: Sequence[Example], folder: str | Path, **settings: Any) -> dict[str, Any]:
    """Fine-tune the adapter of ``policy`` on ``examples`` and save it in ``folder``.

    ``settings`` are those of :func:`fit`. Returns examples, dropped, tokens (per epoch), learnt tokens and losses.
    ValueError where there is nothing to learn from.
    """
    if not examples:
        raise ValueError("there is no training example: the expert has no win and no simulation won")
    rows, dropped = rows_of(policy, examples)
    if dropped == len(examples):
        raise ValueError(f"all {dropped} examples exceed the context of {policy.context} tokens")
    losses = fit(policy.model, rows, pad=policy.pad, folder=folder, **settings)
    policy.save_adapter(folder)
    return {
        "examples": len(rows),
        "dropped": dropped,
        "tokens": sum(len(row.ids) for row in rows),
        "learnt_tokens": sum(sum(row.mask) for row in rows),
        "losses": losses,
    }


class _Pairs(Dataset):
    def __init__(self, pairs: Sequence[tuple[Row, Row]], reference: Sequence[tuple[float, float]]) -> None:
        self.pairs, self.reference = pairs, reference

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        won, lost = self.pairs[index]
        return {
            "rows": [{"input_ids": row.ids, "mask": row.mask} for row in (won, lost)],
            "reference": self.reference[index],
            "input_ids": won.ids + lost.ids,  # for the grouping by length alone
        }


class _PairTrainer(Trainer):
    """The DPO loss in place of the likelihood; a batch holds all wins, then all losses."""

    def __init__(self, *args: Any, beta: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta = beta
        self.model_accepts_loss_kwargs = False  # so that it takes the mean over the pieces of a batch

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = preference_loss(model, dict(inputs), self.beta)
        return (loss, None) if return_outputs else loss


def preference_loss(model: Any, batch: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    """The DPO loss, a scalar; ``batch`` holds all wins, then all losses, and their log-likelihoods under the reference
    model as ``reference``, (2, pairs)."""
    gain = log_likelihoods(model, batch) - batch["reference"].flatten()
    won, lost = gain.chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (won - lost)).mean()


def log_likelihoods(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the log-probabilities of the tokens that carry loss, (rows,), for a batch of :func:`collate`."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse for sums
    learnt = labels != IGNORE
    logs = torch.log_softmax(logits, -1).gather(-1, labels.masked_fill(~learnt, 0)[..., None])[..., 0]
    return (logs * learnt).sum(-1)


def dpo(
    policy: Policy,
    pairs: Sequence[tuple[Trajectory, Trajectory]],
    folder: str | Path,
    *,
    beta: float,
    epochs: float,
    lr: float,
    batch_size: int,
    seed: int,
    told: Callable[[int, int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train the adapter of ``policy`` by DPO on (win, loss) pairs of one subtask and save it in ``folder``.

    The loss of a pair is -log sigmoid(beta ((log pi - log ref)(win) - (log pi - log ref)(loss))), log-likelihoods of
    the agent's turns given their histories (Song et al., 2024, ETO); ref is the policy as it comes. Returns pairs,
    dropped (beyond the context), the share of pairs whose order is right after training, and losses. ValueError where
    no pair is left.
    """
    rows, dropped = [], 0
    for pair in pairs:
        ids = [policy.chat.render(t, [turn.learn for turn in t.turns]) for t in pair]
        if max(len(tokens) for tokens, _ in ids) > policy.context:
            dropped += 1
        else:
            won, lost = (Row(tuple(tokens), tuple(mask)) for tokens, mask in ids)
            rows.append((won, lost))
    if not rows:
        raise ValueError(f"there is no pair to learn from ({dropped} exceed the context of {policy.context} tokens)")

    def judged() -> list[tuple[float, float]]:
        """Log-likelihoods of both sides of each pair."""
        found = []
        with torch.no_grad():
            for pair in rows:
                items = [{"input_ids": row.ids, "mask": row.mask} for row in pair]
                batch = {name: value.to(policy.model.device) for name, value in collate(items, policy.pad).items()}
                won, lost = log_likelihoods(policy.model, batch).tolist()
                found.append((won, lost))
        return found

    def collated(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sides = [item["rows"][side] for side in (0, 1) for item in items]
        reference = torch.tensor([item["reference"] for item in items]).T
        return {**collate(sides, policy.pad), "reference": reference}

    policy.model.eval()
    before = judged()
    micro = None if torch.cuda.is_available() else 1
    kind, data = partial(_PairTrainer, beta=beta), _Pairs(rows, before)
    losses = _run(kind, policy.model, data, collated, folder, epochs, lr, batch_size, seed, micro, told=told)
    policy.save_adapter(folder)
    gains = [(a[0] - b[0]) - (a[1] - b[1]) for a, b in zip(judged(), before, strict=True)]
    ordered = sum(gain > 0 for gain in gains) / len(gains)
    return {"pairs": len(rows), "dropped": dropped, "ordered": ordered, "losses": losses}
