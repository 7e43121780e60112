"""Simulations as a stage, played in this process, in several processes, or by a vLLM server."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from pickle import PicklingError
from typing import Any

from eef.agents.chat import Chat
from eef.agents.episode import Start, streams
from eef.agents.invalid_actions import OnWarning, print_warning
from eef.agents.journal import Journal
from eef.agents.policy import Policy, load_arguments
from eef.agents.random_navigation import RandomNavigation
from eef.agents.rollout import OnEnd, OnProgress, OnTurn, simulate
from eef.agents.vllm import served
from eef.envs import TextEnv, make_env
from eef.files import write_json
from eef.processes import check_gpu_count, end_with_parent, use_threads
from eef.settings import ActingSettings, ModelSettings
from eef.trajectory import Trajectory


@dataclass(frozen=True)
class Simulation:
    """The inputs of a stage of simulations.

    ``acting`` is resolved. ``adapter`` is the folder of an adapter or a full model; None for the base model.
    ``temperature`` 0 is greedy. ``navigation`` adds random navigation. ``processes`` share the work, one for each GPU;
    no result depends on their number.
    """

    env: TextEnv
    model: ModelSettings
    chat: Chat = field(metadata={"key": lambda chat: chat.key})
    acting: ActingSettings
    adapter: Path | None
    starts: Sequence[Start]
    temperature: float
    seed: int
    navigation: RandomNavigation | None = None
    processes: int = field(default=1, metadata={"key": None})


def run_simulations(
    inputs: Simulation,
    folder: Path,
    on_progress: OnProgress,
    on_turn: OnTurn | None = None,
    journal: Path | None = None,
) -> list[Trajectory]:
    """The trajectories of ``inputs.starts``, in their order.

    If a server played, its description goes into ``engine.json`` in ``folder``. Finished episodes are saved in the file
    ``journal``, and those that are in it already are not played again.
    """
    model, acting = inputs.model, inputs.acting
    options: dict[str, Any] = {
        "seed": inputs.seed,
        "temperature": inputs.temperature,
        "navigation": inputs.navigation,
        "slots": acting.slots,
        "on_progress": on_progress,
        "on_turn": on_turn,
    }
    if acting.engine:
        with served(
            acting.engine, model.model, inputs.adapter, constrained_decoding=acting.constrained_decoding,
            chat=inputs.chat, context=model.context, max_new_tokens=acting.max_new_tokens,
        ) as policy:  # fmt: skip
            write_json(folder / "engine.json", policy.about)
            return _play(partial(simulate, policy, inputs.env, **options), inputs, options, journal)
    load = {
        **load_arguments(model, inputs.chat, inputs.adapter),
        "constrained_decoding": acting.constrained_decoding,
        "max_new_tokens": acting.max_new_tokens,
        "instructions": inputs.chat.instructions,
    }
    if inputs.processes > 1:
        together = partial(simulate_together, load, inputs.env, processes=inputs.processes, **options)
        return _play(together, inputs, options, journal)
    local = Policy.load(**load)
    use_threads(local.model)
    return _play(partial(simulate, local, inputs.env, **options), inputs, options, journal)


def _play(play: Callable[..., Any], inputs: Simulation, options: dict[str, Any], path: Path | None) -> list[Trajectory]:
    """The trajectories of all starts. Those in the journal at ``path`` are read, and ``play`` plays the others."""
    journal, seeds = Journal.open(path), streams(inputs.starts, inputs.seed)
    todo = journal.missing(range(len(inputs.starts)), options["on_progress"])
    if todo:
        play(
            starts=[inputs.starts[number] for number in todo], seeds=[seeds[number] for number in todo],
            on_end=lambda place, trajectory: journal.append(todo[place], trajectory),
        )  # fmt: skip
    return [journal.episodes[number] for number in range(len(inputs.starts))]


def simulate_together(
    policy: dict[str, Any],
    env: TextEnv,
    starts: Sequence[Start],
    processes: int,
    *,
    seeds: Sequence[Sequence[int]] | None = None,
    on_progress: OnProgress | None = None,
    on_turn: OnTurn | None = None,
    on_end: OnEnd | None = None,
    on_warning: OnWarning = print_warning,
    **options: Any,
) -> list[Trajectory]:
    """As :func:`eef.agents.rollout.simulate`, with the starts divided among ``processes`` workers.

    The trajectories and their order are the same. Each worker loads the policy (``policy``: arguments of
    :meth:`eef.agents.policy.Policy.load`) on its own GPU and has its own environment: a new one if ``env`` was made by
    :func:`eef.envs.make_env`, else a copy, and then it must be picklable. RuntimeError if a worker fails; ValueError
    for more processes than GPUs.
    """
    check_gpu_count(processes)
    ends = [len(starts) * number // processes for number in range(processes + 1)]
    seeds = streams(starts, options.get("seed", 0)) if seeds is None else seeds
    parts = [(a, list(starts[a:b]), seeds[a:b]) for a, b in pairwise(ends) if a < b]
    recipe = getattr(env, "make_env_arguments", None)
    shared = (policy, recipe, None if recipe else env, env.state_key())
    context = multiprocessing.get_context("spawn")  # a fork would share the parent's CUDA and threads
    results: dict[int, Trajectory] = {}
    pipes: dict[Connection, int] = {}
    workers = []
    has_warned = False
    try:
        for number, part in enumerate(parts):
            our_end, worker_end = context.Pipe()
            arguments = (worker_end, number, processes, *shared, *part, options)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            try:
                worker.start()
            except (TypeError, AttributeError, PicklingError, multiprocessing.ProcessError) as error:
                raise ValueError(
                    f"processes={processes}: the environment cannot be sent to another process ({error}): create it "
                    "with make_env, or set processes=1"
                ) from None
            worker_end.close()
            workers.append(worker)
            pipes[our_end] = number
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
                    if len(message) == 2 and on_turn:
                        on_turn(*message)
                    elif len(message) == 3 and on_progress:
                        on_progress(*message)
                elif isinstance(message, _Warning):
                    if not has_warned:
                        on_warning(message.text)
                    has_warned = True
                elif isinstance(message, _Ended):
                    results[message.number] = message.trajectory
                    if on_end:
                        on_end(message.number, message.trajectory)
                else:
                    del pipes[pipe]
    finally:
        for worker in workers:
            if pipes:  # a worker failed
                worker.terminate()
            worker.join()
    return [results[number] for number in range(len(starts))]


@dataclass(frozen=True)
class _Warning:
    """A warning that a worker sends."""

    text: str


@dataclass(frozen=True)
class _Ended:
    """An episode that a worker sends, with the number of its start among all starts."""

    number: int
    trajectory: Trajectory


def _work(
    pipe: Connection,
    number: int,
    processes: int,
    policy: dict[str, Any],
    recipe: tuple[str, dict[str, Any]] | None,
    env: TextEnv | None,
    state_key: dict[str, Any],
    first: int,
    starts: list[Start],
    seeds: list[list[int]],
    options: dict[str, Any],
) -> None:
    """What a worker does: sends progress as tuples, warnings and episodes, then None; a failure as a string.

    ``first`` is the number of its first start.
    """
    end_with_parent()
    try:
        os.environ["LOCAL_RANK"] = str(number)  # its GPU
        own_env = make_env(recipe[0], **recipe[1]) if recipe else env
        assert own_env is not None
        if own_env.state_key() != state_key:
            raise ValueError(f"the worker's environment has the state key {own_env.state_key()}, not {state_key}")
        loaded = Policy.load(**policy)
        use_threads(loaded.model, processes)
        send_progress: OnProgress = lambda *counts: pipe.send(counts)  # noqa: E731
        send_turn: OnTurn = lambda *counts: pipe.send(counts)  # noqa: E731
        callbacks: dict[str, Any] = {"on_progress": send_progress, "on_turn": send_turn}
        callbacks["on_warning"] = lambda text: pipe.send(_Warning(text))
        callbacks["on_end"] = lambda place, trajectory: pipe.send(_Ended(first + place, trajectory))
        simulate(loaded, own_env, starts, seeds=seeds, **callbacks, **options)
        pipe.send(None)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
