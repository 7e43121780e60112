"""``eef card``: the adapter of a run with its model card, in a folder that huggingface_hub's own command uploads."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eef.evaluation.card import overlap_lines
from eef.evaluation.evaluate import CARD, evaluations
from eef.evaluation.protocol import names
from eef.evaluation.subject import POLICY_OPTIONS, WEIGHTS, check_unchanged, current_names, tested_adapter, tested_chat
from eef.files import RunError, read_json, write_json, write_text
from eef.model_names import EMBEDDED_MODELS
from eef.settings import Settings
from eef.tracking.keys import file_key
from eef.tracking.records import repo_root

_NOT_SHOWN = ("environment", "artefact", "method", "train", "test", "data", "model", "constrained_decoding")
_NOTE = "95 % interval over subtasks, for this one policy; it does not cover other training seeds"


def write_model_card(run: Path, root: Path, out: Path, model: str | None = None) -> Path:
    """Write what a run trained, and ``README.md`` with its model card, to the folder ``out``. Returns ``out``.

    That is the tested adapter, or the full model with the tokenizer, and a ``chat.json`` with instructions and decoding
    of the run's test. The card has the base model, the data, the results of the run's own test and of all evaluations
    of these weights in ``root``, and the commands. ``model`` replaces the base model's name, where its files have
    moved. RunError if the run has no result or no adapter, if the base model has changed, and for a folder ``out`` with
    files that this command did not write.
    """
    if not (run / "result.json").is_file():
        raise RunError(f"{run.name} has no result: it is not finished, start it again")
    adapter = tested_adapter(run)
    if adapter is None:
        raise RunError(f"{run.name} tested the base model, so there is no adapter to share: name another run")
    weights = next(name for name in WEIGHTS if (adapter / name).is_file())
    origin, result, stamp = (read_json(run / f"{name}.json") for name in ("config", "result", "stamp"))
    origin["config"] = config = current_names(run, origin["config"])
    base, files_of = _shared_name(str(config["model"])), model or str(config["model"])
    check_unchanged(run, config, files_of, "--model")
    chat = tested_chat(run, config, files_of)
    with tempfile.TemporaryDirectory() as name:
        new = Path(name) / "new"  # a temporary folder itself is private, and copytree copies its mode
        new.mkdir()
        if weights == WEIGHTS[1]:
            _save_tokenizer(files_of, new)
        for file in ("adapter_config.json", "config.json", "generation_config.json"):
            if (adapter / file).is_file():
                shutil.copyfile(adapter / file, new / file)
        if (new / "adapter_config.json").is_file():  # it may name a folder of this machine
            described = read_json(new / "adapter_config.json")
            write_json(new / "adapter_config.json", {**described, "base_model_name_or_path": base})
        write_json(new / "chat.json", chat)
        cards = list(_cards(evaluations(root), file_key(adapter / weights)))
        write_text(new / "README.md", _readme(run, origin, result, stamp, base, cards, weights, chat))
        wanted = {weights, *(path.name for path in new.iterdir())}
        if others := sorted({path.name for path in out.iterdir()} - wanted) if out.is_dir() else []:
            raise RunError(f"{out} has other files ({', '.join(others[:3])}): choose another folder with --out")
        shutil.copytree(new, out, dirs_exist_ok=True)
    shutil.copyfile(adapter / weights, out / weights)
    return out


def _save_tokenizer(model: str, folder: Path) -> None:
    """Save what a full model needs of its base model: tokenizer with chat template, and generation configuration."""
    from eef.agents.model_files import generation_of, load_tokenizer

    load_tokenizer(model).save_pretrained(folder)
    if generation := generation_of(model):
        generation.save_pretrained(folder)


def _shared_name(model: str) -> str:
    """A model's name for other people: of a folder or a file, which may be on another machine, its last part."""
    from eef.agents.model_files import folder_problem

    is_path = Path(model).exists() or folder_problem(model)
    return Path(model).name if is_path and model not in EMBEDDED_MODELS else model


def _cards(folder: Path, weights: str) -> Iterator[dict[str, Any]]:
    """The cards of complete evaluations of an adapter, by the hash of its weights."""
    for path in sorted(folder.glob(f"*/{CARD}")):
        card = read_json(path)
        if card["subject"].get("adapter") == weights and not card["partial"]:
            yield card


