"""Several processes at once, one for each GPU: training under ``accelerate launch``, rollouts by workers.

On a machine without a GPU they share the CPU, which is for tests: the results are the same, the time is not.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from eef import trajectory
from eef.envs import TextEnv, make_env
from eef.files import read_json, write_json
from eef.launch import end_with_parent
from eef.policy import Policy
from eef.rollout import Start, simulate
from eef.selection import Example
from eef.train import dpo, first, sft
from eef.trajectory import Trajectory

Told = Callable[[int, int, dict[str, float]], None]


def learn(job: dict[str, Any], data: Sequence[Any], folder: Path, told: Told | None = None) -> dict[str, Any]:
    """Train by ``job`` on examples or pairs, save what was trained in ``folder``, and return the report.

    ``job``: ``kind`` (``sft`` or ``dpo``), ``policy`` (arguments of :meth:`eef.policy.Policy.load`), ``new_adapter``
    (arguments of :meth:`eef.policy.Policy.new_adapter`, or None), ``settings`` (of :func:`eef.train.sft`, ``dpo``).
    """
    policy = Policy.load(**job["policy"], trainable=True)
    if job["new_adapter"]:
        policy.new_adapter(**job["new_adapter"])
    train: Callable[..., dict[str, Any]] = sft if job["kind"] == "sft" else dpo
    return train(policy, data, folder, told=told, **job["settings"])


def learn_together(job: dict[str, Any], folder: Path, processes: int, told: Told | None = None) -> dict[str, Any]:
    """As :func:`learn`, by ``processes`` processes under ``accelerate launch``, on the data that lie in ``folder``.

    The data are ``examples.jsonl`` with ``learn_from.json``, or ``pairs.jsonl``. RuntimeError, with the processes' own
    error, where one fails; ValueError for more processes than GPUs.
    """
    _enough_gpus(processes)
    write_json(folder / "job.json", job)
    words = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    words += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words += ["-m", "eef.parallel", str(folder)]
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
                    if told and line.startswith("{"):
                        told(*json.loads(line)["told"])
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
    report = learn(job, data, folder, lambda *state: print(json.dumps({"told": state}), flush=True))
    if first():
        write_json(folder / "report.json", report)


def simulate_together(
    policy: dict[str, Any],
    env: TextEnv,
    starts: Sequence[Start],
    processes: int,
    *,
    told: Callable[[int], None] | None = None,
    **settings: Any,
) -> list[Trajectory]:
    """As :func:`eef.rollout.simulate`, the same trajectories in the same order, by ``processes`` workers.

    Each worker has a policy (``policy``: arguments of :meth:`eef.policy.Policy.load`), a GPU, an environment and a
    piece of ``starts`` of its own. An environment of :func:`eef.envs.make_env` is made anew in each, another one must
    be picklable. RuntimeError where a worker fails; ValueError for more processes than GPUs.
    """
    _enough_gpus(processes)
    ends = [len(starts) * place // processes for place in range(processes + 1)]
    parts = [list(starts[a:b]) for a, b in pairwise(ends) if a < b]
    made = getattr(env, "made", None)
    about = (policy, made, None if made else env, env.stamp())
    context = multiprocessing.get_context("spawn")  # a fork would share the parent's CUDA and threads
    found: dict[int, list[Trajectory]] = {}
    pipes: dict[Connection, int] = {}
    workers = []
    try:
        for number, part in enumerate(parts):
            here, there = context.Pipe()
            arguments = (there, number, torch.get_num_threads(), *about, part, settings)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            try:
                worker.start()
            except (TypeError, AttributeError, multiprocessing.ProcessError) as error:
                raise ValueError(
                    f"processes={processes}: the environment cannot be sent to another process ({error}): make it by "
                    "make_env, or set processes=1"
                ) from None
            there.close()
            workers.append(worker)
            pipes[here] = number
        while pipes:
            for pipe in wait(list(pipes)):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except EOFError:
                    workers[pipes[pipe]].join()
                    message = f"it ended with exit code {workers[pipes[pipe]].exitcode}"
                if isinstance(message, str):
                    raise RuntimeError(f"rollout worker {pipes[pipe]} of {len(parts)}: {message}")
                if isinstance(message, int):
                    if told:
                        told(message)
                else:
                    found[pipes.pop(pipe)] = message
    finally:
        for worker in workers:
            if pipes:  # something went wrong
                worker.terminate()
            worker.join()
    return [played for number in sorted(found) for played in found[number]]


def _work(
    pipe: Connection,
    number: int,
    threads: int,
    policy: dict[str, Any],
    made: tuple[str, dict[str, Any]] | None,
    env: TextEnv | None,
    stamp: dict[str, str],
    starts: list[Start],
    settings: dict[str, Any],
) -> None:
    end_with_parent()
    try:
        torch.set_num_threads(threads)
        os.environ["LOCAL_RANK"] = str(number)  # its GPU
        world = make_env(made[0], **made[1]) if made else env
        assert world is not None
        if world.stamp() != stamp:
            raise ValueError(f"the environment that it made has the stamp {world.stamp()}, not {stamp}")
        pipe.send(simulate(Policy.load(**policy), world, starts, told=pipe.send, **settings))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _enough_gpus(processes: int) -> None:
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ValueError(f"processes={processes}, but there are {torch.cuda.device_count()} GPUs: one process for each")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
