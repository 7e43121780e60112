"""Supervised fine-tuning on selected turns, -sum m_l log pi(t_l | t_<l) (paper, section 3), and DPO for ETO.

Under ``accelerate launch`` (or torchrun) every process calls :func:`sft` or :func:`dpo` with the same arguments: each
takes its share of every batch, the gradient is that of one process, and the first process alone writes.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import is_flash_attn_2_available

from eef.training.rows import IGNORE, Row, collate, flatten, rows_of, united

if TYPE_CHECKING:
    from eef.agents.policy import Policy
    from eef.selection import Example
    from eef.trajectory import Trajectory

OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_8bit")
PACKINGS = ("auto", "padded", "flat")
_WHOLE = "whole.pt"  # in a checkpoint that is complete: the random state in which its epoch began
_HALF = (torch.bfloat16, torch.float16)
SMALL_MODEL = 20_000_000  # parameters; on a CPU a smaller model trains faster on two rows at a time than on one

OnStep = Callable[[int, int, dict[str, float]], None]


class _Rows(Dataset):
    """The rows as the Trainer takes them; index -1 is an empty row that fills up a share of a batch."""

    def __init__(self, rows: Sequence[Row], pad: int) -> None:
        self.rows, self.filler = rows, Row((pad,), (False,))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index] if index >= 0 else self.filler
        return {"input_ids": row.ids, "mask": row.mask, "length": len(row.ids)}


def processes() -> int:
    """How many processes train together (``accelerate launch``, torchrun): 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def _wait() -> None:
    """Until all processes are here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


class _Watch(TrainerCallback):
    """Reports each step to ``on_step`` and stops a training that has diverged.

    The Trainer adds up the losses of all steps since the last logged one, and weights that are not finite never
    recover, so a check at logged steps misses no step in between. The last step is always logged, and a checkpoint is
    only written after a logged step.
    """

    def __init__(self, on_step: OnStep | None) -> None:
        self.on_step = on_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for row in _losses(state):  # those of the checkpoint that training resumes from
            self._report(int(row["step"]), state, row)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log |= state.global_step >= state.max_steps
        if not control.should_log:
            self._report(state.global_step, state, {})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, model: Any = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:  # the Trainer's summary after the last step
            return
        _check_finite(f"the loss at step {state.global_step} of {state.max_steps}", logs["loss"], args.learning_rate)
        if not args.fp16:  # the gradient scaler of float16 meets such gradients and skips their steps
            norm = float(logs.get("grad_norm", 0.0))
            _check_finite(
                f"the gradient norm at step {state.global_step} of {state.max_steps}", norm, args.learning_rate
            )
        _check_weights(model, f"step {state.global_step} of {state.max_steps}", args.learning_rate)
        self._report(state.global_step, state, _losses(state)[-1])

    def _report(self, step: int, state: Any, row: dict[str, float]) -> None:
        if self.on_step and first():
            self.on_step(step, state.max_steps, row)


def _check_finite(name: str, value: float, lr: float) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"training diverged: {name} is {value}. The trained weights were not saved. Lower the learning rate "
            f"(lr={lr:g}); if the model is in half precision, check dtype"
        )


def _check_weights(model: Any, where: str, lr: float) -> None:
    """FloatingPointError if a trainable weight is not finite."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    if not math.isfinite(torch.nn.utils.get_total_norm(weights.values(), math.inf)):
        largest = {name: float(weight.abs().max()) for name, weight in weights.items()}
        name = next(name for name, value in largest.items() if not math.isfinite(value))
        _check_finite(f"the largest value of weight {name!r} after {where}", largest[name], lr)


def _losses(state: Any) -> list[dict[str, float]]:
    names = ("step", "epoch", "loss", "learning_rate")
    return [{name: row[name] for name in names} for row in state.log_history if "loss" in row]