def _readme(
    run: Path,
    origin: Mapping[str, Any],
    result: Mapping[str, Any],
    stamp: Mapping[str, Any],
    base: str,
    cards: list[dict[str, Any]],
    weights: str,
    chat: Mapping[str, Any],
) -> str:
    config, adapter = origin["config"], weights == WEIGHTS[0]
    what = "LoRA adapter" if adapter else "full model"
    lines = [f"# {run.name}", "", f"A {what} of `{base}`, trained by `{origin['method']}` of `eef` on {origin['env']}."]
    if base in EMBEDDED_MODELS:
        lines += ["", f"The base model `{base}` is part of the package `eef`. It is a small model of generated pages."]
    lines += ["", "## Results", ""]
    lines += ["| test | subtasks | win rate | 95 % interval | mean reward |", "|---|---|---|---|---|"]
    lines.append(_row("the run's own test", result["n_test"], result))
    lines += [_row(f"`{card['protocol']['name']}`", card["rates"]["rated"], card["rates"]) for card in cards]
    lines += ["", f"{_NOTE}.", ""]
    if not cards:
        lines += ["No complete evaluation by a named protocol was found.", ""]
    for card in cards:
        lines += [f"`{card['protocol']['name']}` (hash `{card['protocol']['hash']}`): {card['protocol']['title']}."]
        lines += overlap_lines(card["overlap"])
        lines += [f"Known flaw: {card['protocol']['flaw']}"] if card["protocol"]["flaw"] else []
        lines += [
            f"Departs from the protocol: {name} is {used!r}, not {wanted!r}."
            for name, (wanted, used) in card["departures"].items()
        ]
        if not adapter and "instructions" in card["departures"]:
            lines.append("`eef evaluate FOLDER` gives a full model the protocol's instructions: it is another number.")
        lines.append("")
    lines += ["## Data", "", f"- environment: {origin['env']}, {config.get('train')} training subtasks"]
    lines += [f"- experts: {result.get('experts')}"]
    lines += [f"- {name}: `{value}`" for name, value in (stamp.get("hashes") or {}).items()]
    lines += [
        "",
        "## Training",
        "",
        f"Seed {origin['seed']}, commit `{stamp.get('commit')}`. Settings other than the defaults:",
        "",
    ]
    defaults = {name: getattr(Settings(), name) for name in Settings.__dataclass_fields__}
    own = {k: v for k, v in config.items() if k not in _NOT_SHOWN and v != defaults.get(k)}
    lines += [f"- {name}: `{value}`" for name, value in _without_paths(own).items()]
    use = "reads it" if adapter else "uses the protocol's instructions and decoding"
    lines += ["", "## Prompt", "", f"The file `chat.json` has this, and `eef evaluate FOLDER` {use}:", ""]
    lines += [f"- {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in chat.items()]
    if config.get("prompt"):
        lines += ["", "The instructions are those of the environment's ReAct prompt."]
    lines += ["", "## Use", "", "```"]
    if (run / "notebook.ipynb").is_symlink():
        sweep, point = _sweep_and_point((run / "notebook.ipynb").readlink().stem, origin.get("group") or "")
        if (repo_root() / "experiments" / f"{sweep}.yaml").is_file():  # not with overrides, which give another name
            lines += [f"eef sweep {sweep} --only {point}   # trains it again"]
    model = [f"-p model={base}"] if adapter else []  # a full model needs none
    lines += [" ".join([*_command(card, chat), *model]) for card in cards] or [
        " ".join(["eef evaluate FOLDER --protocol NAME", *model])
    ]
    lines += ["```", ""]
    return f"---\n{_metadata(run, origin, base, result, cards, adapter)}\n---\n\n" + "\n".join(lines)


def _command(card: Mapping[str, Any], chat: Mapping[str, Any]) -> list[str]:
    """The words of the command that repeats an evaluation with the adapter in FOLDER; ``chat`` is its ``chat.json``."""
    name, own = card["protocol"]["name"], {each: used for each, (_, used) in card["departures"].items()}
    if card["acting"]["constrained_decoding"] != chat["constrained_decoding"]:
        own["constrained_decoding"] = card["acting"]["constrained_decoding"]
    data = ["-p data=FOLDER_OF_THE_DATA"] if card["protocol"]["data"] else []
    options = [f"-p {shlex.quote(f'{each}={json.dumps(own[each])}')}" for each in POLICY_OPTIONS if each in own]
    return ["eef evaluate FOLDER --protocol", name if name in names() else f"{name}.yaml", *data, *options]


def _sweep_and_point(stem: str, group: str) -> tuple[str, str]:
    """The parts of a notebook's name SWEEP__POINT__HASH, which may contain ``__``; ``group`` is the run's sweep."""
    name = stem.rpartition("__")[0]
    if group and name.startswith(f"{group}__"):
        return group, name.removeprefix(f"{group}__")
    sweep, _, point = name.rpartition("__")
    return sweep, point


def _row(name: str, count: int, rates: Mapping[str, Any]) -> str:
    ends = f"{rates['win_low']:.3f} to {rates['win_high']:.3f}"
    return f"| {name} | {count} | {rates['win_rate']:.3f} | {ends} | {rates['mean_reward']:.3f} |"


def _without_paths(value: Any) -> Any:
    """``value`` without the parts of its dictionaries and lists that are paths."""
    if isinstance(value, Mapping):
        return {k: _without_paths(item) for k, item in value.items() if not (_is_path(k) or _is_path(item))}
    if isinstance(value, list):
        return [_without_paths(item) for item in value if not _is_path(item)]
    return value


def _is_path(value: Any) -> bool:
    """Whether ``value`` is a path of this machine, or contains nothing else."""
    items = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(items, list):
        return bool(items) and all(map(_is_path, items))
    return isinstance(value, str) and "/" in value


def _metadata(
    run: Path,
    origin: Mapping[str, Any],
    base: str,
    result: Mapping[str, Any],
    cards: list[dict[str, Any]],
    adapter: bool,
) -> str:
    """The card's YAML, which the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    rows = [(f"the run's own test ({origin['env']})", result), *((c["protocol"]["name"], c["rates"]) for c in cards)]
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type=origin["env"],
            dataset_name=name,
            dataset_config=name,  # results with one dataset_type and one config are merged
            metric_type=metric,
            metric_value=float(rates[metric]),
        )
        for name, rates in rows
        for metric in ("win_rate", "mean_reward")
    ]
    data = ModelCardData(
        base_model=None if base in EMBEDDED_MODELS else base,
        library_name="peft" if adapter else "transformers",
        tags=["eef", "agent", str(origin["env"])],
        pipeline_tag="text-generation",
        model_name=run.name,
        eval_results=scores,
    )
    return data.to_yaml().strip()
