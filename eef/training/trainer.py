"""The Trainer of transformers as SFT and DPO use it: its arguments, its batches and the checks after each step.

Under ``accelerate launch`` (or torchrun) every process makes the same call. Each takes its share of every batch, the
gradient equals that of a single process, and only the main process writes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from peft.helpers import disable_input_dtype_casting
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from eef.processes import SMALL_MODEL
from eef.settings import OPTIMIZERS, TrainingSettings
from eef.training.checkpoints import Checkpoints, remove_checkpoints
from eef.training.precision import half_adapter, half_weights, in_float32, in_types, own_forward
from eef.training.ranks import is_main_process, wait_for_everyone, world_size
from eef.training.rows import Row

if TYPE_CHECKING:
    from eef.agents.policy import Policy

OnStep = Callable[[int, int, dict[str, float]], None]


def options(training: TrainingSettings | None, changes: Mapping[str, Any]) -> TrainingSettings:
    """``training``, or the defaults, with some fields changed. TypeError for a name that is not a field."""
    return replace(training or TrainingSettings(), **changes)


def run_trainer(
    model: Any,
    data: Dataset,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    training: TrainingSettings,
    folder: str | Path,
    *,
    seed: int,
    work: str | Path | None = None,
    on_step: OnStep | None = None,
    trainer: Any = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place on ``data``; returns the logged rows: step, epoch, loss, learning_rate.

    An update takes ``batch_size`` items of similar length over all processes, ``micro_batch_size`` at a time in each;
    the gradient does not depend on the latter. By default that is all items on a GPU. On a CPU it is 2 for a model of
    fewer than ``SMALL_MODEL`` parameters and 1 for a larger one, which takes less time and half the memory. Equal
    arguments and an equal number of threads give equal weights on a CPU.

    ``work`` is a folder for checkpoints: a call with equal arguments resumes from the last complete one, to equal
    weights on a CPU. :func:`save_trained` removes them. ``on_step(step, steps, row)`` is called after each step:
    ``row`` is the row logged at that step, if any, with ``tokens_per_second``, ``seconds_left`` and, on a CPU,
    ``tokens_per_cpu_second``. After a restart it first gets the rows logged before the checkpoint, in order, without
    these.
    ``trainer`` makes the Trainer (default: :class:`GroupedTrainer`).

    Weights that train and are in half precision are held in float32 while training, under autocast, because half
    precision loses small updates. Under a float32 adapter a model in half
    precision computes in its own type. If that is float16, the loss is scaled, which needs a GPU.

    ValueError where ``batch_size`` cannot be divided, the optimizer is unavailable, or a float16 model has an adapter
    and there is no GPU. FloatingPointError where a loss,
    a gradient norm or a weight is not finite, before a checkpoint includes it.
    """
    check_optimizer(training.optimizer)
    batch_size, on_gpu, ranks = training.batch_size, torch.cuda.is_available(), world_size()
    if batch_size % ranks:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {ranks} processes: make it a multiple of {ranks}"
        )
    share = batch_size // ranks
    default = share if on_gpu else _micro_batch_size_on_cpu(model, share)
    micro_batch_size = min(share, training.micro_batch_size or default)
    if share % micro_batch_size:
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of micro_batch_size {micro_batch_size}"
            + (f" x {ranks} processes" if ranks > 1 else "")
        )
    steps = training.updates or max(1, math.ceil(len(data) / batch_size)) * training.epochs  # type: ignore[arg-type]
    half, mixed = half_weights(model), half_adapter(model)
    types = in_float32(model) if half else []
    arguments = TrainingArguments(
        **_named_arguments(training),
        max_steps=training.updates or -1,  # if positive, it sets the end of training and of the schedule
        output_dir=str(work or folder),
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=share // micro_batch_size,
        warmup_steps=int(training.warmup_ratio * steps),
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        bf16=torch.bfloat16 in (mixed, half),
        fp16=torch.float16 in (mixed, half),
        logging_steps=max(1, int(steps // 50)),
        logging_nan_inf_filter=False,  # it would replace a loss that is not finite by the mean of the previous ones
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process per GPU instead of the Trainer's DataParallel
    checkpoints = Checkpoints(Path(work), 60 * training.checkpoint_minutes) if work else None
    last = str(checkpoints.last) if checkpoints and checkpoints.last else None
    counted = CountedCollator(collator)
    running = (trainer or GroupedTrainer)(
        model=model, args=arguments, train_dataset=data, data_collator=counted,
        callbacks=[StepMonitor(on_step, counted), *([checkpoints] if checkpoints else [])],
    )  # fmt: skip
    running.remove_callback(PrinterCallback)
    with own_forward(model), disable_input_dtype_casting(model) if mixed else nullcontext():
        running.train(resume_from_checkpoint=last)
    in_types(model, types)
    check_weights(model, "the last step", training.lr)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    return _logged(running.state)


def _named_arguments(training: TrainingSettings) -> dict[str, Any]:
    """The settings that ``TrainingArguments`` takes as they are, by the name of its argument."""
    named = {each.name: each.metadata["argument"] for each in fields(training) if "argument" in each.metadata}
    return {argument: getattr(training, name) for name, argument in named.items()}


def _micro_batch_size_on_cpu(model: Any, share: int) -> int:
    small = sum(weight.numel() for weight in model.parameters()) < SMALL_MODEL
    return 2 if small and share % 2 == 0 else 1


def check_optimizer(name: str) -> None:
    """ValueError for an optimizer that is unknown or that this machine cannot run."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r} must be one of {', '.join(map(repr, OPTIMIZERS))}")
    if name == "paged_adamw_8bit" and not torch.cuda.is_available():
        raise ValueError(
            "optimizer='paged_adamw_8bit' pages its state between GPU and host, and there is no GPU here: "
            "set optimizer='adamw_8bit' or 'adamw_torch'"
        )


def save_trained(policy: Policy, folder: str | Path, work: str | Path | None) -> None:
    """Save the adapter, or all weights, and remove the checkpoints in ``work``."""
    if is_main_process():
        policy.save_adapter(folder)
        if work:
            remove_checkpoints(Path(work))
    wait_for_everyone()


# Batches


class RowDataset(Dataset):
    """Rows as the Trainer takes them; index -1 is an empty row, as padding of a process's share of a batch."""

    def __init__(self, rows: Sequence[Row], pad: int) -> None:
        self.rows, self.filler = rows, Row((pad,), (False,))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index] if index >= 0 else self.filler
        return {**row.item, "length": len(row.ids)}


class SharedSampler(Sampler):
    """The order that a single process would draw, padded with -1 so that all processes get the same number of items."""

    def __init__(self, lengths: list[int], batch_size: int, share: int) -> None:
        self.drawn, self.share = LengthGroupedSampler(batch_size, lengths=lengths), share

    def __len__(self) -> int:
        return math.ceil(len(self.drawn) / self.share) * self.share

    def __iter__(self) -> Iterator[int]:
        order = broadcast_object_list([list(self.drawn)])[0]
        yield from order + [-1] * (len(self) - len(order))


class CountedCollator:
    """A collator that counts the tokens of this process's batches, without padding.

    The Trainer's own count (``include_num_input_tokens_seen``) waits for the GPU in every batch.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collator, self.tokens = collator, 0

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        self.tokens += sum(len(item["input_ids"]) for item in items)
        return self.collator(items)


class GroupedTrainer(Trainer):
    """Batches items of similar length; the batches do not depend on the number of processes."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        size = self.args.train_batch_size * self.args.world_size
        if self.args.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        data: Any = self.train_dataset
        lengths = [len(data[place]["input_ids"]) for place in range(len(data))]
        return SharedSampler(lengths, size * self.args.gradient_accumulation_steps, size)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with warnings.catch_warnings():  # a GGUF file has no such file, and training never changes the vocabulary
            warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
            super()._save(output_dir, state_dict)


# Checks


class StepMonitor(TrainerCallback):
    """Reports each step to ``on_step`` and stops a training that has diverged.

    The Trainer adds up the losses of all steps since the last logged one, and weights that are not finite never
    recover, so a check at logged steps covers the steps between them. The last step is always logged, and a checkpoint
    is written only after a logged step.
    """

    def __init__(self, on_step: OnStep | None, batches: CountedCollator) -> None:
        self.on_step, self.batches = on_step, batches

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for row in _logged(state):  # of the checkpoint that training resumes from
            self._report(int(row["step"]), state, row)
        self.start, self.cpu_start, self.first = time.perf_counter(), time.process_time(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log |= state.global_step >= state.max_steps
        if not control.should_log:
            self._report(state.global_step, state, self._speed(args, state))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, model: Any = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:  # the Trainer's summary after the last step
            return
        step = f"step {state.global_step} of {state.max_steps}"
        check_finite(f"the loss at {step}", logs["loss"], args.learning_rate)
        if not args.fp16:  # the gradient scaler of float16 expects such gradients and skips their steps
            check_finite(f"the gradient norm at {step}", float(logs.get("grad_norm", 0.0)), args.learning_rate)
        check_weights(model, step, args.learning_rate)
        self._report(state.global_step, state, {**_logged(state)[-1], **self._speed(args, state)})

    def _speed(self, args: Any, state: Any) -> dict[str, float]:
        """The tokens per second of all processes, which take equal shares, and the seconds until the last step.

        On a CPU also the tokens per CPU second, which other programs on the machine change little.
        """
        seconds, steps = time.perf_counter() - self.start, state.global_step - self.first
        left = seconds / steps * (state.max_steps - state.global_step)
        speed = {"tokens_per_second": self.batches.tokens * world_size() / seconds, "seconds_left": left}
        if args.use_cpu:
            speed["tokens_per_cpu_second"] = self.batches.tokens / (time.process_time() - self.cpu_start)
        return speed

    def _report(self, step: int, state: Any, row: dict[str, float]) -> None:
        if self.on_step and is_main_process():
            self.on_step(step, state.max_steps, row)


def check_finite(name: str, value: float, lr: float) -> None:
    """FloatingPointError if ``value`` is not finite."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"training diverged: {name} is {value}. The trained weights were not saved. Lower the learning rate "
            f"(lr={lr:g}); if the model is in half precision, check dtype"
        )


def check_weights(model: Any, where: str, lr: float) -> None:
    """FloatingPointError if a trainable weight is not finite."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    if not math.isfinite(torch.nn.utils.get_total_norm(weights.values(), math.inf)):
        largest = {name: float(weight.abs().max()) for name, weight in weights.items()}
        name = next(name for name, value in largest.items() if not math.isfinite(value))
        check_finite(f"the largest value of weight {name!r} after {where}", largest[name], lr)


def _logged(state: Any) -> list[dict[str, float]]:
    names = ("step", "epoch", "loss", "learning_rate")
    return [{name: row[name] for name in names} for row in state.log_history if "loss" in row]
