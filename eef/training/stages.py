"""SFT and DPO as stages: their inputs, and training in this process or in several under ``accelerate launch``.

Without a GPU several processes share the CPU. The results are the same, but training is no faster; the tests do this.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from eef import trajectory
from eef.agents.chat import Chat
from eef.agents.policy import Policy, load_arguments
from eef.files import read_json, write_json
from eef.processes import check_gpu_count, end_with_parent, use_threads
from eef.selection import Example
from eef.settings import ModelSettings, PreferenceSettings, TrainingSettings
from eef.training.dpo import dpo
from eef.training.ranks import is_main_process, world_size
from eef.training.sft import sft
from eef.training.trainer import OnStep
from eef.trajectory import Trajectory

_CONSEQUENCE = re.compile(  # what a process reports because another one has failed
    r"ChildFailedError|Dist\w*Error|Connection\w*Error|BrokenPipe|connection (closed|reset|refused)|broken pipe"
    r"|timed? ?out|NCCL",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FineTuning:
    """The inputs of one SFT. ``start``: the stage whose adapter (or full model) it trains; None: the base model."""

    model: ModelSettings
    chat: Chat = field(metadata={"key": lambda chat: chat.key})
    training: TrainingSettings
    examples: Sequence[Example]
    start: Path | None
    seed: int

    @property
    def size(self) -> str:
        """What is trained on, for people."""
        return _size(self.training, len(self.examples), "examples")


@dataclass(frozen=True)
class PreferenceTuning:
    """The inputs of one DPO: ``pairs`` of a win and a loss on one subtask, and the stage ``start`` that it trains."""

    model: ModelSettings
    chat: Chat = field(metadata={"key": lambda chat: chat.key})
    training: TrainingSettings
    preference: PreferenceSettings
    pairs: Sequence[tuple[Trajectory, Trajectory]]
    start: Path
    seed: int

    @property
    def size(self) -> str:
        """What is trained on, for people."""
        return _size(_dpo_training(self), len(self.pairs), "pairs")


def _size(training: TrainingSettings, count: int, what: str) -> str:
    length = f"{training.updates} updates" if training.updates else f"{training.epochs:g} epochs"
    return f"{count} {what}, {length}, {training.batch_size} a step; the bar starts after the first step."


def _dpo_training(inputs: PreferenceTuning) -> TrainingSettings:
    return replace(inputs.training, epochs=inputs.preference.dpo_epochs, updates=None, lr=inputs.preference.dpo_lr)


def fine_tune(inputs: FineTuning, folder: Path, work: Path, on_step: OnStep) -> dict[str, Any]:
    """Train by SFT, write examples and adapter (or full model) into ``folder``, and return the report.

    ``work`` is a folder for checkpoints, which outlives a killed process.
    """
    training = inputs.training
    trajectory.save((example.trajectory for example in inputs.examples), folder / "examples.jsonl")
    weights = [example.weight for example in inputs.examples]
    more = {"weights": weights} if any(weight != 1 for weight in weights) else {}
    write_json(folder / "learn_from.json", {"learn_from": [each.learn_from for each in inputs.examples], **more})
    adapter = {"seed": inputs.seed, "r": training.lora_r, "alpha": training.lora_alpha}
    new_adapter = adapter if inputs.start is None and training.tune == "lora" else None
    job = _job("sft", inputs, training, work) | {"new_adapter": new_adapter}
    return _run(job, inputs.examples, folder, training.processes, on_step)


def preference_tune(inputs: PreferenceTuning, folder: Path, work: Path, on_step: OnStep) -> dict[str, Any]:
    """As :func:`fine_tune`, by DPO on pairs."""
    trajectory.save((side for pair in inputs.pairs for side in pair), folder / "pairs.jsonl")
    training = _dpo_training(inputs)
    job = _job("dpo", inputs, training, work)
    job["settings"] |= {"beta": inputs.preference.dpo_beta, "likelihood": inputs.preference.dpo_likelihood}
    return _run(job, inputs.pairs, folder, training.processes, on_step)


def _job(kind: str, inputs: FineTuning | PreferenceTuning, training: TrainingSettings, work: Path) -> dict[str, Any]:
    policy = load_arguments(inputs.model, inputs.chat, inputs.start)
    settings = {**asdict(training), "seed": inputs.seed, "work": str(work)}
    return {"kind": kind, "policy": policy, "new_adapter": None, "settings": settings}


def _run(job: dict[str, Any], data: Sequence[Any], folder: Path, processes: int, on_step: OnStep) -> dict[str, Any]:
    if processes > 1:
        return run_job_distributed(job, folder, processes, on_step)
    return run_job(job, data, folder, on_step)


def run_job(job: dict[str, Any], data: Sequence[Any], folder: Path, on_step: OnStep | None = None) -> dict[str, Any]:
    """Train on examples or pairs as ``job`` says, save the result in ``folder``, and return the report.

    ``job``: ``kind`` (``sft`` or ``dpo``), ``policy`` (arguments of :meth:`eef.agents.policy.Policy.load`),
    ``new_adapter`` (arguments of :meth:`eef.agents.policy.Policy.new_adapter`, or None), ``settings`` (keyword
    arguments of :func:`~eef.training.sft.sft` or :func:`~eef.training.dpo.dpo`).
    """
    policy = Policy.load(**job["policy"], trainable=True)
    use_threads(policy.model, world_size())
    if job["new_adapter"]:
        policy.new_adapter(**job["new_adapter"])
    train: Callable[..., dict[str, Any]] = sft if job["kind"] == "sft" else dpo
    return train(policy, data, folder, on_step=on_step, **job["settings"])


def run_job_distributed(
    job: dict[str, Any], folder: Path, processes: int, on_step: OnStep | None = None
) -> dict[str, Any]:
    """As :func:`run_job`, in several processes under ``accelerate launch``, on the data in ``folder``.

    The data are ``examples.jsonl`` with ``learn_from.json``, or ``pairs.jsonl``. RuntimeError with the process's error
    where one fails; ValueError for more processes than GPUs.
    """
    check_gpu_count(processes)
    write_json(folder / "job.json", job)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "eef.training.stages", str(folder)]
    # PYTHONSAFEPATH: modules in the current folder must not hide a library or this package
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    with open(folder / "job.log", "w+", encoding="utf-8", errors="replace") as log:
        with subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            preexec_fn=end_with_parent,
        ) as launcher:  # fmt: skip
            assert launcher.stdout is not None
            try:
                for line in launcher.stdout:
                    if on_step and line.startswith("{"):
                        on_step(*json.loads(line)["step"])
            except BaseException:
                launcher.terminate()  # the launcher ends its processes
                raise
        if launcher.returncode:
            log.seek(0)
            raise RuntimeError(f"training by {processes} processes failed: {_process_error(log.read())}")
    report = read_json(folder / "report.json")
    for name in ("job.json", "job.log", "report.json"):
        (folder / name).unlink()
    return report


def _process_error(log: str) -> str:
    """The first error of a process that failed. Errors of processes that lost their connection to it come last, and so
    does the launcher's own error.
    """
    errors = re.findall(r"^(?:\[rank\d+\]: )?(?:\w+\.)*(\w+(?:Error|Exception): .*)$", log, re.MULTILINE)
    causes = [error for error in errors if not _CONSEQUENCE.search(error)]
    return next(iter([*causes, *errors]), "; ".join(log.strip().splitlines()[-3:]))


def _main(folder: Path) -> None:
    """One of the processes that :func:`run_job_distributed` starts."""
    job = read_json(folder / "job.json")
    data: list[Any]
    if job["kind"] == "sft":
        trajectories = trajectory.load(folder / "examples.jsonl")
        file = read_json(folder / "learn_from.json")
        weights = file.get("weights", [1.0] * len(trajectories))
        data = [Example(*each) for each in zip(trajectories, file["learn_from"], weights, strict=True)]
    else:
        sides = trajectory.load(folder / "pairs.jsonl")
        data = list(zip(sides[::2], sides[1::2], strict=True))
    report = run_job(job, data, folder, lambda *state: print(json.dumps({"step": state}), flush=True))
    if is_main_process():
        write_json(folder / "report.json", report)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
