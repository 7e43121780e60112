"""Simulations as a stage: what they depend on, and who plays them: our engine, several processes, or a server."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eef.agents.chat import Chat
from eef.agents.policy import Policy, load_arguments
from eef.agents.rollout import OnProgress, Start, simulate, streams
from eef.agents.vllm import served
from eef.envs import TextEnv, make_env
from eef.files import write_json
from eef.processes import end_with_parent, enough_gpus
from eef.trajectory import Trajectory

if TYPE_CHECKING:
    from eef.settings import ActingSettings, ModelSettings


@dataclass(frozen=True)
class Simulation:
    """What the simulations of one stage depend on.

    ``acting`` is resolved. ``adapter`` is the folder of a training stage. ``temperature`` 0 is greedy. ``processes``
    play together, one for each GPU; no result depends on it.
    """

    env: TextEnv
    model: ModelSettings
    chat: Chat = field(metadata={"key": lambda chat: chat.hash})
    acting: ActingSettings
    adapter: Path
    starts: Sequence[Start]
    temperature: float
    seed: int
    processes: int = field(default=1, metadata={"key": None})


def play(inputs: Simulation, folder: Path, on_progress: OnProgress) -> list[Trajectory]:
    """The trajectories of ``inputs.starts``, in their order; ``folder`` names the server where one played."""
    model, acting = inputs.model, inputs.acting
    how: dict[str, Any] = {
        "seed": inputs.seed,
        "temperature": inputs.temperature,
        "slots": acting.slots,
        "on_progress": on_progress,
    }
    if acting.engine:
        with served(
            acting.engine, model.model, inputs.adapter, constrained_decoding=acting.constrained_decoding,
            chat=inputs.chat, context=model.context, max_new_tokens=acting.max_new_tokens,
        ) as policy:  # fmt: skip
            write_json(folder / "engine.json", policy.about)
            return simulate(policy, inputs.env, inputs.starts, **how)
    load = {
        **load_arguments(model, inputs.chat, inputs.adapter),
        "constrained_decoding": acting.constrained_decoding,
        "max_new_tokens": acting.max_new_tokens,
    }
    if inputs.processes > 1:
        return simulate_together(load, inputs.env, inputs.starts, inputs.processes, **how)
    return simulate(Policy.load(**load), inputs.env, inputs.starts, **how)


def simulate_together(
    policy: dict[str, Any],
    env: TextEnv,
    starts: Sequence[Start],
    processes: int,
    *,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> list[Trajectory]:
    """As :func:`eef.agents.rollout.simulate`, the same trajectories in the same order, by ``processes`` workers.

    Each worker has a policy (``policy``: arguments of :meth:`eef.agents.policy.Policy.load`), a GPU, an environment and
    a piece of ``starts`` of its own. An environment of :func:`eef.envs.make_env` is made anew in each, another one must
    be picklable. RuntimeError where a worker fails; ValueError for more processes than GPUs.
    """
    enough_gpus(processes)
    ends = [len(starts) * place // processes for place in range(processes + 1)]
    seeds = streams(starts, settings.get("seed", 0))
    parts = [(list(starts[a:b]), seeds[a:b]) for a, b in pairwise(ends) if a < b]
    made = getattr(env, "made", None)
    about = (policy, made, None if made else env, env.state_key())
    context = multiprocessing.get_context("spawn")  # a fork would share the parent's CUDA and threads
    found: dict[int, list[Trajectory]] = {}
    pipes: dict[Connection, int] = {}
    workers = []
    try:
        for number, part in enumerate(parts):
            here, there = context.Pipe()
            arguments = (there, number, torch.get_num_threads(), *about, *part, settings)
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
                if isinstance(message, tuple):
                    if on_progress:
                        on_progress(*message)
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
    state_key: dict[str, Any],
    starts: list[Start],
    seeds: list[list[int]],
    settings: dict[str, Any],
) -> None:
    end_with_parent()
    try:
        torch.set_num_threads(threads)
        os.environ["LOCAL_RANK"] = str(number)  # its GPU
        world = make_env(made[0], **made[1]) if made else env
        assert world is not None
        if world.state_key() != state_key:
            raise ValueError(f"the environment that it made has the state key {world.state_key()}, not {state_key}")
        loaded = Policy.load(**policy)
        pipe.send(simulate(loaded, world, starts, seeds=seeds, on_progress=lambda *more: pipe.send(more), **settings))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
