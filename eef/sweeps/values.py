"""The values of a sweep's points, checked before anything runs: environment, sizes, settings, experts, model.

The comment beside a parameter in the notebook says what it is. ``env`` is checked where its comment says ``name of an
environment``, with the parameters of :func:`eef.envs.env_from_parameters`; the settings are checked where the notebook
declares all of them. Expert files are replayed (:mod:`eef.experts.check`). Equal values are checked once. Embedded
models are checked without importing torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from eef.agents.advice import chat_warnings, check_prompt, training_warnings
from eef.agents.chat import load_options
from eef.envs import EnvError, TextEnv, env_from_parameters
from eef.envs.extras import navigation_skills
from eef.experts import expert_sources, on_tasks
from eef.experts.check import check_lines, refuse_divergent
from eef.files import did_you_mean, digest
from eef.model_names import EMBEDDED_MODELS, PACKAGED_MODELS
from eef.settings import Settings
from eef.sweeps.spec import SweepError
from eef.tracking.keys import model_key
from eef.trajectory import Trajectory

_ENVIRONMENT = ("env", "data", "catalogue", "env_options", "max_steps")
_SECONDS = 5.0  # for one question to the hub


def check_values(known: Mapping[str, Mapping[str, str]], points: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Check complete sets of parameters of a notebook that declares ``known``. Returns notices for the user.

    ``where`` begins each message. :class:`SweepError` for a value with which a point cannot run.
    """
    from eef.methods import check_options

    notices: list[str] = []
    try:
        if all(each.name in known for each in fields(Settings)):  # else its n and m may mean something else
            for parameters in points:
                check_options(parameters)
            for parameters in _distinct(points, [each.name for each in fields(Settings)]):
                notices += _check_settings(parameters)
        if re.match(r"name of an environment\b", known.get("env", {}).get("help", "").strip("# ")):
            for parameters in _distinct(points, _ENVIRONMENT):
                same = [p for p in points if all(p.get(name) == parameters.get(name) for name in _ENVIRONMENT)]
                notices += _check_in_environment(parameters, same)
    except (ValueError, EnvError, OSError, ImportError, TypeError) as error:
        raise SweepError(f"{where}: {error}") from None
    return [f"{where}: {notice}" for notice in dict.fromkeys(notices)]


def _distinct(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """One point for each set of values of the parameters ``names``."""
    return list({digest({name: point.get(name) for name in names}): point for point in points}.values())


def _check_settings(parameters: Mapping[str, Any]) -> list[str]:
    """Check the settings and the model. Returns warnings, with those about the pages of an environment."""
    settings = Settings.from_parameters(parameters)
    if settings.engine:
        from eef.agents.vllm_server import Server

        Server(settings.engine)  # ValueError for an invalid address
    check_model(settings.model)
    embedded = EMBEDDED_MODELS.get(settings.model)
    if embedded is None or not (embedded / "model.safetensors").is_file():  # tests resolve the embedded models
        from eef.lab import resolved  # imports torch

        resolved(settings)
    texts = training_warnings(settings)
    if (options := _chat_options(settings.model)) is not None and "env" in parameters:
        check_prompt(settings, options)
        texts += chat_warnings(settings, options, parameters["env"])
    return [f"warning: {text}" for text in texts]


def _chat_options(model: str) -> dict[str, Any] | None:
    """The options in a model's ``chat.json``; None for a name of the hub."""
    path = EMBEDDED_MODELS.get(model) or Path(model).expanduser()
    return load_options(path if path.is_dir() else path.parent) if path.exists() else None


def _check_in_environment(parameters: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Create the environment of ``points`` and check what depends on it. Returns notices about sizes."""
    limit = parameters.get("max_steps")
    if type(limit) is int and limit < 1:
        raise ValueError(f"max_steps={limit} must be a positive integer")
    env = env_from_parameters(parameters)
    try:
        notices = []
        for name, split in (("train_tasks", "train"), ("test_tasks", "test")):
            available = len(env.tasks(split))
            for count in dict.fromkeys(point.get(name) or 0 for point in points):
                if count < 0:
                    raise ValueError(f"{name}={count} must be a positive integer, or 0 for all")
                if count > available:
                    notices.append(f"{name}={count}, but there are {available} {split} subtasks: all of them are used")
        for point in points:
            navigation_skills(env, point.get("random_navigation", 0.0))  # ValueError if env has no skills
        if all("experts" in point for point in points):
            for point in _distinct(points, ("experts", "expert_noise", "train_tasks", "divergent_experts")):
                notices += check_experts(env, point)
        return notices
    finally:
        getattr(env, "close", lambda: None)()


def check_experts(env: TextEnv, point: Mapping[str, Any]) -> list[str]:
    """Check that the experts of ``point`` exist. Read and replay their files, as the run will do.

    Returns notices: trajectories that are dropped, and experts without a win or without a failure. ValueError or
    OSError for a file that is invalid, has no trajectory on the training subtasks, or diverges from ``env`` unless
    ``divergent_experts`` is ``drop``.
    """
    tasks = env.tasks("train")[: point.get("train_tasks") or None]
    notices: list[str] = []
    sources = expert_sources(env, point["experts"], point.get("expert_noise"))
    trajectories: list[Trajectory] = []
    for source in sources:
        if isinstance(source, Path):
            report = check_lines(str(source), on_tasks(source, tasks), env)
            if point.get("divergent_experts") != "drop":
                refuse_divergent(report.trajectories)
            if report.divergences:
                notices.append(f"{report.first_line}; these are dropped (divergent_experts=drop)")
            trajectories += report.trajectories
    if all(isinstance(source, Path) for source in sources):  # scripted experts play later
        counts = f"experts={point['experts']}: of {len(trajectories)} trajectories on the training subtasks"
        if not any(item.won for item in trajectories):
            notices.append(f"warning: {counts} none won: methods that learn from expert wins stop")
        if not any(item.failed for item in trajectories):
            notices.append(f"warning: {counts} none failed: EEF, which explores failures, stops")
    return notices


def check_model(name: str) -> None:
    """Check quickly that a model exists: an embedded one, a folder, a GGUF file, or one of the hub.

    A name of the hub must be in the local cache, or the hub must know it. ValueError or OSError if not.
    """
    if name in EMBEDDED_MODELS:
        return
    if name in PACKAGED_MODELS:
        from eef.agents.model_files import folder_of

        folder_of(name)  # FileNotFoundError if it has not been fetched
        return
    path = Path(name).expanduser()
    if path.exists():
        model_key(name)  # ValueError for an adapter
        from eef.agents.model_files import folder_problem  # imports torch

        if problem := folder_problem(str(path)):
            raise ValueError(f"model={name!r}: {problem}, or name another model")
        return
    known = f"{', '.join(EMBEDDED_MODELS)}, a folder, a GGUF file, or a name of the hub"
    problem = _hub_problem(name)
    if problem:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, EMBEDDED_MODELS)}: {problem}; use {known}")


def _hub_problem(name: str) -> str:
    """Why a model of the hub cannot be used; empty if it can."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub import errors as hub

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return ""
        HfApi().model_info(name, timeout=_SECONDS)
    except hub.HFValidationError:
        return "there is no such file or folder"
    except hub.GatedRepoError:
        return "the hub asks for its licence to be accepted, and for a token (hf auth login)"
    except hub.RepositoryNotFoundError:
        return "there is no such folder, and the hub has no such model"
    except Exception as error:  # no network raises many classes
        reason = type(error).__name__
        return f"there is no such folder, it is not in the hub's cache, and the hub cannot be reached ({reason})"
    return ""
