"""Warnings about a model and its settings, which need no weights: a dry run prints them too."""

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


def training_warnings(settings: Settings) -> list[str]:
    """Warnings about hyperparameters that do not suit the model."""
    if settings.model in EMBEDDED_MODELS or settings.lr != Settings.lr:
        return []
    return [
        f"lr={settings.lr:g} is the default, chosen for the embedded models. With a language model, LoRA usually needs "
        "1e-4 to 1e-3 and one to three epochs: set lr and epochs"
    ]