class _Keep(TrainerCallback):
    """Checkpoints in ``folder``, at most one in ``seconds``, each marked when it is whole; the last one is kept.

    They are made at logged steps alone, so that no logged loss is a mean over a part of its steps.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds, self.last = folder, seconds, time.monotonic()
        found = sorted(folder.glob(f"checkpoint-*/{_WHOLE}"), key=lambda path: int(path.parent.name.split("-")[1]))
        self.found = found[-1].parent if found else None
        self.random = torch.load(found[-1], weights_only=True) if found else None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.random is not None and self.found is not None:  # the order of the rows is drawn from it, as it was
            torch.set_rng_state(self.random)
            self.found = None
        self.random = torch.get_rng_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_log and state.global_step < state.max_steps:
            due = [time.monotonic() - self.last >= self.seconds]
            control.should_save = bool(broadcast_object_list(due)[0]) if processes() > 1 else due[0]

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        _wait()  # every process has written its random state
        whole = self.folder / f"checkpoint-{state.global_step}"
        if first():
            begins = torch.get_rng_state() if float(state.epoch).is_integer() else self.random
            torch.save(begins, whole / f".{_WHOLE}")
            os.replace(whole / f".{_WHOLE}", whole / _WHOLE)
            for other in self.folder.glob("checkpoint-*"):
                if other != whole:
                    shutil.rmtree(other)
        _wait()
        self.last = time.monotonic()


class _Order(Sampler):
    """What one process would draw, in the order in which the processes share it out, filled up with empty rows
    (index -1) so that all have the same number of pieces."""

    def __init__(self, lengths: list[int], batch_size: int, share: int) -> None:
        self.drawn, self.share = LengthGroupedSampler(batch_size, lengths=lengths), share

    def __len__(self) -> int:
        return math.ceil(len(self.drawn) / self.share) * self.share

    def __iter__(self) -> Iterator[int]:
        order = broadcast_object_list([list(self.drawn)])[0]
        yield from order + [-1] * (len(self) - len(order))


class _Trainer(Trainer):
    """Rows of similar length together: the same batches for any number of processes."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        size = self.args.train_batch_size * self.args.world_size
        if self.args.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        data: Any = self.train_dataset
        lengths = [len(data[place]["input_ids"]) for place in range(len(data))]
        return _Order(lengths, size * self.args.gradient_accumulation_steps, size)


