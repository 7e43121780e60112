"""What is exported: the examples of a run's SFT stage, or the trajectories of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eef.agents.chat import Chat
from eef.agents.model_files import context_of, options_of
from eef.agents.policy import load_chat
from eef.agents.react import react_chat
from eef.envs import TextEnv, env_from_parameters
from eef.experts import one_shot_example, without_thoughts
from eef.files import RunError, read_json, read_rows
from eef.selection import Example
from eef.trajectory import load


@dataclass(frozen=True)
class Selected:
    """Examples, and the chat in which a model sees them.

    ``name``: the stage or the file. ``chat``: None for texts of the environment. ``context``: the longest conversation
    in tokens, None where no model is known. ``report``: what training wrote about its rows (``sft.json``), empty for a
    file.
    """

    name: str
    examples: list[Example]
    chat: Chat | None = None
    context: int | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


def stages_with(folder: Path, file: str) -> list[str]:
    """The names of a run's stages that contain ``file``, in the order in which the run reached them."""
    reached = dict.fromkeys(row.get("stage") for row in read_rows(folder / "metrics.jsonl"))
    order = {name: place for place, name in enumerate(reached)}
    names = [path.name for path in folder.iterdir() if path.is_symlink() and (path / file).is_file()]
    return sorted(names, key=lambda name: (order.get(name, -1), name))


def choose_stage(folder: Path, file: str, stage: str | None, kind: str) -> str:
    """``stage``, or the last of the run's stages that contain ``file``.

    RunError where there is none, or none of that name; the message calls them stages of ``kind``.
    """
    names = stages_with(folder, file)
    if not names or (stage and stage not in names):
        wanted = f"no stage {stage!r} of {kind}" if stage else f"no stage of {kind}"
        raise RunError(f"{folder.name} has {wanted}; it has {', '.join(names) or 'none'}: choose one with --stage")
    return stage or names[-1]


def selected_by_run(folder: Path, stage: str | None = None, model: str | None = None, plain: bool = False) -> Selected:
    """The examples that an SFT stage of the run in ``folder`` trained on, by default the last one.

    ``model`` replaces the base model's name, where its files have moved. ``plain``: texts of the environment, without
    a chat. :class:`eef.files.RunError` where the stage is missing, or where the chat cannot be made again.
    """
    name = choose_stage(folder, "learn_from.json", stage, "SFT")
    path = folder / name
    trajectories, masks = load(path / "examples.jsonl"), read_json(path / "learn_from.json")
    learn_from = masks["learn_from"]
    if "weights" in masks:
        raise RunError(
            f"{path}: its examples have weights, which no format can hold: choose another stage with --stage (bc), or "
            "export a run of the same method without weights"
        )
    if len(trajectories) != len(learn_from):
        raise RunError(f"{path}: examples.jsonl has {len(trajectories)} examples, learn_from.json {len(learn_from)}")
    examples = [Example(item, begin) for item, begin in zip(trajectories, learn_from, strict=True)]
    inputs = read_json(path / "stage.json")["key"]["inputs"]
    chat = None if plain else chat_of_run(folder, path, model)
    return Selected(name, examples, chat, inputs["model"]["context"], read_json(path / "sft.json"))


def env_of_run(folder: Path) -> TextEnv:
    """The environment of the run in ``folder``, with the run's options. ValueError where it cannot be created."""
    origin, keys = read_json(folder / "config.json"), ("data", "catalogue", "env_options", "max_steps")
    return env_from_parameters({"env": origin["env"], **{k: v for k, v in origin["config"].items() if k in keys}})


_ADVICE = "name the original base model with --model, or use --plain for the environment's own texts"


def chat_of_run(folder: Path, stage: Path, model: str | None = None, advice: str = _ADVICE) -> Chat:
    """The chat with which the run in ``folder`` made the folder ``stage``.

    It is made again from the run's settings, and its hash must be that of the stage. RunError if it is not, which ends
    in ``advice``.
    """
    origin = read_json(folder / "config.json")
    config, name = origin["config"], origin["env"]
    try:
        chat = load_chat(model or config["model"])
    except (OSError, ValueError) as error:
        raise RunError(f"{folder.name}: {error}; --model names the base model where its files have moved") from None
    if config.get("prompt"):
        needs_env = config.get("one_shot") or config.get("env_options")  # options may change the instructions
        env, example = env_of_run(folder) if needs_env else name, None
        if config.get("one_shot"):
            played = [*env.tasks("train")[: config["train"]], *env.tasks("test")[: config.get("test")]]
            example = one_shot_example(env, "train", played)
        chat = react_chat(chat, env, example)
    wanted = read_json(stage / "stage.json")["key"]["inputs"]["chat"]["hash"]
    if chat.hash != wanted:
        raise RunError(
            f"{folder.name}: {stage.name} was made with the chat {wanted}, but {model or config['model']!r} now gives "
            f"{chat.hash}: {advice}"
        )
    return chat


WHICH = ("won", "failed", "all")


def selected_in_file(
    path: Path, which: str = "won", own_turns: bool = False, model: str | None = None, react: str | None = None
) -> Selected:
    """The trajectories of a file: those that ``won``, those that ``failed``, or ``all`` of both.

    All their actions carry loss, except those with ``learn`` false; with ``own_turns`` only those after ``prefix``.
    ``model``: the model whose chat is used (None: texts of the environment). ``react``: the environment whose
    instructions begin the conversations, with ReAct answers (None: the model's own instructions). Without it, a model
    with constrained decoding says actions alone, so thoughts are left out. ValueError where no trajectory is left.
    """
    if react and not model:
        raise ValueError("--prompt react needs --model: it is a part of a model's chat")
    trajectories = load(path)
    if not trajectories:
        raise ValueError(f"{path} is empty")
    wanted = [t for t in trajectories if (t.won and which != "failed") or (t.failed and which != "won")]
    if not wanted:
        raise ValueError(f"{path}: none of {len(trajectories)} trajectories {_VERB[which]}: choose with --which")
    chat = load_chat(model) if model else None
    if react and chat:
        chat = react_chat(chat, react)
    elif model and options_of(model).get("constrained_decoding"):
        wanted = [without_thoughts(item) for item in wanted]
    examples = [Example(item, item.prefix if own_turns else 0) for item in wanted]
    return Selected(path.name, examples, chat, context_of(model) if model else None)


_VERB = {"won": "won", "failed": "failed", "all": "won or failed"}


def loss_turns(examples: Sequence[Example]) -> int:
    """The number of turns that carry loss."""
    return sum(sum(example.mask) for example in examples)
