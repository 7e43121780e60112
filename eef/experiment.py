"""One run: train by a method, test, record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eef.agents.actions import problem_counts
from eef.agents.advice import training_warnings
from eef.agents.chat import Chat
from eef.agents.vllm import Server
from eef.analysis import evaluate
from eef.analysis.arms import variant
from eef.analysis.browser import write_views
from eef.envs import TextEnv
from eef.envs.extras import navigation_skills
from eef.files import digest, short_names
from eef.lab import Lab, check_decoding, check_seed, make_chat, resolved
from eef.methods import BUDGET, IN_EVERY_NAME, METHODS, REQUIRED, check_options, method_options, option_problem
from eef.settings import Settings
from eef.tracking.progress import show
from eef.tracking.records import remove_stale_links
from eef.tracking.runs import Run, stamp
from eef.tracking.stages import key_of
from eef.training.trainer import check_optimizer
from eef.trajectory import Trajectory


def experiment(
    method: str,
    env: TextEnv,
    settings: Settings,
    seed: int,
    *,
    options: Mapping[str, Any] | None = None,
    train_tasks: int | None = None,
    test_tasks: int | None = None,
    root: str | Path | None = None,
    wandb: str = "offline",
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train by ``method`` (a name in ``METHODS``, with its ``options``), test, and record; returns the result's row.

    ``train_tasks`` and ``test_tasks`` limit each split to its first subtasks. ``config`` is recorded with the run.
    ``wandb`` shows the run on W&B (:meth:`eef.tracking.runs.Run.open`). An option that equals its default does not
    enter the run's name, except ``n`` and ``m``. ValueError for an unknown method or an invalid seed, TypeError for an
    option that the method does not have and for an environment without ``state_key()``.
    """
    options = dict(options or {})
    check_seed(seed)
    _check(method, options, env, settings, train_tasks, test_tasks)
    defaults = method_options(method)
    options = {name: value for name, value in options.items() if name in IN_EVERY_NAME or value != defaults[name]}
    tasks, test = env.tasks("train")[:train_tasks], env.tasks("test")[:test_tasks]
    chat = make_chat(settings, env, [*tasks, *test])
    check_decoding(settings, env, [*tasks, *test])
    for text in training_warnings(settings):
        show(f"warning: {text}")

    # What the run depends on, and its name
    model_and_settings, environment = key_of(resolved(settings)), key_of(env)
    engine = {"engine": "vllm"} if settings.engine else {}  # not its address: a run can resume with another server
    hashes = {**env.stamp(), "test": digest(test), "policy": model_and_settings["model"], **engine}
    about = {**asdict(settings), **engine, "artefact": settings.artefact, **(config or {}), "method": method, **options}
    about |= {"train": len(tasks), "test": len(test), "environment": environment}
    identity = [model_and_settings, environment, chat.hash, hashes, method, options, digest(tasks)]

    label = _label(method, options, settings.experts)
    record = stamp(hashes, chat.hash)
    run = Run.open(root, env.name, label, seed, about, record, identity=identity, wandb=wandb)
    with run:  # an exception marks the W&B run as failed
        lab = Lab(run, env, settings, seed, tasks, test, chat)
        adapter = METHODS[method](lab, **options)
        result = {
            "method": variant(method, {name: value for name, value in options.items() if name not in BUDGET}),
            "m": {**defaults, **options}.get("m"),
            "n": {**defaults, **options}.get("n"),
            **({"k": options["k"]} if "k" in options else {}),
            "experts": "perfect" if method == "ceiling" else short_names(settings.experts),
            "seed": seed,
            **lab.evaluate(adapter),
            **_budget(lab.simulations, chat),
            **lab.expert_counts,
        }
        remove_stale_links(run.folder, run.stages)
        write_views(run.folder)  # trajectories for reading, which W&B shows
        run.finish(result)
    return {"run_id": run.run_id, "seconds": run.seconds(), **result}


def _check(
    method: str, options: Mapping[str, Any], env: TextEnv, settings: Settings, train_tasks: Any, test_tasks: Any
) -> None:
    """Refuse invalid arguments before anything is trained."""
    if not hasattr(env, "state_key"):
        raise TypeError(
            f"the environment {env.name!r} has no state_key(): return a dictionary of all that changes an observation, "
            "a reward or an available action (see TextEnv in eef/envs/__init__.py); stages are reused by it"
        )
    for name in options:
        if problem := option_problem(method, name):
            raise TypeError(problem)
    for name, default in method_options(method).items():
        if default is REQUIRED and name not in options:
            raise TypeError(f"the method {method!r} needs a value of its option {name!r}")
        value = options.get(name, default)
        if type(default) is bool and type(value) is not bool:  # papermill passes "false" on as a string
            raise ValueError(f"{name}={value!r} must be True or False")
    if settings.engine:
        Server(settings.engine)  # raises for an invalid address
    check_optimizer(settings.optimizer)
    check_options(options)
    navigation_skills(env, options.get("random_navigation", 0.0))  # ValueError for an environment without skills
    limits = {"train_tasks": train_tasks, "test_tasks": test_tasks, "max_steps": env.max_steps}
    for name, count in limits.items():
        if count is not None and (type(count) is not int or count < 1):
            raise ValueError(f"{name}={count!r} must be a positive integer")


def _label(method: str, options: Mapping[str, Any], experts: str) -> str:
    """The part of the run's name that says the method, its options and other experts than the default."""
    changed = "".join(f"_{name}={value}" for name, value in options.items() if name not in BUDGET)
    label = "-".join([method + changed, *(f"{name}{options[name]}" for name in BUDGET if name in options)])
    names = short_names(experts)
    return label if names == Settings.experts else f"{label}-{names}"


def _budget(simulations: Sequence[Trajectory], chat: Chat) -> dict[str, Any]:
    """The columns of the result that count what the method simulated."""
    cost = evaluate.cost(simulations)
    problems = problem_counts(t.info for t in simulations)
    return {
        **{name: value for name, value in cost.items() if name != "errors"},
        "prefilled_tokens": evaluate.tokens_read(chat, simulations),
        "simulation_errors": cost["errors"],
        **{f"simulation_{name}": value for name, value in problems.items()},
    }