def check_optimizer(name: str) -> None:
    """ValueError for an optimizer that is unknown or that this machine lacks."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r}: known are {', '.join(map(repr, OPTIMIZERS))}")
    if name == "paged_adamw_8bit" and not torch.cuda.is_available():
        raise ValueError(
            "optimizer='paged_adamw_8bit' pages its state between GPU and host, and there is no GPU here: "
            "set optimizer='adamw_8bit' or 'adamw_torch'"
        )


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
    micro_batch_size: int | None = None,
    packing: str = "auto",
    **settings: Any,
) -> list[dict[str, float]]:
    """Train ``model`` in place on ``rows`` and return the logged rows: step, epoch, loss, learning_rate.

    ``loss`` is the mean loss per learnt token since the row before.

    An update takes ``batch_size`` rows of similar length, over all processes, ``micro_batch_size`` of them at a time in
    each; the gradient is the same. By default ``micro_batch_size`` is all rows on a GPU. On a CPU it is 2 for a model
    of fewer than ``SMALL_MODEL`` parameters and 1 for a larger one, which takes less time and half the memory. Equal
    arguments give equal weights on CPU at an equal number of threads.

    ``packing``: ``padded``, ``flat`` (see :func:`flatten`) or ``auto``: flat on a GPU with FlashAttention and a model
    in half precision, else padded. ``flat`` without FlashAttention is right and slow. (The tests compare flat and
    padded with sdpa on CPU; with FlashAttention it was not run.)

    ``settings``: ``optimizer`` (one of ``OPTIMIZERS``), ``gradient_checkpointing``, ``warmup`` (share of the steps),
    ``weight_decay``, ``work`` (a folder for checkpoints: a call with equal arguments goes on from the last one that is
    whole, to equal weights on CPU; :func:`sft` and :func:`dpo` remove them at the end), ``checkpoint_minutes`` between
    two of them, ``on_step(step, steps, row)``, called after each step: ``row`` is the row logged at that step, {} where
    none was. After a restart ``on_step`` first gets the rows of the steps before the checkpoint, in order.

    Where the weights that train come in half precision, they are held in float32 meanwhile and the forward pass is
    autocast: small steps vanish in half precision. ValueError where no token carries loss, and where ``batch_size``
    cannot be divided. FloatingPointError where a loss, a gradient norm or a weight is not finite, before it gets into
    a checkpoint.
    """
    if not any(any(row.mask[1:]) for row in rows):
        raise ValueError(f"no token carries loss in {len(rows)} training examples: check the selection and the masks")
    if packing not in PACKINGS:
        raise ValueError(f"packing={packing!r}: known are {', '.join(map(repr, PACKINGS))}")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    flash = torch.cuda.is_available() and is_flash_attn_2_available() and model.config.dtype in _HALF
    flash = flash and _takes_flash(inner)
    flat = packing == "flat" or (packing == "auto" and flash)
    before = inner.config._attn_implementation
    if flat and flash:
        inner.set_attn_implementation("flash_attention_2")
    try:
        if flat and not _apart(model):
            if packing == "flat":
                raise ValueError(
                    f"packing='flat': {type(inner).__name__} lets rows that lie one behind the other see each other, "
                    "so it would train on wrong histories: set packing='padded'"
                )
            flat = False
            inner.set_attn_implementation(before)
        return _run(
            _Trainer, model, _Rows(rows, pad), flatten if flat else partial(collate, pad=pad), folder, epochs, lr,
            batch_size, seed, micro_batch_size, **settings,
        )  # fmt: skip
    finally:
        inner.set_attn_implementation(before)  # acting has masks that FlashAttention does not know


def _takes_flash(model: Any) -> bool:
    """Whether FlashAttention computes what the model's own attention does: it knows windows, but no chunks."""
    text = model.config.get_text_config()
    chunked = getattr(text, "attention_chunk_size", None) is not None
    return bool(model._supports_flash_attn and not model._compatible_flash_implementations and not chunked)


@torch.no_grad()
def _apart(model: Any) -> bool:
    """Whether rows of :func:`flatten` do not see each other: the second one's logits do not depend on the first."""
    training = model.training
    model.eval()
    rows = [{"input_ids": tuple(ids), "mask": (True,) * 6} for ids in (range(6), range(6, 12))]
    logits = []
    for before in rows:
        batch = flatten([before, rows[0]])
        on_device = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        logits.append(model(**on_device).logits[0, 6:].float())
    model.train(training)
    return bool((logits[0] - logits[1]).abs().max() <= 1e-2 * logits[0].abs().max())


