"""Who is evaluated: a base model, an adapter, the tested adapter of a run, a served model, an endpoint, an expert."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from eef.analysis.compare import find
from eef.envs import TextEnv
from eef.envs.extras import extras_of
from eef.evaluation.protocol import Acting, Protocol
from eef.experts.endpoint import Expert, read_key
from eef.files import RunError, did_you_mean, read_json
from eef.model_names import EMBEDDED_MODELS
from eef.settings import Settings
from eef.sweeps.renamed import rename_keys, replacements
from eef.tracking.keys import file_key, model_key

WEIGHTS = ("adapter_model.safetensors", "model.safetensors")  # of an adapter, of a full model
POLICY_OPTIONS = (
    "model", "quantize", "dtype", "context", "slots", "prompt", "one_shot", "constrained_decoding", "max_new_tokens",
)  # fmt: skip


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


_ENDPOINT_OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "body": ("a mapping, such as {seed: 1}", lambda value: isinstance(value, Mapping)),
    "concurrency": ("a positive integer", lambda value: type(value) is int and value >= 1),
    "rpm": ("a positive number", lambda value: value is None or _is_positive(value)),
    "retries": ("an integer of at least 0", lambda value: type(value) is int and value >= 0),
    "timeout": ("a positive number", _is_positive),
    "one_shot": ("true or false", lambda value: isinstance(value, bool)),
}


@dataclass(frozen=True)
class Subject:
    """Who is evaluated. ``kind``: model, adapter, run, server, endpoint or expert; ``name`` for people.

    ``acting`` is how it answers; the departures from the protocol are on the card. ``settings`` for a policy of ours.
    ``train``: how many training subtasks a run used, for its one-shot example. ``identity``: what answers depend on.
    """

    kind: str
    name: str
    acting: Acting | None
    identity: Mapping[str, Any]
    settings: Settings | None = None
    adapter: Path | None = None
    endpoint: Expert | None = None
    train: int | None = None


def read_subject(
    what: str, protocol: Protocol, env: TextEnv, options: Mapping[str, Any], runs: Path, key_variable: str
) -> Subject:
    """The subject that ``what`` names:

    - ``expert:NAME``: a scripted expert of the environment; ``expert:perfect`` errs never
    - ``openai:MODEL@URL``: an OpenAI-compatible endpoint, whose key is in the variable ``key_variable``
    - ``http://HOST:PORT``: a vLLM server; the option ``model`` says which model it serves
    - the id or the folder of a run: the adapter that the run tested, with the run's instructions, prompt and decoding
    - a folder with an adapter, with the instructions of its base model; the option ``model`` replaces that model
    - the name, the folder or the GGUF file of a base model

    ``options`` are those of the command line (``-p``), ``runs`` the folder of all runs. ValueError for an unknown
    option and for a name that fits nothing; RunError for an unknown run and one that was not tested.
    """
    if what.startswith("expert:"):
        return _expert(what.removeprefix("expert:"), env, options)
    if what.startswith("openai:"):
        return _endpoint(what.removeprefix("openai:"), protocol, options, key_variable)
    if what.startswith(("http://", "https://")):
        if "model" not in options:
            raise ValueError(f"{what}: add -p model=NAME, the model that the server has")
        settings = _settings(protocol, {**_checked(options, POLICY_OPTIONS), "engine": what})
        return _policy("server", settings.model, settings, protocol, None)
    path = Path(what)
    if (path / "config.json").is_file() and "run_id" in read_json(path / "config.json"):
        return _run(path.resolve(), protocol, options)
    if "__" in what and not path.exists():
        return _run(find(runs, what), protocol, options)
    if (path / "adapter_config.json").is_file():
        base = base_model(path, str(options.get("model", "")))
        settings = _settings(protocol, {**_checked(options, POLICY_OPTIONS), "model": base})
        return _policy("adapter", path.resolve().name, settings, protocol, path.resolve())
    if "model" in options:
        raise ValueError(f"-p model={options['model']}: {what} is a model itself, leave the option out")
    settings = _settings(protocol, {**_checked(options, POLICY_OPTIONS), "model": what})
    return _policy("model", path.name if path.exists() else what, settings, protocol, None)


def base_model(folder: Path, wanted: str = "") -> str:
    """The base model of an adapter: ``wanted``, or the one that the adapter names."""
    named = wanted or str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    if not named:
        raise ValueError(f"the adapter {folder} names no base model: add -p model=NAME")
    inside = {str(path): name for name, path in EMBEDDED_MODELS.items()}
    return inside.get(named, named)


def _run(folder: Path, protocol: Protocol, options: Mapping[str, Any]) -> Subject:
    config = current_names(folder, read_json(folder / "config.json").get("config") or {})
    if {"protocol", "subject"} <= set(config):
        raise RunError(f"{folder.name} is an evaluation, not a run: name the model or the run that it evaluated")
    known = {each.name for each in fields(Settings)} - {"engine", "eval_temperature", "experts", "expert_noise"}
    own = {name: value for name, value in asdict(Settings()).items() if name in known}
    own |= {name: value for name, value in config.items() if name in known}
    changed = _settings(protocol, {**own, **_checked(options, (*POLICY_OPTIONS, "engine"))})
    subject = _policy("run", folder.name, changed, protocol, tested_adapter(folder))
    return replace(subject, train=config.get("train"))


def current_names(run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run, whose settings may have been recorded under former names."""
    return rename_keys(config, replacements([each.name for each in fields(Settings)]), f"{run.name}/config.json")


