"""Training as a stage: what SFT and DPO depend on, in this process or in several under ``accelerate launch``.

On a machine without a GPU several processes share the CPU: the results are the same, but nothing is gained. Tests do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eef import trajectory
from eef.agents.chat import Chat
from eef.agents.policy import Policy, load_arguments
from eef.files import read_json, write_json
from eef.processes import check_gpu_count, end_with_parent
from eef.selection import Example
from eef.training.trainer import OnStep, dpo, first, sft
from eef.trajectory import Trajectory

if TYPE_CHECKING:
    from eef.settings import ModelSettings, PreferenceSettings, TrainingSettings


@dataclass(frozen=True)
class FineTuning:
    """What one SFT depends on. ``start``: the stage whose adapter (or full model) it trains; None: the base model."""

    model: ModelSettings
    chat: Chat = field(metadata={"key": lambda chat: chat.key})
    training: TrainingSettings
    examples: Sequence[Example]
    start: Path | None
    seed: int


@dataclass(frozen=True)
class PreferenceTuning:
    """What one DPO depends on: ``pairs`` of a win and a loss on one subtask, and the stage ``start`` that it trains."""

    model: ModelSettings
    chat: Chat = field(metadata={"key": lambda chat: chat.key})
    training: TrainingSettings
    preference: PreferenceSettings
    pairs: Sequence[tuple[Trajectory, Trajectory]]
    start: Path
    seed: int


def fine_tune(inputs: FineTuning, folder: Path, work: Path, on_step: OnStep) -> dict[str, Any]:
    """Train by SFT, write examples and adapter (or full model) into ``folder``, and return the report.

    ``work`` is a folder for checkpoints, which outlives a killed process.
    """
    training = inputs.training
    trajectory.save((example.trajectory for example in inputs.examples), folder / "examples.jsonl")
    write_json(folder / "learn_from.json", {"learn_from": [example.learn_from for example in inputs.examples]})
    settings = {"epochs": training.epochs, "lr": training.lr, "packing": training.packing}
    adapter = {"seed": inputs.seed, "r": training.lora_r, "alpha": training.lora_alpha}
    new_adapter = adapter if inputs.start is None and training.tune == "lora" else None
    return _train("sft", inputs, inputs.examples, folder, work, new_adapter, settings, on_step)


def prefer(inputs: PreferenceTuning, folder: Path, work: Path, on_step: OnStep) -> dict[str, Any]:
    """As :func:`fine_tune`, by DPO on pairs."""
    trajectory.save((one for pair in inputs.pairs for one in pair), folder / "pairs.jsonl")
    preference = inputs.preference
    settings = {"epochs": preference.dpo_epochs, "lr": preference.dpo_lr, "beta": preference.dpo_beta}
    return _train("dpo", inputs, inputs.pairs, folder, work, None, settings, on_step)


def _train(
    kind: str, inputs: FineTuning | PreferenceTuning, data: Sequence[Any], folder: Path, work: Path,
    new_adapter: dict[str, Any] | None, settings: dict[str, Any], on_step: OnStep,
) -> dict[str, Any]:  # fmt: skip
    training = inputs.training
    settings |= {
        "seed": inputs.seed,
        "batch_size": training.batch_size,
        "micro_batch_size": training.micro_batch_size,
        "optimizer": training.optimizer,
        "gradient_checkpointing": training.gradient_checkpointing,
        "checkpoint_minutes": training.checkpoint_minutes,
        "work": str(work),
    }
    policy = load_arguments(inputs.model, inputs.chat, inputs.start)
    job = {"kind": kind, "policy": policy, "new_adapter": new_adapter, "settings": settings}
    if training.processes > 1:
        return learn_together(job, folder, training.processes, on_step)
    return learn(job, data, folder, on_step)


def learn(job: dict[str, Any], data: Sequence[Any], folder: Path, on_step: OnStep | None = None) -> dict[str, Any]:
    """Train by ``job`` on examples or pairs, save what was trained in ``folder``, and return the report.

    ``job``: ``kind`` (``sft`` or ``dpo``), ``policy`` (arguments of :meth:`eef.agents.policy.Policy.load`),
    ``new_adapter`` (arguments of :meth:`eef.agents.policy.Policy.new_adapter`, or None), ``settings`` (of
    :func:`eef.training.trainer.sft`, ``dpo``).
    """
    policy = Policy.load(**job["policy"], trainable=True)
    if job["new_adapter"]:
        policy.new_adapter(**job["new_adapter"])
    train: Callable[..., dict[str, Any]] = sft if job["kind"] == "sft" else dpo
    return train(policy, data, folder, on_step=on_step, **job["settings"])


def learn_together(job: dict[str, Any], folder: Path, processes: int, on_step: OnStep | None = None) -> dict[str, Any]:
    """As :func:`learn`, by ``processes`` processes under ``accelerate launch``, on the data that lie in ``folder``.

    The data are ``examples.jsonl`` with ``learn_from.json``, or ``pairs.jsonl``. RuntimeError, with the processes' own
    error, where one fails; ValueError for more processes than GPUs.
    """
    check_gpu_count(processes)
    write_json(folder / "job.json", job)
    words = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    words += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words += ["-m", "eef.training.stages", str(folder)]
    # PYTHONSAFEPATH: modules in the current folder never hide a library or this package
    env = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **os.environ, "PYTHONSAFEPATH": "1"}
    with open(folder / "job.log", "w+", encoding="utf-8", errors="replace") as log:
        with subprocess.Popen(
            words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            preexec_fn=end_with_parent,
        ) as running:  # fmt: skip
            assert running.stdout is not None
            try:
                for line in running.stdout:
                    if on_step and line.startswith("{"):
                        on_step(*json.loads(line)["step"])
            except BaseException:
                running.terminate()  # the launcher ends its processes
                raise
        if running.returncode:
            log.seek(0)
            raise RuntimeError(f"training by {processes} processes failed: {_own_error(log.read())}")
    report = read_json(folder / "report.json")
    for name in ("job.json", "job.log", "report.json"):
        (folder / name).unlink()
    return report


def _own_error(log: str) -> str:
    """What a process said when it failed; the launcher's own complaint comes after it."""
    found = re.findall(r"^(?:\[rank\d+\]: )?(?:\w+\.)*(\w+(?:Error|Exception): .*)$", log, re.MULTILINE)
    return found[0] if found else "; ".join(log.strip().splitlines()[-3:])


def _main(folder: Path) -> None:
    """One of the processes that :func:`learn_together` starts."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    job = read_json(folder / "job.json")
    data: list[Any]
    if job["kind"] == "sft":
        begins = read_json(folder / "learn_from.json")["learn_from"]
        data = [Example(t, begin) for t, begin in zip(trajectory.load(folder / "examples.jsonl"), begins, strict=True)]
    else:
        both = trajectory.load(folder / "pairs.jsonl")
        data = list(zip(both[::2], both[1::2], strict=True))
    report = learn(job, data, folder, lambda *state: print(json.dumps({"step": state}), flush=True))
    if first():
        write_json(folder / "report.json", report)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