def _run(
    kind: Any,
    model: Any,
    data: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    folder: str | Path,
    epochs: float,
    lr: float,
    batch_size: int,
    seed: int,
    micro_batch_size: int | None,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    optimizer: str = "adamw_torch",
    gradient_checkpointing: bool = False,
    work: str | Path | None = None,
    checkpoint_minutes: float = 10.0,
    on_step: OnStep | None = None,
) -> list[dict[str, float]]:
    """Train in place by the Trainer that ``kind`` makes; the logged losses."""
    check_optimizer(optimizer)
    on_gpu, ranks = torch.cuda.is_available(), processes()
    if batch_size % ranks:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {ranks} processes: make it a multiple of {ranks}"
        )
    share = batch_size // ranks
    micro_batch_size = min(share, micro_batch_size or (share if on_gpu else _rows_at_a_time(model, share)))
    if share % micro_batch_size:
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of micro_batch_size {micro_batch_size}"
            + (f" x {ranks} processes" if ranks > 1 else "")
        )
    steps = max(1, math.ceil(len(data) / batch_size)) * epochs  # type: ignore[arg-type]
    came_in = {weight.dtype for weight in model.parameters() if weight.requires_grad} & set(_HALF)
    half = came_in.pop() if came_in else None
    if half:
        model.float()
    arguments = TrainingArguments(
        output_dir=str(work or folder),
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=share // micro_batch_size,
        num_train_epochs=epochs,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=int(warmup * steps),
        weight_decay=weight_decay,
        optim=optimizer,
        gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if gradient_checkpointing else None,
        bf16=half is torch.bfloat16,
        fp16=half is torch.float16,
        logging_steps=max(1, int(steps // 50)),
        logging_nan_inf_filter=False,  # it would replace a loss that is not finite by the mean of those before
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False if ranks > 1 else None,
        use_cpu=not on_gpu,
        seed=seed,
        data_seed=seed,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs take a process each, not the Trainer's DataParallel
    keep = _Keep(Path(work), 60 * checkpoint_minutes) if work else None
    found = str(keep.found) if keep and keep.found else None
    trainer = kind(
        model=model, args=arguments, train_dataset=data, data_collator=collator,
        callbacks=[_Watch(on_step), *([keep] if keep else [])],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=found)
    if half:
        model.to(half)
    _check_weights(model, "the last step", lr)
    if gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    return _losses(trainer.state)


def _rows_at_a_time(model: Any, share: int) -> int:
    """The default of ``micro_batch_size`` on a CPU."""
    small = sum(weight.numel() for weight in model.parameters()) < SMALL_MODEL
    return 2 if small and share % 2 == 0 else 1


def _save(policy: Policy, folder: str | Path, work: str | Path | None) -> None:
    """Write what was trained, once, then remove the checkpoints."""
    if first():
        policy.save_adapter(folder)
        for checkpoint in Path(work).glob("checkpoint-*") if work else ():
            shutil.rmtree(checkpoint)
    _wait()


def sft(policy: Policy, examples: Sequence[Example], folder: str | Path, **settings: Any) -> dict[str, Any]:
    """Fine-tune the adapter of ``policy`` (without one: all weights) on ``examples`` and save it in ``folder``.

    ``settings`` are those of :func:`fit`. Examples of which one's conversation begins another's train as one row (see
    :func:`united`), and as one of ``batch_size``. Returns examples, rows, dropped, tokens (per epoch), learnt tokens
    and losses. ValueError where there is nothing to learn from, FloatingPointError where training diverges: then
    nothing is saved.
    """
    if not examples:
        raise ValueError("there is no training example: the expert has no win and no simulation won")
    rows, dropped = rows_of(policy, examples)
    if dropped == len(examples):
        raise ValueError(f"all {dropped} examples exceed the context of {policy.context} tokens")
    kept, rows = len(rows), united(rows)
    losses = fit(policy.model, rows, pad=policy.pad, folder=folder, **settings)
    shortest = min(rows, key=lambda row: len(row.ids))
    _check_finite(
        "the log-likelihood of a training row after the last step", _judged(policy, shortest)[0], settings["lr"]
    )
    _save(policy, folder, settings.get("work"))
    return {
        "examples": kept,
        "rows": len(rows),
        "dropped": dropped,
        "tokens": sum(len(row.ids) for row in rows),
        "learnt_tokens": sum(sum(row.mask) for row in rows),
        "losses": losses,
    }


class _Pairs(Dataset):
    """Pairs with their reference; index -1 is one that fills up a share of a batch and has no part in the loss."""

    def __init__(self, pairs: Sequence[tuple[Row, Row]], reference: Sequence[Sequence[float]], filler: Row) -> None:
        self.pairs, self.reference, self.filler = pairs, reference, filler

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        won, lost = self.pairs[index] if index >= 0 else (self.filler, self.filler)
        return {
            "rows": [{"input_ids": row.ids, "mask": row.mask} for row in (won, lost)],
            "reference": self.reference[index] if index >= 0 else (0.0, 0.0),
            "counts": float(index >= 0),
            "input_ids": won.ids + lost.ids,  # for the grouping by length alone
        }


class _PairTrainer(_Trainer):
    """The DPO loss in place of the likelihood; a batch holds all wins, then all losses."""

    def __init__(self, *args: Any, beta: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta = beta
        self.model_accepts_loss_kwargs = True  # the loss below is a share of the whole batch's mean already

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        pieces, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = torch.stack([piece["counts"].sum() for piece in pieces]).sum().to(device)
        return pieces, self.accelerator.gather(pairs).sum()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        each = preference_losses(model, inputs, self.beta)
        loss = (each * inputs["counts"]).sum() / num_items_in_batch * self.accelerator.num_processes  # DDP takes a mean
        return (loss, None) if return_outputs else loss


def preference_losses(model: Any, batch: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    """The DPO loss of each pair, (pairs,); ``batch`` holds all wins, then all losses, and their log-likelihoods under
    the reference model as ``reference``, (2, pairs)."""
    gain = log_likelihoods(model, batch) - batch["reference"].flatten()
    won, lost = gain.chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (won - lost))


def log_likelihoods(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the log-probabilities of the tokens that carry loss, (rows,), for a batch of :func:`collate`."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse for sums
    learnt = labels != IGNORE
    logs = torch.log_softmax(logits, -1).gather(-1, labels.masked_fill(~learnt, 0)[..., None])[..., 0]
    return (logs * learnt).sum(-1)


def _judged(policy: Policy, *rows: Row) -> list[float]:
    """The log-likelihood of each row."""
    items = [{"input_ids": row.ids, "mask": row.mask} for row in rows]
    batch = {name: value.to(policy.model.device) for name, value in collate(items, policy.pad).items()}
    with torch.no_grad():
        return log_likelihoods(policy.model, batch).tolist()


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
    micro_batch_size: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train the adapter of ``policy`` (without one: all weights) by DPO on (win, loss) pairs of one subtask and save it
    in ``folder``.

    The loss of a pair is -log sigmoid(beta ((log pi - log ref)(win) - (log pi - log ref)(loss))), log-likelihoods of
    the agent's turns given their histories (Song et al., 2024, ETO); ref is the policy as it comes.
    ``micro_batch_size`` pairs are read at a time (default: 1 on CPU, else all); ``settings`` are as for :func:`fit`.
    Returns pairs, dropped (beyond the context), the share of pairs whose order is right after training, and losses.
    ValueError where no pair is left, FloatingPointError where training diverges: then nothing is saved.
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

    def collated(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sides = [item["rows"][side] for side in (0, 1) for item in items]
        reference = torch.tensor([item["reference"] for item in items]).T
        counts = torch.tensor([item["counts"] for item in items])
        return {**collate(sides, policy.pad), "reference": reference, "counts": counts}

    policy.model.eval()
    before = [_judged(policy, *pair) for pair in rows]
    if not torch.cuda.is_available():
        micro_batch_size = micro_batch_size or 1
    kind, data = partial(_PairTrainer, beta=beta), _Pairs(rows, before, Row((policy.pad,), (False,)))
    losses = _run(
        kind, policy.model, data, collated, folder, epochs, lr, batch_size, seed, micro_batch_size, **settings
    )
    after = [_judged(policy, *pair) for pair in rows]
    gains = [(a[0] - b[0]) - (a[1] - b[1]) for a, b in zip(after, before, strict=True)]
    _check_finite("the sum of the log-likelihoods after the last step", sum(map(sum, after)), lr)
    _save(policy, folder, settings.get("work"))
    ordered = sum(gain > 0 for gain in gains) / len(gains)
    return {"pairs": len(rows), "dropped": dropped, "ordered": ordered, "losses": losses}