def tested_adapter(run: Path) -> Path | None:
    """The folder of the adapter that a run tested, None if it tested the base model.

    RunError if the run was not tested by a policy of ours, or the adapter was removed.
    """
    if not (run / "test" / "stage.json").is_file():
        raise RunError(f"{run.name} has no test episodes, so no adapter was chosen: start the run again")
    inputs = read_json(run / "test" / "stage.json")["key"]["inputs"]
    if "adapter" not in inputs:
        raise RunError(f"{run.name}: an endpoint or a scripted expert played its test episodes, so it has no adapter")
    if (name := inputs["adapter"]) is None:
        return None
    folder = run.parent / "stages" / str(name)
    if not any((folder / weights).is_file() for weights in WEIGHTS):
        raise RunError(f"{run.name}: the tested adapter {name} is not in {folder.parent}: start the run again")
    return folder


def _checked(options: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    for name in options:
        if name not in known:
            use = f"use {', '.join(known)}" if known else "there is none to set"
            raise ValueError(f"-p {name}: there is no such option here{did_you_mean(name, known)}; {use}")
    return dict(options)


def _settings(protocol: Protocol, options: Mapping[str, Any]) -> Settings:
    """The settings of a policy: those of the protocol, replaced by ``options``."""
    acting = protocol.acting
    values = {name: getattr(acting, name) for name in ("prompt", "one_shot", "constrained_decoding", "max_new_tokens")}
    return Settings(**{**values, "eval_temperature": acting.temperature, **options})


def _policy(kind: str, name: str, settings: Settings, protocol: Protocol, adapter: Path | None) -> Subject:
    from eef.agents.model_files import options_of
    from eef.lab import resolved

    constrained = resolved(settings).constrained_decoding  # an error for a model that cannot be played
    options = options_of(settings.model)
    trained = kind in ("run", "adapter")  # with the instructions of its base model, which it keeps
    instructions = options.get("instructions", "") if trained else protocol.acting.instructions
    acting = Acting(
        prompt=settings.prompt,
        instructions="" if settings.prompt or options.get("aliases") else instructions,
        one_shot=settings.one_shot,
        constrained_decoding=bool(constrained),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.eval_temperature,
    )
    model: Any = EMBEDDED_MODELS.get(settings.model, settings.model)
    shown = settings.model if not Path(settings.model).exists() else Path(settings.model).name
    identity: dict[str, Any] = {"model": shown, "weights": model_key(str(model))}
    identity |= {each: getattr(settings, each) for each in ("quantize", "dtype", "context")}
    if adapter:
        identity["adapter"] = next(file_key(adapter / file) for file in WEIGHTS if (adapter / file).is_file())
    if settings.engine:
        identity["engine"] = "vllm"
    return Subject(kind, name, acting, identity, settings, adapter)


def _expert(name: str, env: TextEnv, options: Mapping[str, Any]) -> Subject:
    _checked(options, ())
    scripted = extras_of(env).experts
    known = ["perfect", *(scripted.noise if scripted else ())]
    if scripted is None or name not in known:
        raise ValueError(
            f"no scripted expert {name!r} of {env.name}: use {', '.join(known) if scripted else 'a model'}"
        )
    noise = scripted.perfect if name == "perfect" else scripted.noise[name]
    return Subject("expert", name, None, {"expert": name, "noise": asdict(noise)})


def _endpoint(where: str, protocol: Protocol, options: Mapping[str, Any], key_variable: str) -> Subject:
    model, at, url = where.rpartition("@")
    if not (at and model):
        raise ValueError(f"openai:{where}: write openai:MODEL@URL, such as openai:gpt@http://localhost:8000/v1")
    acting, values = protocol.acting, _checked(options, tuple(_ENDPOINT_OPTIONS))
    for name, value in values.items():
        wanted, is_valid = _ENDPOINT_OPTIONS[name]
        if not is_valid(value):
            raise ValueError(f"-p {name}={value!r} must be {wanted}")
    body = {"max_tokens": acting.max_new_tokens if acting.prompt == "react" else 512}
    settings = {name: value for name, value in values.items() if name != "one_shot"}
    settings |= {"temperature": acting.temperature, "body": {**body, **settings.get("body", {})}}
    expert = Expert(model=model, base_url=url, key=read_key(key_variable), **settings)
    answers = Acting(
        prompt="react",
        instructions="",
        one_shot=values.get("one_shot", acting.one_shot),
        constrained_decoding=False,
        max_new_tokens=expert.fields.get("max_completion_tokens", expert.fields.get("max_tokens")),
        temperature=expert.fields.get("temperature"),
    )
    identity = {"model": model, "address": expert.address, "request": expert.fields}
    return Subject("endpoint", model, answers, identity, endpoint=expert)
