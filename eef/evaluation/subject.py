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
from eef.tracking.progress import show

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
    - a folder with an adapter, with the instructions and the decoding in its ``chat.json``, or the instructions of its
      base model; the option ``model`` replaces that model
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
        return _adapter(path.resolve(), protocol, _checked(options, POLICY_OPTIONS))
    if "model" in options:
        raise ValueError(f"-p model={options['model']}: {what} is a model itself, leave the option out")
    settings = _settings(protocol, {**_checked(options, POLICY_OPTIONS), "model": what})
    return _policy("model", path.name if path.exists() else what, settings, protocol, None)


def _adapter(folder: Path, protocol: Protocol, options: Mapping[str, Any]) -> Subject:
    from eef.agents.chat import load_options
    from eef.agents.model_files import options_of

    base, own = base_model(folder, str(options.get("model", ""))), load_options(folder)
    decoding = {} if options.get("prompt", protocol.acting.prompt) else own  # with ReAct it is not constrained
    values = {name: value for name, value in decoding.items() if name == "constrained_decoding"}
    settings = _settings(protocol, {**values, **options, "model": base})
    if own and own.get("aliases", "") != (aliases := options_of(base).get("aliases", "")):
        raise ValueError(
            f"the adapter {folder} was trained with aliases {own.get('aliases', '')!r} (its chat.json), but the model "
            f"{base!r} has {aliases!r}: put that chat.json into the model's folder"
        )
    return _policy("adapter", folder.name, settings, protocol, folder)


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
    adapter = tested_adapter(folder)
    own["constrained_decoding"] = _tested_decoding(folder, config)
    changed = _settings(protocol, {**own, **_checked(options, (*POLICY_OPTIONS, "engine"))})
    subject = _policy("run", folder.name, changed, protocol, adapter)
    check_unchanged(folder, config, changed.model, "-p model=FOLDER")
    return replace(subject, train=config.get("train"))


def check_unchanged(run: Path, config: Mapping[str, Any], model: str, option: str) -> None:
    """RunError if the files of ``model`` are not those with which a run was tested; ``option`` names others.

    ``config`` has the run's settings. A folder and a name of the hub have no common record of their files, so only
    their chats are compared. A run without the records costs a warning.
    """
    from eef.agents.model_files import folder_of, options_of
    from eef.exchange.source import chat_of_run

    inputs = _test_inputs(run)
    if not ({"chat", "model"} <= set(inputs) and "model" in inputs["model"]):
        show(f"warning: {run.name} has no record of its chat and its model's files: no change of them can be noticed")
        return
    advice = f"restore the original files, or name a folder that has them by {option}"
    needs_data = config.get("prompt") and (config.get("one_shot") or config.get("env_options"))  # as the run's had
    if not needs_data:
        chat_of_run(run, run / "test", model, f"its chat.json, tokenizer or chat template has changed; {advice}")
    before, now = str(inputs["model"]["model"]), model_key(folder_of(model))
    if before != now and ("@" in before) == ("@" in now):
        own, current = config.get("constrained_decoding"), options_of(model).get("constrained_decoding", False)
        changed = "a file, such as its weights or chat.json,"
        if own is None and _tested_decoding(run, config) not in (None, current):
            changed = "constrained_decoding in its chat.json"
        raise RunError(f"{run.name}: {model!r} is not as in the run's test: {changed} has changed; {advice}")


def tested_chat(run: Path, config: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The contents of a ``chat.json`` with which ``model``, unchanged, is prompted as in a run's test."""
    from eef.agents.model_files import options_of

    options, decoding = options_of(model), _tested_decoding(run, config)
    return {
        **options,
        "instructions": "" if config.get("prompt") else options.get("instructions", ""),
        "constrained_decoding": options.get("constrained_decoding", False) if decoding is None else decoding,
    }


def _tested_decoding(run: Path, config: Mapping[str, Any]) -> bool | None:
    """Whether decoding was constrained in a run's test; None, for the model's ``chat.json``, without a record."""
    own: bool | None = config.get("constrained_decoding")
    return _test_inputs(run).get("acting", {}).get("constrained_decoding") if own is None else own


def current_names(run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run, whose settings may have been recorded under former names."""
    return rename_keys(config, replacements([each.name for each in fields(Settings)]), f"{run.name}/config.json")


def tested_adapter(run: Path) -> Path | None:
    """The folder of the adapter that a run tested, None if it tested the base model.

    RunError if the run was not tested by a policy of ours, or the adapter was removed.
    """
    inputs = _test_inputs(run)
    if "adapter" not in inputs:
        raise RunError(f"{run.name}: an endpoint or a scripted expert played its test episodes, so it has no adapter")
    if (name := inputs["adapter"]) is None:
        return None
    folder = run.parent / "stages" / str(name)
    if not any((folder / weights).is_file() for weights in WEIGHTS):
        raise RunError(f"{run.name}: the tested adapter {name} is not in {folder.parent}: start the run again")
    return folder


def _test_inputs(run: Path) -> dict[str, Any]:
    """What the stage ``test`` of a run was made from. RunError if there is none."""
    if not (run / "test" / "stage.json").is_file():
        raise RunError(f"{run.name} has no test episodes, so no adapter was chosen: start the run again")
    return dict(read_json(run / "test" / "stage.json")["key"]["inputs"])


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
    from eef.agents.chat import load_options
    from eef.agents.model_files import folder_of, options_of
    from eef.lab import resolved

    constrained = resolved(settings).constrained_decoding  # an error for a model that cannot be played
    beside = load_options(adapter) if adapter and kind == "adapter" else {}
    options = beside or options_of(settings.model)
    trained = kind in ("run", "adapter")  # with instructions of its own or of its base model, which it keeps
    instructions = options.get("instructions", "") if trained else protocol.acting.instructions
    acting = Acting(
        prompt=settings.prompt,
        instructions="" if settings.prompt or (options.get("aliases") and not trained) else instructions,
        one_shot=settings.one_shot,
        constrained_decoding=bool(constrained),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.eval_temperature,
    )
    shown = settings.model if not Path(settings.model).exists() else Path(settings.model).name
    identity: dict[str, Any] = {"model": shown, "weights": model_key(folder_of(settings.model))}
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
