"""Checks of a model and its settings that need no weights, so that a dry run makes them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eef.model_names import EMBEDDED_MODELS
from eef.settings import Settings


def chat_warnings(settings: Settings, options: Mapping[str, Any], env: str) -> list[str]:
    """Warnings about pages of the environment ``env`` and a model with ``options``, those in its ``chat.json``."""
    texts, aliases = [], options.get("aliases")
    if not settings.prompt and not options.get("instructions") and "aliases" not in options:
        texts.append(
            f"the model {settings.model!r} has no instructions, so it sees the pages of {env} without a word on what "
            "to answer. Set prompt='react', or write a file chat.json into the model's folder, such as "
            '{"instructions": "Answer with one action.", "constrained_decoding": true}'
        )
    if aliases and aliases != env:
        texts.append(
            f"the model {settings.model!r} reads words as the symbols of {aliases}, not of {env}: most words lose "
            "their meaning. Use a language model (docs/models.md), or write pages that this model can read "
            "(notebooks/own_environment.py)"
        )
    return texts


def check_prompt(settings: Settings, options: Mapping[str, Any]) -> None:
    """ValueError for a prompt that does not suit a model with ``options``, those in its ``chat.json``."""
    if settings.prompt and options.get("aliases"):
        raise ValueError(
            f"prompt={settings.prompt!r} needs a language model: {settings.model!r} has aliases for words (its "
            "chat.json)"
        )
    constrained = settings.constrained_decoding
    if settings.prompt and (options.get("constrained_decoding", False) if constrained is None else constrained):
        raise ValueError(
            f"prompt={settings.prompt!r} needs constrained_decoding=False: constrained decoding leaves no room for "
            "thoughts"
        )


def training_warnings(settings: Settings) -> list[str]:
    """Warnings about hyperparameters that do not suit the model."""
    if settings.model in EMBEDDED_MODELS:
        return []
    values = {"lr": settings.lr} | ({} if settings.updates else {"epochs": settings.epochs})  # updates replace epochs
    unset = [name for name, value in values.items() if value == getattr(Settings, name)]
    if not unset:
        return []
    shown = " and ".join(f"{name}={values[name]:g}" for name in unset)
    are = "are the defaults" if len(unset) > 1 else "is the default"
    return [
        f"{shown} {are}, chosen for the embedded models. With a language model, LoRA usually needs a learning rate of "
        f"1e-4 to 1e-3 and one to three epochs: set {' and '.join(unset)}"
    ]
